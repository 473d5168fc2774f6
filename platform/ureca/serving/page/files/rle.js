// COCO's compressed run lengths: point queries and outlines of masks.
//
// A mask is stored by columns, top to bottom; counts alternate between pixels outside and inside. Here a mask is its
// runs, [start, end, start, end, …] of the pixels inside, never a bitmap.

/** Decode a `counts` string: 5 bits per character offset by "0", the 6th bit continues a number; from the fourth
 * number on, each is the difference to the one two before. */
const countsOf = (text) => {
  const counts = [];
  for (let at = 0; at < text.length; ) {
    let value = 0, shift = 0, bits;
    do {
      bits = text.charCodeAt(at++) - 48;
      value |= (bits & 31) << shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) value |= -1 << shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
};

export const runsOf = (rle) => {
  const runs = [];
  let at = 0;
  countsOf(rle.counts).forEach((count, index) => {
    if (index % 2 && count) runs.push(at, at + count);
    at += count;
  });
  return runs;
};

/** Return whether pixel (x, y) is inside; `height` is the image's. */
export const contains = (runs, height, x, y) => {
  const pixel = x * height + y;
  let low = 0, high = runs.length; // number of run ends at or before the pixel: odd means inside
  while (low < high) {
    const middle = (low + high) >> 1;
    if (runs[middle] <= pixel) low = middle + 1;
    else high = middle;
  }
  return low % 2 === 1;
};

/** Return the outline along pixel edges as the `d` of an SVG path with fill rule evenodd. */
export const outline = (runs, height) => {
  const columns = columnsOf(runs, height);
  const next = new Map(); // corner -> ends of its edges, with the inside on the right
  const corner = (x, y) => x * (height + 1) + y;
  const edge = (from, to) => (next.has(from) ? next.get(from).push(to) : next.set(from, [to]));
  for (const [x, ends] of columns) {
    for (let at = 0; at < ends.length; at += 2) {
      edge(corner(x, ends[at]), corner(x + 1, ends[at]));
      edge(corner(x + 1, ends[at + 1]), corner(x, ends[at + 1]));
    }
    sides(columns.get(x - 1) ?? [], ends, (top, bottom, insideLeft) =>
      insideLeft ? edge(corner(x, top), corner(x, bottom)) : edge(corner(x, bottom), corner(x, top)));
    if (!columns.has(x + 1)) sides(ends, [], (top, bottom) => edge(corner(x + 1, top), corner(x + 1, bottom)));
  }
  return [...next.keys()].map((start) => loops(next, start, height + 1)).join("");
};

/** Return x -> [top, bottom, top, bottom, …] of the runs in that column. */
const columnsOf = (runs, height) => {
  const columns = new Map();
  for (let at = 0; at < runs.length; at += 2) {
    for (let start = runs[at]; start < runs[at + 1]; ) {
      const x = Math.floor(start / height), end = Math.min(runs[at + 1], (x + 1) * height);
      if (!columns.has(x)) columns.set(x, []);
      columns.get(x).push(start - x * height, end - x * height);
      start = end;
    }
  }
  return columns;
};

/** Call `found` for every stretch where exactly one of two neighboring columns is inside. */
const sides = (left, right, found) => {
  let [i, j, from] = [0, 0, 0];
  while (i < left.length || j < right.length) {
    const y = Math.min(left[i] ?? Infinity, right[j] ?? Infinity);
    if (i % 2 !== j % 2) found(from, y, i % 2 === 1);
    while (left[i] === y) i++;
    while (right[j] === y) j++;
    from = y;
  }
};

/** Return the closed lines that start at a corner, removing their edges from `next`. */
const loops = (next, start, stride) => {
  let path = "";
  while (next.get(start).length) {
    const corners = [start];
    for (let at = next.get(start).pop(); at !== start; at = next.get(at).pop()) corners.push(at);
    const places = corners.map((at) => [Math.floor(at / stride), at % stride]);
    const turns = places.filter(([x, y], index) => {
      const before = places.at(index - 1), after = places[(index + 1) % places.length];
      return !(before[0] === x && x === after[0]) && !(before[1] === y && y === after[1]);
    });
    path += `M${turns.map((place) => place.join(" ")).join(" ")}Z`;
  }
  return path;
};

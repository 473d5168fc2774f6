// Export of an image's captions as COCO captions JSON, which `ureca convert --format coco` reads: copy and download.

import { keyOf } from "./captions.js";

const KEYS = { caption: "unique", short_caption: "brief", long_caption: "detailed" };

export const cocoOf = ({ name, width, height }, regions, model) => ({
  info: { description: "Captions of regions", model },
  licenses: [],
  categories: [{ id: 1, name: "region", supercategory: "region" }],
  images: [{ id: 1, file_name: name, height, width }],
  annotations: regions.map((region, index) => ({
    id: index + 1, image_id: 1, category_id: 1, iscrowd: 0, region_id: region.id,
    ...Object.fromEntries(Object.entries(KEYS).map(([key, style]) => [key, whole(region, keyOf({ model, style }))])),
    ...answersOf(region, model),
    segmentation: region.rle, area: region.area, bbox: region.bbox, parent_id: region.parent, depth: region.depth,
  })),
});

const whole = (region, key) => {
  const said = region.said.get(key);
  return said && !said.busy && !said.error ? said.text : null;
};

const answersOf = (region, model) => {
  const begin = keyOf({ model, style: "? " }); // prefix of the keys of questions to this model
  const questions = [...region.said.keys()].filter((key) => key.startsWith(begin) && whole(region, key) !== null);
  return questions.length ? { answers: questions.map((key) => ({ question: key.slice(begin.length), answer: whole(region, key) })) } : {};
};

/** Copy a text to the clipboard; return whether that worked. */
export const copy = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without TLS, browsers offer pages only this old clipboard API.
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "unseen" });
    document.body.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    return copied;
  }
};

export const download = (name, text) => {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000); // after the browser has started to read it
};

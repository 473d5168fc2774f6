// The image with its regions: shows, highlights and picks them, and draws new ones by pointer or keyboard.

import { makeSvg } from "./make.js";
import { contains } from "./rle.js";

const NEAR_PX = 9; // screen distance: closing a polygon at its first corner, or a click instead of a drag
const STEP = 0.02; // share of the image's longer side per arrow key

export class Stage {
  /** `onPick` and `onHover` receive the ids of the regions at a point, smallest first; `onDraw` receives {box} or
   * {polygon} in the service's format; `onMode` the mode and whether a drawing has started. */
  constructor(element, { onPick, onHover, onDraw, onMode }) {
    Object.assign(this, { element, onPick, onHover, onDraw, onMode });
    this.image = element.querySelector("img");
    this.svg = element.querySelector("svg");
    this.regions = [];
    this.paths = new Map();
    this.mode = "pick";
    this.points = [];
    element.addEventListener("pointerdown", (event) => this.#down(event));
    element.addEventListener("pointermove", (event) => this.#move(event));
    element.addEventListener("pointerup", (event) => this.#up(event));
    element.addEventListener("pointerleave", () => this.mode === "pick" && this.onHover([]));
    element.addEventListener("pointercancel", () => this.#begin());
    element.addEventListener("dblclick", () => this.mode === "polygon" && this.close());
    element.addEventListener("click", (event) => this.pressedIn === "pick" && this.onPick(this.#at(this.#place(event))));
    element.addEventListener("keydown", (event) => this.#key(event));
  }

  show({ name, url, width, height }) {
    Object.assign(this, { width, height });
    this.image.src = url;
    this.image.alt = `The image ${name}`;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.element.style.setProperty("--ratio", width / height);
    this.setRegions([]);
    this.setMode("pick");
  }

  setRegions(regions) {
    this.regions = [...regions].sort((a, b) => a.area - b.area);
    this.shade = makeSvg("path", { class: "shade", "fill-rule": "evenodd" });
    this.draft = makeSvg("g", { class: "draft" });
    this.paths = new Map(regions.map((region) => {
      const path = makeSvg("path", { d: region.outline, "fill-rule": "evenodd", "data-region": region.id });
      path.style.setProperty("--hue", region.hue);
      return [region.id, path];
    }));
    this.svg.replaceChildren(this.shade, ...this.paths.values(), this.draft);
  }

  /** Highlight the hovered and the chosen region; null for neither. */
  mark(pointed, chosen) {
    for (const [id, path] of this.paths) {
      path.classList.toggle("pointed", id === pointed);
      path.classList.toggle("chosen", id === chosen);
    }
    const path = this.paths.get(chosen);
    const whole = `M0 0H${this.width}V${this.height}H0Z`;
    this.shade.setAttribute("d", path ? whole + path.getAttribute("d") : "");
  }

  setMode(mode) {
    this.mode = mode;
    this.element.dataset.mode = mode;
    const drawing = mode !== "pick";
    for (const [name, value] of [["tabindex", "0"], ["role", "application"], ["aria-label", `Draw a ${mode}`]]) {
      drawing ? this.element.setAttribute(name, value) : this.element.removeAttribute(name);
    }
    this.cursor = [Math.round(this.width / 2), Math.round(this.height / 2)];
    this.#begin();
    if (drawing) this.element.focus({ preventScroll: true });
  }

  /** Finish the polygon. */
  close() {
    if (this.points.length > 2) this.#finish({ polygon: this.points.flat() });
  }

  cancel() {
    this.points.length ? this.#begin() : this.setMode("pick");
  }

  #begin() {
    this.points = [];
    this.#redraw();
  }

  #finish(shape) {
    this.setMode("pick");
    this.onDraw(shape);
  }

  #place({ clientX, clientY }) {
    const { left, top, width, height } = this.svg.getBoundingClientRect();
    const inside = (value, most) => Math.min(Math.max(value * most, 0), most);
    return [inside((clientX - left) / width, this.width), inside((clientY - top) / height, this.height)];
  }

  #at([x, y]) {
    const pixel = [Math.min(Math.floor(x), this.width - 1), Math.min(Math.floor(y), this.height - 1)];
    return this.regions.filter((region) => contains(region.runs, this.height, ...pixel)).map((region) => region.id);
  }

  #isNear([x, y], [otherX, otherY]) {
    const scale = this.svg.getBoundingClientRect().width / this.width;
    return Math.hypot(x - otherX, y - otherY) * scale < NEAR_PX;
  }

  #down(event) {
    this.pressedIn = this.mode; // the click that ends a drawing must not pick a region
    if (this.mode === "pick" || event.button !== 0) return;
    event.preventDefault();
    this.element.focus({ preventScroll: true });
    this.element.setPointerCapture(event.pointerId);
    this.cursor = this.#place(event);
    if (this.mode === "box" && !this.points.length) this.points = [this.cursor];
    this.#redraw();
  }

  #move(event) {
    if (this.mode === "pick") {
      if (event.pointerType === "mouse") this.onHover(this.#at(this.#place(event)));
      return;
    }
    this.cursor = this.#place(event);
    this.#redraw();
  }

  #up(event) {
    if (this.mode === "pick" || event.button !== 0) return;
    this.cursor = this.#place(event);
    if (this.mode === "polygon") this.#setCorner();
    // A click without a drag sets the first corner; the next click sets the other.
    else if (!this.#isNear(this.cursor, this.points[0])) this.#setCorner();
  }

  #setCorner() {
    const place = this.cursor.map((value) => Math.round(10 * value) / 10);
    const [first, last] = [this.points[0], this.points.at(-1)];
    if (this.mode === "box" && first) {
      const [x, y] = [Math.min(first[0], place[0]), Math.min(first[1], place[1])];
      const [width, height] = [Math.abs(first[0] - place[0]), Math.abs(first[1] - place[1])];
      if (width >= 1 && height >= 1) this.#finish({ box: [x, y, width, height] });
      return;
    }
    if (this.points.length > 2 && this.#isNear(place, first)) {
      this.close();
      return;
    }
    if (!last || !this.#isNear(place, last)) this.points.push(place); // a double click adds one corner
    this.#redraw();
  }

  #key(event) {
    const [right, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    if (this.mode === "pick" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (right !== undefined) {
      const step = (event.shiftKey ? 5 : 1) * STEP * Math.max(this.width, this.height);
      const [x, y] = this.cursor;
      this.cursor = [Math.min(Math.max(x + right * step, 0), this.width), Math.min(Math.max(y + down * step, 0), this.height)];
      this.#redraw();
    } else if (event.key === " ") this.#setCorner();
    else if (event.key === "Enter") this.mode === "polygon" ? this.close() : this.#setCorner();
    else if (event.key === "Escape") this.cancel();
    else return;
    event.preventDefault();
  }

  #redraw() {
    if (this.mode === "pick") {
      this.draft?.replaceChildren();
    } else {
      const [x, y] = this.cursor, [first] = this.points;
      const line = this.mode === "box" && first ? [first, [x, first[1]], [x, y], [first[0], y], first] : [...this.points, [x, y]];
      const arm = Math.max(this.width, this.height) / 40;
      const corners = this.points.map(([cornerX, cornerY]) => `M${cornerX} ${cornerY}h0`).join("");
      this.draft.replaceChildren(
        makeSvg("path", { class: "line", d: `M${line.map((place) => place.join(" ")).join(" ")}` }),
        makeSvg("path", { class: "corner", d: corners }),
        makeSvg("path", { class: "cross", d: `M${x - arm} ${y}h${2 * arm}M${x} ${y - arm}v${2 * arm}` }));
    }
    this.onMode(this.mode, this.points.length);
  }
}

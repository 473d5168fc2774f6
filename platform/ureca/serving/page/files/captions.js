// Captions as they stream in, and what is kept of them.
//
// A region keeps one caption for each thing it was asked: `region.said` maps `keyOf` a model and a style or question to
// {text, busy, error, cut}. What was cut off by another choice is forgotten, so that it is asked for again.

import { stream } from "./api.js";

export const keyOf = ({ model, style, question }) => `${model}\n${question ? `? ${question}` : style}`;

export class Captioner {
  /** `onChange` gets each region of which something was said; `onRun` is called when asking begins and ends. */
  constructor({ onChange, onRun }) {
    Object.assign(this, { onChange, onRun });
    this.running = null; // {controller, key, regions}
  }

  /** How many of the running captions are there. */
  get numDone() {
    const { regions, key } = this.running;
    return regions.filter((region) => !region.said.get(key)?.busy).length;
  }

  /** Whether a region's caption is there, or on its way. */
  has(region, ask) {
    const said = region.said.get(keyOf(ask));
    return said !== undefined && !said.error;
  }

  stop() {
    if (!this.running) return;
    const { controller, key, regions } = this.running;
    this.running = null;
    controller.abort();
    for (const region of regions) {
      if (region.said.get(key)?.busy) this.#set(region, key, null);
    }
    this.onRun();
  }

  /** Ask for captions of regions of an image; ends when the last is there. Cuts off what was running. */
  async ask(dataUrl, regions, { model, style, question }) {
    this.stop();
    const key = keyOf({ model, style, question }), controller = new AbortController();
    this.running = { controller, key, regions };
    this.onRun();
    for (const region of regions) this.#set(region, key, { text: "", busy: true });
    const byId = new Map(regions.map((region) => [region.id, region]));
    const asked = regions.map(({ id, rle }) => (question ? { id, rle, question } : { id, rle }));
    const body = { model, image: dataUrl, regions: asked, style };
    try {
      for await (const event of stream("v1/captions", body, controller.signal)) {
        const region = byId.get(event.id);
        if (!region) continue; // the usage, at the end
        const said = region.said.get(key);
        if (event.delta !== undefined) this.#set(region, key, { ...said, text: said.text + event.delta });
        else if (event.error) this.#set(region, key, { text: "", error: event.error.message });
        else this.#set(region, key, { text: event.caption, cut: event.finish_reason === "length" });
      }
    } finally {
      if (this.running?.controller === controller) this.stop();
    }
  }

  #set(region, key, said) {
    said ? region.said.set(key, said) : region.said.delete(key);
    this.onChange(region);
  }
}

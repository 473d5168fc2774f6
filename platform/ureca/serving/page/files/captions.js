// Captions as they stream in, and a cache of finished ones.
//
// A region has one caption per request: `region.said` maps `keyOf` a model and a style or question to
// {text, busy, error, cut}. A caption that was canceled by another choice is dropped, so that it is requested again.

import { stream } from "./api.js";

export const keyOf = ({ model, style, question }) => `${model}\n${question ? `? ${question}` : style}`;

export class Captioner {
  /** `onChange` receives each region with a new caption piece; `onRun` is called when captioning starts and ends. */
  constructor({ onChange, onRun }) {
    Object.assign(this, { onChange, onRun });
    this.running = null; // {controller, key, regions}
  }

  /** Number of finished captions of the running request. */
  get numDone() {
    const { regions, key } = this.running;
    return regions.filter((region) => !region.said.get(key)?.busy).length;
  }

  /** Return whether a region's caption is finished or in progress. */
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

  /** Caption regions of an image; resolves after the last caption. Cancels a running request. */
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

// The region tree, navigated with arrow keys; Tab reaches one item at a time.

import { make } from "./make.js";

export class Tree {
  /** `onChoose` and `onHover` receive a region's id; `onHover` null when no region is hovered. */
  constructor(list, { onChoose, onHover }) {
    Object.assign(this, { list, onChoose, onHover });
    this.items = new Map();
    const idOf = (event) => event.target.closest("[role=treeitem]")?.dataset.region ?? null;
    list.addEventListener("click", (event) => idOf(event) !== null && this.onChoose(idOf(event)));
    list.addEventListener("pointerover", (event) => event.pointerType === "mouse" && this.onHover(idOf(event)));
    list.addEventListener("pointerleave", () => this.onHover(null));
    list.addEventListener("focusin", (event) => { this.#reach(idOf(event)); this.onHover(idOf(event)); });
    list.addEventListener("focusout", () => this.onHover(null));
    list.addEventListener("keydown", (event) => this.#key(event));
  }

  setRegions(regions) {
    this.items = new Map();
    const below = (parent) => regions.filter((region) => (region.parent ?? null) === parent).map((region) => {
      const badge = make("span", { class: "badge" }, region.id);
      badge.style.setProperty("--hue", region.hue);
      const text = make("span", { class: "text", id: `region-${region.id}` });
      const parts = below(region.id);
      const item = make("li", { role: "treeitem", tabindex: "-1", "data-region": region.id,
        "aria-labelledby": text.id, "aria-selected": "false" }, make("div", { class: "row" }, badge, text));
      if (parts.length) item.append(make("ul", { role: "group" }, ...parts));
      this.items.set(region.id, item);
      return item;
    });
    this.list.replaceChildren(...below(null));
    // In display order, which the arrow keys follow.
    this.items = new Map([...this.list.querySelectorAll("[role=treeitem]")].map((item) => [item.dataset.region, item]));
    this.#reach(this.items.keys().next().value ?? null);
  }

  say(id, text, { soft = false, busy = false } = {}) {
    const element = this.items.get(id).querySelector(".text");
    element.textContent = text;
    element.classList.toggle("soft", soft);
    element.classList.toggle("busy", busy);
  }

  mark(pointed, chosen) {
    for (const [id, item] of this.items) {
      item.firstChild.classList.toggle("pointed", id === pointed);
      item.setAttribute("aria-selected", String(id === chosen));
    }
  }

  /** Make an item reachable by Tab and scroll it into view within the list, without scrolling the page. */
  reveal(id) {
    this.#reach(id);
    if (this.list.scrollHeight > this.list.clientHeight) this.items.get(id).firstChild.scrollIntoView({ block: "nearest" });
  }

  #reach(id) {
    for (const [each, item] of this.items) item.tabIndex = each === id ? 0 : -1;
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const item = event.target.closest("[role=treeitem]"), all = [...this.items.values()];
    const to = {
      ArrowDown: () => all[all.indexOf(item) + 1],
      ArrowUp: () => all[all.indexOf(item) - 1],
      ArrowRight: () => item.querySelector("[role=treeitem]"),
      ArrowLeft: () => item.parentElement.closest("[role=treeitem]"),
      Home: () => all[0],
      End: () => all.at(-1),
    }[event.key];
    if (to) to()?.focus();
    else if (event.key === "Enter" || event.key === " ") this.onChoose(item.dataset.region);
    else return;
    event.preventDefault();
  }
}

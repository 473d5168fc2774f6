// The gallery of a region table. Two faces: the sheet (pages of thumbnails) and the view of one image, by the address:
//   #  or nothing: sheet      #7: image 7      #7/12: image 7 with region 12 open (both counted from 0)
// Records hold all text and are read once; pictures are blocks of their own, read when they are shown.
// Text from the table only ever becomes text nodes.
"use strict";
(() => {
  const PER_PAGE = 24;
  const $ = (selector) => document.querySelector(selector);
  const images = JSON.parse($("#records").textContent);
  const picture = (number) => JSON.parse($(`#picture-${number}`).textContent);

  const make = (tag, attributes = {}, ...children) => {
    const svg = tag === "svg" || tag === "path";
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  };
  const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  const percent = (share) => (share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

  // ---- filters: an image is found if it is of the status asked for and one of its regions is found

  const form = $("#filters"), fields = form.elements;
  const filter = { words: [], status: "", flag: "", depth: "", size: "" };
  let found = []; // [{ number, regions: Set of the regions found, or null where no region was asked for }]
  let page = 0;

  const count = (values) => values.reduce((sums, value) => sums.set(value, (sums.get(value) ?? 0) + 1), new Map());
  const options = (select, every, entries) =>
    select.replaceChildren(
      make("option", { value: "" }, every),
      ...entries.map(([value, label, sum]) => make("option", { value }, `${label} (${sum.toLocaleString("en")})`)),
    );
  const all = images.flatMap((image) => image.regions);

  const fillFilters = () => {
    const kinds = count(images.filter((image) => image.error).map((image) => image.error.kind));
    const flags = count(all.flatMap((region) => region.flags));
    const flagged = all.filter((region) => region.flags.length).length;
    const depths = count(all.map((region) => region.depth)), sizes = count(all.map((region) => region.size));
    options(fields.status, "Every image", [
      ...[...count(images.map((image) => image.status))].map(([status, sum]) => [`status ${status}`, status, sum]),
      ...[...kinds].map(([kind, sum]) => [`kind ${kind}`, `quarantined: ${kind}`, sum]),
    ]);
    options(fields.flag, "Flagged or not", [
      ["flagged", "flagged", flagged],
      ["fine", "not flagged", all.length - flagged],
      ...[...flags].map(([flag, sum]) => [`flag ${flag}`, `flagged: ${flag}`, sum]),
    ]);
    options(fields.depth, "Any depth", [...depths].sort((a, b) => a[0] - b[0])
      .map(([depth, sum]) => [String(depth), depth === 0 ? "depth 0, whole" : `depth ${depth}`, sum]));
    options(fields.size, "Any size", ["tiny", "small", "medium", "large", "huge"].filter((size) => sizes.has(size))
      .map((size) => [size, size, sizes.get(size)]));
  };

  const holds = (text, words) => words.every((word) => text.includes(word));
  const imageText = (image) =>
    (image.text ??= [image.id, image.path, image.error?.kind, image.error?.message].join("\n").toLowerCase());
  const regionText = (region) =>
    (region.text ??= [region.id, region.caption, region.long, region.short].join("\n").toLowerCase());
  const rightStatus = (image) => {
    const [what, value] = [filter.status.split(" ", 1)[0], filter.status.slice(filter.status.indexOf(" ") + 1)];
    return !filter.status || (what === "status" ? image.status === value : image.error?.kind === value);
  };
  const rightFlag = (region) => {
    if (filter.flag === "flagged") return region.flags.length > 0;
    if (filter.flag === "fine") return region.flags.length === 0;
    return region.flags.includes(filter.flag.slice("flag ".length));
  };
  const findRegions = (image) => {
    const byWords = filter.words.length && !holds(imageText(image), filter.words);
    if (!byWords && !filter.flag && !filter.depth && !filter.size) return null;
    return new Set(image.regions.flatMap((region, index) =>
      (!byWords || holds(regionText(region), filter.words)) &&
      (!filter.flag || rightFlag(region)) &&
      (!filter.depth || region.depth === Number(filter.depth)) &&
      (!filter.size || region.size === filter.size) ? [index] : []));
  };

  const applyFilters = () => {
    filter.words = fields.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const name of ["status", "flag", "depth", "size"]) filter[name] = fields[name].value;
    found = images.flatMap((image, number) => {
      if (!rightStatus(image)) return [];
      const regions = findRegions(image);
      return regions === null || regions.size ? [{ number, regions }] : [];
    });
    const regions = found.reduce((sum, each) => sum + (each.regions?.size ?? images[each.number].regions.length), 0);
    fields.found.value = `${plural(regions, "region")} in ${plural(found.length, "image")}`;
    page = 0;
  };

  // ---- the sheet

  const showSheet = () => {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const cards = found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(card);
    $("#sheet .cards").replaceChildren(...(cards.length ? cards : [make("p", { class: "notice" }, "Nothing is like that.")]));
    const step = (label, by, name) => {
      const button = make("button", { type: "button", "aria-label": name }, label);
      button.disabled = page + by < 0 || page + by >= pages;
      button.addEventListener("click", () => turn(by));
      return button;
    };
    $("#sheet .pager").replaceChildren(
      ...(pages > 1 ? [step("‹", -1, "Page before"), `page ${page + 1} of ${pages}`, step("›", 1, "Next page")] : []));
  };
  const turn = (by) => {
    page += by;
    showSheet();
    window.scrollTo(0, 0);
  };
  const card = ({ number, regions }) => {
    const image = images[number], flagged = image.regions.filter((region) => region.flags.length).length;
    const { jpeg } = picture(number);
    const thumb = jpeg ? make("img", { alt: "", src: `data:image/jpeg;base64,${jpeg}` }) : make("span", {}, "no picture");
    const words = image.error
      ? make("span", { class: "flag" }, `${image.error.kind}: ${image.error.message}`)
      : make("span", { class: "soft" }, regions ? `${regions.size} of ${plural(image.regions.length, "region")}`
        : plural(image.regions.length, "region"), flagged ? make("span", { class: "flag" }, ` · ${flagged} flagged`) : "");
    return make("a", { class: "card", href: `#${number}` },
      make("span", { class: "thumb" }, thumb), make("span", { class: "name" }, image.id), words);
  };

  // ---- the view of one image

  let shown = null; // { number, image, rows, paths, open }

  const showView = (number) => {
    const image = images[number], { jpeg, missing, height, width, paths } = picture(number);
    const place = found.findIndex((each) => each.number === number);
    const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      ...paths.map((d, index) => make("path", {
        d, "data-region": index, "fill-rule": "evenodd", style: `--c:${image.regions[index].color}` })));
    const stage = make("div", { class: "stage", style: `aspect-ratio:${width}/${height};--ratio:${width / height}` },
      jpeg ? make("img", { alt: `${image.id}, with its regions`, src: `data:image/jpeg;base64,${jpeg}` })
        : make("p", { class: "notice" }, missing), svg);
    const toggle = make("label", { class: "soft" }, make("input", { type: "checkbox", id: "outlines" }), " outlines");
    toggle.firstChild.checked = !$("#view").classList.contains("bare");
    toggle.firstChild.addEventListener("change", toggleOutlines);
    const regions = found[place]?.regions ?? null;
    shown = { number, image, rows: [], paths: [...svg.children], open: null };
    const shade = make("path", { class: "shade", "fill-rule": "evenodd" }); // all but the open region
    svg.prepend(shade);
    shown.shade = (region) =>
      shade.setAttribute("d", region === null ? "" : `M0,0H${width}V${height}H0Z${paths[region]}`);
    $("#view").replaceChildren(
      make("nav", { class: "crumbs", "aria-label": "Images" },
        make("a", { href: "#", class: "back" }, "← All images"),
        neighbor("‹", place - 1, "Image before"), neighbor("›", place + 1, "Next image"),
        make("span", { class: "soft" }, place < 0 ? "not among the images found" : `${place + 1} of ${found.length}`)),
      make("h2", { tabindex: "-1" }, image.id),
      make("div", { class: "pair" },
        make("figure", {}, stage,
          make("p", { class: "pointed", "aria-hidden": "true" }),
          make("figcaption", {}, image.regions.length ? toggle : "", origin(image))),
        make("div", { class: "tree" }, image.error ? problem(image.error) : "", tree(image, regions, -1) ?? "")));
    shown.paths.forEach((path, region) => {
      path.classList.toggle("dim", regions !== null && !regions.has(region));
      path.addEventListener("mouseenter", () => point(region));
      path.addEventListener("mouseleave", () => point(null));
      path.addEventListener("click", () => go(number, shown.open === region ? null : region));
    });
  };
  const neighbor = (label, place, name) => {
    const there = found[place];
    return there ? make("a", { href: `#${there.number}`, class: "step", "aria-label": name }, label)
      : make("span", { class: "step off", "aria-hidden": "true" }, label);
  };
  const problem = (error) => make("div", { class: "notice" },
    make("p", {}, make("b", {}, `Quarantined in step ${error.step}: ${error.kind}`)), make("p", {}, error.message));

  const origin = (image) => {
    const [height, width] = image.size;
    const facts = [["image", image.path ?? "in the table"], ...(width ? [["size", `${width} × ${height}`]] : []),
      ...image.facts, ...image.notes.map(([name, sum]) => [`masks: ${name}`, sum])];
    return make("details", {}, make("summary", {}, "Where it comes from"),
      make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))])));
  };

  const tree = (image, regions, parent) => {
    const items = image.regions.flatMap((region, index) =>
      region.parent === parent ? [make("li", {}, row(image, index, regions), tree(image, regions, index) ?? "")] : []);
    return items.length ? make("ul", {}, ...items) : null;
  };
  const row = (image, index, regions) => {
    const region = image.regions[index];
    const button = make("button", { type: "button", class: "row", "aria-expanded": "false" }, badge(image, index),
      make("span", {}, words(region.caption ?? region.long ?? region.short),
        ...region.flags.map((flag) => make("span", { class: "flag tag" }, flag))));
    const element = make("div", { class: "region", "data-region": index }, button);
    element.classList.toggle("dim", regions !== null && !regions.has(index));
    element.addEventListener("mouseenter", () => point(index));
    element.addEventListener("mouseleave", () => point(null));
    button.addEventListener("focus", () => point(index));
    button.addEventListener("blur", () => point(null));
    button.addEventListener("click", () => go(shown.number, shown.open === index ? null : index));
    shown.rows[index] = element;
    return element;
  };
  const badge = (image, index) =>
    make("span", { class: "badge", style: `--c:${image.regions[index].color}` }, String(index + 1));

  const words = (text) => {
    if (!text) return make("i", { class: "soft" }, "no words");
    if (!filter.words.length) return text;
    const escaped = filter.words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    const parts = text.split(new RegExp(`(${escaped.join("|")})`, "i")); // every second part is a hit
    return make("span", {}, ...parts.map((part, index) => (index % 2 ? make("mark", {}, part) : part)));
  };

  const details = (image, index) => {
    const region = image.regions[index], [x, y, width, height] = region.box;
    const said = [["short", region.short], ["long", region.long], ["unique", region.caption]];
    const facts = [`${percent(region.share)} of the image, ${region.size}`, `${plural(region.area, "pixel")} in ${width} × ${height} at ${x}, ${y}`,
      `id ${region.id}`, region.merged.length ? `merged with ${region.merged.join(", ")}` : null,
      region.uniqueness === null ? null : `uniqueness ${region.uniqueness.toFixed(2)}`,
      ...region.attributes.map(([name, value]) => `${name.replaceAll("_", " ")}: ${value}`)];
    return make("div", { class: "more" },
      make("dl", { class: "captions" },
        ...said.flatMap(([kind, text]) => [make("dt", {}, kind), make("dd", {}, words(text))])),
      region.distractors.length ? make("h3", {}, "May be taken for") : "",
      make("ul", { class: "distractors" }, ...region.distractors.map((each) => distractor(image, each))),
      make("p", { class: "soft" }, facts.filter(Boolean).join(" · ")));
  };
  const distractor = (image, [index, similarity, distinct]) => {
    const other = image.regions[index];
    const button = make("button", { type: "button", class: "link" }, badge(image, index), make("span", {}, words(other.caption)));
    button.addEventListener("click", () => go(shown.number, index));
    button.addEventListener("mouseenter", (event) => { event.stopPropagation(); point(index); });
    return make("li", {}, button, make("span", { class: "soft" }, `${similarity.toFixed(2)} alike · `,
      distinct ? make("span", { class: "distinct" }, `distinguished by: ${distinct.replaceAll("_", " ")}`) : make("span", { class: "flag" }, "not distinguished")));
  };

  const point = (region) => {
    if (!shown) return; // a row that had the focus is gone with its image
    const on = region ?? shown.open;
    shown.paths.forEach((path, index) => path.classList.toggle("on", index === on));
    shown.rows.forEach((element, index) => element.classList.toggle("on", index === on));
    const text = on === null ? "" : shown.image.regions[on].caption ?? shown.image.regions[on].short ?? "";
    $("#view .pointed").replaceChildren(...(on === null ? [] : [badge(shown.image, on), text]));
  };
  const openRegion = (region) => {
    const { image, rows, paths } = shown;
    shown.open = region;
    rows.forEach((element, index) => {
      element.querySelector(".row").setAttribute("aria-expanded", String(index === region));
      element.querySelector(".more")?.remove();
      if (index === region) element.append(details(image, index));
    });
    const alike = new Set(region === null ? [] : image.regions[region].distractors.map(([index]) => index));
    paths.forEach((path, index) => path.classList.toggle("alike", alike.has(index)));
    shown.shade(region);
    $("#view").classList.toggle("chosen", region !== null);
    point(null);
    if (region !== null) rows[region].scrollIntoView({ block: "nearest" });
  };
  const toggleOutlines = () => {
    const bare = $("#view").classList.toggle("bare");
    if ($("#outlines")) $("#outlines").checked = !bare;
  };

  // ---- the address, and keys

  const go = (number, region) => {
    history.replaceState(null, "", region === null ? `#${number}` : `#${number}/${region}`);
    follow();
  };
  const follow = () => {
    const [, number, region] = location.hash.match(/^#(\d+)(?:\/(\d+))?$/) ?? [];
    const isView = number !== undefined && Number(number) < images.length;
    const before = shown?.number ?? null;
    $("#sheet").hidden = isView;
    $("#view").hidden = !isView;
    document.body.classList.toggle("viewing", isView);
    if (!isView) {
      shown = null;
      showSheet();
      if (before !== null) $(`#sheet a[href="#${before}"]`)?.focus();
      return;
    }
    if (before !== Number(number)) {
      showView(Number(number));
      window.scrollTo(0, 0);
      $("#view h2").focus({ preventScroll: true });
    }
    const last = images[number].regions.length;
    openRegion(region !== undefined && Number(region) < last ? Number(region) : null);
  };

  const refresh = () => {
    applyFilters();
    if (shown) {
      const { number, open } = shown;
      showView(number);
      openRegion(open);
    } else showSheet();
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", refresh);
  form.addEventListener("reset", () => setTimeout(refresh)); // after the fields are empty
  window.addEventListener("hashchange", follow);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input[type=search], select");
    if (typing) {
      if (event.key === "Escape") typing.blur();
      return;
    }
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.key === "/") fields.words.focus();
    else if (event.key === "o" || event.key === "O") toggleOutlines();
    else if (event.key === "Escape" && shown) shown.open === null ? (location.hash = "") : go(shown.number, null);
    else if (by && event.key.match(/Left|Right/)) {
      const link = shown && $(`#view .step[aria-label="${by < 0 ? "Image before" : "Next image"}"]`);
      if (link) location.hash = link.getAttribute("href");
      else if (!shown) turn(by);
    } else if (by && shown) {
      const rows = [...document.querySelectorAll("#view .row")];
      rows[Math.min(Math.max(rows.indexOf(document.activeElement) + by, 0), rows.length - 1)]?.focus();
    } else return;
    event.preventDefault();
  });

  fillFilters();
  applyFilters();
  follow();
})();

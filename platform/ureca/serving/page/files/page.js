// The page: an image, its regions and their captions. All data comes from this service.

import { fileOf, post, serviceIndex } from "./api.js";
import { Captioner, keyOf } from "./captions.js";
import { cocoOf, copy, download } from "./coco.js";
import { $ } from "./make.js";
import { readPicture } from "./picture.js";
import { outline, runsOf } from "./rle.js";
import { Stage } from "./stage.js";
import { Tree } from "./tree.js";
import { attempt } from "./trouble.js";

let picture = null; // {name, url, dataUrl, width, height, note}
let regions = []; // {id, parent, depth, area, bbox, rle, runs, outline, hue, said}: parents before children
let chosen = null; // the region shown in the card
let asked = { model: undefined, style: "unique", question: "" }; // for every region, until changed
let smallest = null; // id of the smallest region at the last click
let looking = null; // AbortController of the region requests for this picture
let turn = Promise.resolve(); // queue of those requests: each one starts from the regions of the previous one

const byId = (id) => regions.find((region) => region.id === id) ?? null;
const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
const say = (text) => { $("#status").textContent = text; };

// ---- an image and its regions

const open = (name, file) => attempt(async () => {
  const next = await readPicture(name, await file());
  captioner.stop();
  looking?.abort();
  looking = new AbortController();
  if (picture) URL.revokeObjectURL(picture.url);
  picture = next;
  for (const [selector, hidden] of [["#start", true], ["#work", false], ["#another", false], ["#keys", false]]) {
    $(selector).hidden = hidden;
  }
  stage.show(picture);
  setRegions([]);
  $("#content").focus({ preventScroll: true });
  window.scrollTo(0, 0);
  inTurn(findRegions);
});

/** Run a change of this picture's regions after earlier changes are done. */
const inTurn = (action) => {
  const its = picture;
  turn = turn.then(() => its === picture && attempt(action));
};

const findRegions = async () => {
  say("Finding regions …");
  const found = (await post("v1/regions", { image: picture.dataUrl }, looking.signal)).regions;
  setRegions(found);
  say([`${plural(found.length, "region")} found.`, picture.note].join(" "));
};

const setRegions = (nodes) => {
  const wrong = nodes.find(({ rle: { size } }) => size[0] !== picture.height || size[1] !== picture.width);
  if (wrong) throw new Error(`The service reads ${wrong.rle.size.toReversed().join(" × ")} pixels in this image, the ` +
    `browser ${picture.width} × ${picture.height}. Save it again without an EXIF orientation.`);
  const before = new Map(regions.map((region) => [region.id, region]));
  regions = nodes.map(({ id, parent = null, depth, area, bbox, rle }) => {
    const known = before.get(id);
    const runs = known?.runs ?? runsOf(rle);
    return { id, parent, depth, area, bbox, rle, runs, outline: known?.outline ?? outline(runs, picture.height),
      hue: Math.round(Number(id) * 137.5) % 360, said: known?.said ?? new Map() };
  });
  stage.setRegions(regions);
  tree.setRegions(regions);
  regions.forEach(tellInTree);
  setChosen(null);
  for (const name of ["all", "copy", "save"]) $(`#${name}`).disabled = !regions.length;
};

/** Add a drawn region; the service returns its mask and its parent. */
const addDrawn = (shape) => inTurn(async () => {
  captioner.stop();
  say("Reading the region …");
  const id = String(1 + Math.max(0, ...regions.map((region) => Number(region.id))));
  const all = [...regions.map(({ id, rle }) => ({ id, rle })), { id, ...shape }];
  const answer = await post("v1/trees", { image: picture.dataUrl, regions: all, captions: false }, looking.signal);
  const fault = answer.dropped.find((each) => each.id === id);
  if (fault) throw new Error(fault.error.message);
  setRegions(answer.regions);
  const kept = answer.regions.find((each) => each.id === id || each.merged_ids.includes(id));
  say(kept.id === id ? `Region ${id} was added.` : `Your drawing nearly equals region ${kept.id}.`);
  choose(kept.id);
});

// ---- captions

const captioner = new Captioner({
  onChange: (region) => {
    tellInTree(region);
    if (region === chosen) tellInCard();
    const count = captioner.running?.regions.length;
    if (count > 1) say(`${captioner.numDone} of ${plural(count, "caption")}`);
  },
  onRun: () => {
    const many = captioner.running?.regions.length > 1, had = document.activeElement;
    $("#stop").hidden = !many;
    $("#all").hidden = many;
    if (had === $("#all") && many) $("#stop").focus();
    if (had === $("#stop") && !many) $("#all").focus();
  },
});

const caption = (which) => attempt(() => captioner.ask(picture.dataUrl, which, asked));

const choose = (id) => {
  setChosen(byId(id));
  if (!captioner.has(chosen, asked)) caption([chosen]);
  // A single caption may run next to a caption-all request, but is canceled when its region is no longer shown.
  else if (captioner.running?.regions.length === 1 && captioner.running.regions[0] !== chosen) captioner.stop();
};

/** Change the style or question for the chosen region and those chosen later. */
const ask = (next) => {
  asked = next;
  regions.forEach(tellInTree);
  if (chosen) choose(chosen.id);
  else if (asked.question) say("Now choose the region to ask about.");
};

const useModel = (model) => {
  $("#about-nano").hidden = !model.startsWith("nano");
  ask({ ...asked, model });
};

const captionAll = () => {
  const left = regions.filter((region) => !captioner.has(region, asked));
  if (left.length) caption(left);
  else say("Every region has its caption.");
};

const setChosen = (region) => {
  chosen = region;
  pointAt(null);
  if (region) tree.reveal(region.id);
  tellInCard();
};

const pointAt = (id) => {
  stage.mark(id, chosen?.id ?? null);
  tree.mark(id, chosen?.id ?? null);
};

// ---- region card

const share = (region) => {
  const percent = (100 * region.area) / (picture.width * picture.height);
  return percent < 0.1 ? "under 0.1 %" : `${percent.toFixed(percent < 10 ? 1 : 0)} %`;
};

const tellInTree = (region) => {
  const said = region.said.get(keyOf(asked));
  tree.say(region.id, said?.error ?? (said?.text || `${share(region)} of the image`),
    { soft: !said?.text, busy: said?.busy });
};

const STEPS = {
  parent: (region) => byId(region.parent),
  part: (region) => regions.find((each) => each.parent === region.id),
  before: (region) => siblings(region).at(siblings(region).indexOf(region) - 1),
  after: (region) => siblings(region)[(siblings(region).indexOf(region) + 1) % siblings(region).length],
};
const siblings = (region) => regions.filter((each) => each.parent === region.parent);

const tellInCard = () => {
  const said = chosen?.said.get(keyOf(asked)), text = $("#caption");
  $("#card-title").textContent = chosen ? `Region ${chosen.id}` : "No region chosen";
  text.textContent = !chosen ? "Click a region in the image, or choose one in the list."
    : said?.error ?? said?.text ?? "";
  text.classList.toggle("busy", Boolean(said?.busy));
  text.classList.toggle("soft", !said?.text);
  // Screen readers announce the caption when it is complete.
  text.setAttribute("aria-busy", String(Boolean(said?.busy)));
  const [x, y, width, height] = chosen?.bbox.map((value) => Math.round(value)) ?? [];
  const facts = !chosen ? [] : [`${share(chosen)} of the image`, `${width} × ${height} pixels at ${x}, ${y}`,
    chosen.parent ? `part of ${chosen.parent}` : "", said?.cut ? "cut at the most tokens" : ""];
  $("#facts").textContent = facts.filter(Boolean).join(" · ");
  for (const button of document.querySelectorAll("[data-step]")) {
    const to = chosen && STEPS[button.dataset.step](chosen);
    button.disabled = !to || to === chosen;
  }
};

// ---- the image under the pointer

const pick = (ids) => {
  if (!ids.length) return;
  // A second click at the same point selects the parent.
  const up = smallest === ids[0] && chosen && (chosen.id === ids[0] || isAbove(chosen, byId(ids[0]))) ? chosen.parent : null;
  smallest = ids[0];
  choose(up ?? ids[0]);
  $("#card").scrollIntoView({ block: "nearest" });
};

const isAbove = (region, part) => {
  for (let at = part; at; at = byId(at.parent)) if (at === region) return true;
  return false;
};

const HINTS = {
  pick: () => "Click a region; click again for its parent.",
  box: (corners) => (corners ? "Now the opposite corner." : "Drag a box, or set two corners."),
  polygon: (corners) => (corners < 3 ? "Set at least three corners." : "Close it by Enter, a double click, or its first corner."),
};

const showMode = (mode, corners) => {
  for (const button of document.querySelectorAll("[data-mode]")) {
    if (button.tagName === "BUTTON") button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  }
  $("#hint").textContent = HINTS[mode](corners);
  $("#cancel").hidden = mode === "pick";
  $("#close").hidden = mode !== "polygon" || corners < 3;
};

const stage = new Stage($("#stage"), { onPick: pick, onHover: (ids) => pointAt(ids[0] ?? null), onDraw: addDrawn, onMode: showMode });
const tree = new Tree($("#tree"), { onChoose: choose, onHover: pointAt });

// ---- events

const taken = () => JSON.stringify(cocoOf(picture, regions, asked.model), null, 1);
const stem = () => picture.name.replace(/\.[^.]*$/, "");
const openFile = (files) => {
  const file = [...files].find((each) => each.type.startsWith("image/")) ?? files[0];
  if (file) open(file.name, () => file);
};
const example = (name) => open(name, () => fileOf(`page/examples/${name}`));
const on = (selector, event, handler) => $(selector).addEventListener(event, handler);

on("#file", "change", ({ target }) => { openFile(target.files); target.value = ""; });
on("#examples", "click", ({ target }) => target.closest("button") && example(target.closest("button").dataset.name));
on("#another", "click", () => {
  for (const [selector, hidden] of [["#start", false], ["#work", true], ["#another", true], ["#keys", true]]) {
    $(selector).hidden = hidden;
  }
  captioner.stop();
  looking?.abort();
  $("#file").focus();
});
document.addEventListener("paste", ({ clipboardData }) => openFile(clipboardData.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", ({ relatedTarget }) => {
  if (!relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  openFile(event.dataTransfer.files);
});

for (const button of document.querySelectorAll("button[data-mode]")) {
  button.addEventListener("click", () => stage.setMode(button.dataset.mode));
}
for (const button of document.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => choose(STEPS[button.dataset.step](chosen).id));
}
on("#close", "click", () => stage.close());
on("#cancel", "click", () => stage.setMode("pick"));
on("#outlines", "change", ({ target }) => $("#stage").classList.toggle("bare", !target.checked));
on("#all", "click", captionAll);
on("#stop", "click", () => { captioner.stop(); say("Stopped."); });
on("#copy", "click", async () => {
  say(await copy(taken()) ? `Copied: ${plural(regions.length, "region")} as COCO JSON.`
    : "This browser denies clipboard access. Download the file instead.");
});
on("#save", "click", () => { download(`${stem()}.json`, taken()); say(`Saved as ${stem()}.json.`); });
on("#models", "change", ({ target }) => useModel(target.value));
on("#ask", "change", ({ target }) => {
  if (target.name !== "style") return;
  $("#question").value = "";
  ask({ ...asked, style: target.value, question: "" });
});
on("#ask", "submit", (event) => {
  event.preventDefault();
  const question = $("#question").value.trim();
  for (const radio of $("#ask").elements.style) radio.checked = !question && radio.value === asked.style;
  ask({ ...asked, question });
});

attempt(async () => {
  const { models } = await serviceIndex();
  const several = models.length > 1;
  $("#model").textContent = several ? "" : models[0];
  $("#models").hidden = !several;
  $("#models").append(...models.map((name) => new Option(name, name)));
  useModel(models[0]);
});

// Pointing at a region's row, or at the region in the picture, marks both; a click keeps the mark.
// Without this script a click on a row's number still marks its region (CSS :target).
document.querySelectorAll("article").forEach((article) => {
  const rows = new Map(), paths = new Map();
  article.querySelectorAll(".region").forEach((row) => rows.set(row.dataset.region, row));
  article.querySelectorAll(".stage path").forEach((path) => paths.set(path.dataset.region, path));
  let kept = null;

  const show = (region) => {
    for (const group of [rows, paths])
      group.forEach((element, id) => element.classList.toggle("on", id === region));
  };
  const keep = (region) => {
    kept = kept === region ? null : region;
    show(kept);
  };

  rows.forEach((row, id) => {
    row.addEventListener("mouseenter", () => show(id));
    row.addEventListener("mouseleave", () => show(kept));
    row.addEventListener("click", (event) => {
      if (event.target.closest("details")) return;
      event.preventDefault(); // the number is a link for readers without scripts
      keep(id);
    });
  });
  paths.forEach((path, id) => {
    path.addEventListener("mouseenter", () => show(id));
    path.addEventListener("mouseleave", () => show(kept));
    path.addEventListener("click", () => {
      keep(id);
      const row = rows.get(id);
      if (kept === null || !row) return;
      const folded = row.closest("details.more");
      if (folded) folded.open = true;
      row.scrollIntoView({ block: "nearest", behavior: "smooth" });
    });
  });
});

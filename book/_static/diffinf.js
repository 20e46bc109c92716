// Long tables sort by any of their columns: a heading is a button, and says in which order its column stands.
(function () {
  "use strict";

  function value(cell) {
    const text = cell.textContent.trim().replace(/−/g, "-").replace(/[, \u2007]/g, "");
    const number = parseFloat(text);
    return Number.isNaN(number) ? null : number;
  }

  function sort(table, column, downwards) {
    const body = table.tBodies[0];
    const numeric = table.tHead.rows[0].cells[column].classList.contains("text-right");
    const rows = Array.from(body.rows).map(function (row) {
      const cell = row.cells[column];
      return { row: row, key: numeric ? value(cell) : cell.textContent.trim() || null };
    });
    rows.sort(function (a, b) {
      if (a.key === null || b.key === null) return (a.key === null) - (b.key === null); // empty cells stay below
      const order = numeric ? a.key - b.key : a.key.localeCompare(b.key);
      return downwards ? -order : order;
    });
    rows.forEach(function (entry) { body.append(entry.row); });
  }

  function makeSortable(table) {
    const headings = Array.from(table.tHead.rows[0].cells);
    headings.forEach(function (heading, column) {
      if (!heading.textContent.trim()) return;
      const button = document.createElement("button");
      const holder = heading.querySelector("p") || heading;
      button.type = "button";
      button.title = "Sort by this column";
      button.append.apply(button, Array.from(holder.childNodes));
      holder.append(button);
      button.addEventListener("click", function () {
        const first = heading.classList.contains("text-right") ? "descending" : "ascending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = heading.getAttribute("aria-sort") === first ? other : first;
        headings.forEach(function (each) { each.removeAttribute("aria-sort"); });
        heading.setAttribute("aria-sort", order);
        sort(table, column, order === "descending");
      });
    });
  }

  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("table.diffinf-table.sortable").forEach(makeSortable);
  });
})();

// Folded code cells that follow one another, with nothing shown between them, are one fold.
(function () {
  "use strict";

  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll(".cell.tag_hide-input").forEach(function (cell) {
      const next = cell.nextElementSibling;
      if (!next || !next.matches(".cell.tag_hide-input") || cell.querySelector(":scope > .cell_output")) return;
      const code = cell.querySelectorAll("details.above-input > .cell_input");
      const summary = next.querySelector("details.above-input > summary");
      summary.after.apply(summary, Array.from(code));
      cell.remove();
    });
  });
})();

// Pages opened from disk may not read each other, so results of a search stand there without an excerpt
if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

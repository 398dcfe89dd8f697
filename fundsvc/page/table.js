/** Tables. Columns are an object that maps each title to a function from a row to its content. */

import { element } from "./dom.js";

/**
 * Returns a table. Columns named in `words` are aligned to the left, all others to the right. Without rows it shows `empty`.
 * With `cards` each row is a card on a narrow screen.
 */
export function listTable(columns, rows, { words = [], caption = "", empty = "", cards = false }) {
  const names = Object.keys(columns);
  const side = (name) => ({ class: words.includes(name) ? null : "amount" });
  const heads = names.map((name) => element("th", { scope: "col", ...side(name) }, name));
  const cell = (name, row) => element("td", { "data-title": name, ...side(name) }, columns[name](row));
  const lines = rows.map((row) => element("tr", {}, ...names.map((name) => cell(name, row))));
  if (!rows.length) lines.push(element("tr", {}, element("td", { colspan: names.length, class: "none" }, empty)));
  const table = element(
    "table",
    { class: cards ? "list cards" : "list" },
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...lines),
  );
  for (const line of lines) alignDecimals(table, line);
  return table;
}

/** Returns a region that scrolls wide content, also by keyboard. */
export function scroller(title, ...children) {
  return element("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": title }, ...children);
}

/** Widens the fractions of a row's columns to the longest one so far, so that decimal points are aligned. */
export function alignDecimals(table, row) {
  for (const fraction of row.querySelectorAll(".fraction:not(:empty)")) {
    const name = `--fraction-${fraction.closest("td").cellIndex + 1}`;
    const length = fraction.textContent.length - 1;
    if (length > (parseInt(table.style.getPropertyValue(name).slice("calc(".length)) || 0)) {
      table.style.setProperty(name, `calc(${length}ch + 0.35em)`);
    }
  }
}

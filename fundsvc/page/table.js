/** Tables made of columns: an object from each column's title to what shows it of a row. */

import { element } from "./dom.js";

/**
 * A table; columns named in `words` are to the left, all others are numbers, to the right. Without rows it says `empty`.
 * With `cards` each row is a card where the screen is narrow.
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

/** Something wide that scrolls within itself, also by keyboard. */
export function scroller(title, ...children) {
  return element("div", { class: "scroller", tabindex: "0", role: "region", "aria-label": title }, ...children);
}

/** Gives the fractions in a row's columns room for the longest one there was, so that all points stand below each other. */
export function alignDecimals(table, row) {
  for (const fraction of row.querySelectorAll(".fraction:not(:empty)")) {
    const name = `--fraction-${fraction.closest("td").cellIndex + 1}`;
    const length = fraction.textContent.length - 1;
    if (length > (parseInt(table.style.getPropertyValue(name).slice("calc(".length)) || 0)) {
      table.style.setProperty(name, `calc(${length}ch + 0.35em)`);
    }
  }
}

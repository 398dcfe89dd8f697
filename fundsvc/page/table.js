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

/**
 * Makes the links of rows one stop of the Tab key, and moves the focus between them with the arrow keys. Call it for `rows` after
 * they have changed.
 */
export function oneStop(rows) {
  const links = rows.querySelectorAll("a");
  const stop = rows.contains(document.activeElement) ? document.activeElement : links[0];
  for (const link of links) link.tabIndex = link === stop ? 0 : -1;
}

/** Moves the focus between the links of the rows; a listener of `keydown`. */
export function moveFocus(event) {
  const links = [...event.currentTarget.querySelectorAll("a")];
  const place = links.indexOf(document.activeElement);
  const next = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: links.length - 1 }[event.key];
  if (place < 0 || next === undefined) return;
  event.preventDefault();
  links[Math.min(Math.max(next, 0), links.length - 1)].focus();
  oneStop(event.currentTarget);
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

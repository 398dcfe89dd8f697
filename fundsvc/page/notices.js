/** Notices: shown for some seconds and kept in a list. */

import { button, element, perPulse } from "./dom.js";
import { moment } from "./format.js";

/** More notices would cover too much of the page. */
const SHOWN_MAX = 4;
const SHOWN_MS = 8000;

/** The notices that a long open page keeps. */
const KEPT_MAX = 200;

const kept = [];

/** Notices that are not shown yet. */
const fresh = [];

/** Shows a notice for some seconds or until newer ones replace it, also to screen readers, and adds it to the list. */
export function announce(text) {
  fresh.push(text);
  kept.unshift({ ts: Date.now(), text });
  kept.splice(KEPT_MAX);
  show();
}

const show = perPulse(() => {
  const shown = document.getElementById("notices");
  const added = fresh.splice(0).slice(-SHOWN_MAX).map((text) => element("p", {}, text));
  // All are inserted again: to move the earlier ones would shift what the reader looks at, which browsers count as instability.
  shown.replaceChildren(...[...shown.children, ...added].slice(-SHOWN_MAX));
  setTimeout(() => added.forEach((notice) => notice.remove()), SHOWN_MS);
  const opener = document.getElementById("past");
  opener.hidden = false;
  opener.textContent = `Notices (${kept.length})`;
  draw();
});

function draw() {
  const dialog = document.getElementById("past-notices");
  const lines = kept.map(({ ts, text }) => element("li", {}, moment(ts), " ", text));
  if (dialog.open) dialog.querySelector("ol").replaceChildren(...lines);
}

/** Connects the button in the header to the list of notices, newest first. */
export function keepNotices() {
  const dialog = document.getElementById("past-notices");
  const close = button("Close", () => dialog.close(), { autofocus: true });
  dialog.append(
    element("h2", { id: "past-title" }, "Notices"),
    element("ol", { class: "past", tabindex: "0", "aria-labelledby": "past-title" }),
    element("footer", {}, close),
  );
  document.getElementById("past").addEventListener("click", () => {
    dialog.showModal();
    draw();
  });
}

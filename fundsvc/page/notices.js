/** Notices: shown for some seconds and kept in a list. */

import { button, element } from "./dom.js";
import { moment } from "./format.js";

/** More notices would cover too much of the page. */
const SHOWN_MAX = 4;
const SHOWN_MS = 8000;

/** The notices that a long open page keeps. */
const KEPT_MAX = 200;

const kept = [];

/** Shows a notice for some seconds or until newer ones replace it, also to screen readers, and adds it to the list. */
export function announce(text) {
  const shown = document.getElementById("notices");
  const notice = element("p", {}, text);
  shown.append(notice);
  while (shown.childElementCount > SHOWN_MAX) shown.firstElementChild.remove();
  setTimeout(() => notice.remove(), SHOWN_MS);
  keep(text);
}

function keep(text) {
  kept.unshift({ ts: Date.now(), text });
  kept.splice(KEPT_MAX);
  const opener = document.getElementById("past");
  opener.hidden = false;
  opener.textContent = `Notices (${kept.length})`;
  draw();
}

function draw() {
  const list = document.querySelector("#past-notices ol");
  list?.replaceChildren(...kept.map(({ ts, text }) => element("li", {}, moment(ts), " ", text)));
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
    draw();
    dialog.showModal();
  });
}

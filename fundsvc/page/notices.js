/** Notices: shown for some seconds, and kept to be read again. */

import { button, element } from "./dom.js";
import { moment } from "./format.js";

/** More would hide what is read below them. */
const SHOWN_MAX = 4;
const SHOWN_MS = 8000;

/** A page that stays open keeps so many. */
const KEPT_MAX = 200;

const kept = [];

/** Shows a text once, to screen readers too, for some seconds or until there are newer ones, and keeps it. */
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

/** Makes the button in the header open the list of notices, newest first. */
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

/**
 * Notices: shown for some seconds and kept in a list, which survives a reload. Those about contracts stay in the browser, those
 * about an account stay in this tab, until its token is removed.
 */

import { button, element, perPulse } from "./dom.js";
import { moment } from "./format.js";

/** More notices would cover too much of the page. */
const SHOWN_MAX = 4;
const SHOWN_MS = 8000;

/** The notices that each storage keeps. */
const KEPT_MAX = 200;

/** Two tabs announce the same about a contract at about the same time. */
const SAME_MS = 10_000;

const KEY = "notices";

/** Notices that are not shown yet. */
const fresh = [];

/**
 * Shows a notice for some seconds or until newer ones replace it, also to screen readers, and adds it to the list. `isOwn` is true
 * for a notice about the account of the token.
 */
export function announce(text, { isOwn = false } = {}) {
  fresh.push({ ts: Date.now(), text, isOwn });
  show();
}

/** Removes the notices about the account of the token. */
export function forgetOwnNotices() {
  sessionStorage.removeItem(KEY);
  draw();
}

/** Returns the kept notices of a storage, newest first. */
function stored(storage) {
  try {
    const notices = JSON.parse(storage.getItem(KEY)) ?? [];
    return notices.filter(({ ts, text }) => Number.isFinite(ts) && typeof text === "string");
  } catch {
    return []; // Another program wrote there.
  }
}

function store(storage, added) {
  if (!added.length) return;
  const kept = stored(storage);
  const isNew = ({ ts, text }) => !kept.some((known) => known.text === text && ts - known.ts < SAME_MS);
  storage.setItem(KEY, JSON.stringify([...added.filter(isNew).reverse(), ...kept].slice(0, KEPT_MAX)));
}

function kept() {
  return [...stored(localStorage), ...stored(sessionStorage)].sort((a, b) => b.ts - a.ts);
}

const show = perPulse(() => {
  const shown = document.getElementById("notices");
  const notices = fresh.splice(0);
  store(localStorage, notices.filter(({ isOwn }) => !isOwn));
  store(sessionStorage, notices.filter(({ isOwn }) => isOwn));
  const added = notices.slice(-SHOWN_MAX).map(({ text }) => element("p", {}, text));
  // All are inserted again: to move the earlier ones would shift what the reader looks at, which browsers count as instability.
  shown.replaceChildren(...[...shown.children, ...added].slice(-SHOWN_MAX));
  setTimeout(() => added.forEach((notice) => notice.remove()), SHOWN_MS);
  draw();
});

function draw() {
  const dialog = document.getElementById("past-notices");
  const opener = document.getElementById("past");
  const notices = kept();
  opener.hidden = !notices.length;
  opener.textContent = `Notices (${notices.length})`;
  const lines = () => notices.map(({ ts, text }) => element("li", {}, moment(ts), " ", text));
  if (dialog.open) dialog.querySelector("ol").replaceChildren(...lines());
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
  draw();
}

/** Creates and arranges elements. Text is inserted as text only, so nothing in an answer becomes markup. */

/** Control characters, zero-width characters and direction marks, which could make text look like other text. */
const UNPRINTABLE = /[^\P{C}\n\t]|[\p{Zl}\p{Zp}]/gu;

/** Returns a text with such characters escaped, for example as \u{202e}. */
export function visible(text) {
  return text.replace(UNPRINTABLE, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** Attributes that readers see or hear, so they are escaped. */
const READABLE = new Set(["title", "aria-label"]);

/** Returns a new element. Of its attributes, a function is a listener, true is present, false and null are omitted. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, READABLE.has(name) ? visible(String(value)) : value);
  }
  made.append(...children.map((child) => (typeof child === "string" ? visible(child) : child)));
  return made;
}

/** Returns a button that calls `press`. */
export function button(text, press, attributes = {}) {
  return element("button", { type: "button", click: press, ...attributes }, text);
}

/** Returns a function that schedules one call of `draw` in the next frame, however often it is called. */
export function perFrame(draw) {
  let scheduled = false;
  return () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      draw();
    });
  };
}

/**
 * Parts that change with each fill are drawn in the same frames, at most so often: each frame costs a layout and a paint. A change
 * after a pause is drawn at once.
 */
const PULSE_MS = 1500;

const due = new Set();
let drawnAt = -Infinity;

const pulse = perFrame(() => {
  drawnAt = performance.now();
  const draws = [...due];
  due.clear();
  draws.forEach((draw) => draw());
});

/** Returns a function that schedules one call of `draw` in a common frame, at most every `gapMs`, however often it is called. */
export function perPulse(draw, gapMs = 0) {
  let isWaiting = false;
  let lastAt = -Infinity;
  const drawNow = () => {
    isWaiting = false;
    lastAt = performance.now();
    draw();
  };
  const join = () => {
    if (!due.size) setTimeout(pulse, drawnAt + PULSE_MS - performance.now());
    due.add(drawNow);
  };
  return () => {
    if (isWaiting) return;
    isWaiting = true;
    const wait = lastAt + gapMs - performance.now();
    if (wait > 0) setTimeout(join, wait);
    else join();
  };
}

/** Replaces the children of an element unless they are equal, so that the browser lays out only what has changed. */
export function redraw(parent, ...children) {
  const isSame = children.length === parent.childNodes.length && children.every((child, place) => child.isEqualNode(parent.childNodes[place]));
  if (!isSame) parent.replaceChildren(...children);
}

/** Brings children into the given order without moving those in place, so that focus and selection are kept. */
export function arrange(parent, children) {
  const kept = new Set(children);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  let next = parent.firstElementChild;
  for (const child of children) {
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
}

/** Making and changing elements. Text only ever goes in as text, so nothing that an answer holds becomes markup. */

/** Controls, characters without a width, and those that turn the order of what follows: none may pass for other text. */
const UNPRINTABLE = /[^\P{C}\n\t]|[\p{Zl}\p{Zp}]/gu;

/** A text with such characters as their numbers, such as \u{202e}. */
export function visible(text) {
  return text.replace(UNPRINTABLE, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** Attributes that are read by people. */
const READABLE = new Set(["title", "aria-label"]);

/** A new element with attributes (a function is a listener, true is present, false and null are left out) and children. */
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

/** A button that does something. */
export function button(text, press, attributes = {}) {
  return element("button", { type: "button", click: press, ...attributes }, text);
}

/** Calls `draw` once in the next frame, however often it is asked for before. */
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

/** Puts children into the given order with as few moves as possible, so that focus and selection stay where they are. */
export function arrange(parent, children) {
  const kept = new Set(children);
  for (const child of [...parent.children]) if (!kept.has(child)) child.remove();
  let next = parent.firstElementChild;
  for (const child of children) {
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
}

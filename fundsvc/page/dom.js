/** Making and changing elements. Text only ever goes in as text, so nothing that an answer holds becomes markup. */

/** A new element with attributes (a function is a listener, true is present, false and null are left out) and children. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A button that does something. */
export function button(text, press, attributes = {}) {
  return element("button", { type: "button", click: press, ...attributes }, text);
}

/** A button that asks the service for more; while it waits it cannot be pressed, and what fails is said. */
export function asking(text, ask, attributes = {}) {
  const press = async () => {
    made.disabled = true;
    try {
      await ask();
    } catch (error) {
      announce(error.message);
    }
    made.disabled = false;
  };
  const made = button(text, press, attributes);
  return made;
}

/** Calls `draw` once in the next frame, however often it is asked for before. */
export function perFrame(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
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

/** More would hide what is read below them. */
const NOTICES_MAX = 4;

/** Says something once, visibly and to screen readers, for some seconds, or until there is newer. */
export function announce(text) {
  const notices = document.getElementById("notices");
  const notice = element("p", {}, text);
  notices.append(notice);
  while (notices.childElementCount > NOTICES_MAX) notices.firstElementChild.remove();
  setTimeout(() => notice.remove(), 8000);
}

/** Buttons that ask the service. */

import { button } from "./dom.js";
import { announce } from "./notices.js";

/** A button that asks the service for more; while it waits it cannot be pressed, and what fails is announced. */
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

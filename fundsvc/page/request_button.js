/** Buttons that ask the service. */

import { button } from "./dom.js";
import { announce } from "./notices.js";

/** A button that asks the service for more; while it waits it cannot be pressed, and what fails is announced. */
export function requestButton(text, request, attributes = {}) {
  const press = async () => {
    control.disabled = true;
    try {
      await request();
    } catch (error) {
      announce(error.message);
    }
    control.disabled = false;
  };
  const control = button(text, press, attributes);
  return control;
}

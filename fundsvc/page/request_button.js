/** Buttons that send a request. */

import { button } from "./dom.js";
import { announce } from "./notices.js";

/** Returns a button that calls `request`, is disabled until that returns, and shows a failure as a notice. */
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

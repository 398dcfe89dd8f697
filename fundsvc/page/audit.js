/** The last audit of a contract: the service recomputes the whole ledger in the background. */

import { fundPath } from "./addresses.js";
import { ApiError, get } from "./api.js";
import { element, redraw } from "./dom.js";
import { moment, number } from "./format.js";

const REFRESH_MS = 30_000;

/** Says when the audit last reached the end of the ledger, up to which entry it came, and what it found. */
function words({ good, entry, verifiedAt }) {
  if (good === null) return ["The service has not audited this ledger yet."];
  const state = { class: "state", "data-state": good ? "ok" : "uncovered" };
  const found = element("span", state, good ? "Audited up to entry " : "The audit found a difference after entry ", number(entry));
  return [found, verifiedAt === null ? ", not to the end yet" : ", last to the end at ", ...(verifiedAt === null ? [] : [moment(verifiedAt)])];
}

/** Shows the last audit in `root`, and reads it again at an interval. Returns a function that ends this. */
export function showAudit(root, symbol) {
  const read = async () => {
    if (document.hidden) return;
    try {
      redraw(root, element("span", {}, ...words(await get(`${fundPath(symbol)}/audit`))));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      root.textContent = error.message;
    }
  };
  const timer = setInterval(read, REFRESH_MS);
  read();
  return () => clearInterval(timer);
}

/** The access token of this tab, and the form for it. The token stays in this tab and is only sent as a header. */

import { element } from "./dom.js";
import { forgetOwnNotices } from "./notices.js";

const KEY = "token";
const ACCOUNT_KEY = "account";

/** Returns the token of this tab, null without one. */
export function storedToken() {
  return sessionStorage.getItem(KEY);
}

/** Returns the account that was chosen for the token of this tab, "" if it is the token's own. */
export function storedAccount() {
  return sessionStorage.getItem(ACCOUNT_KEY) ?? "";
}

/** Keeps a token in this tab, with the account that is read with it; "" is the token's own. */
export function storeToken(token, account = "") {
  sessionStorage.setItem(KEY, token);
  sessionStorage.setItem(ACCOUNT_KEY, account);
}

/** Returns the token for the live connection: a trader's token, else null, because only accounts have private topics. */
export function connectionToken() {
  const token = storedToken();
  return token && claims(token).role === "trader" ? token : null;
}

/** Removes the token from this tab, and the notices about its account. */
export function removeStoredToken() {
  forgetOwnNotices();
  sessionStorage.removeItem(KEY);
  sessionStorage.removeItem(ACCOUNT_KEY);
}

/** Decodes the claims of a token without verifying it, for the form only. The service verifies the token. */
function claims(token) {
  try {
    return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
  } catch {
    return {};
  }
}

/** Returns the form for a token and, with a risk token, an account; `enter(token, account)` receives both. */
export function tokenForm(title, enter) {
  const token = element("textarea", { id: "token", rows: 4, spellcheck: "false", autocomplete: "off", required: true });
  const account = element("input", { id: "account", autocomplete: "off" });
  const accountField = element(
    "p",
    { hidden: true },
    element("label", { for: "account" }, "Account (required: a risk token may read any account)"),
    account,
  );
  // Terminals break long lines.
  const pasted = () => token.value.replaceAll(/\s/g, "");
  token.addEventListener("input", () => {
    accountField.hidden = claims(pasted()).role !== "risk";
  });
  const submit = (event) => {
    event.preventDefault();
    enter(pasted(), account.value.trim());
  };
  const about = "The token stays in this tab until you close it. It is sent to this service only.";
  return element(
    "form",
    { class: "token", submit },
    element("p", {}, element("label", { for: "token" }, "Access token"), token),
    accountField,
    element("p", { class: "note" }, about),
    element("button", { type: "submit", class: "primary" }, title),
  );
}

/** The page: shows the view that the address after `#` names, and the state of the live connection. */

import { showAccount } from "./account.js";
import { contractAddress } from "./addresses.js";
import { showContract } from "./contract.js";
import { showContracts } from "./contracts.js";
import { showCover } from "./cover.js";
import { visible } from "./dom.js";
import { openEntry } from "./entry.js";
import { Feed } from "./feed.js";
import { clock, refreshMoments } from "./format.js";
import { Market } from "./market.js";
import { keepNotices } from "./notices.js";
import { connectionToken, removeStoredToken } from "./token.js";

const MOMENTS_MS = 60_000;

const main = document.getElementById("main");
const dialog = document.getElementById("entry");
const feed = new Feed();
const market = new Market(feed);
const shared = { feed, market };

/** The present view: its key, and the function that closes it. */
let view = { key: null, end: () => {} };

/** Splits the address: "#/contract/X/entry/5" is ["contract", "X", "entry", "5"]. An invalid address is []. */
function address() {
  try {
    return location.hash.split("/").slice(1).map(decodeURIComponent);
  } catch {
    return [];
  }
}

function route() {
  const [name, symbol, part, number] = address();
  if (name === "contract" && symbol) show(`contract ${symbol}`, symbol, (root) => showContract(root, shared, symbol));
  else if (name === "account") show("account", "Account", (root) => showAccount(root, shared));
  else if (name === "cover") show("cover", "Loss cover", (root) => showCover(root, shared));
  else show("contracts", "Contracts", (root) => showContracts(root, shared));
  if (part === "entry" && /^[1-9]\d{0,15}$/.test(number)) openEntry(dialog, symbol, Number(number), closeEntry);
  else if (dialog.open) dialog.close();
  for (const link of document.querySelectorAll(".bar nav a")) markCurrent(link, name);
}

function show(key, title, open) {
  if (view.key === key) return;
  view.end();
  main.replaceChildren();
  document.title = `${visible(title)} – Insurance fund`;
  const isFirst = view.key === null;
  view = { key, end: open(main) };
  if (isFirst) return;
  scrollTo(0, 0);
  main.querySelector("h1").focus({ preventScroll: true });
}

function markCurrent(link, name) {
  const isCurrent = link.getAttribute("href") === (["account", "cover"].includes(name) ? `#/${name}` : "#/");
  if (isCurrent) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}

/** After the dialog of an entry closes, goes to its contract, unless a change of the address closed it. */
function closeEntry() {
  const [, symbol, part] = address();
  if (part === "entry") location.hash = contractAddress(symbol);
}

function showConnection(state) {
  const status = document.getElementById("connection");
  const since = feed.receivedAt ? `, data as of ${clock(feed.receivedAt)}` : "";
  status.dataset.state = state === "connecting" && feed.receivedAt ? "waiting" : state;
  const texts = {
    live: "live",
    connecting: feed.receivedAt ? `reconnecting${since}` : "connecting",
    waiting: `reconnecting${since}`,
  };
  if (status.textContent !== texts[state]) status.textContent = texts[state];
  status.title = state === "live" ? "" : feed.reason;
}

keepNotices();
feed.tokenRejected = removeStoredToken;
feed.listen(showConnection);
feed.start(connectionToken());
addEventListener("hashchange", route);
setInterval(refreshMoments, MOMENTS_MS);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
route();

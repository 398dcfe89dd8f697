/** The dialog of one entry: its fields, its hashes and its ADL order. */

import { entryAddress, fundPath } from "./addresses.js";
import { get } from "./api.js";
import { button, element } from "./dom.js";
import { hash, instant, number } from "./format.js";
import { orderSummary } from "./orders.js";

const FIELDS = {
  Kind: (entry) => entry.kind,
  Change: (entry) => number(entry.change, { signed: true }),
  "Balance after": (entry) => number(entry.balance),
  Uncovered: (entry) => number(entry.uncovered),
  Repaid: (entry) => number(entry.repaid),
  Side: (entry) => entry.side,
  Lots: (entry) => number(entry.lots),
  Price: (entry) => number(entry.price),
  "Bankruptcy price": (entry) => number(entry.bankruptcyPrice),
  "Closes lots of": (entry) =>
    entry.closes ? element("a", { href: entryAddress(entry.symbol, entry.closes) }, `entry ${entry.closes}`) : "–",
  Forced: (entry) => (entry.forced ? "yes" : "no"),
  Trade: (entry) => element("code", {}, entry.tradeId || "–"),
  Order: (entry) => element("code", {}, entry.orderId || "–"),
  Sequence: (entry) => number(entry.seq),
  "Engine time": (entry) => instant(entry.ts),
  "Recorded at": (entry) => instant(entry.recordedAt),
  Hash: (entry) => hash(entry.hash),
};

/** Opens the dialog on an entry. Calls `closed` when the dialog closes. */
export async function openEntry(dialog, symbol, number, closed) {
  const title = element("h2", { id: "entry-title" }, `${symbol}, entry ${number}`);
  const content = element("div", { "aria-live": "polite" }, "loading");
  const linkTo = (to, text) => element("a", { class: "button quiet", href: entryAddress(symbol, to) }, text);
  const foot = element(
    "footer",
    {},
    ...(number > 1 ? [linkTo(number - 1, "‹ Previous")] : []),
    linkTo(number + 1, "Next ›"),
    button("Close", () => dialog.close(), { autofocus: true }),
  );
  dialog.replaceChildren(title, content, foot);
  dialog.onclose = closed;
  if (!dialog.open) dialog.showModal();
  try {
    content.replaceChildren(...details(await get(`${fundPath(symbol)}/entries/${number}`), symbol));
  } catch (error) {
    content.replaceChildren(element("p", { class: "problem" }, error.message));
  }
}

/** Links lead to the contract that the address names, which may be an earlier generation of the symbol. */
function details({ entry, previousHash, adl, inventoryAdl }, symbol) {
  const rows = Object.entries(FIELDS).map(([name, show]) => [name, show({ ...entry, symbol })]);
  rows.push(["Previous hash", hash(previousHash)]);
  const list = element(
    "dl",
    { class: "details" },
    ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
  );
  const orders = [...(adl ? [adl] : []), ...inventoryAdl];
  return [list, ...orders.flatMap((order) => [element("h3", {}, `ADL ${order.adl}`), orderSummary({ ...order, symbol })])];
}

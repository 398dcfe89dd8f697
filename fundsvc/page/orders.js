/** The ADL orders of a contract: amounts needed and taken, and the allocations of each round by rank. */

import { entryAddress, fundPath } from "./addresses.js";
import { ApiError, get } from "./api.js";
import { requestButton } from "./request_button.js";
import { arrange, element, perPulse } from "./dom.js";
import { lights, moment, number, rough } from "./format.js";
import { announce } from "./notices.js";
import { listTable, scroller } from "./table.js";

const PAGE_ORDERS = 6;
const PAGE_ALLOCATIONS = 500;

/** The API's limit for a page. */
const PAGE_MAX = 500;

/** The orders that a long open page keeps, unless the reader loads older ones. */
const KEPT_ORDERS = 100;

/** The fund state whose style an order state has. */
const STATE_STYLES = { open: "adl", done: "ok", uncovered: "uncovered", returned: "warning" };

/** The reasons for orders that close lots instead of recovering an amount. */
const ORIGINS = { takeover: "rest of a takeover", inventory: "inventory too heavy" };

const ALLOCATION_COLUMNS = {
  Rank: (row) => element("span", {}, number(row.rank), ` of ${row.ranked}`),
  Lights: (row) => lights(row.lights),
  Position: (row) => number(row.lots),
  Requested: (row) => number(row.asked),
  Executed: (row) => number(row.executed),
  Entry: (row) => number(row.entryPrice),
  PnL: (row) => number(row.unrealisedPnl, { signed: true }),
  Return: (row) => rough(row.return),
  Leverage: (row) => rough(row.leverage),
  Score: (row) => rough(row.score),
};

/** Shows an order: its facts, a bar of what was taken against what is needed, and its amounts or lots. */
export function orderSummary(order) {
  const facts = [
    element("span", { class: "state", "data-state": STATE_STYLES[order.state] }, order.state),
    ...(ORIGINS[order.origin] ? [element("span", { class: "origin" }, ORIGINS[order.origin])] : []),
    element("span", {}, `${order.reduce}s reduced at `, number(order.price)),
    causeLink(order),
    element("span", { class: "note", title: order.policyWords ?? null }, `policy version ${order.policyVersion}`),
    moment(order.ts),
  ];
  const list = Object.entries(quantities(order)).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)),
  );
  return element(
    "div",
    { class: "order-summary" },
    element("p", { class: "line" }, ...facts),
    bar(order),
    element("dl", { class: "amounts" }, ...list),
  );
}

/** A takeover of which the fund accepted no lots has no entry. */
function causeLink({ symbol, cause, closes }) {
  if (!cause) return element("span", {}, "cause: a takeover without an entry");
  const text = closes ? `closes lots of entry ${closes}` : `cause: entry ${cause}`;
  return element("a", { href: entryAddress(symbol, cause) }, text);
}

/** The amounts of an order for an amount, or the lots of an order for lots, by their titles. */
function quantities(order) {
  const lots = element("span", {}, number(order.lotsTaken), " of ", number(order.lotsNeeded));
  if (order.origin !== "shortfall") return { Lots: lots, "Closed in the market": number(order.lotsUnwound) };
  return {
    Needed: number(order.needed),
    Taken: number(order.taken),
    Lots: lots,
    Refund: number(order.refund),
    Rest: number(order.rest),
  };
}

/** Shows a bar as long as the larger amount or lots, with a line at what is needed. Floats suffice for lengths. */
function bar(order) {
  const isOfLots = order.origin !== "shortfall";
  const [takenText, neededText] = isOfLots ? [order.lotsTaken, order.lotsNeeded] : [order.taken, order.needed];
  const [needed, taken] = [Number(neededText), Number(takenText)];
  const whole = Math.max(needed, taken) || 1;
  const label = `taken ${takenText} of needed ${neededText}${isOfLots ? " lots" : ""}`;
  const made = element("div", { class: "taken", role: "img", "aria-label": label }, element("i", {}));
  made.style.setProperty("--taken", taken / whole);
  made.style.setProperty("--needed", needed / whole);
  return made;
}

/** Shows a round with the allocations in the order's answer. A button reads the others. */
function roundTable(order, round) {
  const text = `Round ${round.round}, mark price ${round.markPrice}: about ${round.executed} of ${round.asked} lots executed, ${round.positions} positions`;
  const table = (rows) => listTable(ALLOCATION_COLUMNS, rows, { words: ["Lights"] });
  const rows = scroller(text, table(round.allocations));
  const made = element("section", {}, element("h4", {}, text), ...round.promised.map(promisedTo), rows);
  if (round.positions <= round.allocations.length) return made;
  const more = requestButton(`All ${round.positions} positions`, async () => {
    rows.replaceChildren(table(await allAllocations(order, round.round)));
    more.remove();
  });
  made.append(more);
  return made;
}

/** Says why a round does not begin at rank 1. */
function promisedTo({ adl, fromRank, toRank }) {
  const ranks = fromRank === toRank ? `Rank ${fromRank} was` : `Ranks ${fromRank} to ${toRank} were`;
  return element("p", { class: "note" }, `${ranks} promised to ADL ${adl}.`);
}

async function allAllocations({ symbol, adl }, round) {
  const rows = [];
  for (let more = true; more;) {
    const path = `adl/${encodeURIComponent(symbol)}/orders/${adl}/rounds/${round}`;
    const page = await get(path, { offset: rows.at(-1)?.rank ?? 0, maxCount: PAGE_ALLOCATIONS });
    rows.push(...page.dataList);
    more = page.hasMore;
  }
  return rows;
}

/** One order in the list. Its rounds are drawn while they are open. */
class OrderItem {
  #order = null;

  constructor() {
    this.summary = element("div", {});
    this.rounds = element("div", {});
    this.policy = element("p", { class: "note" });
    this.title = element("h3", {});
    this.label = element("summary", {});
    this.details = element("details", { toggle: () => this.#drawRounds() }, this.label, this.policy, this.rounds);
    this.element = element("article", { class: "order" }, this.title, this.summary, this.details);
  }

  show(order) {
    if (order === this.#order) return;
    this.#order = order;
    this.element.dataset.adl = order.adl;
    this.title.textContent = `ADL ${order.adl}`;
    this.summary.replaceChildren(orderSummary(order));
    this.policy.textContent = order.policyWords ? `Policy version ${order.policyVersion}: ${order.policyWords}` : "";
    const count = order.rounds.length;
    this.label.textContent = count
      ? `${count} ${count === 1 ? "round" : "rounds"} with allocations`
      : "No round: there were no candidates";
    this.#drawRounds();
  }

  #drawRounds() {
    if (this.details.open) this.rounds.replaceChildren(...this.#order.rounds.map((round) => roundTable(this.#order, round)));
  }
}

class OrderList {
  #symbol;
  #orders = new Map();
  #items = new Map();

  /** The policies of the contract in words, by version. */
  #policies = new Map();

  /** "Older orders" loads those before this number. Open orders may be shown that are older than it. */
  #before = 0;

  constructor(root, symbol) {
    this.#symbol = symbol;
    this.list = element("div", { class: "orders-list" }, element("p", { class: "none" }, "loading"));
    const readOlder = async () => this.#take(await this.#page({ offset: this.#before, maxCount: PAGE_ORDERS }));
    this.older = requestButton("Older orders", readOlder, { class: "quiet wide", hidden: true });
    root.append(element("div", { class: "head" }, element("h2", {}, "ADL orders")), this.list, this.older);
  }

  /** Replaces the shown orders by as many of the newest: some may have begun and ended while disconnected. */
  resume = async () => {
    const page = await this.#page({ maxCount: Math.min(Math.max(this.#orders.size, PAGE_ORDERS), PAGE_MAX) });
    this.#orders.clear();
    this.#take(page);
    return {};
  };

  /** Reads the policies again if an order names an unknown version, and draws the orders with them. */
  #learnPolicies = async () => {
    const orders = [...this.#orders.values()];
    if (orders.every(({ policyVersion }) => this.#policies.has(policyVersion))) return;
    try {
      const policies = await get(`${fundPath(this.#symbol)}/policies`);
      this.#policies = new Map(policies.map(({ version, words }) => [version, words]));
      for (const order of orders) if (this.#orders.get(order.adl) === order) this.#orders.set(order.adl, this.#named(order));
      this.#draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // The orders show the number of the version alone.
    }
  };

  /** Shows why the orders are missing. */
  showProblem(problem) {
    this.list.replaceChildren(element("p", { class: "problem" }, problem));
  }

  #page(parameters) {
    return get(`adl/${encodeURIComponent(this.#symbol)}/orders`, parameters);
  }

  #take({ dataList, hasMore }) {
    dataList.forEach((order) => this.#orders.set(order.adl, this.#named(order)));
    this.#before = dataList.at(-1)?.adl ?? 0;
    this.older.hidden = !hasMore;
    this.#draw();
    this.#learnPolicies();
  }

  /** Updates an order that began, advanced or ended, and shows a notice of a new order or state. */
  change = (order) => {
    const before = this.#orders.get(order.adl);
    const isNew = order.adl > Math.max(0, ...this.#orders.keys());
    this.#orders.set(order.adl, this.#named(order));
    if (this.#orders.size > KEPT_ORDERS && isNew) this.#forget();
    if (isNew)
      announce(`ADL ${order.adl} of ${order.symbol}: ${order.lotsNeeded} lots of ${order.reduce} positions must be reduced`);
    else if (before && before.state !== order.state) announce(`ADL ${order.adl} of ${order.symbol} is ${order.state}`);
    this.#draw();
    if (isNew) this.#learnPolicies();
  };

  /**
   * Returns an order with the words of its policy, and with the name of the contract of this view, which may be an earlier
   * generation of the symbol.
   */
  #named(order) {
    return { ...order, symbol: this.#symbol, policyWords: this.#policies.get(order.policyVersion) };
  }

  /** Removes the oldest order that has ended, if there is one. */
  #forget() {
    const over = [...this.#orders.values()].filter(({ state }) => state !== "open").map(({ adl }) => adl);
    if (!over.length) return;
    const oldest = Math.min(...over);
    this.#orders.delete(oldest);
    this.#items.delete(oldest);
    this.#before = oldest + 1;
    this.older.hidden = false;
  }

  #draw = perPulse(() => {
    const orders = [...this.#orders.values()].sort((a, b) => b.adl - a.adl);
    if (!orders.length)
      this.list.replaceChildren(element("p", { class: "none" }, "This contract has had no ADL order."));
    else
      arrange(
        this.list,
        orders.map((order) => this.#item(order).element),
      );
  });

  #item(order) {
    if (!this.#items.has(order.adl)) this.#items.set(order.adl, new OrderItem());
    const item = this.#items.get(order.adl);
    item.show(order);
    return item;
  }
}

/** Shows the orders of a contract in `root`. Returns a function that unsubscribes. */
export function showOrders(root, feed, symbol) {
  const list = new OrderList(root, symbol);
  list.resume().catch((error) => list.showProblem(error.message));
  const receive = (_subject, order) => list.change(order);
  return feed.subscribe(`/adl/order:${symbol}`, { receive, resume: list.resume });
}

/** A contract's deleveraging orders: how much was needed, how much was taken, and from which places in the queue. */

import { get } from "./api.js";
import { announce, arrange, button, element } from "./dom.js";
import { lights, moment, number, rough } from "./format.js";
import { listTable, scroller } from "./table.js";

const PAGE_ORDERS = 6;
const PAGE_ALLOCATIONS = 500;

/** Which state of a fund an order's state looks like. */
const LOOKS = { open: "adl", done: "ok", uncovered: "uncovered" };

const ALLOCATION_COLUMNS = {
  Rank: (row) => element("span", {}, number(row.rank), ` of ${row.ranked}`),
  Lights: (row) => lights(row.lights),
  Position: (row) => number(row.lots),
  Asked: (row) => number(row.asked),
  Executed: (row) => number(row.executed),
  Entry: (row) => number(row.entryPrice),
  PnL: (row) => number(row.unrealisedPnl, { signed: true }),
  Return: (row) => rough(row.return),
  Leverage: (row) => rough(row.leverage),
  Score: (row) => rough(row.score),
};

/** An order in two lines, and a bar of what was taken beside what was needed. */
export function orderSummary(order) {
  const cause = `#/contract/${encodeURIComponent(order.symbol)}/entry/${order.cause}`;
  const facts = [
    element("span", { class: "state", "data-state": LOOKS[order.state] }, order.state),
    element("span", {}, `${order.reduce}s reduced at `, number(order.price)),
    element("a", { href: cause }, `cause: entry ${order.cause}`),
    moment(order.ts),
  ];
  const amounts = {
    Needed: number(order.needed),
    Taken: number(order.taken),
    Lots: element("span", {}, number(order.lotsTaken), " of ", number(order.lotsNeeded)),
    Refund: number(order.refund),
    Rest: number(order.rest),
  };
  const list = Object.entries(amounts).map(([name, value]) =>
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

/** The bar ends at the larger of both; a line marks what was needed. Lengths are all that a float is good for here. */
function bar(order) {
  const [needed, taken] = [Number(order.needed), Number(order.taken)];
  const whole = Math.max(needed, taken) || 1;
  const made = element(
    "div",
    { class: "taken", role: "img", "aria-label": `taken ${order.taken} of needed ${order.needed}` },
    element("i", {}),
  );
  made.style.setProperty("--taken", taken / whole);
  made.style.setProperty("--needed", needed / whole);
  return made;
}

/** A round, with as many of its positions as are known; the others are read when asked for. */
function roundTable(order, round) {
  const text = `Round ${round.round}, mark ${round.markPrice}: ${round.executed} of ${round.asked} lots from ${round.positions} positions`;
  const table = (rows) => listTable(ALLOCATION_COLUMNS, rows, { caption: text, words: ["Lights"] });
  const made = scroller(text, table(round.allocations));
  if (round.positions <= round.allocations.length) return made;
  const more = button(`All ${round.positions} positions`, async () => {
    const rows = await allAllocations(order, round.round);
    made.replaceChildren(table(rows));
  });
  made.append(more);
  return made;
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

/** One order in the list. Its rounds are drawn once they are opened, and again when they change meanwhile. */
class OrderItem {
  #order = null;

  constructor() {
    this.summary = element("div", {});
    this.rounds = element("div", {});
    this.title = element("h3", {});
    this.label = element("summary", {});
    this.details = element("details", { toggle: () => this.#drawRounds() }, this.label, this.rounds);
    this.element = element("article", { class: "order" }, this.title, this.summary, this.details);
  }

  show(order) {
    this.#order = order;
    this.element.dataset.adl = order.adl;
    this.title.textContent = `ADL ${order.adl}`;
    this.summary.replaceChildren(orderSummary(order));
    const count = order.rounds.length;
    this.label.textContent = count
      ? `${count} ${count === 1 ? "round" : "rounds"}, and who was asked`
      : "nobody could be asked";
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

  constructor(root, symbol) {
    this.#symbol = symbol;
    this.list = element("div", { class: "orders-list" }, element("p", { class: "none" }, "loading"));
    this.older = button("Older orders", () => this.#read({ offset: Math.min(...this.#orders.keys()) }), {
      class: "quiet wide",
      hidden: true,
    });
    root.append(element("div", { class: "head" }, element("h2", {}, "Deleveraging (ADL)")), this.list, this.older);
  }

  resume = async () => {
    await this.#read({});
    return {};
  };

  /** Says why there is nothing. */
  say(problem) {
    this.list.replaceChildren(element("p", { class: "problem" }, problem));
  }

  async #read(parameters) {
    const path = `adl/${encodeURIComponent(this.#symbol)}/orders`;
    const { dataList, hasMore } = await get(path, { maxCount: PAGE_ORDERS, ...parameters });
    dataList.forEach((order) => this.#orders.set(order.adl, order));
    this.older.hidden = !hasMore;
    this.#draw();
  }

  /** Takes an order that began, advanced or ended. */
  change = (order) => {
    const before = this.#orders.get(order.adl);
    this.#orders.set(order.adl, order);
    if (!before)
      announce(`ADL ${order.adl} of ${order.symbol}: ${order.lotsNeeded} lots of ${order.reduce} positions are needed`);
    else if (before.state !== order.state) announce(`ADL ${order.adl} of ${order.symbol} is ${order.state}`);
    this.#draw();
  };

  #draw() {
    const orders = [...this.#orders.values()].sort((a, b) => b.adl - a.adl);
    if (!orders.length)
      this.list.replaceChildren(element("p", { class: "none" }, "This fund has never had to deleverage anybody."));
    else
      arrange(
        this.list,
        orders.map((order) => this.#item(order).element),
      );
  }

  #item(order) {
    if (!this.#items.has(order.adl)) this.#items.set(order.adl, new OrderItem());
    const item = this.#items.get(order.adl);
    item.show(order);
    return item;
  }
}

/** Shows the orders of a contract; returns what ends that. */
export function showOrders(root, feed, symbol) {
  const list = new OrderList(root, symbol);
  list.resume().catch((error) => list.say(error.message));
  const receive = (_subject, order) => list.change(order);
  return feed.subscribe(`/adl/order:${symbol}`, { receive, resume: list.resume });
}

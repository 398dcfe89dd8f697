/** The positions that a fund holds: its sides and equity, the tranches with their ages, and the lots that ADL closed. */

import { entryAddress, fundPath } from "./addresses.js";
import { ApiError, get } from "./api.js";
import { element } from "./dom.js";
import { age, money, moment, number } from "./format.js";
import { requestButton } from "./request_button.js";
import { listTable, scroller } from "./table.js";

/** How often the tranches are read again while they may change. */
const REFRESH_MS = 2000;

const PAGE_TRANCHES = 50;
const PAGE_MAX = 500;
const KEPT_CLOSED = 20;

const SIDES = {
  Side: (held) => held.side,
  Lots: (held) => number(held.lots),
  "Average price": (held) => number(held.averagePrice),
  Tranches: (held) => number(held.tranches),
  Oldest: (held) => age(held.oldestTs),
};

const tranches = (symbol) => ({
  Entry: (row) => entryLink(symbol, row.entry),
  Side: (row) => row.side,
  Lots: (row) => number(row.lots),
  "In ADL": (row) => number(row.promised),
  Price: (row) => number(row.price),
  PnL: (row) => number(row.unrealisedPnl, { signed: true, reason: "no mark price is known yet" }),
  Age: (row) => age(row.ts),
  Forced: (row) => (row.forced ? "forced" : ""),
});

const closed = (symbol) => ({
  Entry: (row) => entryLink(symbol, row.entry),
  Time: (row) => moment(row.ts),
  Order: (row) => `ADL ${row.orderId.split("/")[1]}`,
  Lots: (row) => number(row.lots),
  Price: (row) => number(row.price),
  Of: (row) => (row.closes ? entryLink(symbol, row.closes) : "a takeover"),
});

function entryLink(symbol, number) {
  return element("a", { href: entryAddress(symbol, number), "aria-label": `Entry ${number}` }, String(number));
}

class InventoryPanel {
  #root;
  #symbol;
  #fund = null;
  #closed = [];
  #shownMax = PAGE_TRANCHES;
  #isReading = false;
  #isStale = false;

  constructor(root, symbol) {
    this.#root = root;
    this.#symbol = symbol;
    this.sums = element("p", { class: "line sums" });
    this.sides = scroller("Sides of the inventory");
    this.rows = scroller("Tranches");
    this.problem = element("p", { class: "problem" });
    const readMore = async () => {
      this.#shownMax = Math.min(this.#shownMax + PAGE_TRANCHES, PAGE_MAX);
      await this.#read();
    };
    this.more = requestButton("More tranches", readMore, { class: "quiet wide", hidden: true });
    this.closedRows = scroller("Lots closed by ADL");
    const head = element("div", { class: "head" }, element("h2", {}, "Inventory"), this.sums);
    root.append(head, this.sides, this.problem, this.rows, this.more, this.closedRows);
    root.hidden = true;
  }

  /** Shows the sides of a changed fund. The tranches follow. */
  show(fund) {
    this.#fund = fund;
    const held = fund.inventory;
    if (!held.length && this.#root.hidden) return;
    this.#root.hidden = false;
    this.sums.replaceChildren(
      "equity ",
      money(fund.equity, fund.settleCurrency, { reason: "no mark price is known yet" }),
      " · unrealised ",
      money(fund.unrealisedPnl, fund.settleCurrency, { signed: true, reason: "no mark price is known yet" }),
    );
    this.sides.replaceChildren(listTable(SIDES, held, { words: ["Side"], empty: "The fund holds no positions." }));
    this.#isStale = true;
  }

  /** Adds an entry. One that ADL caused appears among the closed lots. */
  add = (entry) => {
    if (entry.kind === "deleverage") this.#addClosed([entry]);
  };

  /** Reads the lots that ADL closed. */
  reload = async () => {
    const { dataList } = await get(`${fundPath(this.#symbol)}/history`, { kind: "deleverage", maxCount: KEPT_CLOSED });
    this.#addClosed(dataList);
  };

  /** Adds entries to the closed lots. An entry may arrive twice, because a live one may arrive while others are read. */
  #addClosed(entries) {
    const known = new Map([...this.#closed, ...entries].map((entry) => [entry.entry, entry]));
    this.#closed = [...known.values()].sort((a, b) => b.entry - a.entry).slice(0, KEPT_CLOSED);
    this.#drawClosed();
  }

  /** Reads the tranches again if the fund has changed, or if ages and promised lots may have. */
  refresh = async () => {
    const mayChange = this.#isStale || this.#fund?.inventory.length;
    if (document.hidden || !mayChange || this.#isReading) return;
    this.#isReading = true;
    try {
      await this.#read();
    } finally {
      this.#isReading = false;
    }
  };

  async #read() {
    this.#isStale = false;
    try {
      const page = await get(`${fundPath(this.#symbol)}/inventory`, { forward: true, maxCount: this.#shownMax });
      const options = { words: ["Side", "Forced"], caption: "Tranches, oldest first", empty: "None" };
      this.rows.replaceChildren(listTable(tranches(this.#symbol), page.dataList, options));
      this.more.hidden = !page.hasMore || this.#shownMax === PAGE_MAX;
      this.problem.textContent = "";
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#isStale = true;
      this.problem.textContent = error.message;
    }
  }

  #drawClosed() {
    if (!this.#closed.length) return;
    this.#root.hidden = false;
    if (this.#fund) this.show(this.#fund);
    const options = { words: ["Order"], caption: "Lots closed by ADL, newest first" };
    this.closedRows.replaceChildren(listTable(closed(this.#symbol), this.#closed, options));
  }
}

/**
 * Shows the inventory of a fund in `root`, once it has one. Returns `show` for a changed fund, `add` for a new entry, `reload`
 * after entries were missed, and `end`.
 */
export function showInventory(root, symbol) {
  const panel = new InventoryPanel(root, symbol);
  const timer = setInterval(panel.refresh, REFRESH_MS);
  return {
    show: (fund) => {
      panel.show(fund);
      panel.refresh();
    },
    add: panel.add,
    reload: () => panel.reload().catch((error) => (panel.problem.textContent = error.message)),
    end: () => clearInterval(timer),
  };
}

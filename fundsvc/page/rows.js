/**
 * The columns of the list of contracts, their widths, and a contract's row.
 *
 * Each row is a separate grid with the widths calculated here, and the browser lays out only visible rows. It would lay out
 * a table as a whole after each change, which takes 40 ms for a thousand contracts. Such rows need explicit ARIA roles.
 */

import { contractAddress } from "./addresses.js";
import { element } from "./dom.js";
import { compareDecimals, FUND_STATES, fundState, moment, number, percent } from "./format.js";
import { alignDecimals } from "./table.js";

/** Longer symbols are truncated; the title has the whole one. */
const SYMBOL_LENGTH_MAX = 24;

/** Widths in `ch`: of letters, of digits including gaps between groups, and of the padding of a cell. */
const SMALL_LETTER = 0.9;
const LETTER = 1.3;
const DIGIT = 1.12;
const PADDING = 1.9;

const byText = (name) => (a, b) => a[name].localeCompare(b[name]);
const byAmount = (name) => (a, b) => compareDecimals(a[name], b[name]);
const byNumber = (name) => (a, b) => (a[name] ?? -Infinity) - (b[name] ?? -Infinity);

/** Columns: title, comparison, content; `words` aligns to the left, `amount` and `descending` sort the largest first. */
export const COLUMNS = [
  { id: "symbol", title: "Contract", compare: byText("name"), show: (fund) => link(fund), words: true },
  {
    id: "state",
    title: "State",
    compare: (a, b) => FUND_STATES.indexOf(a.condition) - FUND_STATES.indexOf(b.condition),
    show: (fund) => fundState(fund.condition),
    words: true,
    descending: true,
  },
  { id: "balance", title: "Balance", compare: byAmount("balance"), show: (fund) => number(fund.balance), amount: true },
  {
    id: "currency",
    title: "Currency",
    compare: byText("settleCurrency"),
    show: (fund) => element("abbr", {}, fund.settleCurrency),
    words: true,
  },
  {
    id: "usdt",
    title: "USDT value",
    compare: byAmount("balanceUsdt"),
    show: (fund) => number(fund.balanceUsdt, { reason: fund.balanceUsdtReason }),
    amount: true,
  },
  {
    id: "change24h",
    title: "24 h change",
    compare: byAmount("change24h"),
    show: (fund) => number(fund.change24h, { signed: true }),
    amount: true,
  },
  {
    id: "change7d",
    title: "7 d change",
    compare: byAmount("change7d"),
    show: (fund) => number(fund.change7d, { signed: true }),
    amount: true,
  },
  {
    id: "drawdown8h",
    title: "8 h drawdown",
    compare: byNumber("drawdown8h"),
    show: (fund) => percent(fund.drawdown8h),
    descending: true,
  },
  {
    id: "fullness",
    title: "Fullness",
    compare: byNumber("fullness"),
    show: (fund) => percent(fund.fullness),
  },
  {
    id: "outstanding",
    title: "Outstanding",
    compare: byAmount("outstanding"),
    show: (fund) => number(fund.outstanding),
    amount: true,
  },
  {
    id: "updatedAt",
    title: "Last change",
    compare: byNumber("updatedAt"),
    show: (fund) => moment(fund.updatedAt),
    descending: true,
  },
];

const BALANCE = COLUMNS.findIndex(({ id }) => id === "balance");

const FIELDS = { symbol: "name", state: "condition", currency: "settleCurrency", usdt: "balanceUsdt" };

function link(fund) {
  return element("a", { href: contractAddress(fund.name), title: fund.name }, fund.name);
}

/** The widths of the columns. They only grow, so that columns do not move when numbers change. */
export class Widths {
  #wholes = COLUMNS.map(() => 0);
  #fractions = COLUMNS.map(() => 0);

  constructor(table) {
    this.table = table;
    this.#apply();
  }

  /** Widens a column if a text needs it. */
  fit(place, text) {
    const [whole, fraction = ""] = text.slice(0, SYMBOL_LENGTH_MAX).split(".");
    if (whole.length <= this.#wholes[place] && fraction.length <= this.#fractions[place]) return;
    this.#wholes[place] = Math.max(whole.length, this.#wholes[place]);
    this.#fractions[place] = Math.max(fraction.length, this.#fractions[place]);
    this.#apply();
  }

  #apply() {
    const tracks = COLUMNS.map(({ title, words }, place) => {
      const text = this.#wholes[place] * (words ? LETTER : DIGIT) + this.#fractions[place];
      const width = Math.max(title.length * SMALL_LETTER, text) + PADDING;
      return `minmax(${width}ch, ${width}fr)`;
    });
    this.table.style.setProperty("--columns", tracks.join(" "));
  }
}

/** Returns the attributes that align a column. */
export function sideOf({ words }) {
  return { class: words ? null : "amount" };
}

/** The row of a contract. Redraws only changed cells and highlights a changed balance for a moment. */
export class Row {
  #fund = {};
  #flashing = null;

  constructor() {
    this.cells = COLUMNS.map((column) =>
      element("td", { role: "cell", "data-column": column.id, "data-title": column.title, ...sideOf(column) }),
    );
    this.element = element("tr", { role: "row" }, ...this.cells);
  }

  show(fund, widths) {
    if (fund === this.#fund) return;
    const before = this.#fund;
    this.#fund = fund;
    COLUMNS.forEach(({ id, show }, place) => {
      const field = FIELDS[id] ?? id;
      if (before.symbol && before[field] === fund[field]) return;
      const shown = show(fund);
      this.cells[place].replaceChildren(shown);
      widths.fit(place, `${shown.matches(".up") ? "+" : ""}${shown.textContent}`);
    });
    alignDecimals(widths.table, this.element);
    if (before.symbol && before.balance !== fund.balance) this.#flash(compareDecimals(fund.balance, before.balance));
  }

  #flash(direction) {
    const colours = [direction < 0 ? "var(--down-soft)" : "var(--up-soft)", "transparent"];
    this.#flashing?.cancel();
    this.#flashing = this.cells[BALANCE].animate({ backgroundColor: colours }, { duration: 1200, easing: "ease-out" });
  }
}

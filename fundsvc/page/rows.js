/**
 * The columns of the list of contracts, their widths, and a contract's row.
 *
 * Each row is a separate grid with the widths calculated here, and the browser lays out only visible rows. It would lay out
 * a table as a whole after each change, which takes 40 ms for a thousand contracts. Such rows need explicit ARIA roles.
 */

import { contractAddress } from "./addresses.js";
import { element } from "./dom.js";
import { age, changeOf, compareDecimals, FUND_STATES, fundState, percent, policyWords, short } from "./format.js";
import { lowestOf, sparkline, SPARK_WIDTH } from "./spark.js";

/** Longer symbols are truncated; the title has the whole one. */
const SYMBOL_LENGTH_MAX = 24;

/** Widths in `ch`: of the letters of titles, which are smaller, of letters, of digits, and of the padding of a cell. */
const SMALL_LETTER = 0.92;
const LETTER = 1.2;
const DIGIT = 1.02;
const PADDING = 1.7;

const byText = (name) => (a, b) => a[name].localeCompare(b[name]);
const byAmount = (name) => (a, b) => compareDecimals(a[name], b[name]);
const shareOf = (fund, name) => Number(fund[name]) / (Number(fund.balance) - Number(fund[name]) || 1);
const byNumber = (name) => (a, b) => (a[name] ?? -Infinity) - (b[name] ?? -Infinity);

/**
 * Columns: title, comparison, content; `words` aligns to the left, `amount` and `descending` sort the largest first. `wide` columns
 * are shown on wide screens only, where they fit. `fields` are what the content depends on, besides the column's id.
 */
export const COLUMNS = [
  { id: "symbol", title: "Contract", compare: byText("name"), show: (fund) => link(fund), words: true, fields: ["name"] },
  {
    id: "state",
    title: "State",
    compare: (a, b) => FUND_STATES.indexOf(a.condition) - FUND_STATES.indexOf(b.condition),
    show: (fund) => fundState(fund.condition),
    words: true,
    descending: true,
    fields: ["condition"],
  },
  { id: "balance", title: "Balance", compare: byAmount("balance"), show: (fund) => short(fund.balance), amount: true },
  {
    id: "currency",
    title: "Currency",
    compare: byText("settleCurrency"),
    show: (fund) => element("abbr", {}, fund.settleCurrency),
    words: true,
    fields: ["settleCurrency"],
  },
  {
    id: "usdt",
    title: "USDT value",
    compare: byAmount("balanceUsdt"),
    show: (fund) => short(fund.balanceUsdt, { reason: fund.balanceUsdtReason }),
    amount: true,
    fields: ["balanceUsdt"],
  },
  {
    id: "spark",
    title: "24 h",
    compare: (a, b) => compareDecimals(lowestOf(a), lowestOf(b)),
    show: (fund) => sparkline(fund),
    words: true,
    fields: ["hours"],
    least: SPARK_WIDTH,
  },
  {
    id: "change24h",
    title: "24 h change",
    compare: (a, b) => shareOf(a, "change24h") - shareOf(b, "change24h"),
    show: (fund) => changeOf(fund.change24h, fund.balance),
    amount: true,
    fields: ["change24h", "balance"],
  },
  {
    id: "change7d",
    title: "7 d change",
    compare: (a, b) => shareOf(a, "change7d") - shareOf(b, "change7d"),
    show: (fund) => changeOf(fund.change7d, fund.balance),
    amount: true,
    wide: true,
    fields: ["change7d", "balance"],
  },
  {
    id: "drawdown8h",
    title: "8 h drawdown",
    compare: byNumber("drawdown8h"),
    show: (fund) => percent(fund.drawdown8h),
    descending: true,
    wide: true,
  },
  { id: "payable", title: "Payable", compare: byAmount("payable"), show: (fund) => short(fund.payable), amount: true },
  {
    id: "balanceToOpenInterest",
    title: "To OI",
    compare: byNumber("balanceToOpenInterest"),
    show: (fund) => percent(fund.balanceToOpenInterest),
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
    show: (fund) => short(fund.outstanding),
    amount: true,
  },
  {
    id: "updatedAt",
    title: "Last change",
    compare: byNumber("updatedAt"),
    show: (fund) => age(fund.updatedAt),
    descending: true,
  },
  {
    id: "policy",
    title: "Policy",
    compare: (a, b) => (a.policy?.words ?? "").localeCompare(b.policy?.words ?? ""),
    show: (fund) => policyWords(fund.policy),
    words: true,
    wide: true,
  },
];

const BALANCE = COLUMNS.findIndex(({ id }) => id === "balance");

/** Columns marked as wide need so much room. */
const WIDE = matchMedia("(min-width: 100rem)");

function link(fund) {
  return element("a", { href: contractAddress(fund.name), title: fund.name }, fund.name);
}

/** The widths of the columns. They only grow, so that columns do not move when numbers change. */
export class Widths {
  #lengths = COLUMNS.map(() => 0);

  constructor(table) {
    this.table = table;
    this.#apply();
    WIDE.addEventListener("change", () => this.#apply());
  }

  /** Widens a column if a text needs it. */
  fit(place, text) {
    const length = Math.min(text.length, COLUMNS[place].id === "symbol" ? SYMBOL_LENGTH_MAX : Infinity);
    if (length <= this.#lengths[place]) return;
    this.#lengths[place] = length;
    this.#apply();
  }

  #apply() {
    const shown = COLUMNS.map((column, place) => ({ ...column, length: this.#lengths[place] })).filter(
      ({ wide }) => !wide || WIDE.matches,
    );
    const tracks = shown.map(({ title, words, length, least = 0 }) => {
      const width = Math.max(title.length * SMALL_LETTER, length * (words ? LETTER : DIGIT), least) + PADDING;
      return `minmax(${width}ch, ${width}fr)`;
    });
    this.table.style.setProperty("--columns", tracks.join(" "));
  }
}

/** Returns the attributes that align a column, and hide it where it does not fit. */
export function sideOf({ words, wide }) {
  return { class: [...(words ? [] : ["amount"]), ...(wide ? ["wide-only"] : [])].join(" ") || null };
}

/**
 * The row of a contract. Redraws only changed cells and highlights a changed balance until `calm`. The highlight does not fade: an
 * animation would paint the page sixty times a second while fills arrive.
 */
export class Row {
  #fund = {};

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
    COLUMNS.forEach(({ id, show, fields = [id] }, place) => {
      if (before.symbol && fields.every((field) => before[field] === fund[field])) return;
      const shown = show(fund);
      this.cells[place].replaceChildren(shown);
      widths.fit(place, `${shown.matches(".up") ? "+" : ""}${shown.dataset.short ?? shown.textContent}`);
    });
    if (before.symbol && before.balance !== fund.balance)
      this.cells[BALANCE].dataset.moved = compareDecimals(fund.balance, before.balance) < 0 ? "down" : "up";
  }

  calm() {
    delete this.cells[BALANCE].dataset.moved;
  }
}

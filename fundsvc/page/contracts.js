/** The list of all contracts, sorted and filtered, with totals by currency, also over time. */

import { showActivity } from "./activity.js";
import { arrange, element } from "./dom.js";
import { FUND_STATES, fundState, short, sumDecimals } from "./format.js";
import { COLUMNS, Row, sideOf, Widths } from "./rows.js";
import { moveFocus, oneStop, scroller } from "./table.js";
import { showTotals } from "./totals.js";

const RESORT_MS = 2000;

/** How long a changed balance is highlighted if nothing changes meanwhile: longer than the interval at which changes are drawn. */
const CALM_MS = 2000;

/** How often the lines of the last 24 hours are read again. */
const HOURS_MS = 60_000;

/** The last choice of order and filter, kept while the page is open. */
const chosen = { sort: "usdt", descending: true, text: "", state: "" };

class ContractsView {
  #market;
  #rows = new Map();
  #order = [];
  #sortedAt = 0;
  #totalled = null;
  #calming = 0;

  constructor(root, market) {
    this.#market = market;
    this.totals = element("section", { class: "totals", "aria-label": "Totals by currency" });
    this.count = element("p", { class: "count", role: "status" });
    this.headers = COLUMNS.map((column) => this.#header(column));
    this.body = element("tbody", { role: "rowgroup", keydown: moveFocus });
    this.table = element(
      "table",
      { class: "contracts", role: "table", "aria-label": "Insurance funds by contract" },
      element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...this.headers)),
      this.body,
    );
    this.widths = new Widths(this.table);
    this.empty = element("p", { class: "none" });
    const heading = element("h1", { class: "hidden", tabindex: "-1" }, "Contracts");
    this.activity = element("section", { class: "panel activity" });
    this.history = element("section", { class: "panel history" });
    const list = scroller("Contracts", this.table, this.empty);
    root.append(heading, this.totals, this.#toolbar(), list, this.activity, this.history);
    this.#showSort();
  }

  #header(column) {
    const press = () => this.#sortBy(column);
    const title = element("button", { type: "button", click: press }, column.title);
    return element("th", { role: "columnheader", "data-column": column.id, ...sideOf(column) }, title);
  }

  #toolbar() {
    const filter = () => {
      chosen.text = this.text.value;
      chosen.state = this.state.value;
      this.draw({ sort: true });
    };
    this.text = element("input", {
      type: "search",
      placeholder: "Filter by contract or currency",
      "aria-label": "Filter by contract or currency",
      "aria-keyshortcuts": "/",
      input: filter,
    });
    this.text.value = chosen.text;
    const states = FUND_STATES.map((state) => element("option", { value: state }, fundState(state).textContent));
    this.state = element(
      "select",
      { "aria-label": "State", change: filter },
      element("option", { value: "" }, "All states"),
      ...states,
    );
    this.state.value = chosen.state;
    const columns = COLUMNS.map((column) => element("option", { value: column.id }, `Sort: ${column.title}`));
    this.sort = element("select", { class: "narrow", "aria-label": "Sort by" }, ...columns);
    this.sort.addEventListener("change", () => this.#sortBy(COLUMNS.find(({ id }) => id === this.sort.value)));
    return element("div", { class: "toolbar", role: "search" }, this.text, this.state, this.sort, this.count);
  }

  #sortBy(column) {
    if (chosen.sort === column.id) chosen.descending = !chosen.descending;
    else Object.assign(chosen, { sort: column.id, descending: Boolean(column.amount || column.descending) });
    this.#showSort();
    this.draw({ sort: true });
  }

  #showSort() {
    this.sort.value = chosen.sort;
    for (const header of this.headers) {
      if (header.dataset.column !== chosen.sort) header.removeAttribute("aria-sort");
      else header.setAttribute("aria-sort", chosen.descending ? "descending" : "ascending");
    }
  }

  /** Draws the funds. Sorts the rows at once with `sort`, else at an interval, but not while the pointer or focus is on one. */
  draw({ sort = false } = {}) {
    const { funds, problem } = this.#market;
    if (!funds) {
      this.count.textContent = problem || "loading";
      return;
    }
    this.#drawTotals([...funds.values()]);
    const all = [...funds.values()].filter((fund) => (chosen.state === "closed") === fund.closed);
    const shown = this.#filtered(all);
    const busy = this.body.matches(":hover, :focus-within");
    const due = performance.now() - this.#sortedAt > RESORT_MS && !busy;
    const known = new Set(this.#order);
    this.#calm();
    for (const fund of shown) this.#row(fund).show(fund, this.widths);
    clearTimeout(this.#calming);
    this.#calming = setTimeout(this.#calm, CALM_MS);
    if (sort || due || shown.length !== this.#order.length || shown.some(({ name }) => !known.has(name))) this.#sort(shown);
    this.empty.textContent = shown.length ? "" : funds.size ? "No contract matches the filter." : "No contract is listed yet.";
    this.count.textContent =
      shown.length === all.length ? `${all.length} contracts` : `${shown.length} of ${all.length} contracts`;
  }

  #calm = () => this.#rows.forEach((row) => row.calm());

  #filtered(funds) {
    const text = chosen.text.trim().toUpperCase();
    const matches = (fund) => fund.name.toUpperCase().includes(text) || fund.settleCurrency.toUpperCase().includes(text);
    return funds.filter((fund) => matches(fund) && (!chosen.state || fund.condition === chosen.state));
  }

  #sort(funds) {
    const { compare } = COLUMNS.find(({ id }) => id === chosen.sort);
    const direction = chosen.descending ? -1 : 1;
    funds.sort((a, b) => direction * compare(a, b) || a.name.localeCompare(b.name));
    this.#order = funds.map(({ name }) => name);
    this.#sortedAt = performance.now();
    arrange(
      this.body,
      funds.map((fund) => this.#row(fund).element),
    );
    oneStop(this.body);
  }

  #row({ name }) {
    if (!this.#rows.has(name)) this.#rows.set(name, new Row());
    return this.#rows.get(name);
  }

  /** Draws the sums of all funds as they are shown now, so that each total is the sum of its rows. */
  #drawTotals(funds) {
    const groups = new Map();
    for (const fund of funds) groups.set(fund.settleCurrency, [...(groups.get(fund.settleCurrency) ?? []), fund]);
    const totals = [...groups].sort(([a], [b]) => a.localeCompare(b)).map(([currency, group]) => totalOf(currency, group));
    const text = JSON.stringify(totals);
    if (text === this.#totalled) return;
    this.#totalled = text;
    const missing = totals.map(({ reason }) => reason).filter(Boolean);
    const all = missing.length ? null : sumDecimals(totals.map(({ usdt }) => usdt));
    const total = element(
      "div",
      { class: "total all" },
      element("h2", {}, "All funds"),
      element("span", { class: "money" }, short(all), " ", element("abbr", {}, "USDT")),
      element("p", {}, missing.join("; ")),
    );
    this.totals.replaceChildren(total, ...totals.map(totalTile));
  }
}

/** Returns the exact sums of the funds of a currency; `reason` states why their value in USDT is not known. */
function totalOf(currency, funds) {
  const sum = (field) => sumDecimals(funds.map((fund) => fund[field]));
  const unknown = funds.find(({ balanceUsdt }) => balanceUsdt === null);
  return {
    currency,
    contracts: funds.length,
    closed: funds.filter(({ closed }) => closed).length,
    balance: sum("balance"),
    outstanding: sum("outstanding"),
    usdt: unknown ? null : sum("balanceUsdt"),
    reason: unknown ? unknown.balanceUsdtReason : "",
  };
}

function totalTile({ currency, contracts, closed, balance, outstanding, usdt, reason }) {
  const counted = `${contracts} ${contracts === 1 ? "contract" : "contracts"}${closed ? `, ${closed} closed` : ""}`;
  const owed = { class: /[1-9]/.test(outstanding) ? "owed" : null };
  return element(
    "div",
    { class: "total" },
    element("h2", {}, `${currency} · ${counted}`),
    short(balance),
    element("p", {}, "≈ ", short(usdt, { reason }), " ", element("abbr", {}, "USDT")),
    element("p", owed, "outstanding ", short(outstanding)),
  );
}

/** Shows the contracts in `root`. Returns a function that closes the view. */
export function showContracts(root, { market }) {
  const view = new ContractsView(root, market);
  market.follow("all");
  const unlisten = market.listen(() => view.draw());
  const hours = setInterval(market.readHours, HOURS_MS);
  const ends = [showActivity(view.activity, market), showTotals(view.history)];
  market.readHours();
  const shortcut = (event) => {
    if (event.key !== "/" || event.target.matches("input, select, textarea")) return;
    event.preventDefault();
    view.text.focus();
  };
  document.addEventListener("keydown", shortcut);
  return () => {
    unlisten();
    clearInterval(hours);
    ends.forEach((end) => end());
    document.removeEventListener("keydown", shortcut);
  };
}

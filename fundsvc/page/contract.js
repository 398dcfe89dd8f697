/** The view of one contract: its fund, balance chart, entries, ADL orders and ADL queue. */

import { contractAddress } from "./addresses.js";
import { showChart } from "./chart.js";
import { element, redraw, visible } from "./dom.js";
import { showEntries } from "./entries.js";
import { hash, fundState, money, moment, number, percent, rough } from "./format.js";
import { showInventory } from "./inventory.js";
import { showOrders } from "./orders.js";
import { showQueue } from "./queue.js";

/** The facts of a fund, by their titles. */
const FACTS = {
  "24 h change": (fund) => money(fund.change24h, fund.settleCurrency, { signed: true }),
  "7 d change": (fund) => money(fund.change7d, fund.settleCurrency, { signed: true }),
  "8 h peak": (fund) => money(fund.peak8h, fund.settleCurrency),
  "8 h drawdown": (fund) => percent(fund.drawdown8h),
  Target: (fund) => money(fund.target, fund.settleCurrency, { reason: "the target size is not calculated yet" }),
  Fullness: (fund) => percent(fund.fullness),
  Payable: (fund) => money(fund.payable, fund.settleCurrency),
  "Guard line": (fund) => money(fund.guardLine, fund.settleCurrency, { reason: "the policy has no drawdown guard" }),
  "Leverage cap": (fund) => rough(fund.leverageCap),
  Equity: (fund) => money(fund.equity, fund.settleCurrency, { reason: "no mark price is known yet" }),
  "Unrealised PnL": (fund) =>
    money(fund.unrealisedPnl, fund.settleCurrency, { signed: true, reason: "no mark price is known yet" }),
  Outstanding: (fund) => money(fund.outstanding, fund.settleCurrency),
  "Open interest": (fund) => element("span", {}, number(fund.openInterest, { reason: "positions are not loaded yet" }), " lots"),
  "Balance to open interest": (fund) => percent(fund.balanceToOpenInterest),
  "Last change": (fund) => moment(fund.updatedAt),
  "Last entry": (fund) => number(fund.entry),
  "Chain head": (fund) => hash(fund.head),
  Status: (fund) => element("span", {}, fund.status ?? "–"),
  Generation: (fund) => generations(fund),
  Policy: (fund) => element("span", {}, fund.policy?.words ?? "–"),
};

/** Links to the earlier generations of a symbol; the number of the shown one alone. */
function generations({ symbol, generation }) {
  const earlier = Array.from({ length: generation - 1 }, (_, place) => place + 1);
  const links = earlier.map((number) => element("a", { href: contractAddress(`${symbol}@${number}`) }, `${number}`));
  return element("span", {}, `${generation}`, ...links.flatMap((link, place) => [place ? " " : ", earlier: ", link]));
}

/** Shows a contract in `root`. Returns a function that closes it. */
export function showContract(root, { market, feed }, symbol) {
  const title = element("h1", { tabindex: "-1" }, symbol);
  const state = element("span", {});
  const worth = element("div", { class: "worth" });
  const facts = element("dl", { class: "facts" });
  const others = element("select", { "aria-label": "Go to contract", change: () => (location.hash = contractAddress(others.value)) });
  root.append(element("header", { class: "contract" }, element("div", { class: "name" }, title, state, others), worth, facts));

  let shown = null;
  let panels = null;
  const unlisten = market.listen(() => {
    const fund = market.find(symbol);
    drawChoice(others, market, symbol);
    const isUnlisted = market.funds && !fund;
    market.follow(isUnlisted ? "all" : symbol); // The listing of a contract is a push for all funds.
    if (isUnlisted) worth.textContent = `No contract ${visible(symbol)} is listed.`;
    if (!fund || fund === shown) return;
    if (shown && shown.generation !== fund.generation) panels = panels.remove();
    shown = fund;
    redraw(state, fundState(fund.condition));
    redraw(worth, ...worths(fund));
    drawFacts(facts, fund);
    panels ??= showPanels(root, feed, symbol, fund.settleCurrency);
    panels.show(fund);
  });
  return () => {
    unlisten();
    panels?.end();
  };
}

/** Offers the open contracts, and the shown one. */
function drawChoice(choice, { funds }, symbol) {
  const open = [...(funds?.values() ?? [])].filter(({ closed }) => !closed).map(({ name }) => name);
  const names = [...new Set([symbol, ...open])].sort();
  redraw(choice, ...names.map((name) => element("option", { value: name }, name)));
  if (choice.value !== symbol) choice.value = symbol;
}

/** Shows the panels of a listed contract below its facts. Returns `show` for a changed fund, `end`, and `remove`. */
function showPanels(root, feed, symbol, settleCurrency) {
  const panels = Object.fromEntries(
    ["chart", "inventory", "entries", "queue", "orders"].map((name) => [name, element("section", { class: `panel ${name}` })]),
  );
  root.append(...Object.values(panels));
  const chart = showChart(panels.chart, symbol, settleCurrency);
  const inventory = showInventory(panels.inventory, symbol);
  const added = (entry) => [chart, inventory].forEach((panel) => panel.add(entry));
  const replaced = (newest) => [chart, inventory].forEach((panel) => panel.reload(newest));
  const ends = [
    chart.end,
    inventory.end,
    showEntries(panels.entries, feed, symbol, { added, replaced }),
    showOrders(panels.orders, feed, symbol),
    showQueue(panels.queue, symbol),
  ];
  const end = () => ends.forEach((each) => each());
  const remove = () => {
    end();
    Object.values(panels).forEach((panel) => panel.remove());
    return null;
  };
  const show = (fund) => [chart, inventory].forEach((panel) => panel.show(fund));
  return { show, end, remove };
}

function worths(fund) {
  const inUsdt = money(fund.balanceUsdt, "USDT", { reason: fund.balanceUsdtReason });
  const inBase = money(fund.balanceBase, fund.baseCurrency, { reason: fund.balanceBaseReason });
  const others = [inUsdt, inBase].filter(
    (_, place) => [fund.settleCurrency !== "USDT", fund.baseCurrency && fund.settleCurrency !== fund.baseCurrency][place],
  );
  return [
    element("p", { class: "balance" }, money(fund.balance, fund.settleCurrency)),
    ...others.map((value) => element("p", {}, "≈ ", value)),
  ];
}

function factOf(name) {
  return element("div", { class: name === "Policy" ? "whole" : null }, element("dt", {}, name), element("dd", {}));
}

function drawFacts(facts, fund) {
  if (!facts.children.length)
    facts.append(...Object.keys(FACTS).map(factOf));
  Object.values(FACTS).forEach((show, place) => redraw(facts.children[place].lastChild, show(fund)));
}

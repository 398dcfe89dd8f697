/** What ADL did last in all contracts: orders that opened, their later rounds, executions and ends, with their worth. */

import { contractAddress } from "./addresses.js";
import { ApiError, get } from "./api.js";
import { element, perPulse, redraw } from "./dom.js";
import { moment, number, short } from "./format.js";
import { listTable, scroller } from "./table.js";

/** Steps that the list shows. */
const COUNT = 40;

/** The shortest time between two reads while orders advance. */
const GAP_MS = 3000;

/** How often the list is read again without a change: an order may open and end between two publications of its fund. */
const REFRESH_MS = 30_000;

/** What a step is, and the fund state whose style it has. */
const STEPS = {
  opened: () => ["order opened", "adl"],
  round: ({ round }) => [`round ${round} begins`, "adl"],
  executed: ({ round }) => [`executed in round ${round}`, "ok"],
  ended: ({ state }) => [{ done: "done", uncovered: "ended uncovered", returned: "rest returned to the fund" }[state], ENDS[state]],
};

/** The steps whose lots the service rounds. */
const ROUNDED = new Set(["round", "executed"]);

const ENDS = { done: "ok", uncovered: "uncovered", returned: "warning" };

const COLUMNS = {
  Time: (row) => moment(row.ts),
  Contract: (row) => element("a", { href: contractAddress(nameOf(row)) }, nameOf(row)),
  Order: (row) => `ADL ${row.adl}`,
  Step: (row) => stepOf(row),
  Side: (row) => `${row.reduce}s`,
  Lots: (row) => (ROUNDED.has(row.kind) ? element("span", {}, "≈ ", number(row.lots)) : number(row.lots)),
  Price: (row) => number(row.price),
  "Notional in USDT": (row) => short(row.notionalUsdt, { reason: row.notionalUsdtReason }),
};

const WORDS = ["Time", "Contract", "Order", "Step", "Side"];

/** The name that leads to the contract of a step; that of the newest generation redirects nowhere. */
function nameOf({ symbol, generation }) {
  return Number(generation) === 1 ? symbol : `${symbol}@${generation}`;
}

function stepOf(row) {
  const [words, state] = STEPS[row.kind](row);
  return element("span", { class: "state", "data-state": state }, words);
}

/** Shows the activity in `root`, and reads it again after each change of a fund whose orders move. Returns a function that ends this. */
export function showActivity(root, market) {
  const about = "Lots of rounds and executions are rounded, so that they do not reveal single positions.";
  const problem = element("p", { class: "problem" });
  const rows = scroller("ADL activity");
  rows.classList.add("short-list");
  root.append(element("div", { class: "head" }, element("h2", {}, "ADL activity")), problem, rows, element("p", { class: "note" }, about));

  let isEnded = false;
  const read = async () => {
    if (document.hidden || isEnded) return;
    try {
      const steps = await get("adl/activity", { maxCount: COUNT });
      const empty = "ADL has not reduced a position yet.";
      redraw(rows, listTable(COLUMNS, steps, { words: WORDS, empty, cards: true }));
      problem.textContent = "";
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      problem.textContent = error.message;
    }
  };
  let moves = market.moves;
  const readSoon = perPulse(read, GAP_MS);
  const unlisten = market.listen(() => {
    if (moves === market.moves) return;
    moves = market.moves;
    readSoon();
  });
  const timer = setInterval(read, REFRESH_MS);
  read();
  return () => {
    isEnded = true;
    unlisten();
    clearInterval(timer);
  };
}

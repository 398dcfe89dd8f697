/** The queue of a contract: how many positions have how many lights, on both sides. */

import { ApiError, get } from "./api.js";
import { element } from "./dom.js";
import { lights, moment, number, rough } from "./format.js";
import { listTable, scroller } from "./table.js";

const REFRESH_MS = 2000;

const COLUMNS = {
  Lights: (row) => litRange(row),
  Positions: (row) => number(row.positions),
  Lots: (row) => number(row.lots),
  PnL: (row) => number(row.unrealisedPnl, { signed: true }),
  "Highest score": (row) => rough(row.highestScore),
};

/** The lights of a row's positions; those of few are shown together. */
function litRange({ lights: from, toLights: to }) {
  return from === to ? lights(from) : element("span", {}, lights(from), " to ", lights(to));
}

function sideTable(caption, sections) {
  return listTable(COLUMNS, sections, { caption, words: ["Lights"], empty: "too few positions to be shown" });
}

/** Shows the queue, and looks again every two seconds while the page can be seen. */
export function showQueue(root, symbol) {
  const asOf = element("p", { class: "as-of" });
  const sides = scroller("ADL queue");
  sides.classList.add("sides");
  const about = element("p", { class: "note" }, "Positions with five lights are deleveraged first. Numbers are rounded: they tell of no single position.");
  root.append(element("div", { class: "head" }, element("h2", {}, "ADL queue"), asOf), sides, about);

  const refresh = async () => {
    if (document.hidden) return;
    try {
      const queue = await get(`adl/${encodeURIComponent(symbol)}/queue`);
      asOf.replaceChildren("mark ", number(queue.markPrice), " · ", moment(queue.ts));
      sides.replaceChildren(sideTable("Longs", queue.long), sideTable("Shorts", queue.short));
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      asOf.textContent = error.message;
    }
  };
  refresh();
  const timer = setInterval(refresh, REFRESH_MS);
  return () => clearInterval(timer);
}

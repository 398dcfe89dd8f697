/** The ADL queue of a contract: positions and lots by lights, on both sides. */

import { ApiError, get } from "./api.js";
import { element, perPulse, redraw } from "./dom.js";
import { lights, moment, number, rough } from "./format.js";
import { listTable, scroller } from "./table.js";

const REFRESH_MS = 2000;

const COLUMNS = {
  Lights: (row) => litRange(row),
  Positions: (row) => number(row.positions),
  Lots: (row) => number(row.lots),
  PnL: (row) => number(row.unrealisedPnl, { signed: true }),
  "Top score": (row) => rough(row.highestScore),
};

/** Shows the lights of a row. The API merges rows of few positions. */
function litRange({ lights: from, toLights: to }) {
  return from === to ? lights(from) : element("span", {}, lights(from), " to ", lights(to));
}

function sideTable(caption, sections) {
  return listTable(COLUMNS, sections, { caption, words: ["Lights"], empty: "Not shown: there are too few positions." });
}

/** Shows the queue in `root` and refreshes it while the page is visible. Returns a function that stops this. */
export function showQueue(root, symbol) {
  const asOf = element("p", { class: "as-of" });
  const sides = scroller("ADL queue");
  sides.classList.add("sides");
  const text = "The positions that ADL may reduce, those with five lights first. Numbers are rounded, so that they do not reveal single positions.";
  const about = element("p", { class: "note" }, text);
  root.append(element("div", { class: "head" }, element("h2", {}, "ADL queue"), asOf), sides, about);

  let shown = null;
  const draw = perPulse(() => {
    asOf.replaceChildren("mark price ", number(shown.markPrice), " · ", moment(shown.ts));
    redraw(sides, sideTable("Longs", shown.long), sideTable("Shorts", shown.short));
  });
  const refresh = async () => {
    if (document.hidden) return;
    try {
      const queue = await get(`adl/${encodeURIComponent(symbol)}/queue`);
      shown = queue;
      draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      asOf.textContent = error.message;
    }
  };
  refresh();
  const timer = setInterval(refresh, REFRESH_MS);
  return () => clearInterval(timer);
}

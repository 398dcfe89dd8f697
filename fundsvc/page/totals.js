/** The total balance of each settlement currency over time, as a chart. */

import { ApiError, get } from "./api.js";
import { button, element } from "./dom.js";
import { amountAxis, chartOptions, follow, lookOf, stepLine, timeAxis } from "./drawing.js";
import { dayAndClock } from "./format.js";

const MINUTE_MS = 60_000;
const REFRESH_MS = 60_000;

/** The ranges on offer: minutes of a candle, and candles. */
const RANGES = { "7 d": [60, 168], "30 d": [1440, 30], "1 y": [1440, 366] };

class Totals {
  #range = "7 d";
  #currency = null;
  #rows = [];
  #chart = null;
  #loads = 0;

  constructor(root) {
    this.currencies = element("div", { class: "group", role: "group", "aria-label": "Currency" });
    this.ranges = Object.keys(RANGES).map((range) => button(range, () => this.#choose(range)));
    const ranges = element("div", { class: "group", role: "group", "aria-label": "Range of the totals" }, ...this.ranges);
    this.readout = element("p", { class: "readout" });
    this.plot = element("div", { class: "plot small", role: "img", "aria-label": "Total balance" });
    const head = element("div", { class: "head" }, element("h2", {}, "Total balance over time"), this.currencies, ranges);
    root.append(head, this.readout, this.plot);
    this.unfollow = follow(this.plot, () => this.#chart);
    this.recoloured = () => this.#draw();
    document.addEventListener("themechange", this.recoloured);
    this.timer = setInterval(() => document.hidden || this.#load(), REFRESH_MS);
    this.#choose(this.#range);
  }

  end = () => {
    this.#loads = Infinity;
    this.unfollow();
    clearInterval(this.timer);
    document.removeEventListener("themechange", this.recoloured);
    this.#chart?.destroy();
  };

  #choose(range) {
    this.#range = range;
    for (const choice of this.ranges) choice.setAttribute("aria-pressed", String(choice.textContent === range));
    this.#load();
  }

  async #load() {
    const number = ++this.#loads;
    const [granularity, count] = RANGES[this.#range];
    try {
      const rows = await get("summary/candles", { granularity, from: Math.max(0, Date.now() - (count - 1) * granularity * MINUTE_MS) });
      if (number !== this.#loads) return;
      this.#rows = rows.filter(({ candles }) => candles.length);
      this.#draw();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (number === this.#loads) this.readout.textContent = error.message;
    }
  }

  #draw() {
    this.#chart?.destroy();
    this.#chart = null;
    if (!this.#rows.some(({ currency }) => currency === this.#currency)) this.#currency = this.#first();
    this.currencies.replaceChildren(...this.#rows.map(({ currency }) => this.#currencyButton(currency)));
    const row = this.#rows.find(({ currency }) => currency === this.#currency);
    if (!row) {
      this.readout.textContent = "No fund has had a change in this time.";
      return;
    }
    const length = RANGES[this.#range][0] * MINUTE_MS;
    const ends = row.candles.map(([start]) => Math.min(Number(start) + length, Date.now()));
    const shades = lookOf(this.plot);
    const look = () => shades;
    const options = chartOptions(this.plot, {
      series: [{}, stepLine(look, "accent")],
      scales: { x: { time: false }, y: { range: (_chart, _low, high) => [0, (high || 1) * 1.06] } },
      axes: [timeAxis(look), amountAxis(look)],
      cursor: { drag: { x: false, setScale: false }, y: false, points: { show: false } },
      hooks: { setCursor: [({ cursor }) => this.#describe(row, ends, cursor.idx)] },
    });
    const first = [Number(row.candles[0][0]), Number(row.candles[0][1])];
    const columns = [[first[0], ...ends], [first[1], ...row.candles.map(([, , close]) => Number(close))]];
    this.#chart = new window.uPlot(options, columns, this.plot);
    this.plot.chart = this.#chart;
    this.#describe(row, ends, null);
  }

  /** Returns USDT, or else the first currency. */
  #first() {
    const currencies = this.#rows.map(({ currency }) => currency);
    return currencies.includes("USDT") ? "USDT" : (currencies[0] ?? null);
  }

  #currencyButton(currency) {
    const press = () => {
      this.#currency = currency;
      this.#draw();
    };
    return button(currency, press, { "aria-pressed": String(currency === this.#currency) });
  }

  /** Names the exact total under the crosshair, or the newest one, and what changed it. */
  #describe({ currency, candles }, ends, place) {
    const index = Math.max((place ?? candles.length) - 1, 0);
    const [, , close, credited, paid] = candles[index];
    this.readout.replaceChildren(
      element("span", {}, dayAndClock(ends[index])),
      element("span", {}, element("b", {}, close), ` ${currency}`),
      element("span", {}, `credited ${credited}, paid ${paid}`),
    );
    this.plot.setAttribute("aria-label", `Total balance in ${currency}, ${close} at the end`);
  }
}

/** Shows the totals in `root`. Returns a function that ends this. */
export function showTotals(root) {
  return new Totals(root).end;
}

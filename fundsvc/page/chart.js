/** The balance chart: the shown time range, zoom and scale, extended by each new entry. */

import { button, element } from "./dom.js";
import { coloursOf, layout, plotly, traces } from "./drawing.js";
import { addPoint, entryLosses, entryPoint, firstEntryAt, loadSeries } from "./series.js";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;
const REDRAW_MS = 500;
const RELOAD_MS = 300;
const RETRY_MS = 5000;
const POINTS_MAX = 6000;

/** The latest time that the API accepts: the end of the year 9999. */
const LAST_MS = 253_402_300_799_999;

/** The ranges on offer, in ms before now; null starts at the first entry. */
const RANGES = {
  "1 h": HOUR_MS,
  "24 h": 24 * HOUR_MS,
  "7 d": 168 * HOUR_MS,
  "30 d": 720 * HOUR_MS,
  "1 y": 8760 * HOUR_MS,
  All: null,
};

class Chart {
  #symbol;
  #currency;
  #range = "24 h";
  #span = null;
  #series = null;
  #logarithmic = false;
  #newEntries = [];
  #dragging = false;
  #loads = 0;
  #ended = false;
  #drawn = false;
  #redrawing = 0;
  #reloading = 0;

  constructor(root, symbol, currency) {
    this.#symbol = symbol;
    this.#currency = currency;
    this.ranges = Object.keys(RANGES).map((range) =>
      button(range, () => this.#choose(range), { "aria-pressed": String(range === this.#range) }),
    );
    this.scale = button("Log scale", () => this.#switchScale(), { "aria-pressed": "false" });
    const zooms = [
      button("−", () => this.#zoom(2), { "aria-label": "Zoom out" }),
      button("+", () => this.#zoom(0.5), { "aria-label": "Zoom in" }),
      button("‹", () => this.#pan(-0.5), { "aria-label": "Earlier" }),
      button("›", () => this.#pan(0.5), { "aria-label": "Later" }),
    ];
    const groups = [this.ranges, zooms, [this.scale]].map((buttons) =>
      element("div", { class: "group", role: "group" }, ...buttons),
    );
    this.plot = element("div", { class: "plot", role: "img" });
    this.note = element("p", { class: "note" }, "loading");
    const legend = element(
      "p",
      { class: "legend" },
      element("i", { class: "loss" }),
      "shortfall ",
      element("i", { class: "adl" }),
      "ADL order",
    );
    root.append(
      element("div", { class: "head" }, element("h2", {}, "Balance"), ...groups),
      this.plot,
      element("div", { class: "foot" }, this.note, legend),
    );
    this.plot.addEventListener("pointerdown", () => this.#setDragging(true));
    this.released = () => this.#setDragging(false);
    addEventListener("pointerup", this.released);
    this.resized = new ResizeObserver(() => this.#resize());
    this.resized.observe(this.plot);
    this.recoloured = () => this.#draw();
    document.addEventListener("themechange", this.recoloured);
    this.following = setInterval(() => this.#scheduleDraw(), 10 * REDRAW_MS);
  }

  /** Redraws, because the width determines the number of ticks. */
  #resize() {
    if (!this.#drawn) return;
    window.Plotly.Plots.resize(this.plot);
    this.#scheduleDraw();
  }

  /** Stops drawing and frees what Plotly holds. */
  end = () => {
    this.#ended = true;
    this.resized.disconnect();
    document.removeEventListener("themechange", this.recoloured);
    removeEventListener("pointerup", this.released);
    [this.#redrawing, this.#reloading].forEach(clearTimeout);
    clearInterval(this.following);
    if (this.#drawn) window.Plotly.purge(this.plot);
  };

  /** Adds the next entry. */
  add = (entry) => {
    this.#newEntries.push(entry);
    if (!this.#series) return;
    this.#append(entry);
    if (this.#series.points.length > POINTS_MAX) this.#reload();
    this.#scheduleDraw();
  };

  #append(entry) {
    addPoint(this.#series.points, entryPoint(entry));
    this.#series.losses.push(...entryLosses(entry));
  }

  /** Reloads the shown range shortly. Repeated calls cause one reload. */
  reload = () => this.#reload();

  #reload() {
    clearTimeout(this.#reloading);
    this.#reloading = setTimeout(() => this.#load(), RELOAD_MS);
  }

  #choose(range) {
    this.#range = range;
    this.#span = null;
    for (const choice of this.ranges) choice.setAttribute("aria-pressed", String(choice.textContent === range));
    this.#load();
  }

  /** Shows a fixed range, [from, to] in ms. */
  #showSpan(from, to) {
    this.#span = [Math.max(0, from), Math.min(to, LAST_MS)];
    for (const choice of this.ranges) choice.setAttribute("aria-pressed", "false");
    this.#draw();
    this.#reload();
  }

  #zoom(factor) {
    if (!this.#series) return;
    const [from, to] = this.#shown();
    const [middle, half] = [(from + to) / 2, ((to - from) / 2) * factor];
    this.#showSpan(middle - half, middle + half);
  }

  #pan(share) {
    if (!this.#series) return;
    const [from, to] = this.#shown();
    this.#showSpan(from + (to - from) * share, to + (to - from) * share);
  }

  #switchScale() {
    this.#logarithmic = !this.#logarithmic;
    this.scale.setAttribute("aria-pressed", String(this.#logarithmic));
    this.#draw();
  }

  /** Returns the shown range in ms: the zoomed one, or the chosen one until now, from the first entry at the earliest. */
  #shown() {
    if (this.#span) return this.#span;
    const now = Date.now();
    const first = this.first ?? now - HOUR_MS;
    return [RANGES[this.#range] === null ? first : Math.max(first, now - RANGES[this.#range]), now];
  }

  /**
   * Loads the shown range, then appends the entries that arrived meanwhile. A range until now includes the newest entry even if
   * the engine's clock is ahead.
   */
  async #load() {
    const number = ++this.#loads;
    this.#newEntries = [];
    try {
      this.first ??= await firstEntryAt(this.#symbol);
      const [from, to] = this.#shown();
      const [series] = await Promise.all([loadSeries(this.#symbol, from, this.#span ? to : to + DAY_MS), plotly()]);
      if (number !== this.#loads || this.#ended) return;
      this.#series = series;
      for (const entry of this.#newEntries) if (entry.entry > series.last) this.#append(entry);
      this.#draw();
    } catch (error) {
      if (number !== this.#loads || this.#ended) return;
      this.note.textContent = error.message;
      this.#reloading = setTimeout(() => this.#load(), RETRY_MS);
    }
  }

  /** Suspends drawing while the reader drags. */
  #setDragging(dragging) {
    if (this.#dragging && !dragging) this.#scheduleDraw();
    this.#dragging = dragging;
  }

  #scheduleDraw() {
    this.#redrawing ||= setTimeout(() => {
      this.#redrawing = 0;
      this.#draw();
    }, REDRAW_MS);
  }

  #draw() {
    if (!this.#series || this.#ended || this.#dragging) return;
    const [shown, colours] = [this.#shown(), coloursOf(this.plot)];
    const { fontFamily: family } = getComputedStyle(this.plot);
    const look = { family, width: this.plot.clientWidth, isLogarithmic: this.#logarithmic };
    const lines = traces(this.#series, shown, colours, this.#currency);
    window.Plotly.react(this.plot, lines, layout(shown, colours, look), { displayModeBar: false });
    if (!this.#drawn) this.plot.on("plotly_relayout", (change) => this.#relayout(change));
    this.#drawn = true;
    this.#describe();
  }

  #relayout(change) {
    if (change["xaxis.autorange"] || change["yaxis.autorange"]) this.#choose(this.#range);
    else if ("xaxis.range[0]" in change)
      this.#showSpan(Number(change["xaxis.range[0]"]), Number(change["xaxis.range[1]"]));
  }

  #describe() {
    const { points, before } = this.#series;
    const what = before.length ? "the newest entries, and earlier candles and samples as a dotted line" : "every entry";
    const gap =
      this.#logarithmic && points.some(({ balance }) => balance === 0)
        ? " A log scale cannot show a balance of 0: the line is interrupted there."
        : "";
    this.note.textContent = `Shows ${what}. Drag to zoom, double-click to reset.${gap}`;
    this.plot.setAttribute(
      "aria-label",
      `Balance of ${this.#symbol}, from ${points[0].text} to ${points.at(-1).text} ${this.#currency}`,
    );
  }
}

/** Shows the balance chart of a contract. `currency` is its settlement currency. */
export function showChart(root, symbol, currency) {
  return new Chart(root, symbol, currency);
}

/** The balance over time as a step line, with shortfalls and deleveraging below it. Plotly is loaded when it is first needed. */

import { button, element } from "./dom.js";
import { addPoint, entryLosses, entryPoint, firstEntryAt, loadSeries } from "./series.js";

const HOUR_MS = 3_600_000;
const REDRAW_MS = 500;
const RELOAD_MS = 300;
const POINTS_MAX = 6000;

/** What can be chosen, in ms before now; null is from the first entry. */
const RANGES = { "1 h": HOUR_MS, "24 h": 24 * HOUR_MS, "7 d": 168 * HOUR_MS, "30 d": 720 * HOUR_MS, "1 y": 8760 * HOUR_MS, All: null };

let loading = null;

/** The chart library, which the service has from its own package. */
function plotly() {
  loading ??= new Promise((resolve, reject) => {
    const source = document.querySelector("meta[name=plotly]").content;
    const failed = () => {
      loading = null;
      reject(new Error("the chart library could not be loaded"));
    };
    document.head.append(element("script", { src: source, load: () => resolve(window.Plotly), error: failed }));
  });
  return loading;
}

/** Plotly knows no time zones: what it is given is drawn as if it were UTC, so it is given local time. */
function toLocal(ts) {
  return ts - new Date(ts).getTimezoneOffset() * 60_000;
}

/** The reverse, of what Plotly tells of its axis. */
function fromLocal(told) {
  const local = typeof told === "number" ? told : Date.parse(`${told.replace(" ", "T")}Z`);
  return local + new Date(local).getTimezoneOffset() * 60_000;
}

class Chart {
  #symbol;
  #currency;
  #range = "24 h";
  #span = null;
  #series = null;
  #logarithmic = false;
  #loads = 0;
  #ended = false;
  #drawn = false;
  #redrawing = 0;
  #reloading = 0;

  constructor(root, symbol, currency) {
    this.#symbol = symbol;
    this.#currency = currency;
    this.ranges = Object.keys(RANGES).map((range) => button(range, () => this.#choose(range), { "aria-pressed": String(range === this.#range) }));
    this.scale = button("Log scale", () => this.#switchScale(), { "aria-pressed": "false" });
    const zooms = [
      button("−", () => this.#zoom(2), { "aria-label": "Zoom out" }),
      button("+", () => this.#zoom(0.5), { "aria-label": "Zoom in" }),
      button("‹", () => this.#pan(-0.5), { "aria-label": "Earlier" }),
      button("›", () => this.#pan(0.5), { "aria-label": "Later" }),
    ];
    const groups = [this.ranges, zooms, [this.scale]].map((buttons) => element("div", { class: "group", role: "group" }, ...buttons));
    this.plot = element("div", { class: "plot", role: "img" });
    this.note = element("p", { class: "note" }, "loading");
    const legend = element("p", { class: "legend" }, element("i", { class: "loss" }), "shortfall ", element("i", { class: "adl" }), "ADL order");
    root.append(element("div", { class: "head" }, element("h2", {}, "Balance"), ...groups), this.plot, element("div", { class: "foot" }, this.note, legend));
    this.resized = new ResizeObserver(() => this.#drawn && window.Plotly.Plots.resize(this.plot));
    this.resized.observe(this.plot);
    this.recoloured = () => this.#draw();
    document.addEventListener("themechange", this.recoloured);
    this.following = setInterval(() => this.#later(), 10 * REDRAW_MS);
  }

  /** Stops drawing, and lets go of what Plotly holds. */
  end = () => {
    this.#ended = true;
    this.resized.disconnect();
    document.removeEventListener("themechange", this.recoloured);
    [this.#redrawing, this.#reloading].forEach(clearTimeout);
    clearInterval(this.following);
    if (this.#drawn) window.Plotly.purge(this.plot);
  };

  /** Goes on with the next entry. */
  add = (entry) => {
    if (!this.#series) return;
    addPoint(this.#series.points, entryPoint(entry));
    this.#series.losses.push(...entryLosses(entry));
    if (this.#series.points.length > POINTS_MAX) this.#reload();
    this.#later();
  };

  /** Reads the shown time again, soon and once. */
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

  /** A time that stands still, [from, to] in ms. */
  #stay(from, to) {
    this.#span = [from, to];
    for (const choice of this.ranges) choice.setAttribute("aria-pressed", "false");
    this.#draw();
    this.#reload();
  }

  #zoom(factor) {
    if (!this.#series) return;
    const [from, to] = this.#shown();
    const [middle, half] = [(from + to) / 2, ((to - from) / 2) * factor];
    this.#stay(middle - half, middle + half);
  }

  #pan(share) {
    if (!this.#series) return;
    const [from, to] = this.#shown();
    this.#stay(from + (to - from) * share, to + (to - from) * share);
  }

  #switchScale() {
    this.#logarithmic = !this.#logarithmic;
    this.scale.setAttribute("aria-pressed", String(this.#logarithmic));
    this.#draw();
  }

  /** The time that is shown: where it was zoomed to, or up to now, from the first entry on. */
  #shown() {
    if (this.#span) return this.#span;
    const now = Date.now();
    const first = this.first ?? now - HOUR_MS;
    return [RANGES[this.#range] === null ? first : Math.max(first, now - RANGES[this.#range]), now];
  }

  async #load() {
    const number = ++this.#loads;
    try {
      this.first ??= await firstEntryAt(this.#symbol);
      const [from, to] = this.#shown();
      const [series] = await Promise.all([loadSeries(this.#symbol, from, Math.max(to, from + 1)), plotly()]);
      if (number !== this.#loads || this.#ended) return;
      this.#series = series;
      this.#draw();
    } catch (error) {
      if (number === this.#loads) this.note.textContent = error.message;
    }
  }

  #later() {
    this.#redrawing ||= setTimeout(() => {
      this.#redrawing = 0;
      this.#draw();
    }, REDRAW_MS);
  }

  #draw() {
    if (!this.#series || this.#ended || !window.Plotly) return;
    const [from, to] = this.#shown();
    window.Plotly.react(this.plot, this.#traces(to), this.#layout(from, to), { displayModeBar: false, responsive: false });
    if (!this.#drawn) this.plot.on("plotly_relayout", (change) => this.#relayout(change));
    this.#drawn = true;
    this.#describe();
  }

  #relayout(change) {
    if (change["xaxis.autorange"] || change["yaxis.autorange"]) this.#choose(this.#range);
    else if ("xaxis.range[0]" in change) this.#stay(...["xaxis.range[0]", "xaxis.range[1]"].map((name) => fromLocal(change[name])));
  }

  #describe() {
    const { points, before } = this.#series;
    const what = before.length ? "the newest entries each, and before them, dotted, candles and samples" : "every entry";
    const gap = this.#logarithmic && points.some(({ balance }) => balance === 0) ? " A balance of 0 has no place on this scale: the line is interrupted." : "";
    this.note.textContent = `Shows ${what}. Drag to zoom, double-click to go back.${gap}`;
    this.plot.setAttribute("aria-label", `Balance of ${this.#symbol}, from ${points[0].text} to ${points.at(-1).text} ${this.#currency()}`);
  }

  #traces(to) {
    const { points, before, band, losses } = this.#series;
    const held = { ...points.at(-1), ts: Math.max(points.at(-1).ts, Math.min(to, Date.now())) };
    const { accent, band: soft, loss, adl } = this.#colours();
    const [from, until] = this.#shown();
    const shown = losses.filter(({ ts }) => ts >= from && ts <= until);
    return [
      ...bandTraces(band, soft),
      this.#line("before", before, { color: accent, width: 1.2, dash: "dot" }),
      this.#line("entries", [...points, held], { color: accent, width: 1.6 }),
      markers(shown.filter(({ isAdl }) => !isAdl), "triangle-down", loss, 0.75),
      markers(shown.filter(({ isAdl }) => isAdl), "diamond", adl, 0.25),
    ];
  }

  #line(name, points, line) {
    return {
      name,
      x: points.map(({ ts }) => toLocal(ts)),
      y: points.map(({ balance }) => balance),
      customdata: points.map(({ text }) => text),
      hovertemplate: `%{customdata} ${this.#currency()}<extra></extra>`,
      line: { shape: "hv", ...line },
      mode: "lines",
    };
  }

  #layout(from, to) {
    const { ink, faint, rule } = this.#colours();
    const axis = { gridcolor: rule, linecolor: rule, zeroline: false, tickfont: { color: faint, size: 11 }, automargin: true };
    return {
      uirevision: "keep",
      datarevision: Date.now(),
      margin: { l: 8, r: 8, t: 8, b: 8 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(this.plot).fontFamily, color: ink },
      showlegend: false,
      hovermode: "x",
      dragmode: "zoom",
      xaxis: { ...axis, type: "date", range: [toLocal(from), toLocal(to)], anchor: "y2", showgrid: false },
      yaxis: { ...axis, domain: [0.16, 1], type: this.#logarithmic ? "log" : "linear", side: "right", rangemode: this.#logarithmic ? "normal" : "tozero" },
      yaxis2: { domain: [0, 0.12], range: [0, 1], fixedrange: true, visible: false },
    };
  }

  #colours() {
    const style = getComputedStyle(this.plot);
    return Object.fromEntries(["ink", "faint", "rule", "accent", "band", "loss", "adl"].map((name) => [name, style.getPropertyValue(`--${name}`)]));
  }
}

function bandTraces(band, colour) {
  if (!band.length) return [];
  const side = (name) => ({
    x: band.flatMap(({ ts, until }) => [toLocal(ts), toLocal(until)]),
    y: band.flatMap((candle) => [candle[name], candle[name]]),
    mode: "lines",
    line: { shape: "hv", width: 0 },
    hoverinfo: "skip",
  });
  return [side("low"), { ...side("high"), fill: "tonexty", fillcolor: colour }];
}

function markers(marks, symbol, colour, height) {
  return {
    x: marks.map(({ ts }) => toLocal(ts)),
    y: marks.map(() => height),
    yaxis: "y2",
    mode: "markers",
    marker: { symbol, color: colour, size: 9 },
    text: marks.map(({ text }) => text),
    hovertemplate: "%{text}<extra></extra>",
    cliponaxis: false,
  };
}

/** Shows the chart of a contract; `currency` gives its settlement currency. */
export function showChart(root, symbol, currency) {
  return new Chart(root, symbol, currency);
}

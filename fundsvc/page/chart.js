/** The balance chart: the shown time range, zoom and scale, extended by each new entry, with lines at what the fund is judged by. */

import { button, element, perPulse, redraw } from "./dom.js";
import { amountAxis, chartOptions, follow, lookOf, stepLine, timeAxis } from "./drawing.js";
import { exactMoment } from "./format.js";
import { isMore, loadSeries } from "./series.js";

const HOUR_MS = 3_600_000;
const DAY_MS = 24 * HOUR_MS;

/** New entries are drawn together at most so often: the chart takes the most time of all parts to paint. */
const REDRAW_MS = 5000;

/** How often the range moves on while no entry arrives. */
const FOLLOW_MS = 5000;
const RELOAD_MS = 300;
const RETRY_MS = 5000;
const POINTS_MAX = 8000;

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

/** Lines at present values of the fund: their colours and dashes. The legend names them with their amounts. */
const LINES = {
  target: { field: "target", title: "target", colour: "ink", dash: [6, 4] },
  peak: { field: "peak8h", title: "8 h peak", colour: "faint", dash: [2, 3] },
  guard: { field: "guardLine", title: "drawdown guard", colour: "warn", dash: [8, 3, 2, 3] },
  equity: { field: "equity", title: "equity", colour: "adl", dash: [10, 4] },
};

/** The part of the height below the balances, in which marks of losses are. */
const LANE = 0.13;

/** A line further above the balances than this factor is only named in the legend: it would flatten them. */
const LINE_FACTOR_MAX = 1.6;

/** How far after the pointer, in pixels, a step counts as under it. */
const REACH = 3;

class Chart {
  #symbol;
  #currency;
  #range = "24 h";
  #span = null;
  #series = null;
  #fund = null;
  #logarithmic = false;
  #newEntries = [];
  #newest = 0;
  #dragging = false;
  #loads = 0;
  #ended = false;
  #chart = null;
  #look = null;
  #reloading = 0;
  #scheduleDraw = perPulse(() => this.#draw(), REDRAW_MS);

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
    const groups = Object.entries({ Range: this.ranges, Zoom: zooms, Scale: [this.scale] }).map(([label, buttons]) =>
      element("div", { class: "group", role: "group", "aria-label": label }, ...buttons),
    );
    this.readout = element("p", { class: "readout" });
    this.plot = element("div", { class: "plot", role: "img", "aria-label": `Balance of ${symbol}` });
    this.note = element("p", { class: "note" }, "loading");
    this.legend = element("p", { class: "legend" });
    const title = element("h2", {}, "Balance in ", element("abbr", {}, currency));
    const foot = element("div", { class: "foot" }, this.note, this.legend);
    root.append(element("div", { class: "head" }, title, ...groups), this.readout, this.plot, foot);
    this.plot.addEventListener("pointerdown", () => this.#setDragging(true));
    this.released = () => this.#setDragging(false);
    addEventListener("pointerup", this.released);
    this.unfollow = follow(this.plot, () => this.#chart);
    this.recoloured = () => this.#recolour();
    document.addEventListener("themechange", this.recoloured);
    this.following = setInterval(() => document.hidden || this.#scheduleDraw(), FOLLOW_MS);
    this.#load();
  }

  /** Stops drawing and frees what the library holds. */
  end = () => {
    this.#ended = true;
    this.unfollow();
    document.removeEventListener("themechange", this.recoloured);
    removeEventListener("pointerup", this.released);
    clearTimeout(this.#reloading);
    clearInterval(this.following);
    this.#chart?.destroy();
  };

  /** Shows the lines of a changed fund. */
  show = (fund) => {
    this.#fund = fund;
    this.#scheduleDraw();
  };

  /** Adds the next entry. A zoomed range may end before it. */
  add = (entry) => {
    this.#newEntries.push(entry);
    if (!this.#series) return;
    const isNext = this.#series.append(entry);
    if ((!isNext && !this.#span) || this.#series.times.length > POINTS_MAX) this.#reload();
    this.#scheduleDraw();
  };

  /** Reads the entries up to `newest` if they were missed. */
  reload = (newest) => {
    this.#newest = newest;
    if (this.#series && this.#isBehind) this.#reload();
  };

  get #isBehind() {
    return !this.#span && this.#series.entry < this.#newest;
  }

  /** Loads the shown range shortly. Repeated calls cause one request. */
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
    this.#recolour();
  }

  /** Draws a new chart: the library fixes the kind of a scale when it makes a chart. */
  #recolour() {
    this.#chart?.destroy();
    this.#chart = null;
    this.#draw();
  }

  /** Returns the shown range in ms: the zoomed one, or the chosen one until now, from the first entry at the earliest. */
  #shown() {
    if (this.#span) return this.#span;
    const now = Date.now();
    const to = Math.max(now, this.#series.last.until);
    const first = this.#series.begin ?? now - HOUR_MS;
    return [RANGES[this.#range] === null ? first : Math.max(first, now - RANGES[this.#range]), to];
  }

  /** Loads the shown range, then appends the entries that arrived meanwhile. A range until now ends with the newest entry. */
  async #load() {
    const number = ++this.#loads;
    this.#newEntries = [];
    try {
      const length = RANGES[this.#range];
      const span = this.#span ?? [length === null ? null : Date.now() - length, null];
      const series = await loadSeries(this.#symbol, ...span);
      if (number !== this.#loads || this.#ended) return;
      this.#newEntries.forEach((entry) => series.append(entry));
      this.#series = series;
      if (this.#isBehind) this.#reload();
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

  #draw() {
    if (!this.#series || this.#ended || this.#dragging || !this.plot.clientWidth) return;
    if (this.#chart) this.#chart.setData(this.#data());
    else this.#make();
    this.#describe();
  }

  #make() {
    this.#look = lookOf(this.plot);
    const look = () => this.#look;
    const options = chartOptions(this.plot, {
      series: [{}, stepLine(look, "accent", { extremes: () => [this.#series.highest, this.#series.lowest] })],
      scales: {
        x: { time: false, range: () => this.#shown() },
        y: { range: () => this.#amounts(), ...(this.#logarithmic ? { distr: 3, clamp: (_chart, _value, low) => low } : {}) },
      },
      axes: [
        timeAxis(look),
        { ...amountAxis(look, () => tagText(this.#series.last.closing)), filter: (_chart, splits) => this.#tickable(splits) },
      ],
      cursor: {
        drag: { setScale: false, dist: 5 },
        points: { show: false },
        y: false,
        dataIdx: (chart, _series, nearest, at) => this.#placeAt(chart, nearest, at),
        bind: { dblclick: () => () => this.#choose(this.#range) },
      },
      hooks: {
        drawAxes: [(chart) => this.#drawBand(chart)],
        draw: [(chart) => this.#drawMarks(chart)],
        setCursor: [(chart) => this.#showReadout(chart.cursor.idxs?.[1] ?? null)],
        setSelect: [(chart) => this.#select(chart)],
      },
    });
    this.#chart = new window.uPlot(options, this.#data(), this.plot);
    this.plot.chart = this.#chart;
  }

  /** Returns the columns of the library. The last balance extends to the end of the range, but not beyond now. */
  #data() {
    const { times, closing, last } = this.#series;
    const end = Math.max(last.until, Math.min(this.#shown()[1], Date.now()));
    return [
      [...times, end],
      [...closing, closing.at(-1)],
    ];
  }

  /** Returns the lowest and highest amount of the range, including the balance before it, and the lines nearby. */
  #amounts() {
    const { times, highest, lowest } = this.#series;
    const [from, to] = this.#shown();
    let place = Math.max(0, times.findLastIndex((ts) => ts <= from));
    let [low, high] = [Infinity, 0];
    for (; place < times.length && times[place] <= to; place++) {
      if (lowest[place] < low && (lowest[place] > 0 || !this.#logarithmic)) low = lowest[place];
      if (highest[place] > high) high = highest[place];
    }
    this.high = high;
    for (const { value } of this.#lines()) if (this.#isNear(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    if (this.#logarithmic) return logarithmicRange(Math.min(low, high), high);
    this.low = Math.min(0, low);
    const top = high > this.low ? high + (high - this.low) * 0.06 : this.low + 1;
    return [this.low - ((top - this.low) * LANE) / (1 - LANE), top];
  }

  #lines() {
    if (!this.#fund) return [];
    const shown = Object.entries(LINES).filter(([, { field }]) => this.#fund[field]);
    const lines = shown.map(([name, line]) => ({ ...line, name, text: this.#fund[line.field], value: Number(this.#fund[line.field]) }));
    return lines.filter(({ name, text }) => name !== "equity" || text !== this.#fund.balance);
  }

  #isNear(value) {
    return value <= this.high * LINE_FACTOR_MAX && (this.#logarithmic ? value > 0 : true);
  }

  /** Returns the ticks that are not in the lane of marks; on a log scale those with few digits. */
  #tickable(splits) {
    if (!this.#logarithmic) return splits.map((value) => (value < this.low ? null : value));
    const isWide = splits.at(-1) / splits[0] > 100;
    const leading = (value) => Number(value.toExponential(0)[0]);
    return splits.map((value) => ((isWide ? [1] : [1, 2, 5]).includes(leading(value)) ? value : null));
  }

  /** Returns the place of the last point at or before the pointer. */
  #placeAt(chart, nearest, at) {
    const { times } = this.#series;
    const reach = chart.posToVal(REACH, "x") - chart.posToVal(0, "x");
    const isBefore = (ts) => ts <= at + reach;
    let place = Math.min(nearest, times.length - 1);
    while (place > 0 && !isBefore(times[place])) place--;
    while (place + 1 < times.length && times[place + 1] === times[place]) place++;
    return place;
  }

  #select(chart) {
    const { left, width } = chart.select;
    if (width < 1) return;
    const [from, to] = [left, left + width].map((pixel) => chart.posToVal(pixel, "x"));
    chart.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.#dragging = false;
    this.#showSpan(from, to);
  }

  /** Shows the exact time and amount under the crosshair, or the newest ones. */
  #showReadout(place) {
    const { parts, last } = this.#series;
    const newest = { since: last.until, until: last.until, closing: last.closing };
    const part = place === null ? newest : parts[Math.min(place, parts.length - 1)];
    redraw(this.readout, ...readoutOf(part, this.#currency));
  }

  /** Draws a band from the lowest to the highest balance where a part is wider than a pixel. */
  #drawBand({ ctx, bbox, valToPos }) {
    const { times, highest, lowest } = this.#series;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.fillStyle = this.#look.band;
    for (let place = 0; place + 1 < times.length; place++) {
      if (highest[place] === lowest[place]) continue;
      const [left, right] = [times[place], times[place + 1]].map((ts) => valToPos(ts, "x", true));
      const [top, bottom] = [highest[place], lowest[place]].map((amount) => valToPos(amount, "y", true));
      if (right - left > 1) ctx.fillRect(left, top, right - left, bottom - top);
    }
    ctx.restore();
  }

  /** Draws lines at the fund's present values, the last balance on the axis, and marks of losses. */
  #drawMarks(chart) {
    const { ctx, bbox } = chart;
    const ratio = devicePixelRatio;
    ctx.save();
    ctx.font = this.#look.font.replace(/^[\d.]+/, (size) => size * ratio);
    this.#lines().filter(({ value }) => this.#isNear(value)).forEach((line, place) => drawLine(chart, line, place, this.#look, ratio));
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.save();
    ctx.clip();
    this.#drawLosses(chart, ratio);
    ctx.restore();
    drawTag(chart, this.#series.last.closing, this.#look, ratio);
    ctx.restore();
  }

  /** Draws a mark for each pixel with a shortfall, and one for each with an ADL order. */
  #drawLosses({ ctx, bbox, valToPos }, ratio) {
    const [from, to] = this.#shown();
    const shown = this.#series.losses.filter(({ until }) => until >= from && until <= to);
    const below = bbox.top + bbox.height;
    const kinds = [
      [shown.filter(({ paid }) => isMore(paid)), this.#look.loss, below - 19 * ratio, triangle],
      [shown.filter(({ uncovered }) => isMore(uncovered)), this.#look.adl, below - 7 * ratio, diamond],
    ];
    for (const [parts, colour, height, shape] of kinds) {
      ctx.fillStyle = colour;
      ctx.beginPath();
      for (const across of new Set(parts.map(({ until }) => Math.round(valToPos(until, "x", true))))) shape(ctx, across, height, 4.5 * ratio);
      ctx.fill();
    }
  }

  #describe() {
    this.#showReadout(this.#chart.cursor.left >= 0 ? (this.#chart.cursor.idxs?.[1] ?? null) : null);
    const { parts, last } = this.#series;
    const grouped = parts.some(({ fills }) => fills > 1) ? "Shaded: from the lowest to the highest balance of a moment. " : "";
    const gap = this.#logarithmic && this.#series.lowest.includes(0) ? " A balance of 0 is at the lower edge." : "";
    this.note.textContent = `${grouped}Drag to zoom, double-click to reset.${gap}`;
    const texts = this.#lines().map(({ title, text, value, name }) =>
      element("span", { class: `line-${name}` }, `${title} ${text}${this.#isNear(value) ? "" : " (above)"}`),
    );
    redraw(
      this.legend,
      ...texts,
      element("span", { class: "loss" }, "shortfall"),
      element("span", { class: "adl" }, "ADL order"),
    );
    this.plot.setAttribute(
      "aria-label",
      `Balance of ${this.#symbol}, from ${parts[0].closing} to ${last.closing} ${this.#currency}`,
    );
  }
}

/** Returns a range of a log scale with a lane below, at least a factor of 10 apart. */
function logarithmicRange(low, high) {
  const [bottom, top] = [Math.log10(low || 1), Math.log10(high || 10)];
  const height = Math.max(top - bottom, 1);
  return [10 ** (top - height * (1 + LANE)), 10 ** (top + height * 0.06)];
}

function readoutOf({ since, until, highest, lowest, closing, paid, uncovered, fills }, currency) {
  const times = since === until ? exactMoment(until) : `${exactMoment(since)} to ${exactMoment(until)}`;
  const range = fills > 1 ? [`lowest ${lowest}, highest ${highest}, at the end `] : [];
  const losses = [
    [isMore(paid), "loss", `paid ${paid}`],
    [isMore(uncovered), "adl", `ADL for ${uncovered}`],
  ].filter(([is]) => is);
  return [
    element("span", {}, times),
    element("span", {}, ...range, element("b", {}, closing), ` ${currency}`),
    ...losses.map(([, kind, text]) => element("span", { class: kind }, text)),
  ];
}

function tagText(amount) {
  return amount.length <= 12 ? amount : String(Number(Number(amount).toPrecision(9)));
}

/** Draws the last balance on the axis, in the colour of its line. */
function drawTag({ ctx, bbox, valToPos }, amount, look, ratio) {
  const [text, across] = [tagText(amount), bbox.left + bbox.width];
  const height = Math.min(Math.max(valToPos(Number(amount), "y", true), bbox.top), bbox.top + bbox.height);
  ctx.fillStyle = look.accent;
  ctx.fillRect(across + 1 * ratio, height - 8.5 * ratio, ctx.measureText(text).width + 10 * ratio, 17 * ratio);
  ctx.fillStyle = look.panel;
  ctx.textAlign = "left";
  ctx.textBaseline = "middle";
  ctx.fillText(text, across + 6 * ratio, height + 0.5 * ratio);
}

/** Draws a line at an amount, with its name. Names are side by side, so that those of near lines do not cover each other. */
function drawLine({ ctx, bbox, valToPos }, { title, value, colour, dash }, place, look, ratio) {
  const height = Math.round(valToPos(value, "y", true));
  ctx.strokeStyle = ctx.fillStyle = look[colour];
  ctx.lineWidth = ratio;
  ctx.setLineDash(dash.map((length) => length * ratio));
  ctx.beginPath();
  ctx.moveTo(bbox.left, height);
  ctx.lineTo(bbox.left + bbox.width, height);
  ctx.stroke();
  ctx.setLineDash([]);
  ctx.textAlign = "left";
  ctx.textBaseline = "bottom";
  ctx.fillText(title, bbox.left + (6 + place * 100) * ratio, height - 2 * ratio);
}

function triangle(ctx, across, height, size) {
  ctx.moveTo(across - size, height - size);
  ctx.lineTo(across + size, height - size);
  ctx.lineTo(across, height + size);
  ctx.closePath();
}

function diamond(ctx, across, height, size) {
  ctx.moveTo(across, height - size);
  ctx.lineTo(across + size, height);
  ctx.lineTo(across, height + size);
  ctx.lineTo(across - size, height);
  ctx.closePath();
}

/** Shows the balance chart of a contract. `currency` is its settlement currency. */
export function showChart(root, symbol, currency) {
  return new Chart(root, symbol, currency);
}

/** Traces and layout for Plotly: the balance as a step line, candles as a band, and marks of losses in a lane below. */

import { element } from "./dom.js";
import { dayAndClock } from "./format.js";
import { ticks } from "./ticks.js";

/** The width of a date below a tick, in pixels. */
const TICK_WIDTH = 90;

const COLOURS = ["ink", "faint", "rule", "accent", "band", "loss", "adl"];

let loading = null;

/** Loads the chart library from the service when it is first needed. */
export function plotly() {
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

/** Returns the colours of the present theme by their use. */
export function coloursOf(plot) {
  const style = getComputedStyle(plot);
  return Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`)]));
}

/** Returns the traces of a series from `from` to `to` (ms). The last balance extends to `to`, but not beyond now. */
export function traces({ points, before, band, losses }, [from, to], colours, currency) {
  const last = points.at(-1);
  const held = { ...last, ts: Math.max(last.ts, Math.min(to, Date.now())) };
  const shown = losses.filter(({ ts }) => ts >= from && ts <= to);
  const [orders, shortfalls] = [true, false].map((wanted) => shown.filter(({ isAdl }) => isAdl === wanted));
  return [
    ...bandTraces(band, colours.band),
    lineTrace("before", before, { color: colours.accent, width: 1.2, dash: "dot" }, currency),
    lineTrace("entries", [...points, held], { color: colours.accent, width: 1.6 }, currency),
    markTrace(shortfalls, { symbol: "triangle-down", color: colours.loss, size: 9 }, 0.75),
    markTrace(orders, { symbol: "diamond", color: colours.adl, size: 9 }, 0.25),
  ];
}

/**
 * Returns the axes and other layout. Plotly would draw dates in the reader's time zone, where an hour may occur twice. So times
 * are plain numbers here, and each tick and point has its text by the reader's clock.
 */
export function layout([from, to], { ink, faint, rule }, { family, width, isLogarithmic }) {
  const times = ticks(from, to, Math.max(2, Math.floor(width / TICK_WIDTH)));
  const axis = { gridcolor: rule, linecolor: rule, zeroline: false, tickfont: { color: faint, size: 11 }, automargin: true };
  const scale = isLogarithmic ? { type: "log" } : { type: "linear", rangemode: "tozero" };
  return {
    margin: { l: 8, r: 8, t: 8, b: 8 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family, color: ink },
    showlegend: false,
    hovermode: "x",
    dragmode: "zoom",
    xaxis: {
      ...axis,
      type: "linear",
      range: [from, to],
      tickvals: times.map(({ ts }) => ts),
      ticktext: times.map(({ text }) => text),
      anchor: "y2",
      showgrid: false,
    },
    yaxis: { ...axis, ...scale, domain: [0.16, 1], side: "right" },
    yaxis2: { domain: [0, 0.12], range: [0, 1], fixedrange: true, visible: false },
  };
}

function lineTrace(name, points, line, currency) {
  return {
    name,
    x: points.map(({ ts }) => ts),
    y: points.map(({ balance }) => balance),
    customdata: points.map(({ text }) => text),
    text: points.map(({ ts, text }) => `${dayAndClock(ts)}<br>${text} ${currency}`),
    hoverinfo: "text",
    line: { shape: "hv", ...line },
    mode: "lines",
  };
}

function bandTraces(band, colour) {
  if (!band.length) return [];
  const side = (name) => ({
    x: band.flatMap(({ ts, until }) => [ts, until]),
    y: band.flatMap((candle) => [candle[name], candle[name]]),
    mode: "lines",
    line: { shape: "hv", width: 0 },
    hoverinfo: "skip",
  });
  return [side("low"), { ...side("high"), fill: "tonexty", fillcolor: colour }];
}

function markTrace(marks, marker, height) {
  return {
    x: marks.map(({ ts }) => ts),
    y: marks.map(() => height),
    yaxis: "y2",
    mode: "markers",
    marker,
    text: marks.map(({ ts, text }) => `${dayAndClock(ts)}<br>${text}`),
    hoverinfo: "text",
    cliponaxis: false,
  };
}

/** What all charts of the page share: colours of the theme, a time axis by the reader's clock, an axis of amounts, a step line. */

import { ticks } from "./ticks.js";

/** The width of a date below a tick, and of a digit on an axis, in pixels. */
const TICK_WIDTH = 90;
const DIGIT_WIDTH = 6.8;

const FONT_SIZE = 11;
const COLOURS = ["ink", "faint", "rule", "accent", "band", "loss", "adl", "warn", "panel"];

/** Units of large amounts on an axis, used if the ticks are whole multiples of them. */
const UNITS = [
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
];

/** Returns the colours of the present theme by their use, and the font of charts. */
export function lookOf(plot) {
  const style = getComputedStyle(plot);
  const colours = Object.fromEntries(COLOURS.map((name) => [name, style.getPropertyValue(`--${name}`)]));
  return { ...colours, font: `${FONT_SIZE}px ${style.fontFamily}` };
}

/**
 * Returns a time axis. The library would label dates in ways of its own. Here times are plain numbers (ms), and each tick has its
 * text by the reader's clock, on which an hour may occur twice.
 */
export function timeAxis(look) {
  let texts = [];
  return {
    ...axis(look),
    size: 44,
    grid: { show: false },
    splits: (chart, _axis, from, to) => {
      const found = ticks(from, to, Math.max(2, Math.floor(chart.bbox.width / devicePixelRatio / TICK_WIDTH)));
      texts = found.map(({ text }) => text);
      return found.map(({ ts }) => ts);
    },
    values: () => texts,
  };
}

/** Returns an axis of amounts at the right. `reserved()` is a further text that must fit beside it. */
export function amountAxis(look, reserved = () => "") {
  const width = (texts) => Math.max(...texts.map(({ length }) => length), reserved().length, 4) * DIGIT_WIDTH + 16;
  return {
    ...axis(look),
    side: 1,
    size: (_chart, texts) => Math.ceil(width(texts ?? [])),
    space: 40,
    grid: { stroke: () => look().rule, width: 1 },
    values: (_chart, splits, _axis, _space, step) => splits.map((value) => (value === null ? "" : amountText(value, step))),
  };
}

function axis(look) {
  return { stroke: () => look().faint, font: look().font, ticks: { show: false }, gap: 6 };
}

/** Returns the text of an amount at a tick, in thousands or more if the step between ticks allows it. */
function amountText(value, step) {
  const [unit, letter] = UNITS.find(([size]) => step >= size) ?? [1, ""];
  const decimals = String(Number((step / unit).toPrecision(3))).split(".")[1]?.length ?? 0;
  return (value / unit).toFixed(Math.min(decimals, 20)).replace(/\B(?=(\d{3})+(?!\d))(?<!\.\d*)/g, "\u2009") + letter;
}

/** Returns a series that keeps each value until the next one. `extremes()` are the columns of highest and lowest values. */
export function stepLine(look, colour, { extremes = null, ...options } = {}) {
  const paths = (chart, series, first, last) => ({ ...NO_PATHS, stroke: stepPath(chart, series, first, last, extremes?.()) });
  return { stroke: () => look()[colour], width: 1.6, points: { show: false }, paths, ...options };
}

const NO_PATHS = { fill: null, clip: null, band: null, gaps: null, flags: 0 };

/**
 * Returns the path of a step line, which has for each pixel across a stroke from the lowest to the highest value. So it shows every
 * dip, and is never long, which would take long to paint.
 */
function stepPath(chart, series, first, last, [highest, lowest] = []) {
  const [times, values, stroke] = [chart.data[0], chart.data[series], new Path2D()];
  const { scale } = chart.series[series];
  const across = (place) => Math.round(chart.valToPos(times[place], "x", true));
  const down = (value) => chart.valToPos(value, scale, true);
  let [column, height] = [across(first), down(values[first])];
  let [top, bottom] = [height, height];
  stroke.moveTo(column, height);
  const draw = () => [top, bottom, height].forEach((end) => stroke.lineTo(column, end));
  for (let place = first + 1; place <= last; place++) {
    const next = across(place);
    if (next !== column) {
      draw();
      stroke.lineTo(next, height);
      [column, top, bottom] = [next, height, height];
    }
    height = down(values[place]);
    top = Math.min(top, height, down(highest?.[place] ?? values[place]));
    bottom = Math.max(bottom, height, down(lowest?.[place] ?? values[place]));
  }
  draw();
  return stroke;
}

/** Returns the options that all charts share; `over` replaces some. The plot has a fixed size, so that nothing moves. */
export function chartOptions(plot, over) {
  return {
    width: plot.clientWidth,
    height: plot.clientHeight,
    padding: [8, 0, 0, 4],
    legend: { show: false },
    ...over,
  };
}

/** Keeps a chart as large as its plot. Returns a function that stops this. */
export function follow(plot, chartOf) {
  const observer = new ResizeObserver(() => chartOf()?.setSize({ width: plot.clientWidth, height: plot.clientHeight }));
  observer.observe(plot);
  return () => observer.disconnect();
}

/**
 * The ticks of a time axis, at whole units of the reader's clock and calendar. The axis is linear in absolute time. When a clock
 * is set back, the axis shows that hour twice.
 */

import { clock, day } from "./format.js";

const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

/** Steps that divide a day. */
const CLOCK_STEPS = [
  ...[1, 2, 5, 10, 15, 30].map((seconds) => seconds * SECOND_MS),
  ...[1, 2, 5, 10, 15, 30].map((minutes) => minutes * MINUTE_MS),
  ...[1, 2, 3, 6, 12].map((hours) => hours * HOUR_MS),
];

const DAY_STEPS = [1, 2, 7, 14];
const MONTH_STEPS = [1, 3, 6, 12, 24, 60, 120, 600, 1200, 6000, 12_000];

/** The longest month. */
const MONTH_MS = 31 * DAY_MS;

/** The share of a tick's space that its text needs to either side. A tick nearer to the start of the axis would be cut. */
const HALF = 0.4;

/** Returns the ticks between `from` and `to` (ms), about `count` at most, as {ts, text}. */
export function ticks(from, to, count) {
  const least = (to - from) / count;
  return ticksOf(from + HALF * least, to, least);
}

function ticksOf(from, to, least) {
  const step = CLOCK_STEPS.find((length) => length >= least);
  if (step) return clockTicks(from, to, step);
  const days = DAY_STEPS.find((count) => count * DAY_MS >= least);
  if (days) return dayTicks(from, to, days);
  return monthTicks(from, to, MONTH_STEPS.find((count) => count * MONTH_MS >= least) ?? MONTH_STEPS.at(-1));
}

/** Time zones differ from UTC by whole minutes, mostly quarters of an hour, so a grid in UTC contains all ticks of any clock. */
function clockTicks(from, to, step) {
  const grid = step < MINUTE_MS ? step : step < 5 * MINUTE_MS ? MINUTE_MS : 5 * MINUTE_MS;
  const found = [];
  for (let ts = Math.ceil(from / grid) * grid; ts <= to; ts += grid) if (sinceMidnight(new Date(ts)) % step === 0) found.push(ts);
  const time = (ts) => (step < MINUTE_MS ? clock(ts) : clock(ts).slice(0, 5));
  const startsDay = (ts, place) => place === 0 || day(ts) !== day(found[place - 1]);
  return found.map((ts, place) => ({ ts, text: startsDay(ts, place) ? `${time(ts)}\n${day(ts)}` : time(ts) }));
}

function sinceMidnight(date) {
  return ((date.getHours() * 60 + date.getMinutes()) * 60 + date.getSeconds()) * SECOND_MS;
}

function dayTicks(from, to, step) {
  const first = new Date(from);
  const [year, month, date] = [first.getFullYear(), first.getMonth(), first.getDate()];
  const beforeFirst = -(Date.UTC(year, month, date) / DAY_MS) % step;
  return startsFrom((place) => new Date(year, month, date + beforeFirst + place * step), from, to, day);
}

function monthTicks(from, to, step) {
  const first = new Date(from);
  const months = first.getFullYear() * 12 + first.getMonth();
  const begin = months - (months % step);
  const text = (ts) => (step < 12 ? day(ts).slice(0, -3) : String(new Date(ts).getFullYear()));
  return startsFrom((place) => new Date(0, begin + place * step - 1900 * 12, 1), from, to, text);
}

/** Returns those of the dates `dateAt(0)`, `dateAt(1)`, ... that lie between `from` and `to`. */
function startsFrom(dateAt, from, to, text) {
  const found = [];
  for (let place = 0, ts = dateAt(0).getTime(); ts <= to; ts = dateAt(++place).getTime()) {
    if (ts >= from) found.push({ ts, text: text(ts) });
  }
  return found;
}

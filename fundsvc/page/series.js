/** The balance of a fund over a time: every entry where they are few, else candles. Floats, because they become pixels. */

import { fundPath } from "./addresses.js";
import { get } from "./api.js";

const MINUTE_MS = 60_000;
const DAY_MS = 86_400_000;
const PAGE = 500;

/** The API's charts follow the engine's time up to so far ahead of the ledger's clock. */
const AHEAD_MS_MAX = 300_000;

/** The newest entries of a time are drawn each; a chart has no more pixels than this. Those before are drawn as candles. */
const ENTRIES_MAX = 3000;

/** Between the last whole candle and the first of those entries the balance is asked for so often. */
const SAMPLES = 24;

/** Up to here hourly candles are few enough; beyond, daily ones. */
const HOURLY_MS_MAX = 20 * DAY_MS;

/** When the first entry of a fund was made, in ms; null without any. */
export async function firstEntryAt(symbol) {
  const { dataList } = await history(symbol, { offset: 0, forward: true, maxCount: 1 });
  return dataList[0] ? chartedAt(dataList[0]) : null;
}

/**
 * The balance from `from` to `to` (ms) in points {ts, text, balance}, each holding until the next; `band` are the lowest and
 * highest of each candle, `losses` the shortfalls and ADL orders. Where there are too many entries, `points` are the newest ones,
 * and `before` are points of candles and samples. `last` is the number of the last entry.
 */
export async function loadSeries(symbol, from, to) {
  const [start, end] = await Promise.all([balanceAt(symbol, from), balanceAt(symbol, to)]);
  const entries = await readEntries(symbol, Math.max(start.entry, end.entry - ENTRIES_MAX), end.entry);
  const isWhole = end.entry - start.entry <= ENTRIES_MAX;
  const before = isWhole ? { points: [], band: [], losses: [] } : await readCandles(symbol, from, chartedAt(entries[0]));
  const [beginning, [first, ...rest]] = [point(from, start.balance), entries.map(entryPoint)];
  return {
    last: end.entry,
    points: isWhole ? entries.map(entryPoint).reduce(addPoint, [beginning]) : rest.reduce(addPoint, [first]),
    before: isWhole ? [] : [beginning, ...before.points, first],
    band: before.band,
    losses: [...before.losses, ...entries.flatMap(entryLosses)],
  };
}

/** What an entry adds to a series. */
export function entryPoint(entry) {
  return point(chartedAt(entry), entry.balance);
}

/** The time of an entry on a chart, but for the entries before it: a time far ahead of the ledger's clock is a mistake. */
function chartedAt({ ts, recordedAt }) {
  return ts > recordedAt + AHEAD_MS_MAX ? recordedAt : ts;
}

/** Adds a point; one whose time is before the last one's was late, and holds from there. */
export function addPoint(points, added) {
  points.push({ ...added, ts: Math.max(added.ts, points.at(-1).ts) });
  return points;
}

/** The marks that an entry makes: what the fund paid, and the ADL order that whatever it could not pay becomes. */
export function entryLosses(lost) {
  const { entry, kind, change, uncovered } = lost;
  if (kind !== "shortfall" && kind !== "cover") return [];
  const ts = chartedAt(lost);
  const shortfall = { ts, text: `entry ${entry}: the fund paid ${change}`, isAdl: false };
  const order = { ts, text: `entry ${entry}: ADL for ${uncovered}`, isAdl: true };
  return isZero(uncovered) ? [shortfall] : [shortfall, order];
}

function candleLosses([time, , , , , , paid, uncovered], length) {
  const ts = time + length / 2;
  const shortfall = { ts, text: `shortfalls: the fund paid ${paid}`, isAdl: false };
  const order = { ts, text: `ADL for ${uncovered}`, isAdl: true };
  return [...(isZero(paid) ? [] : [shortfall]), ...(isZero(uncovered) ? [] : [order])];
}

function isZero(text) {
  return !/[1-9]/.test(text);
}

function point(ts, text) {
  return { ts, text, balance: Number(text) };
}

/** A candle's close is the balance at its end; in between it was somewhere in the band. */
async function readCandles(symbol, from, to) {
  const granularity = to - from > HOURLY_MS_MAX ? 1440 : 60;
  const length = granularity * MINUTE_MS;
  const candles = [];
  for (let start = Math.max(0, Math.floor(from / length) * length); start < to; start = candles.at(-1)[0] + length) {
    const page = await get(`${fundPath(symbol)}/candles`, { granularity, from: start, to: Math.ceil(to) });
    candles.push(...page.map(([time, ...rest]) => [Number(time), ...rest]));
    if (page.length < PAGE) break;
  }
  const ended = candles.filter(([time]) => time >= from && time + length <= to);
  const rest = ended.length ? ended.at(-1)[0] + length : from;
  const [samples, shortfalls] = await Promise.all([sample(symbol, rest, to), readShortfalls(symbol, rest, to)]);
  return {
    points: [...ended.map(([time, , , , close]) => point(time + length, close)), ...samples],
    band: ended.map(([time, , high, low]) => ({ ts: time, until: time + length, high: Number(high), low: Number(low) })),
    losses: [...ended.flatMap((candle) => candleLosses(candle, length)), ...shortfalls.flatMap(entryLosses)],
  };
}

function balanceAt(symbol, ts) {
  return get(`${fundPath(symbol)}/at`, { ts: Math.max(0, Math.floor(ts)) });
}

/** The balance at moments between two times. */
function sample(symbol, from, to) {
  const moments = Array.from({ length: SAMPLES }, (_, place) => Math.floor(from + ((to - from) * place) / SAMPLES));
  return Promise.all(moments.map(async (ts) => point(ts, (await balanceAt(symbol, ts)).balance)));
}

/** The newest shortfalls between two times, as many as can be told apart. */
async function readShortfalls(symbol, from, to) {
  const span = { kind: "shortfall", startAt: Math.max(0, Math.floor(from)), endAt: Math.ceil(to) - 1, maxCount: PAGE };
  const found = [];
  for (let more = true; more && found.length < ENTRIES_MAX;) {
    const { dataList, hasMore } = await history(symbol, found.length ? { ...span, offset: found.at(-1).entry } : span);
    found.push(...dataList);
    more = hasMore;
  }
  return found;
}

/** The entries after number `after` up to `last`: they are gapless, so all pages can be asked for at once. */
async function readEntries(symbol, after, last) {
  const offsets = Array.from({ length: Math.ceil((last - after) / PAGE) }, (_, page) => after + page * PAGE);
  const pages = await Promise.all(
    offsets.map((offset) => history(symbol, { offset, forward: true, maxCount: Math.min(PAGE, last - offset) })),
  );
  return pages.flatMap(({ dataList }) => dataList);
}

function history(symbol, parameters) {
  return get(`${fundPath(symbol)}/history`, parameters);
}

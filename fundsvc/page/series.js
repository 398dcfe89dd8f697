/** The balance of a fund over time: every entry if they are few, else candles. Balances are floats here, as they become pixels. */

import { fundPath } from "./addresses.js";
import { get } from "./api.js";

const MINUTE_MS = 60_000;
const DAY_MS = 86_400_000;
const PAGE = 500;

/** How far the engine's time may be ahead of the ledger's clock on a chart; the API's candles use the same limit. */
const AHEAD_MS_MAX = 300_000;

/** The newest entries that are drawn one by one: a chart has no more pixels. Candles represent the earlier ones. */
const ENTRIES_MAX = 3000;

/** Balances that are read between the last complete candle and the first of those entries. */
const SAMPLES = 24;

/** Longer ranges use daily candles instead of hourly ones. */
const HOURLY_MS_MAX = 20 * DAY_MS;

/** Returns the time of a fund's first entry in ms, null without entries. */
export async function firstEntryAt(symbol) {
  const { dataList } = await history(symbol, { offset: 0, forward: true, maxCount: 1 });
  return dataList[0] ? chartedAt(dataList[0]) : null;
}

/**
 * Loads the balance from `from` to `to` (ms) as points {ts, text, balance}, each valid until the next. `band` has the lowest and
 * highest balance of each candle, `losses` the shortfalls and ADL orders. With too many entries `points` are the newest ones and
 * `before` are points of candles and samples. `last` is the number of the last entry.
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

/** Returns the point of an entry. */
export function entryPoint(entry) {
  return point(chartedAt(entry), entry.balance);
}

/** Returns the time of an entry on a chart. An engine time far ahead of the ledger's clock is wrong, so it is replaced. */
function chartedAt({ ts, recordedAt }) {
  return ts > recordedAt + AHEAD_MS_MAX ? recordedAt : ts;
}

/** Appends a point. A late entry, whose time is before the last point, takes effect at the last point. */
export function addPoint(points, added) {
  points.push({ ...added, ts: Math.max(added.ts, points.at(-1).ts) });
  return points;
}

/** Returns the marks of an entry: the payment of the fund, and the ADL order for the uncovered amount. */
export function entryLosses(lost) {
  const { entry, kind, change, uncovered } = lost;
  if (kind !== "shortfall" && kind !== "cover") return [];
  const ts = chartedAt(lost);
  const shortfall = { ts, text: `entry ${entry}: the fund paid ${change}`, isAdl: false };
  const order = { ts, text: `entry ${entry}: ADL order for ${uncovered}`, isAdl: true };
  return isZero(uncovered) ? [shortfall] : [shortfall, order];
}

function candleLosses([time, , , , , , paid, uncovered], length) {
  const ts = time + length / 2;
  const shortfall = { ts, text: `shortfalls: the fund paid ${paid}`, isAdl: false };
  const order = { ts, text: `ADL orders for ${uncovered}`, isAdl: true };
  return [...(isZero(paid) ? [] : [shortfall]), ...(isZero(uncovered) ? [] : [order])];
}

function isZero(text) {
  return !/[1-9]/.test(text);
}

function point(ts, text) {
  return { ts, text, balance: Number(text) };
}

/** Reads candles. The close is the balance at the end of a candle; in between it was within the band. */
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

/** Reads the balance at evenly spaced times. */
function sample(symbol, from, to) {
  const moments = Array.from({ length: SAMPLES }, (_, place) => Math.floor(from + ((to - from) * place) / SAMPLES));
  return Promise.all(moments.map(async (ts) => point(ts, (await balanceAt(symbol, ts)).balance)));
}

/** Reads the newest shortfalls between two times, up to ENTRIES_MAX. */
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

/** Reads the entries after `after` up to `last`. Entry numbers have no gaps, so all pages are requested concurrently. */
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

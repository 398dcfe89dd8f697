/** The balance of a fund over time. Balances are floats here, as they become pixels; texts keep the amounts exact. */

import { fundPath } from "./addresses.js";
import { get } from "./api.js";

/** How far the engine's time may be ahead of the ledger's clock on a chart; the API's charts use the same limit. */
const AHEAD_MS_MAX = 300_000;

/**
 * Loads the balance from `from` to `to` (ms). A null `from` means the first entry, a null `to` the last one. The service groups
 * many entries into parts, each with its lowest and highest balance, so the chart shows every dip.
 */
export async function loadSeries(symbol, from, to) {
  const span = Object.entries({ from, to }).filter(([, ts]) => ts !== null);
  return new Series(await get(`${fundPath(symbol)}/chart`, Object.fromEntries(span.map(([name, ts]) => [name, Math.floor(ts)]))));
}

class Series {
  /** What the service read: the time of the fund's first entry (null without one), and the number of the last entry here. */
  constructor({ begin, from, opening, entry, parts }) {
    this.begin = begin === null ? null : Number(begin);
    this.entry = entry;
    this.times = [];
    this.highest = [];
    this.lowest = [];
    this.closing = [];

    /** The part that each point belongs to; the first point is the balance at the start. */
    this.parts = [];
    this.losses = [];
    const start = Number(from);
    this.#add({ since: start, until: start, highest: opening, lowest: opening, closing: opening });
    for (const [since, until, highest, lowest, closing, paid, uncovered, fills] of parts) {
      const times = { since: Number(since), until: Number(until) };
      this.#add({ ...times, highest, lowest, closing, paid, uncovered, fills: Number(fills) });
    }
  }

  /** The last part: its `closing` is the newest balance. */
  get last() {
    return this.parts.at(-1);
  }

  /** Adds the entry after the last one. Returns false if entries are missing between them, and does nothing for a known one. */
  append({ entry, ts, recordedAt, change, balance, uncovered }) {
    if (entry <= this.entry) return true;
    if (entry > this.entry + 1) return false;
    this.entry = entry;
    const at = Math.max(ts > recordedAt + AHEAD_MS_MAX ? recordedAt : ts, this.last.until);
    const fell = change.startsWith("-");
    const [highest, lowest] = fell ? [this.last.closing, balance] : [balance, this.last.closing];
    const paid = fell ? change.slice(1) : "0";
    this.#add({ since: at, until: at, highest, lowest, closing: balance, paid, uncovered, fills: 1 });
    return true;
  }

  /** A part becomes two points: within it the balance lies between lowest and highest, after it the balance is its last one. */
  #add(part) {
    const [highest, lowest, closing] = [part.highest, part.lowest, part.closing].map(Number);
    const before = this.closing.at(-1) ?? closing;
    const isStep = highest === Math.max(before, closing) && lowest === Math.min(before, closing);
    if (!isStep || part.until > part.since) this.#push(part, part.since, highest, lowest, before);
    this.#push(part, part.until, closing, closing, closing);
    if (isMore(part.paid) || isMore(part.uncovered)) this.losses.push(part);
  }

  #push(part, ts, highest, lowest, closing) {
    this.parts.push(part);
    this.times.push(ts);
    this.highest.push(highest);
    this.lowest.push(lowest);
    this.closing.push(closing);
  }
}

/** Whether an amount is above 0. */
export function isMore(text) {
  return text !== undefined && /[1-9]/.test(text);
}

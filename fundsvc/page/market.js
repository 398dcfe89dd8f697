/**
 * All funds as they are now: read over REST, then kept by their topic, which tells of a fund whenever it has an entry.
 * Their worth, targets and changes since yesterday move without one: so all is read again now and then, and after every
 * interruption.
 */

import { ApiError, get } from "./api.js";
import { perFrame } from "./dom.js";

const SUMMARY_MS = 2000;

/** The service itself looks at the past and at targets every 20 s. */
const REFRESH_MS = 30_000;

export class Market {
  #feed;
  #listeners = new Set();
  #summaryDue = 0;

  /** The funds that their topic told of since the newest reading began: the answer may be older, and what is newer will be told. */
  #changed = new Map();

  /** The funds by symbol; null before they are known. */
  funds = null;

  /** Totals by currency; null before they are known. */
  summary = null;

  /** Why there is nothing to show yet. */
  problem = "";

  #notify = perFrame(() => this.#listeners.forEach((listener) => listener()));

  constructor(feed) {
    this.#feed = feed;
    const resume = async () => {
      await this.#read();
      return {};
    };
    resume().catch((error) => {
      this.problem = error.message;
      this.#notify();
    });
    feed.subscribe("/insuranceFund/balance:all", { receive: (_subject, fund) => this.#change(fund), resume });
    const refresh = () => this.#whileVisible(() => this.#read());
    setInterval(refresh, REFRESH_MS);
    document.addEventListener("visibilitychange", refresh);
  }

  /** Calls back after changes, once per frame, until the function that it returns is called. */
  listen(listener) {
    this.#listeners.add(listener);
    listener();
    return () => this.#listeners.delete(listener);
  }

  /** Of two readings at a time the one that began later counts. */
  async #read() {
    const changed = (this.#changed = new Map());
    const [funds, summary] = await Promise.all([get("insurance-fund"), get("insurance-fund/summary")]);
    if (changed !== this.#changed) return;
    this.funds = new Map([...funds.map((fund) => [fund.symbol, fund]), ...changed]);
    this.summary = summary;
    this.problem = "";
    this.#notify();
  }

  #change(fund) {
    this.#changed.set(fund.symbol, fund);
    this.funds?.set(fund.symbol, fund);
    this.#notify();
    this.#summaryDue ||= setTimeout(() => this.#summaryIsDue(), SUMMARY_MS);
  }

  #summaryIsDue() {
    this.#summaryDue = 0;
    this.#whileVisible(async () => {
      this.summary = await get("insurance-fund/summary");
      this.#notify();
    });
  }

  /** Reads while somebody may look at it. What cannot be read is not live: the feed says so, and has all read when it can be. */
  async #whileVisible(read) {
    if (document.hidden || this.#feed.state !== "live") return;
    try {
      await read();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (this.#feed.state === "live") this.#feed.drop(error.message);
    }
  }
}

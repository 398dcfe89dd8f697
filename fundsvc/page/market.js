/**
 * The present state of all funds, read over REST and updated by their topic, which publishes a fund after each entry. Values in
 * USDT, targets and 24 h changes move without an entry, so all funds are read again at an interval and after each reconnection.
 */

import { ApiError, get } from "./api.js";
import { perFrame } from "./dom.js";

const SUMMARY_MS = 2000;

/** The service recalculates changes and targets every 20 s. */
const REFRESH_MS = 30_000;

export class Market {
  #feed;
  #listeners = new Set();
  #summaryDue = 0;

  /** The funds received from the topic since the latest read began. The answer of that read may be older, so they replace its. */
  #changed = new Map();

  /** The funds by symbol, null until they are loaded. */
  funds = null;

  /** Totals by currency, null until they are loaded. */
  summary = null;

  /** Why the funds are not loaded. */
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

  /** Calls `listener` now and after changes, at most once per frame. Returns a function that stops this. */
  listen(listener) {
    this.#listeners.add(listener);
    listener();
    return () => this.#listeners.delete(listener);
  }

  /** Reads all funds. Of two concurrent reads, the one that began later is used. */
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

  /** Reads while the page is visible. After a failure the page is not live: drops the connection, which reads all on its return. */
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

/** All funds as they are now: read once over REST, then kept by their topic, and read again after every interruption. */

import { get } from "./api.js";
import { perFrame } from "./dom.js";

const SUMMARY_MS = 2000;

export class Market {
  #listeners = new Set();
  #summaryDue = 0;

  /** The funds by symbol; null before they are known. */
  funds = null;

  /** Totals by currency; null before they are known. */
  summary = null;

  /** Why there is nothing to show yet. */
  problem = "";

  #tell = perFrame(() => this.#listeners.forEach((listener) => listener()));

  constructor(feed) {
    const resume = async () => {
      await this.#read();
      return {};
    };
    resume().catch((error) => {
      this.problem = error.message;
      this.#tell();
    });
    feed.subscribe("/insuranceFund/balance:all", { receive: (_subject, fund) => this.#change(fund), resume });
  }

  /** Calls back after changes, once per frame, until the function that it returns is called. */
  listen(listener) {
    this.#listeners.add(listener);
    listener();
    return () => this.#listeners.delete(listener);
  }

  async #read() {
    const [funds, summary] = await Promise.all([get("insurance-fund"), get("insurance-fund/summary")]);
    this.funds = new Map(funds.map((fund) => [fund.symbol, fund]));
    this.summary = summary;
    this.problem = "";
    this.#tell();
  }

  #change(fund) {
    this.funds?.set(fund.symbol, fund);
    this.#tell();
    this.#summaryDue ||= setTimeout(() => this.#summarise(), SUMMARY_MS);
  }

  async #summarise() {
    this.#summaryDue = 0;
    try {
      this.summary = await get("insurance-fund/summary");
      this.#tell();
    } catch (error) {
      // The feed notices by itself when the service is away, says so, and reads everything again.
      console.info(error.message);
    }
  }
}

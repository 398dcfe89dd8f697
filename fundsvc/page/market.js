/**
 * The present state of all funds, read over REST and updated by their topic, which publishes a fund after each entry. Values in
 * USDT, targets and 24 h changes move without an entry, so all funds are read again at an interval and after each reconnection.
 * A view of one contract follows only its fund: each push of another would cost processor time.
 */

import { ApiError, get } from "./api.js";
import { perPulse } from "./dom.js";

/** The service recalculates changes and targets every 20 s. */
const REFRESH_MS = 30_000;

/** The states of a fund whose ADL orders may move. */
const IN_ADL = new Set(["adl", "uncovered"]);

export class Market {
  #feed;
  #listeners = new Set();
  #hours = new Map();
  #policies = new Map();

  /**
   * The funds received from the topic since the latest read began, by symbol and generation. The answer of that read may be older,
   * so they replace its.
   */
  #changed = new Map();

  /**
   * The funds by name, null until they are loaded. The fund of the newest generation has the symbol as its name, an earlier one
   * the symbol, @ and its generation. The `condition` of a fund is its state, or "closed"; its `policy` is null while unknown.
   */
  funds = null;

  /** How many changes were published of funds with an open or failed ADL order. The orders of others do not move. */
  moves = 0;

  /** Why the funds are not loaded. */
  problem = "";

  /** What is followed: "all", or the name of a fund. */
  #followed = null;
  #unfollow = () => {};

  #notify = perPulse(() => this.#listeners.forEach((listener) => listener()));

  constructor(feed) {
    this.#feed = feed;
    this.#read().catch((error) => {
      this.problem = error.message;
      this.#notify();
    });
    const refresh = () => this.#whileVisible(() => this.#read());
    setInterval(refresh, REFRESH_MS);
    document.addEventListener("visibilitychange", refresh);
  }

  /** Follows one fund by its name, or "all"; the others are read at the interval. */
  follow(name) {
    if (this.#followed === name) return;
    this.#followed = name;
    this.#unfollow();
    const resume = async () => {
      await this.#read();
      return {};
    };
    this.#unfollow = this.#feed.subscribe(`/insuranceFund/balance:${name}`, { receive: (_subject, fund) => this.#change(fund), resume });
  }

  /** Calls `listener` now and after changes, in common frames. Returns a function that stops this. */
  listen(listener) {
    this.#listeners.add(listener);
    listener();
    return () => this.#listeners.delete(listener);
  }

  /** Reads all funds. Of two concurrent reads, the one that began later is used. */
  async #read() {
    const changed = (this.#changed = new Map());
    const [funds, policies] = await Promise.all([get("insurance-fund", { closed: true }), get("policies")]);
    if (changed !== this.#changed) return;
    this.#policies = new Map(policies.flatMap((policy) => policy.symbols.map((symbol) => [symbol, policy])));
    this.#replace([...funds, ...changed.values()]);
    this.problem = "";
    this.#notify();
  }

  /** Returns the fund of a contract by its name, also by the name of the newest generation with its number. */
  find(name) {
    const newest = this.funds?.get(name.replace(/@\d+$/, ""));
    return this.funds?.get(name) ?? (newest && keyOf(newest) === name ? newest : undefined);
  }

  /** Reads the last 24 hours of all funds: `hours` of a fund are then [start, opening, lowest, closing] of its hours with entries. */
  readHours = async () => {
    if (document.hidden) return;
    try {
      const rows = await get("summary/hours");
      this.#hours = new Map(rows.map((row) => [keyOf(row), row.hours]));
      if (this.funds) this.#replace([...this.funds.values()]);
      this.#notify();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error; // The next read follows soon; the lines stay as they are.
    }
  };

  #change(fund) {
    this.#changed.set(keyOf(fund), fund);
    const before = this.funds?.get(fund.symbol);
    if (IN_ADL.has(fund.state) || IN_ADL.has(before?.state)) this.moves++;
    if (before?.generation === fund.generation) this.funds.set(fund.symbol, this.#named(fund, fund.symbol));
    else if (this.funds) this.#replace([...this.funds.values(), fund]);
    this.#notify();
  }

  /** Sets the funds by name. Of two funds with the same generation, the later one is used. */
  #replace(funds) {
    const newest = new Map();
    for (const { symbol, generation } of funds) newest.set(symbol, Math.max(generation, newest.get(symbol) ?? 0));
    const nameOf = (fund) => (Number(fund.generation) === newest.get(fund.symbol) ? fund.symbol : keyOf(fund));
    this.funds = new Map(funds.map((fund) => [nameOf(fund), this.#named(fund, nameOf(fund))]));
  }

  #named(fund, name) {
    const condition = fund.closed ? "closed" : fund.state;
    return { ...fund, name, condition, hours: this.#hours.get(keyOf(fund)), policy: this.#policies.get(fund.symbol) ?? null };
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

function keyOf({ symbol, generation }) {
  return `${symbol}@${generation}`;
}

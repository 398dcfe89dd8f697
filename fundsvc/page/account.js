/** The account view: positions and their ADL reductions. */

import { contractAddress, entryAddress } from "./addresses.js";
import { ApiError, download, get } from "./api.js";
import { button, element } from "./dom.js";
import { lights, moment, money, number, percent, rough } from "./format.js";
import { announce } from "./notices.js";
import { requestButton } from "./request_button.js";
import { listTable, scroller } from "./table.js";
import { connectionToken, removeStoredToken, storedAccount, storedToken, storeToken, tokenForm } from "./token.js";

const REFRESH_MS = 3000;

const INPUTS = {
  "Entry, mark": (row) => lines(number(row.entryPrice), number(row.markPrice)),
  Margin: (row) => number(row.margin),
  "PnL, return": (row) => lines(number(row.unrealisedPnl, { signed: true }), percent(row.return)),
  "Leverage, score": (row) => lines(rough(row.leverage), rough(row.score)),
};

const POSITION_COLUMNS = {
  Contract: contractLink,
  Side: (row) => (row.positionSide === "BOTH" ? row.side : `${row.side} leg`),
  Lots: (row) => number(row.lots),
  Lights: (row) => (row.notEligible ? element("span", { class: "note" }, `not eligible: ${row.notEligible}`) : lights(row.lights)),
  "Rank, percentile": (row) => (row.rank === null ? rank(row) : lines(rank(row), percent(row.percentile))),
  ...INPUTS,
  Margin: (row) => money(row.margin, row.settleCurrency),
  "PnL, return": (row) => lines(money(row.unrealisedPnl, row.settleCurrency, { signed: true }), percent(row.return)),
  "Bankruptcy price": (row) => number(row.bankruptcyPrice, { reason: "the margin covers any move of the price" }),
};

const DELEVERAGED_COLUMNS = {
  Time: (row) => moment(row.ts),
  Contract: contractLink,
  Side: (row) => row.side,
  "Lots executed": (row) => element("span", {}, number(row.executed), " of ", number(row.lots)),
  Price: (row) => number(row.price),
  "Lights, rank": (row) => lines(lights(row.lights), rank(row)),
  "Order, cause": (row) => lines(element("span", {}, `ADL ${row.adl}, round ${row.round}`), cause(row)),
  ...INPUTS,
};

/** Columns of words. All others contain numbers and are aligned to the right. */
const WORDS = ["Contract", "Side", "Lights", "Time", "Lights, rank", "Order, cause"];

function contractLink({ symbol }) {
  return element("a", { href: contractAddress(symbol) }, symbol);
}

/** Shows two values of a cell, one below the other: all columns fit on a screen. */
function lines(first, second) {
  return element("span", { class: "lines" }, first, second);
}

function cause({ symbol, generation, cause }) {
  if (!cause) return element("span", {}, "a takeover");
  return element("a", { href: entryAddress(`${symbol}@${generation}`, cause) }, `entry ${cause}`);
}

function rank(row) {
  return row.rank === null
    ? number(null, { reason: `ADL does not reduce this position: ${row.notEligible}` })
    : element("span", {}, number(row.rank), ` of ${row.ranked}`);
}

class AccountView {
  #feed;
  #token = storedToken();
  #account = storedAccount();
  #known = null;
  #timer = 0;
  #unsubscribe = () => {};

  constructor(root, feed) {
    this.#feed = feed;
    this.problem = element("p", { class: "problem", role: "alert" });
    this.content = element("div", {});
    root.append(element("h1", { tabindex: "-1" }, "Account"), this.content, this.problem);
    if (this.#token) this.#show();
    else this.#showForm();
  }

  end = () => {
    clearInterval(this.#timer);
    this.#unsubscribe();
  };

  /** Shows the form again, with the reason for which the service rejected the token. */
  rejectToken = (error) => {
    this.#token = null;
    this.end();
    this.#showForm();
    this.problem.textContent = error.message;
  };

  #showForm() {
    this.content.replaceChildren(tokenForm("Show positions", (token, account) => this.#enter(token, account)));
  }

  async #enter(token, account) {
    this.problem.textContent = "";
    this.#token = token;
    this.#account = account;
    try {
      const answer = await this.#read();
      storeToken(token, account);
      this.#feed.start(connectionToken());
      this.#show(answer);
    } catch (error) {
      this.#token = null;
      this.problem.textContent = error.message;
    }
  }

  #read() {
    return get("adl/positions", this.#parameters, this.#token);
  }

  get #parameters() {
    return this.#account ? { account: this.#account } : {};
  }

  #show(answer) {
    this.owner = element("p", { class: "owner" });
    this.positions = element("section", { class: "panel account" });
    this.deleveraged = element("section", { class: "panel account" });
    const head = element(
      "div",
      { class: "head" },
      this.owner,
      button("Remove the token", () => this.#removeToken(), { class: "quiet" }),
    );
    const readFile = () => download("adl/deleveraged.csv", this.#parameters, this.#token, "adl-reductions.csv");
    this.export = requestButton("CSV", readFile, { class: "quiet", title: "All reductions of this account" });
    this.content.replaceChildren(head, this.positions, this.deleveraged);
    if (answer) this.#draw(answer);
    const refreshVisible = () => document.hidden || this.#refresh();
    this.#timer = setInterval(refreshVisible, REFRESH_MS);
    const resume = async () => {
      await this.#refresh();
      return {};
    };
    if (!answer) refreshVisible();
    this.#unsubscribe = this.#feed.subscribe("/adl/position", { receive: () => this.#refresh(), resume, isPrivate: true });
  }

  /** Reads and draws the positions. No topic publishes the mark, which changes ranks, so this also runs at an interval. */
  async #refresh() {
    try {
      this.#draw(await this.#read());
      this.problem.textContent = "";
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.isAccess) {
        removeStoredToken();
        this.rejectToken(error);
      } else this.problem.textContent = error.message;
    }
  }

  #removeToken() {
    removeStoredToken();
    this.end();
    this.#token = null;
    this.#feed.start(null);
    this.#showForm();
  }

  /** Shows a notice for each reduction since the last answer. Comparing answers misses none, even without the topic. */
  #announceReductions(deleveraged) {
    const known = this.#known;
    this.#known = new Map(deleveraged.map((row) => [`${row.symbol} ${row.adl} ${row.round} ${row.side}`, row]));
    for (const [key, row] of known ? this.#known : []) {
      const more = BigInt(row.executed) - BigInt(known.get(key)?.executed ?? 0);
      if (more) announce(`ADL reduced your ${row.symbol} ${row.side} by ${more} lots at ${row.price}`, { isOwn: true });
    }
  }

  #draw({ account, positions, deleveraged }) {
    this.#announceReductions(deleveraged);
    this.owner.replaceChildren(element("b", {}, account));
    drawTable(this.positions, "Positions", POSITION_COLUMNS, positions, "No open positions.");
    drawTable(
      this.deleveraged,
      "ADL reductions",
      DELEVERAGED_COLUMNS,
      deleveraged,
      "ADL has not reduced a position of this account.",
      this.export,
    );
  }
}

/** Replaces a table and keeps its scroll position. */
function drawTable(panel, title, columns, rows, empty, ...controls) {
  const table = listTable(columns, rows, { words: WORDS, empty, cards: true });
  const old = panel.querySelector("table");
  if (old) old.replaceWith(table);
  else panel.replaceChildren(element("div", { class: "head" }, element("h2", {}, title), ...controls), scroller(title, table));
}

/** Shows the account view in `root`. Returns a function that closes it. */
export function showAccount(root, { feed }) {
  const view = new AccountView(root, feed);
  feed.tokenRejected = (error) => {
    removeStoredToken();
    view.rejectToken(error);
  };
  return () => {
    feed.tokenRejected = removeStoredToken;
    view.end();
  };
}

/** An account of the mutual: progress towards the next policy, money, what to do, and policies with their stages. */

import { ApiError, get } from "./api.js";
import { button, element } from "./dom.js";
import { moment, money, number } from "./format.js";
import { listTable, scroller } from "./table.js";
import { connectionToken, removeStoredToken, storeToken, tokenForm } from "./token.js";

const REFRESH_MS = 5000;

/** The newest policies that the page lists. */
const POLICIES_MAX = 100;

const STATES = {
  covered: ["Covered", "ok", "trades that you open now are insured"],
  inactive: ["Inactive", "warning", "too few trades: your policies are frozen"],
  unfunded: ["Unfunded", "uncovered", "no cover: arrears, or too low a balance"],
  disabled: ["Not enabled", "warning", "no cover: the insurance is not enabled"],
};

const STAGES = ["loss", "waiting", "active", "paid"];

/** The last stage that a policy has reached, by state, and how the line ends. */
const REACHED = { waiting: 1, active: 2, frozen: 2, completed: 3, expired: 2, cancelled: 2 };

const COLUMNS = {
  Policy: ({ policy }) => String(policy),
  Stage: (policy) => stageLine(policy),
  Until: (policy) => untilOf(policy),
  Face: ({ face }) => number(face),
  Accrued: ({ accrued, cap }) => element("span", {}, number(accrued), " of at most ", number(cap)),
  Due: ({ due }) => number(due),
  Paid: ({ paid }) => number(paid),
};

/** Shows the stages of a policy as a line: loss, waiting, active, paid. A frozen or ended policy names its state. */
function stageLine({ state }) {
  const reached = REACHED[state];
  const stops = STAGES.map((stage, place) => {
    const isNow = place === reached;
    const text = isNow && ["frozen", "expired", "cancelled"].includes(state) ? state : stage;
    return element("i", { class: place < reached ? "done" : isNow ? "now" : null }, text);
  });
  return element("span", { class: "stages", "data-state": state, role: "img", "aria-label": `stage: ${state}` }, ...stops);
}

function untilOf({ state, waitingUntil, sharesFrom, expiresAt }) {
  if (state === "waiting") {
    const title = `waits until ${new Date(waitingUntil).toISOString()}; shares from that cut-off on if you are active then`;
    return element("span", { title }, "shares from ", moment(sharesFrom));
  }
  return ["active", "frozen"].includes(state) ? element("span", {}, "expires ", moment(expiresAt)) : state;
}

class CoverAccount {
  #feed;
  #token = connectionToken();
  #account = "";
  #timer = 0;
  #reads = 0;
  #unsubscribe = () => {};

  constructor(root, feed) {
    this.#feed = feed;
    this.problem = element("p", { class: "problem", role: "alert" });
    this.content = element("div", {});
    root.append(element("div", { class: "head" }, element("h2", {}, "Your cover")), this.content, this.problem);
    if (this.#token) this.#show();
    else this.#showForm();
  }

  end = () => {
    clearInterval(this.#timer);
    this.#unsubscribe();
    this.#reads++;
  };

  /** Shows the form again, with the reason for which the service rejected the token. */
  rejectToken = (error) => {
    removeStoredToken();
    this.#token = null;
    this.end();
    this.#showForm();
    this.problem.textContent = error.message;
  };

  #showForm() {
    this.content.replaceChildren(tokenForm("Show my cover", (token, account) => this.#enter(token, account)));
  }

  async #enter(token, account) {
    this.problem.textContent = "";
    [this.#token, this.#account] = [token, account];
    try {
      await this.#read();
      storeToken(token);
      this.#feed.start(connectionToken());
      this.#show();
    } catch (error) {
      this.#token = null;
      this.problem.textContent = error.message;
    }
  }

  #parameters() {
    return this.#account ? { account: this.#account } : {};
  }

  async #read() {
    const answer = await get("mutual/account", this.#parameters(), this.#token);
    const pages = answer.pools.map(({ pool }) =>
      get("mutual/account/policies", { ...this.#parameters(), pool, maxCount: POLICIES_MAX }, this.#token),
    );
    return [answer, await Promise.all(pages)];
  }

  #show() {
    this.owner = element("p", { class: "owner" });
    this.pools = element("div", { class: "insured" });
    const remove = button("Remove the token", () => this.#removeToken(), { class: "quiet" });
    this.content.replaceChildren(element("div", { class: "head" }, this.owner, remove), this.pools);
    const refresh = () => document.hidden || this.#refresh();
    this.#timer = setInterval(refresh, REFRESH_MS);
    refresh();
    const resume = async () => {
      await this.#refresh();
      return {};
    };
    this.#unsubscribe = this.#feed.subscribe("/mutual/account", { receive: () => this.#refresh(), resume, isPrivate: true });
  }

  /** Reads and draws the account. A risk token has no topic, so this also runs at an interval. Older answers are dropped. */
  async #refresh() {
    const read = ++this.#reads;
    try {
      const [answer, pages] = await this.#read();
      if (read !== this.#reads) return;
      this.#draw(answer, pages);
      this.problem.textContent = "";
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (read !== this.#reads) return;
      if (error.isAccess) this.rejectToken(error);
      else this.problem.textContent = error.message;
    }
  }

  #removeToken() {
    removeStoredToken();
    this.end();
    this.#token = null;
    this.#feed.start(null);
    this.#showForm();
  }

  #draw({ account, pools }, pages) {
    this.owner.replaceChildren(element("b", {}, account));
    const about = "This account has no insurance account yet: transfer money in and enable the insurance first.";
    const none = element("p", { class: "none" }, about);
    const shown = pools.map((insured, place) => insuredPart(insured, pages[place]));
    this.pools.replaceChildren(...(shown.length ? shown : [none]));
  }
}

function progress(share) {
  const now = Math.round(share * 100);
  const values = { "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": now, "aria-label": "losses towards the next policy" };
  const bar = element("div", { class: "progress", role: "progressbar", ...values }, element("i", {}));
  bar.style.setProperty("--share", share);
  return bar;
}

function insuredPart(insured, { dataList, hasMore }) {
  const [word, state, meaning] = STATES[insured.state];
  const asset = insured.pool;
  const fact = (title, value) => element("div", {}, element("dt", {}, title), element("dd", {}, value));
  const actions = insured.actions.map(({ text }) => element("li", {}, text));
  const share = Math.min(1, Number(insured.accumulated) / Number(insured.threshold));
  const bar = progress(share);
  const badge = element("span", { class: "state", "data-state": state }, word);
  const [have, need] = [insured.accumulated, insured.threshold].map((amount) => money(amount, asset));
  const towards = element("p", { class: "towards" }, have, " of ", need, " of losses towards the next policy");
  const table = listTable(COLUMNS, dataList, { words: ["Policy", "Stage", "Until"], empty: "No policies yet.", cards: true });
  return element(
    "section",
    { class: "insured-pool", "data-pool": asset },
    element("div", { class: "head" }, element("h3", {}, `In pool ${asset}`), badge),
    element("p", { class: "meaning" }, `${meaning[0].toUpperCase()}${meaning.slice(1)}.`),
    ...(actions.length ? [element("ul", { class: "actions" }, ...actions)] : []),
    towards,
    bar,
    element(
      "dl",
      { class: "facts" },
      fact("Insurance balance", money(insured.balance, asset)),
      fact("Arrears", money(insured.arrears, asset)),
      fact("Due from active policies", money(insured.due, asset)),
      fact("Payable", money(insured.payable, asset)),
      fact("Paid out", money(insured.paidOut, asset)),
      fact("Live policies", number(insured.livePolicies)),
    ),
    scroller(`Policies in pool ${asset}`, table),
    ...(hasMore ? [element("p", { class: "note" }, `The newest ${POLICIES_MAX} policies. The statement of the API has all.`)] : []),
    element("p", { class: "note" }, "A policy may be paid less than its cap, late, or nothing: nothing is guaranteed."),
  );
}

/** Shows an account in `root`, or the form for its token. Returns a function that closes it. */
export function showCoverAccount(root, feed) {
  const account = new CoverAccount(root, feed);
  feed.tokenRejected = account.rejectToken;
  return () => {
    feed.tokenRejected = removeStoredToken;
    account.end();
  };
}

/** The loss cover view: the pools of the mutual, and the account of the holder of a token. */

import { ApiError, get } from "./api.js";
import { showCoverAccount } from "./cover_account.js";
import { CoverPool } from "./cover_pool.js";
import { button, element, perFrame } from "./dom.js";

const WARNING =
  "Nothing is guaranteed. Whether, when and how much a policy is paid depends on what the pool has, and it may be nothing.";
const ABOUT =
  "Qualifying losses of insured trades become policies. Active policies share what their pool releases, cut-off by cut-off. " +
  "The pools are separate from the insurance funds of contracts: neither pays for the other.";

class CoverView {
  #feed;
  #pools = new Map();
  #name = null;
  #pool = null;
  #draw = perFrame(() => this.#show());

  constructor(root, feed) {
    this.#feed = feed;
    this.choice = element("div", { class: "group", role: "group", "aria-label": "Pool" });
    this.problem = element("p", { class: "problem", role: "alert" });
    this.content = element("div", { class: "cover" });
    const warning = element("p", { class: "warning" }, WARNING);
    root.append(
      element("h1", { tabindex: "-1" }, "Loss cover"),
      element("div", { class: "panel" }, warning, element("p", { class: "note" }, ABOUT)),
      this.choice,
      this.problem,
      this.content,
    );
    const resume = async () => {
      await this.#read();
      return {};
    };
    resume().catch((error) => {
      if (!(error instanceof ApiError)) throw error;
      this.problem.textContent = error.message;
    });
    this.unsubscribe = feed.subscribe("/mutual/pool:all", { receive: (_subject, pool) => this.#change(pool), resume });
    this.account = element("section", { class: "panel", "aria-label": "Your cover" });
    root.append(this.account);
    this.endAccount = showCoverAccount(this.account, feed);
  }

  end = () => {
    this.unsubscribe();
    this.endAccount();
    this.#pool?.end();
  };

  async #read() {
    const pools = await get("mutual/pools");
    this.#pools = new Map(pools.map((pool) => [pool.pool, pool]));
    this.problem.textContent = "";
    this.#draw();
  }

  #change(pool) {
    this.#pools.set(pool.pool, pool);
    this.#draw();
  }

  #choose(name) {
    this.#name = name;
    this.#draw();
  }

  #show() {
    const names = [...this.#pools.keys()].sort();
    if (!this.#pools.has(this.#name)) this.#name = names[0] ?? null;
    const pressed = (name) => ({ "aria-pressed": String(name === this.#name) });
    const choices = names.map((name) => button(name, () => this.#choose(name), pressed(name)));
    this.choice.replaceChildren(...(names.length > 1 ? choices : []));
    if (this.#name === null) {
      this.content.replaceChildren(element("p", { class: "panel none" }, "This service has no pool."));
      return;
    }
    if (this.#pool?.name !== this.#name) {
      this.#pool?.end();
      this.content.replaceChildren();
      this.#pool = new CoverPool(this.content, this.#name);
    }
    this.#pool.draw(this.#pools.get(this.#name));
  }
}

/** Shows the loss cover view in `root`. Returns a function that closes it. */
export function showCover(root, { feed }) {
  return new CoverView(root, feed).end;
}

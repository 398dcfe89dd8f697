/** The latest entries of a ledger, live, without gaps or repetitions. */

import { entryAddress, fundPath } from "./addresses.js";
import { get } from "./api.js";
import { showAudit } from "./audit.js";
import { requestButton } from "./request_button.js";
import { button, element, perPulse } from "./dom.js";
import { moment, number } from "./format.js";
import { GENESIS, firstBroken } from "./proof.js";
import { alignDecimals, moveFocus, oneStop } from "./table.js";

const PAGE_ENTRIES = 100;
const MISSED_MAX = 500;

/** More rows than fit into the height of the list. */
const VISIBLE_ROWS = 16;

const COLUMNS = ["Entry", "Time", "Kind", "Change", "Balance", "Cause"];

/** The width of a column in `ch`: of its longest text, and of the padding. The last column takes the rest. */
const DIGIT = 1.08;
const PADDING = 1.9;

class EntryList {
  #symbol;
  #observer;
  #pending = [];
  #newest = null;
  #rowsMax = PAGE_ENTRIES;
  #isScrolled = false;
  #widths = COLUMNS.map(({ length }) => length);

  constructor(root, symbol, observer) {
    this.#symbol = symbol;
    this.#observer = observer;
    this.body = element("tbody", { role: "rowgroup", keydown: moveFocus });
    const heads = COLUMNS.map((name) => element("th", { role: "columnheader", ...sideOf(name) }, name));
    const head = element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...heads));
    const label = `Ledger entries of ${symbol}, newest first`;
    this.table = element("table", { class: "ledger cards", role: "table", "aria-label": label }, head, this.body);
    this.older = requestButton("Older entries", () => this.#readOlder(), { class: "quiet wide", hidden: true });
    // To read the position in each frame would have the browser lay the page out once more.
    const scrolled = () => {
      this.#isScrolled = this.scroller.scrollTop > 4;
      this.#flush();
    };
    this.scroller = element(
      "div",
      { class: "scroller tall", tabindex: "0", role: "region", "aria-label": "Entries", scroll: scrolled },
      this.table,
      this.older,
    );
    this.problem = element("p", { class: "problem" });
    this.waiting = button("", () => this.#toTop(), { class: "quiet waiting" });
    this.waiting.disabled = true;
    const whole = element("a", { class: "button quiet", href: `api/v1/${fundPath(symbol)}/history.csv`, download: true }, "CSV");
    const verify = requestButton("Verify", () => this.#verify(), { class: "quiet", title: "Recompute the hashes of the entries" });
    const title = element("div", { class: "head" }, element("h2", {}, "Entries"), this.waiting, verify, whole);
    this.proof = element("p", { class: "proof", role: "status" });
    this.audit = element("p", { class: "note audit" });
    root.append(title, this.audit, this.proof, this.problem, this.scroller);
  }

  /** Reads the entries after the newest known one, or the newest page if they are too many. Returns `after` to subscribe with. */
  resume = async () => {
    const missed =
      this.#newest === null ? null : await this.#page({ offset: this.#newest, forward: true, maxCount: MISSED_MAX });
    if (missed && !missed.hasMore) missed.dataList.forEach(this.add);
    else this.#replace(await this.#page({ maxCount: PAGE_ENTRIES }));
    this.showProblem("");
    return { after: this.#newest };
  };

  /** Shows why entries are missing, "" for no problem. */
  showProblem(problem) {
    this.problem.textContent = problem;
  }

  /** Adds an entry; ignores one that is known. */
  add = (entry) => {
    if (this.#newest === null || entry.entry <= this.#newest) return;
    this.#newest = entry.entry;
    this.#pending.push(entry);
    if (this.#pending.length > this.#rowsMax) this.#pending.shift();
    this.#observer.added(entry);
    this.#flush();
  };

  #page(parameters) {
    return get(`${fundPath(this.#symbol)}/history`, parameters);
  }

  #replace({ dataList, hasMore }) {
    this.#newest = dataList[0]?.entry ?? 0;
    this.#pending = [];
    this.#rowsMax = PAGE_ENTRIES;
    this.body.replaceChildren(...dataList.map((entry) => this.#row(entry)));
    oneStop(this.body);
    this.older.hidden = !hasMore;
    this.#observer.replaced(this.#newest);
  }

  async #readOlder() {
    const oldest = Number(this.body.lastElementChild.dataset.entry);
    const { dataList, hasMore } = await this.#page({ offset: oldest, maxCount: PAGE_ENTRIES });
    this.#rowsMax += dataList.length;
    this.body.append(...dataList.map((entry) => this.#row(entry)));
    oneStop(this.body);
    this.older.hidden = !hasMore;
  }

  /** Recomputes the hashes of as many of the newest entries as are shown, and shows the result. */
  async #verify() {
    const contract = await get(`contracts/${encodeURIComponent(this.#symbol)}`);
    const entries = (await this.#newestEntries(this.body.childElementCount)).reverse();
    if (!entries.length) return;
    const [first, last] = [entries[0].entry, entries.at(-1).entry];
    const previousHash = first === 1 ? GENESIS : (await get(`${fundPath(this.#symbol)}/entries/${first}`)).previousHash;
    const broken = await firstBroken(previousHash, entries, contract);
    this.proof.classList.toggle("problem", broken !== null);
    this.proof.textContent = broken
      ? `The hash of entry ${broken.entry} does not follow from its fields and the hash before it.${withoutSeal(broken)}`
      : `Entries ${first} to ${last}: this browser recomputed every hash from the fields of the entry and the hash before it.`;
  }

  /** Returns the newest entries, newest first. */
  async #newestEntries(count) {
    const entries = [];
    for (let hasMore = true; hasMore && entries.length < count; ) {
      const before = entries.length ? { offset: entries.at(-1).entry } : {};
      const page = await this.#page({ ...before, maxCount: Math.min(MISSED_MAX, count - entries.length) });
      entries.push(...page.dataList);
      hasMore = page.hasMore;
    }
    return entries;
  }

  /** Whether the reader has scrolled down or focused a row. New rows wait meanwhile. */
  get #isReading() {
    return this.#isScrolled || this.body.contains(document.activeElement);
  }

  #flush = perPulse(() => {
    if (!this.#isReading) this.#showPending();
    const count = this.#pending.length;
    this.waiting.textContent = count ? `${count} newer` : "";
    this.waiting.disabled = !count;
  });

  /** Shows the waiting rows. If rows between the list and them were dropped, the list restarts with the waiting ones. */
  #showPending() {
    if (!this.#pending.length) return;
    const top = Number(this.body.firstElementChild?.dataset.entry ?? 0);
    if (top && this.#pending[0].entry > top + 1) this.body.replaceChildren();
    const added = this.#pending
      .splice(0)
      .reverse()
      .map((entry) => this.#row(entry));
    // The visible rows are inserted again: to move them would shift what the reader looks at, which browsers count as instability.
    this.body.prepend(...added, ...[...this.body.children].slice(0, VISIBLE_ROWS));
    while (this.body.childElementCount > this.#rowsMax) {
      this.body.lastElementChild.remove();
      this.older.hidden = false;
    }
    oneStop(this.body);
  }

  #toTop() {
    this.scroller.scrollTop = 0;
    this.#isScrolled = false;
    document.activeElement?.blur();
    this.scroller.focus();
    this.#flush();
  }

  #row(entry) {
    const cells = [
      element("a", { href: entryAddress(this.#symbol, entry.entry), "aria-label": `Entry ${entry.entry}` }, String(entry.entry)),
      moment(entry.ts),
      element("span", { class: "kind", "data-kind": entry.kind }, entry.kind),
      number(entry.change, { signed: true }),
      number(entry.balance),
      cause(entry),
    ];
    const row = element("tr", { role: "row", "data-entry": entry.entry });
    row.append(
      ...cells.map((cell, place) =>
        element("td", { role: "cell", "data-title": COLUMNS[place], ...sideOf(COLUMNS[place]) }, cell),
      ),
    );
    this.#fit(cells);
    alignDecimals(this.table, row);
    return row;
  }

  /** Widens the columns if a text needs it. Each row is a grid of its own, so that a new one changes the layout of no other. */
  #fit(cells) {
    const widths = this.#widths.map((width, place) => Math.max(width, cells[place].textContent.length));
    if (widths.every((width, place) => width === this.#widths[place])) return;
    this.#widths = widths;
    const tracks = widths.slice(0, -1).map((width) => `${width * DIGIT + PADDING}ch`);
    this.table.style.setProperty("--columns", `${tracks.join(" ")} minmax(11rem, 1fr)`);
  }
}

/** An entry from before the ledger secret has no seal: its hash covers the account itself, which is not public. */
function withoutSeal({ commitment }) {
  return commitment ? "" : " If it has an account, its hash covers the account, which is not public.";
}

function sideOf(column) {
  return { class: column === "Change" || column === "Balance" ? "amount" : null };
}

/** Returns the cause of an entry: amounts uncovered or repaid, then the fill or the ADL order. */
function cause(entry) {
  const notable = [
    ["uncovered", entry.uncovered],
    ["repaid", entry.repaid],
  ].filter(([, amount]) => /[1-9]/.test(amount));
  const notes = notable.map(([word, amount]) => element("b", { class: word }, `${word} ${amount}, `));
  return element("span", { class: "cause", title: entry.tradeId ? `trade ${entry.tradeId}` : null }, ...notes, origin(entry));
}

const OF_ADL = ["refund", "cover", "deleverage"];

/**
 * Refunds, covers and deleverages come from an ADL order, not from a fill: their order id is "adl/" and its number. A takeover
 * adds lots to the inventory, an entry that closes lots of a takeover entry takes them from it. The balance of a closed contract may
 * move to its successor.
 */
function origin({ kind, orderId, side, lots, price, bankruptcyPrice, closes, forced }) {
  const of = closes ? `, of entry ${closes}` : "";
  if (orderId.startsWith("carry/")) return `${kind === "carry_out" ? "to" : "from"} ${orderId.slice("carry/".length)}`;
  if (OF_ADL.includes(kind)) return `ADL order ${orderId.split("/")[1]}, ${lots} lots at ${price}${of}`;
  if (kind === "takeover") return `${forced ? "forced: " : ""}${side === "sell" ? "long" : "short"} of ${lots} lots at ${price}`;
  if (closes) return `unwind: ${side} ${lots} at ${price}${of} at ${bankruptcyPrice}`;
  return `${side} ${lots} at ${price}, bankruptcy price ${bankruptcyPrice}`;
}

/** Shows the entries of a contract. Calls `observer.added` for each new one, `observer.replaced` with the newest number after the list was reloaded. */
export function showEntries(root, feed, symbol, observer) {
  const list = new EntryList(root, symbol, observer);
  list.resume().catch((error) => list.showProblem(error.message));
  const receive = (_subject, entry) => list.add(entry);
  const ends = [showAudit(list.audit, symbol), feed.subscribe(`/insuranceFund/entry:${symbol}`, { receive, resume: list.resume })];
  return () => ends.forEach((end) => end());
}

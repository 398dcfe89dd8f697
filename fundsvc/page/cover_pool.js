/** A pool of the mutual: its state, the payout ratio in words, its terms, its cut-offs as a chart, and a calculator. */

import { ApiError, get } from "./api.js";
import { element } from "./dom.js";
import { estimate, formatAmount, parseAmount } from "./estimate.js";
import { dayAndClock, moment, money, number, percent } from "./format.js";
import { coloursOf, layout, plotly } from "./drawing.js";
import { listTable, scroller } from "./table.js";

/** The cut-offs in the chart, and those of the payout ratio and of the calculator. */
const CHARTED = 90;
const RATIO_CYCLES = 30;

/** The loss that the calculator begins with, in units of the pool's asset. */
const FIRST_LOSS = "250";

const STATES = {
  settling: ["Open", "ok", "an engine settles the pool"],
  waiting: ["Waiting", "warning", "no engine settles the pool at present: its events wait"],
  halted: ["Halted", "uncovered", "the pool is halted"],
};

const TERMS = {
  minFunding: ["Least balance for cover", amountOf],
  threshold: ["Losses for a policy", amountOf],
  face: ["Face of a policy", amountOf],
  cap: ["Most that a policy is paid, of its face", shareOf],
  minLoss: ["Smallest loss that counts", amountOf],
  waitingHours: ["Waiting time (hours)", plain],
  cycleSeconds: ["Time between cut-offs (seconds)", plain],
  release: ["Released at a cut-off, from health", stepsOf],
  premiumTiers: ["Premium on the day's insured profits, from", stepsOf],
  tierMode: ["Premium tiers", plain],
  platformFee: ["Fee of the premium", shareOf],
  reserveFloor: ["Never released", amountOf],
  expiryDays: ["Expiry (days)", plain],
  liveMax: ["Most live policies of an account", plain],
  activityDays: ["Trades of the last days", plain],
  activityVolume: ["Volume of these trades, else policies freeze", amountOf],
  exclude: ["Trades that never count", listOf],
  excludeLosses: ["Losses that never count", listOf],
  symbols: ["Symbols", (value) => (value === null ? "all" : listOf(value))],
};

function amountOf(value, asset) {
  return money(value, asset);
}

function shareOf(value) {
  return percent(Number(value));
}

function plain(value) {
  return String(value);
}

function listOf(values) {
  return values.join(", ") || "none";
}

function stepsOf(steps) {
  const texts = steps.map(({ from, rate }) => element("span", {}, number(from), ": ", percent(Number(rate))));
  return element("span", { class: "steps" }, ...texts);
}

export class CoverPool {
  #cycle = null;
  #cycles = [];
  #terms = null;
  #version = null;
  #ended = false;
  #drawn = false;

  constructor(root, name) {
    this.name = name;
    this.state = element("span", { class: "state" });
    this.facts = element("dl", { class: "facts" });
    this.ratio = element("p", { class: "ratio" });
    this.terms = element("div", {});
    this.plot = element("div", { class: "plot", role: "img", "aria-label": `Balance and releases of pool ${name}` });
    this.note = element("p", { class: "note" }, "loading");
    this.result = element("output", { for: "loss" });
    this.loss = element("input", { id: "loss", inputmode: "decimal", autocomplete: "off", value: FIRST_LOSS });
    this.loss.addEventListener("input", () => this.#calculate());
    const [balance, released] = ["balance", "released"].map((name) => element("i", { class: name }));
    const legend = element("p", { class: "legend" }, balance, "balance ", released, "released");
    const terms = element("details", {}, element("summary", {}, "Terms"), this.terms);
    const label = element("label", { for: "loss" }, `A qualifying loss of (${name})`);
    root.append(
      panel("pool", `Pool ${name}`, [this.state], this.facts, this.ratio, terms),
      panel("cycles", "Cut-offs", [], this.plot, element("div", { class: "foot" }, this.note, legend)),
      panel("calculator", "What would this pool have paid?", [], element("p", {}, label, " ", this.loss), this.result),
    );
    this.resized = new ResizeObserver(() => this.#drawn && this.#chart());
    this.resized.observe(this.plot);
    this.recoloured = () => this.#drawn && this.#chart();
    document.addEventListener("themechange", this.recoloured);
  }

  /** Frees what the chart holds. */
  end = () => {
    this.#ended = true;
    this.resized.disconnect();
    document.removeEventListener("themechange", this.recoloured);
    if (this.#drawn) window.Plotly.purge(this.plot);
  };

  /** Shows the present state of the pool. Reads its terms and cut-offs when they change. */
  draw(pool) {
    const [word, state, meaning] = STATES[pool.state];
    this.state.dataset.state = state;
    this.state.title = pool.halted || meaning;
    this.state.textContent = word;
    const fact = (title, value) => element("div", {}, element("dt", {}, title), element("dd", {}, value));
    this.facts.replaceChildren(
      fact("Balance", money(pool.balance, this.name)),
      fact("Health", healthOf(pool)),
      fact("Next cut-off", pool.nextCutoff ? moment(pool.nextCutoff) : number(null, { reason: "the pool has no events yet" })),
      fact("Release at a cut-off", percent(Number(pool.release))),
      fact("Would release now", money(pool.budget, this.name)),
      fact("Active policies", number(pool.activePolicies)),
      fact("Their faces", money(pool.weight, this.name)),
      fact("Released so far", money(pool.released, this.name)),
      fact("Accounts", number(pool.accounts)),
    );
    this.ratio.textContent = ratioText(pool.payouts, this.name);
    if (pool.cycle !== this.#cycle || pool.termsVersion !== this.#version) this.#load(pool);
  }

  async #load({ cycle, termsVersion }) {
    [this.#cycle, this.#version] = [cycle, termsVersion];
    const path = `mutual/pools/${encodeURIComponent(this.name)}`;
    try {
      const cycles = get(`${path}/cycles`, { maxCount: CHARTED });
      const [{ dataList }, { terms }] = await Promise.all([cycles, get(path), plotly()]);
      if (this.#ended || this.#cycle !== cycle) return;
      this.#cycles = dataList;
      this.#terms = terms;
      this.#showTerms();
      this.#calculate();
      this.#chart();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.note.textContent = error.message;
      this.#cycle = null;
    }
  }

  #showTerms() {
    const rows = Object.entries(TERMS).map(([name, [title, show]]) => ({ title, term: this.#terms[name], show }));
    const columns = {
      Term: ({ title }) => title,
      Value: ({ term, show }) => show(term.value, this.name),
      "Whose number": ({ term }) => (term.whose === "XT" ? "XT Exchange" : "ours"),
    };
    this.terms.replaceChildren(
      scroller("Terms", listTable(columns, rows, { words: ["Term", "Value", "Whose number"] })),
      element("p", { class: "note" }, "XT Exchange has published the one number marked so; all others are ours."),
    );
  }

  #calculate() {
    if (!this.#terms) return;
    const loss = parseAmount(this.loss.value);
    this.loss.setAttribute("aria-invalid", String(loss === null));
    const cycles = this.#cycles.slice(0, RATIO_CYCLES);
    this.result.textContent = loss === null ? "Enter an amount such as 250 or 99.5." : this.#resultText(loss, cycles);
  }

  #resultText(loss, cycles) {
    const decimals = Number(this.#terms.decimals.value);
    const shown = (units) => `${formatAmount(units, decimals)} ${this.name}`;
    const { policies, kept, paid, isCapped } = estimate(loss, cycles, this.#terms);
    if (!policies) return `${shown(kept)} of losses make no policy yet: ${shown(parseAmount(this.#terms.threshold.value))} do.`;
    const made = `It makes ${policies} ${policies === 1n ? "policy" : "policies"}${kept ? ` and keeps ${shown(kept)} for the next` : ""}.`;
    const share = ((Number(paid) / Number(loss)) * 100).toFixed(1);
    const past = cycles.length === 1 ? "the last cut-off" : `all of the last ${cycles.length} cut-offs`;
    if (!cycles.length) return `${made} The pool has had no cut-off yet, so there is no past to compute with.`;
    const most = isCapped ? ", the most that they can be paid" : "";
    const result = `Active in ${past}, they would have been paid ${shown(paid)}${most}: ${share} % of the loss.`;
    return `${made} ${result} This is the past. It promises nothing.`;
  }

  #chart() {
    const cycles = this.#cycles.toReversed();
    if (!cycles.length) {
      this.note.textContent = "No cut-off has happened yet.";
      return;
    }
    const colours = coloursOf(this.plot);
    const times = cycles.map(({ at }) => at);
    const gap = cycles.length > 1 ? times[1] - times[0] : 86_400_000;
    const range = [times[0] - gap / 2, times.at(-1) + gap / 2];
    const texts = (name) => cycles.map((cycle) => `${dayAndClock(cycle.at)}<br>${name} ${cycle[name]} ${this.name}`);
    const base = { x: times, hoverinfo: "text" };
    const line = { mode: "lines", line: { color: colours.accent, width: 1.6, shape: "hv" } };
    const bars = { type: "bar", textposition: "none", yaxis: "y2", marker: { color: colours.adl }, width: gap * 0.7 };
    const traces = [
      { ...base, ...line, y: cycles.map(({ balance }) => Number(balance)), text: texts("balance") },
      { ...base, ...bars, y: cycles.map(({ released }) => Number(released)), text: texts("released") },
    ];
    const { fontFamily: family } = getComputedStyle(this.plot);
    const shape = layout(range, colours, { family, width: this.plot.clientWidth, isLogarithmic: false });
    shape.yaxis = { ...shape.yaxis, domain: [0.42, 1], nticks: 5 };
    shape.yaxis2 = { ...shape.yaxis, domain: [0, 0.36], nticks: 3 };
    window.Plotly.react(this.plot, traces, shape, { displayModeBar: false, responsive: false });
    this.#drawn = true;
    this.note.textContent = `the last ${cycles.length} cut-offs: the balance before each, and what it released`;
  }
}

function panel(name, title, beside, ...children) {
  const head = element("div", { class: "head" }, element("h2", {}, title), ...beside);
  return element("section", { class: `panel ${name}` }, head, ...children);
}

function healthOf({ health }) {
  if (health === null) return number(null, { reason: "no policy is active" });
  const title = "the balance, as a share of the most that the active policies can still be paid";
  return element("span", { title }, percent(Number(health)));
}

/** Says the payout ratio in plain words. */
function ratioText({ ratio, released, faces, cycles }, asset) {
  const past = `In the last ${cycles} ${cycles === 1 ? "cut-off" : "cut-offs"}`;
  if (!cycles) return "No cut-off has happened yet. Nothing was paid, and nothing is promised.";
  const given = `${past} the pool released ${released} ${asset}`;
  if (ratio === null) return `${given}, and no policies were issued. This is the past. It promises nothing.`;
  const each = (Number(ratio) * 100).toFixed(2);
  const issued = `while policies over ${faces} ${asset} were issued: about ${each} for each 100 of face`;
  return `${given}, ${issued}. This is the past. It promises nothing.`;
}

/** A pool of the mutual: its state, the payout ratio in words, its terms, its cut-offs as a chart, and a calculator. */

import { ApiError, get } from "./api.js";
import { element } from "./dom.js";
import { estimate, formatAmount, parseAmount } from "./estimate.js";
import { dayAndClock, moment, money, number, percent } from "./format.js";
import { amountAxis, chartOptions, follow, lookOf, stepLine, timeAxis } from "./drawing.js";
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
  #chart = null;

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
    const legend = element("p", { class: "legend" }, ...["balance", "released"].map((name) => element("span", { class: name }, name)));
    const terms = element("details", {}, element("summary", {}, "Terms"), this.terms);
    const label = element("label", { for: "loss" }, `A qualifying loss of (${name})`);
    root.append(
      panel("pool", `Pool ${name}`, [this.state], this.facts, this.ratio, terms),
      panel("cycles", "Cut-offs", [], this.plot, element("div", { class: "foot" }, this.note, legend)),
      panel("calculator", "What would this pool have paid?", [], element("p", {}, label, " ", this.loss), this.result),
    );
    this.unfollow = follow(this.plot, () => this.#chart);
    this.recoloured = () => this.#draw();
    document.addEventListener("themechange", this.recoloured);
  }

  /** Frees what the chart holds. */
  end = () => {
    this.#ended = true;
    this.unfollow();
    document.removeEventListener("themechange", this.recoloured);
    this.#chart?.destroy();
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
      const [{ dataList }, { terms }] = await Promise.all([cycles, get(path)]);
      if (this.#ended || this.#cycle !== cycle) return;
      this.#cycles = dataList;
      this.#terms = terms;
      this.#showTerms();
      this.#calculate();
      this.#draw();
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

  #draw() {
    const cycles = this.#cycles.toReversed();
    this.#chart?.destroy();
    this.#chart = null;
    if (!cycles.length) {
      this.note.textContent = "No cut-off has happened yet.";
      return;
    }
    const shades = lookOf(this.plot);
    const look = () => shades;
    const times = cycles.map(({ at }) => at);
    const gap = cycles.length > 1 ? times[1] - times[0] : 86_400_000;
    const [balances, released] = ["balance", "released"].map((name) => cycles.map((cycle) => Number(cycle[name])));
    const bars = window.uPlot.paths.bars({ size: [0.7, 40] });
    const options = chartOptions(this.plot, {
      series: [
        {},
        stepLine(look, "accent", { scale: "balance" }),
        { scale: "released", paths: bars, fill: () => shades.adl, points: { show: false } },
      ],
      scales: {
        x: { time: false, range: () => [times[0] - gap / 2, times.at(-1) + gap / 2] },
        balance: { range: () => [-0.8 * (Math.max(...balances) || 1), 1.05 * (Math.max(...balances) || 1)] },
        released: { range: () => [0, 2.8 * (Math.max(...released) || 1)] },
      },
      axes: [
        timeAxis(look),
        { ...amountAxis(look), scale: "balance", filter: (_chart, splits) => splits.map((value) => (value < 0 ? null : value)) },
      ],
      cursor: { drag: { x: false, setScale: false }, y: false, points: { show: false } },
      hooks: { setCursor: [(chart) => this.#describe(cycles, chart.cursor.idx)] },
    });
    this.#chart = new window.uPlot(options, [times, balances, released], this.plot);
    this.plot.chart = this.#chart;
    this.#describe(cycles, null);
  }

  /** Names the amounts of the cut-off under the crosshair, or what the chart shows. */
  #describe(cycles, place) {
    const cycle = cycles[place ?? -1];
    const all = `the last ${cycles.length} cut-offs: the balance before each, and what it released`;
    const one = () => `${dayAndClock(cycle.at)}: balance ${cycle.balance} ${this.name}, released ${cycle.released} ${this.name}`;
    this.note.textContent = cycle ? one() : all;
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

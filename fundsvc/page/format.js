/** Formats values. Amounts keep the text of the API; only styles separate groups of digits. */

import { element } from "./dom.js";

const DECIMAL = /^(-?)(\d+)(\.\d+)?$/;

/** Shows an amount or a count exactly. `signed` marks rises and falls. An unknown value is a dash with the reason as title. */
export function number(given, { signed = false, reason = "" } = {}) {
  if (given === null || given === undefined) return element("span", { class: "number none", title: reason || null }, "–");
  const [, sign, whole, fraction = ""] = DECIMAL.exec(String(given));
  const groups = whole.match(/\d{1,3}(?=(\d{3})*$)/g).map((group) => element("i", {}, group));
  const trend = signed ? trendOf(String(given)) : "";
  return element("span", { class: `number ${trend}` }, sign, ...groups, element("span", { class: "fraction" }, fraction));
}

/** Amounts with at most so many characters are shown whole. */
const WHOLE_LENGTH_MAX = 8;

/** Ratios from this one on are shown in short. */
const SHORT_RATIO = 1000;

/** Rounds towards 0, so that a short amount never claims more than there is. */
const SHORT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 5, roundingMode: "trunc" });

/**
 * Shows an amount with five digits, such as 1.2345M. Its text stays exact, so it is what a reader copies and a screen reader says;
 * the short form is in the style alone. The exact amount is also the title.
 */
export function short(given, { signed = false, reason = "" } = {}) {
  if (given === null || given === undefined || given.length <= WHOLE_LENGTH_MAX) return number(given, { signed, reason });
  const trend = signed ? trendOf(given) : "";
  const exact = element("span", { class: "hidden" }, given);
  return element("span", { class: `number short ${trend}`, "data-short": SHORT.format(given), title: given }, exact);
}

/** Shows a change of a balance in percent of what it was before, or the amount if that was 0. Its title is the amount. */
export function changeOf(change, balance) {
  const before = Number(balance) - Number(change);
  if (before <= 0) return short(change, { signed: true });
  const trend = trendOf(change);
  const sign = trend === "down" ? "-" : "";
  const text = `${sign}${percentText(Math.abs(Number(change)) / before)} %`;
  return element("span", { class: `number percent ${trend}`, title: change }, text);
}

function trendOf(text) {
  if (/^-?[0.]+$/.test(text)) return "still";
  return text.startsWith("-") ? "down" : "up";
}

/** Shows an amount with its currency. */
export function money(given, currency, options) {
  return element("span", { class: "money" }, number(given, options), " ", element("abbr", {}, currency));
}

/** Shows a ratio in percent. Its title is the exact number. */
export function percent(ratio) {
  if (ratio === null || ratio === undefined) return number(null);
  const text = percentText(ratio);
  return element("span", { class: "percent", title: String(ratio) }, DECIMAL.test(text) ? number(text) : text, " %");
}

function percentText(ratio) {
  return ratio < SHORT_RATIO ? (ratio * 100).toFixed(2) : SHORT.format(ratio * 100);
}

/** Shows a number such as a score or a leverage with five digits. Its title is the exact number. */
export function rough(value) {
  if (value === null || value === undefined) return number(null);
  return element("span", { class: "number", title: String(value) }, String(Number(value.toPrecision(5))));
}

/** Returns the local time of day, to the second. */
export function clock(ms) {
  const date = new Date(ms);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map(padded).join(":");
}

/** Returns the local date. */
export function day(ms) {
  const date = new Date(ms);
  return [date.getFullYear(), date.getMonth() + 1, date.getDate()].map(padded).join("-");
}

/** Returns the local date and time of day. */
export function dayAndClock(ms) {
  return `${day(ms)} ${clock(ms)}`;
}

/** Returns the local date and time of day, to the millisecond. */
export function exactMoment(ms) {
  return `${dayAndClock(ms)}.${String(ms % 1000).padStart(3, "0")}`;
}

function padded(count) {
  return String(count).padStart(2, "0");
}

/** Shows a time by the local clock, with the date unless it is today. Its title is UTC. */
export function moment(ms) {
  const utc = new Date(ms).toISOString();
  return element("time", { class: "moment", datetime: utc, title: utc }, momentText(ms));
}

/** Updates the shown times: on a page that stays open, today becomes yesterday. */
export function refreshMoments() {
  for (const shown of document.querySelectorAll(".moment")) {
    const text = momentText(Date.parse(shown.dateTime));
    if (shown.textContent !== text) shown.textContent = text;
  }
}

function momentText(ms) {
  return day(ms) === day(Date.now()) ? clock(ms) : dayAndClock(ms);
}

/** Units of ages, the longest first, in milliseconds. */
const AGE_UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["min", 60_000],
];

/** Shows the time since a moment in its longest unit, such as "3 h". Its title is UTC. */
export function age(ms) {
  const passed = Math.max(0, Date.now() - ms);
  const [unit, length] = AGE_UNITS.find(([, length]) => passed >= length) ?? ["s", 1000];
  const utc = new Date(ms).toISOString();
  return element("time", { class: "age", datetime: utc, title: utc }, `${Math.floor(passed / length)} ${unit}`);
}

/** Shows a time in UTC, to the millisecond. */
export function instant(ms) {
  const utc = new Date(ms).toISOString();
  return element("time", { datetime: utc }, utc.replace("T", " ").replace("Z", " UTC"));
}

/** Shows a hash. Styles shorten it; the whole text can be selected. */
export function hash(hex) {
  return element("code", { class: "hash" }, hex);
}

/** Shows one to five lights. Positions with five lights are reduced first. */
export function lights(count) {
  if (count === null || count === undefined) return number(null);
  const lamps = Array.from({ length: 5 }, (_, place) => element("i", { class: place < count ? "on" : null }));
  return element(
    "span",
    { class: "lights", role: "img", "aria-label": `${count} of 5 lights`, "data-lights": count },
    ...lamps,
  );
}

const STATES = {
  closed: ["Closed", "the contract is settled or closed: the fund takes no events"],
  ok: ["OK", "the fund can pay"],
  warning: ["Warning", "the drawdown guard is active or near, or the fund is below its target"],
  adl: ["ADL open", "an ADL order is open: profitable positions are being reduced"],
  uncovered: ["Uncovered", "an amount is outstanding that neither the fund nor ADL covered"],
};

/** Shows the state of a fund, or that its contract is closed. */
export function fundState(state) {
  const [word, meaning] = STATES[state];
  return element("span", { class: "state", "data-state": state, title: meaning }, word);
}

/** The states of a fund, in the order of severity. */
export const FUND_STATES = Object.keys(STATES);

/** Compares two decimal strings exactly: negative, 0 or positive. Unknown values come first. */
export function compareDecimals(a, b) {
  if (a === null || b === null || a === undefined || b === undefined) return (a ? 1 : 0) - (b ? 1 : 0);
  const places = Math.max(decimalsOf(a), decimalsOf(b));
  const [first, second] = [atoms(a, places), atoms(b, places)];
  return first < second ? -1 : Number(first > second);
}

/** Returns the exact sum of decimal strings. */
export function sumDecimals(texts) {
  const places = Math.max(0, ...texts.map(decimalsOf));
  const sum = texts.reduce((total, text) => total + atoms(text, places), 0n);
  const digits = String(sum < 0n ? -sum : sum).padStart(places + 1, "0");
  const fraction = places ? `.${digits.slice(-places)}`.replace(/\.?0+$/, "") : "";
  return (sum < 0n ? "-" : "") + digits.slice(0, digits.length - places) + fraction;
}

function decimalsOf(text) {
  return text.split(".")[1]?.length ?? 0;
}

function atoms(text, places) {
  return BigInt(text.replace(".", "") + "0".repeat(places - decimalsOf(text)));
}

/** Says a policy in a few words. Its title is the whole policy. */
export function policyWords(policy) {
  if (!policy) return number(null);
  const { waterfall, eligible, allocation, guardStart, words } = policy;
  const parts = [
    waterfall === "fund_then_adl" ? "fund first" : "ADL first",
    eligible === "profitable" ? "profitable" : "all positions",
    { queue: "by rank", pro_rata: "pro rata", capped: "by rank, capped" }[allocation],
    ...(guardStart === null ? [] : [`guard ${Number((guardStart * 100).toFixed(4))} %`]),
  ];
  return element("span", { class: "policy", title: words }, parts.join(" · "));
}

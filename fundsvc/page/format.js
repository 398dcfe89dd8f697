/** How values look. Amounts stay the text that the API gave: groups of digits are set apart by style alone. */

import { element } from "./dom.js";

const DECIMAL = /^(-?)(\d+)(\.\d+)?$/;

/** An amount or a count, exactly as given; `signed` shows rises and falls. What is not known is a dash, with the reason. */
export function number(given, { signed = false, reason = "" } = {}) {
  if (given === null || given === undefined) return element("span", { class: "number none", title: reason || null }, "–");
  const [, sign, whole, fraction = ""] = DECIMAL.exec(String(given));
  const groups = whole.match(/\d{1,3}(?=(\d{3})*$)/g).map((group) => element("i", {}, group));
  const trend = signed ? trendOf(String(given)) : "";
  return element("span", { class: `number ${trend}` }, sign, ...groups, element("span", { class: "fraction" }, fraction));
}

function trendOf(text) {
  if (/^-?[0.]+$/.test(text)) return "still";
  return text.startsWith("-") ? "down" : "up";
}

/** An amount with its currency. */
export function money(given, currency, options) {
  return element("span", { class: "money" }, number(given, options), " ", element("abbr", {}, currency));
}

/** A ratio that is a plain number, in percent; the exact one is its title. */
export function percent(ratio) {
  if (ratio === null || ratio === undefined) return number(null);
  const text = (ratio * 100).toFixed(2);
  return element("span", { class: "percent", title: String(ratio) }, DECIMAL.test(text) ? number(text) : text, " %");
}

/** A plain number (a score, a leverage) to five digits; the exact one is its title. */
export function rough(value) {
  if (value === null || value === undefined) return number(null);
  return element("span", { class: "number", title: String(value) }, String(Number(value.toPrecision(5))));
}

/** The time of day here, to the second. */
export function clock(ms) {
  const date = new Date(ms);
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map(padded).join(":");
}

/** The date here. */
export function day(ms) {
  const date = new Date(ms);
  return [date.getFullYear(), date.getMonth() + 1, date.getDate()].map(padded).join("-");
}

/** The date and the time of day here. */
export function dayAndClock(ms) {
  return `${day(ms)} ${clock(ms)}`;
}

function padded(count) {
  return String(count).padStart(2, "0");
}

/** A moment here: the time of day, and the date unless it is today; UTC is its title. */
export function moment(ms) {
  const utc = new Date(ms).toISOString();
  return element("time", { class: "moment", datetime: utc, title: utc }, momentText(ms));
}

/** Tells the moments that are shown again: on a page that stays open, today becomes yesterday. */
export function refreshMoments() {
  for (const shown of document.querySelectorAll(".moment")) {
    const text = momentText(Date.parse(shown.dateTime));
    if (shown.textContent !== text) shown.textContent = text;
  }
}

function momentText(ms) {
  return day(ms) === day(Date.now()) ? clock(ms) : dayAndClock(ms);
}

/** A moment to the millisecond, as everybody else tells it too. */
export function instant(ms) {
  const utc = new Date(ms).toISOString();
  return element("time", { datetime: utc }, utc.replace("T", " ").replace("Z", " UTC"));
}

/** A hash, shortened for the eye; the whole of it can be selected. */
export function hash(hex) {
  return element("code", { class: "hash" }, hex);
}

/** One to five lights: how near a position is to being deleveraged. */
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
  ok: ["OK", "the fund can pay"],
  warning: ["Warning", "the drawdown guard is active or near, or the fund below its target"],
  adl: ["ADL open", "positions are being deleveraged"],
  uncovered: ["Uncovered", "something is outstanding that neither the fund nor deleveraging could pay"],
};

/** The state of a fund in a word. */
export function fundState(state) {
  const [word, meaning] = STATES[state];
  return element("span", { class: "state", "data-state": state, title: meaning }, word);
}

/** The states of a fund, from the calmest. */
export const FUND_STATES = Object.keys(STATES);

/** Less than, equal to or more than 0 as `a` is to `b`, exactly; what is not known comes before all. */
export function compareDecimals(a, b) {
  if (a === null || b === null || a === undefined || b === undefined) return (a ? 1 : 0) - (b ? 1 : 0);
  const places = Math.max(decimalsOf(a), decimalsOf(b));
  const [first, second] = [atoms(a, places), atoms(b, places)];
  return first < second ? -1 : Number(first > second);
}

function decimalsOf(text) {
  return text.split(".")[1]?.length ?? 0;
}

function atoms(text, places) {
  return BigInt(text.replace(".", "") + "0".repeat(places - decimalsOf(text)));
}

/** A small line of the last 24 hours of a fund, which shows each hour's lowest balance too. */

const NAMESPACE = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, HOURS] = [72, 20, 24];
const HOUR_MS = 3_600_000;

/** The width of a line in `ch`, rounded up. */
export const SPARK_WIDTH = 10;

/** Returns the lowest balance of the last 24 hours. */
export function lowestOf({ hours = [], balance }) {
  return hours.reduce((low, [, , lowest]) => (Number(lowest) < Number(low) ? lowest : low), balance);
}

/** Returns a line of `hours`, [start, opening, lowest, closing] of those with entries; without any, the balance did not change. */
export function sparkline(fund) {
  const { hours = [], balance } = fund;
  const numbers = hours.map((values) => values.map(Number));
  const highest = Math.max(...numbers.flatMap(([, ...amounts]) => amounts), Number(balance)) || 1;
  const begin = Math.floor(Date.now() / HOUR_MS) * HOUR_MS - (HOURS - 1) * HOUR_MS;
  const across = (start) => Math.min(Math.max(((start - begin) / HOUR_MS) * (WIDTH / HOURS), 0), WIDTH - 2);
  const down = (amount) => 1 + (HEIGHT - 2) * (1 - amount / highest);
  const steps = numbers.map(([start, , lowest, closing]) => `H${across(start).toFixed(1)}V${down(lowest).toFixed(1)}V${down(closing).toFixed(1)}`);
  const first = numbers.length ? numbers[0][1] : Number(balance);
  const line = drawn("path", { d: `M0 ${down(first).toFixed(1)}${steps.join("")}H${WIDTH}` });
  const label = `lowest of 24 h: ${lowestOf(fund)}`;
  const made = drawn("svg", { class: "spark", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  made.append(line);
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

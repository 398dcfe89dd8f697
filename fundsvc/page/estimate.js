/** What past cut-offs would have paid on a loss. All amounts are exact: integers of the smallest unit of the longest fraction. */

/** The decimals of amounts of any pool. */
const DECIMALS = 18;

/** Parses a positive decimal text; returns null for other text. */
export function parseAmount(text) {
  const found = /^(\d{1,15})(?:\.(\d{1,18}))?$/.exec(text.trim());
  return found ? BigInt(found[1] + (found[2] ?? "").padEnd(DECIMALS, "0")) : null;
}

/** Formats such an integer as decimal text, rounded down to `decimals`. */
export function formatAmount(units, decimals) {
  const digits = String(units).padStart(DECIMALS + 1, "0");
  const fraction = digits.slice(-DECIMALS).slice(0, decimals).replace(/0+$/, "");
  return digits.slice(0, -DECIMALS) + (fraction ? `.${fraction}` : "");
}

/**
 * Returns what cut-offs would have paid on a loss: the number of policies, the loss kept for the next one, and the amount.
 *
 * The policies share as if they had been active in all of these cut-offs beside those that were: of what a cut-off released to
 * the weight W, they would have had w / (W + w). They are paid at most their caps.
 */
export function estimate(loss, cycles, terms) {
  const [threshold, face] = [terms.threshold, terms.face].map(({ value }) => parseAmount(value));
  const [whole, most] = [loss / threshold, BigInt(terms.liveMax.value)];
  const policies = whole < most ? whole : most;
  const weight = policies * face;
  const cap = (weight * parseAmount(terms.cap.value)) / 10n ** BigInt(DECIMALS);
  const shares = cycles.map((cycle) => {
    const [released, others] = [cycle.released, cycle.weight].map(parseAmount);
    return others && weight ? (released * weight) / (others + weight) : 0n;
  });
  const paid = shares.reduce((sum, share) => sum + share, 0n);
  const rest = loss - policies * threshold;
  const isCapped = cap > 0n && paid >= cap;
  return { policies, kept: rest < threshold ? rest : threshold, paid: isCapped ? cap : paid, isCapped };
}

/**
 * Recomputes the hash chain of a ledger in the browser, from the public fields of its entries: the hash of an entry is the SHA-256
 * of the hash before it and a MessagePack array of the entry's fields.
 */

const SEALED = 2n;
const HASH_BYTES = 32;
const text = new TextEncoder();

/** The first bytes of MessagePack values by the size of their number or length: 8, 16, 32 and 64 bits. */
const UNSIGNED = [0xcc, 0xcd, 0xce, 0xcf];
const SIGNED = [0xd0, 0xd1, 0xd2, 0xd3];
const TEXT = [0xd9, 0xda, 0xdb];
const BINARY = [0xc4, 0xc5, 0xc6];

/** Returns the bytes of an integer of so many bytes, the highest first. */
function bytesOf(value, size) {
  return Array.from({ length: size }, (_, place) => Number(BigInt.asUintN(64, value >> BigInt(8 * (size - 1 - place))) & 0xffn));
}

/** Returns the smallest power of 2 of bytes in which an integer fits, as an exponent. */
function sizeOf(value, signed) {
  return [8, 16, 32, 64].findIndex((bits) => (signed ? BigInt.asIntN : BigInt.asUintN)(bits, value) === value);
}

function packedInteger(value) {
  if (value >= -32n && value < 128n) return bytesOf(value, 1);
  const exponent = sizeOf(value, value < 0n);
  return [(value < 0n ? SIGNED : UNSIGNED)[exponent], ...bytesOf(value, 2 ** exponent)];
}

function packedBytes(content, heads) {
  const length = BigInt(content.length);
  if (heads === TEXT && length < 32n) return [0xa0 + content.length, ...content];
  const exponent = sizeOf(length, false);
  return [heads[exponent], ...bytesOf(length, 2 ** exponent), ...content];
}

/** Returns the shortest MessagePack bytes of an integer (BigInt), a text, bytes, or true. */
function packed(value) {
  if (typeof value === "bigint") return packedInteger(value);
  if (typeof value === "string") return packedBytes(text.encode(value), TEXT);
  return value === true ? [0xc3] : packedBytes(value, BINARY);
}

function packedArray(values) {
  const head = values.length < 16 ? [0x90 + values.length] : [0xdc, ...bytesOf(BigInt(values.length), 2)];
  return [...head, ...values.flatMap(packed)];
}

/** Returns an amount as an integer of the smallest unit. */
function units(amount, decimals) {
  const [whole, fraction = ""] = amount.split(".");
  return BigInt(whole + fraction.padEnd(decimals, "0"));
}

function bytesOfHex(hex) {
  return (hex.match(/../g) ?? []).map((pair) => parseInt(pair, 16));
}

/** Returns the hashed fields of an entry. An entry without a seal has its account there, which is not public unless it is empty. */
function hashedFields(entry, { settleDecimals, priceDecimals }) {
  const money = ["change", "balance", "uncovered", "repaid"].map((name) => units(entry[name], settleDecimals));
  const prices = [entry.price, entry.bankruptcyPrice].map((price) => units(price, priceDecimals));
  const seal = bytesOfHex(entry.keyId + entry.commitment);
  const [generation, number, closes] = [entry.generation, entry.entry, entry.closes].map(BigInt);
  return [
    ...(seal.length ? [SEALED] : []),
    generation === 1n ? entry.symbol : `${entry.symbol}@${generation}`,
    ...[number, BigInt(entry.seq), entry.kind, ...money, entry.side, BigInt(entry.lots), ...prices],
    ...[entry.tradeId, entry.orderId, seal.length ? seal : "", BigInt(entry.ts)],
    ...(closes || entry.forced ? [closes] : []),
    ...(entry.forced ? [true] : []),
  ];
}

/** Returns the hash of an entry as the service must have computed it, in hex. */
async function hashOf(previousHash, entry, scales) {
  const bytes = new Uint8Array([...bytesOfHex(previousHash), ...packedArray(hashedFields(entry, scales))]);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The hash before the first entry of a ledger. */
export const GENESIS = "00".repeat(HASH_BYTES);

/**
 * Recomputes the hashes of consecutive entries, oldest first, and returns the first entry whose hash differs, or null. Each hash is
 * computed from the one that was computed before it.
 */
export async function firstBroken(previousHash, entries, scales) {
  for (const entry of entries) {
    const computed = await hashOf(previousHash, entry, scales);
    if (computed !== entry.hash) return entry;
    previousHash = computed;
  }
  return null;
}

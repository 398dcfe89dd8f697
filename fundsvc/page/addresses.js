/** Addresses on the page (after `#`) and paths in the API. */

/** Returns the page address of a contract. */
export function contractAddress(symbol) {
  return `#/contract/${encodeURIComponent(symbol)}`;
}

/** Returns the page address of an entry. */
export function entryAddress(symbol, entry) {
  return `${contractAddress(symbol)}/entry/${entry}`;
}

/** Returns the API path of a fund, under which its other resources are. */
export function fundPath(symbol) {
  return `insurance-fund/${encodeURIComponent(symbol)}`;
}

/** Where things are: on the page after `#`, and in the API. */

/** The address of a contract on the page. */
export function contractAddress(symbol) {
  return `#/contract/${encodeURIComponent(symbol)}`;
}

/** The address of an entry on the page. */
export function entryAddress(symbol, entry) {
  return `${contractAddress(symbol)}/entry/${entry}`;
}

/** The path of a fund in the API, and of all about it. */
export function fundPath(symbol) {
  return `insurance-fund/${encodeURIComponent(symbol)}`;
}

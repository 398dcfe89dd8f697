/** Questions to the service, in its envelope. */

/** What the service refused, or that it could not be reached (status 0); the message is for people. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether asking again would be answered in the same way. */
  get isFinal() {
    return [400, 403, 404].includes(this.status);
  }

  /** Whether another token would help. */
  get isAccess() {
    return this.status === 401 || this.status === 403;
  }
}

/**
 * Integers come as strings, so that none is rounded above 2^53. These are small by their nature, and the page computes with them:
 * times, numbers of entries, orders and rounds, which count from 1, and places in a queue.
 */
const SMALL = new Set(
  "ts updatedAt recordedAt entryTs entry cause adl round rank ranked lights positions contracts".split(" "),
);

/** How every URL of the API asks for that. */
export const AS_STRINGS = { numbers: "string" };

/** What a JSON text holds, with large integers as strings. */
export function parse(text) {
  return JSON.parse(text, (name, value) => (SMALL.has(name) && typeof value === "string" ? Number(value) : value));
}

/** The data at a path under /api/v1; raises ApiError. */
export function get(path, parameters = {}, token = null) {
  return ask("GET", path, { ...parameters, ...AS_STRINGS }, token);
}

/** What a POST without a body answers; raises ApiError. */
export function post(path, token = null) {
  return ask("POST", path, {}, token);
}

async function ask(method, path, parameters, token) {
  const url = new URL(`api/v1/${path}`, document.baseURI);
  url.search = new URLSearchParams(parameters);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response, body;
  try {
    response = await fetch(url, { method, headers, cache: "no-store" });
    body = parse(await response.text());
  } catch (error) {
    throw new ApiError(response?.status ?? 0, "", `the service does not answer (${error.message})`);
  }
  if (!response.ok) throw new ApiError(response.status, body.code, body.msg);
  return body.data;
}

/** Requests to the API. */

/** An error answer of the service, or status 0 if it is unreachable. The page shows the message. */
export class ApiError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }

  /** Whether a repeated request would fail again. */
  get isFinal() {
    return [400, 403, 404].includes(this.status);
  }

  /** Whether another token would help. */
  get isAccess() {
    return this.status === 401 || this.status === 403;
  }
}

/**
 * Fields that are converted to numbers, because they are small and the page computes with them: times, numbers of entries,
 * orders, rounds, tranches, policies and cut-offs, ranks. All other integers stay strings, because JavaScript rounds integers above 2^53.
 */
const SMALL = new Set(
  (
    "ts oldestTs updatedAt recordedAt entryTs entry cause closes adl round rank ranked lights toLights positions contracts " +
    "at cycle cycles nextCutoff policy waitingUntil sharesFrom expiresAt termsVersion"
  ).split(" "),
);

/** The query parameter that requests integers as strings. */
export const AS_STRINGS = { numbers: "string" };

/** Parses JSON and converts the fields of `SMALL` to numbers. */
export function parse(text) {
  return JSON.parse(text, (name, value) => (SMALL.has(name) && typeof value === "string" ? Number(value) : value));
}

/** Returns the data at a path under /api/v1. Throws ApiError. */
export function get(path, parameters = {}, token = null) {
  return send("GET", path, { ...parameters, ...AS_STRINGS }, token);
}

/** Sends a POST without a body and returns the data of its answer. Throws ApiError. */
export function post(path, token = null) {
  return send("POST", path, {}, token);
}

async function send(method, path, parameters, token) {
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

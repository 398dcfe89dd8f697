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
    "at cycle cycles nextCutoff policy waitingUntil sharesFrom expiresAt termsVersion policyVersion version fromRank toRank " +
    "verifiedAt"
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

/** Reads a file at a path under /api/v1 and hands it to the browser under a name. Throws ApiError. */
export async function download(path, parameters, token, name) {
  const file = await (await request("GET", path, parameters, token)).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(file);
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function send(method, path, parameters, token) {
  const response = await request(method, path, parameters, token);
  return (await contentOf(response)).data;
}

/** Returns the answer to a request. Throws ApiError for an answer that is an error. */
async function request(method, path, parameters, token) {
  const url = new URL(`api/v1/${path}`, document.baseURI);
  url.search = new URLSearchParams(parameters);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(url, { method, headers, cache: "no-store" });
  } catch (error) {
    throw unanswered(0, error);
  }
  if (response.ok) return response;
  const { code, msg } = await contentOf(response);
  throw new ApiError(response.status, code, msg);
}

async function contentOf(response) {
  try {
    return parse(await response.text());
  } catch (error) {
    throw unanswered(response.status, error);
  }
}

function unanswered(status, error) {
  return new ApiError(status, "", `the service does not answer (${error.message})`);
}

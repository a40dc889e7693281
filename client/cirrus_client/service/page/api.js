// The service's HTTP API: every answer is JSON or a Failure. Its paths are relative: a proxy may have it below a path.

import { parse, stringify } from "./exact.js";

/** What went wrong. retryAfterS: seconds after which it may work, or null; needsKey: whether a key was missing. */
export class Failure extends Error {
  constructor(message, { status = 0, retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.needsKey = status === 401;
  }
}

const AWAY = "The service can't be reached. Trying again …";
const BUSY = "Too many searches at the moment. Trying again …";
const NOT_READY = "The service is not ready. Trying again …";

export const collections = async () => (await ask("v1/collections")).collections;

/** Search one collection. reference: a Blob, {id}, or null. */
export function search({ collection, reference, text, filter, k, offset }, signal) {
  const form = new FormData();
  form.set("collection", collection);
  form.set("k", k);
  form.set("offset", offset);
  if (reference instanceof Blob) form.set("image", reference, "query");
  else if (reference) form.set("id", reference.id);
  if (text) form.set("text", text);
  if (filter) form.set("filter", stringify(filter));
  return ask("v1/search", { method: "POST", body: form, signal });
}

/** Return the edit text that leads from a reference, a Blob or {id}, to an item of a collection. */
export async function suggest({ collection, reference, target }, signal) {
  const from = reference instanceof Blob ? { image: await base64Of(reference) } : { id: reference.id };
  return (await ask("v1/suggest", { ...json({ reference: from, target: { id: target }, collection }), signal })).text;
}

export const enter = (key) => ask("v1/session", json({ key }));

/** The address of an image that an answer links to. */
export const linked = (link) => link.slice(1);

/** The address of a gallery item's thumbnail. */
export const thumbnail = (image, sizePx) => `${image}${image.includes("?") ? "&" : "?"}size=${sizePx}`;

/** The address of a gallery item's image. Slashes are escaped where a browser would shorten the path, as in `./a.jpg`. */
export const imageOf = (id, collection) => {
  const parts = id.split("/");
  const slash = parts.some((part) => ["", ".", ".."].includes(part)) ? "%2F" : "/";
  return `v1/items/${parts.map(encodeURIComponent).join(slash)}/image?collection=${encodeURIComponent(collection)}`;
};

const json = (content) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(content),
});

const base64Of = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onerror = () => reject(reader.error);
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.readAsDataURL(blob);
  });

async function ask(path, options) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(AWAY, { retryAfterS: 2 });
  }
  if (answer.ok) return answer.status === 204 ? null : parse(await answer.text());
  throw await failureOf(answer);
}

async function failureOf(answer) {
  const problem = await answer.json().catch(() => ({}));
  const status = answer.status;
  const wait = Number(answer.headers.get("Retry-After")) || 2;
  if (status === 429) return new Failure(BUSY, { status, retryAfterS: wait });
  if (status === 503 || status === 502) return new Failure(NOT_READY, { status, retryAfterS: wait });
  const said = problem.reason ?? problem.detail;
  if (said) return new Failure(sentence(said), { status });
  return new Failure(`The service answered with an error (${status}).`, { status });
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

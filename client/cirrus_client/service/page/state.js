// What is searched for, as a link: every search is an entry of the browser's history.

import { parse, stringify } from "./exact.js";

/** Return the search that the page's address describes. */
export function fromAddress() {
  const given = new URLSearchParams(location.search);
  return {
    collection: given.get("in"),
    compare: given.get("beside"),
    id: given.get("id"),
    from: given.get("from"),
    upload: given.get("picture"),
    text: given.get("text") ?? "",
    filter: parsed(given.get("filter")),
    count: Math.min(Math.max(Number(given.get("n")) || FIRST, FIRST), MOST),
  };
}

export const FIRST = 24;
export const MOST = 480;

/** Write a search into the address. replace: instead of the present entry of the history. */
export function toAddress(state, { replace = false } = {}) {
  const names = { in: "collection", beside: "compare", id: "id", from: "from", picture: "upload", text: "text" };
  const given = new URLSearchParams();
  for (const [name, field] of Object.entries(names)) if (state[field]) given.set(name, state[field]);
  if (state.filter) given.set("filter", stringify(state.filter));
  if (state.count > FIRST) given.set("n", state.count);
  const address = given.size ? `?${given}` : location.pathname;
  if (replace || address === location.search) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
}

export const isEmpty = (state) => !state.id && !state.upload && !state.text.trim();

function parsed(text) {
  try {
    return text ? parse(text) : null;
  } catch {
    return null;
  }
}

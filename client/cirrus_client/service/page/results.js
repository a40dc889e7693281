// The found items as cards in a grid.

import { linked, thumbnail } from "./api.js";
import { element } from "./element.js";
import { stringify } from "./exact.js";

const SIZE_PX = 384;
const SHOWN_COLUMNS = 6;
const NEXT = { ArrowRight: 1, ArrowLeft: -1 };

/**
 * Show an answer per collection. start: is called with (item, collection) to search from an item. suggest: to say what
 * leads to it, or null. more: for the next items.
 */
export function showResults(box, answers, actions) {
  box.replaceChildren(...answers.map((answer) => column(answer, answers.length > 1, actions)));
  box.onkeydown = moveBetweenCards;
}

function column(answer, named, actions) {
  const { items, more: hasMore } = answer.results[0];
  const list = element("ol", { className: "grid" }, ...items.map((item) => card(item, answer.collection, actions)));
  const parts = [list];
  if (named) parts.unshift(element("h2", {}, `${answer.collection} (${answer.bundle.recipe})`));
  if (!items.length) parts.push(element("p", {}, "Nothing was found. Fewer filters find more."));
  if (hasMore) parts.push(element("button", { className: "more", onclick: actions.more, type: "button" }, "Show more"));
  return element("section", { ariaLabel: `Results of ${answer.collection}` }, ...parts);
}

function card(item, collection, { start, suggest }) {
  const picture = element("img", { src: thumbnail(linked(item.image), SIZE_PX), alt: item.id, loading: "lazy" });
  const again = element(
    "button",
    { type: "button", title: "Search from this picture", onclick: () => start(item, collection) },
    picture,
  );
  again.setAttribute("aria-label", `Search from ${item.id}, rank ${item.rank}`);
  const first = element(
    "div",
    { className: "first" },
    element("a", { href: linked(item.image), target: "_blank", rel: "noopener" }, item.id),
    element("span", { title: "Cosine of the query and this picture" }, item.score.toFixed(3)),
  );
  const about = element("div", { className: "about" }, first, ...details(item));
  if (suggest) {
    const ask = () => suggest(item, collection);
    const button = element("button", { type: "button", className: "suggest", onclick: ask }, "What leads here?");
    button.setAttribute("aria-label", `Suggest an edit that leads to ${item.id}`);
    about.append(button);
  }
  return element("li", {}, element("article", { className: "card" }, again, about));
}

function details(item) {
  const given = Object.entries(item.metadata).filter(([, value]) => value !== null).slice(0, SHOWN_COLUMNS);
  const rows = given.flatMap(([name, value]) => [
    element("dt", {}, name),
    element("dd", {}, typeof value === "object" ? stringify(value) : String(value)),
  ]);
  const folded = item.duplicates.length ? [element("span", {}, `and ${item.duplicates.length} like it`)] : [];
  return rows.length ? [element("dl", {}, ...rows), ...folded] : folded;
}

function moveBetweenCards(event) {
  if (!(event.key in NEXT) || !event.target.closest(".card")) return;
  const cards = [...event.currentTarget.querySelectorAll(".card > button")];
  const here = cards.indexOf(event.target.closest(".card").querySelector("button"));
  cards[here + NEXT[event.key]]?.focus();
  event.preventDefault();
}

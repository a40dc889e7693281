// The page: a reference, an edit text and filters become a search, and every search a link.

import * as api from "./api.js";
import { conditions, partsOf, showFields } from "./filters.js";
import { element } from "./element.js";
import { showResults } from "./results.js";
import { prepareSketch } from "./sketch.js";
import { FIRST, MOST, fromAddress, isEmpty, toAddress } from "./state.js";
import * as uploads from "./uploads.js";

const byId = (id) => document.getElementById(id);
const PREVIEW_PX = 512;
const ELSEWHERE = "The picture of this link was given in another browser. Choose it again here.";

let state = fromAddress();
let served = [];
let running = new AbortController();
let previewed = null;

// -- Searching

async function search() {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  say("", "");
  if (isEmpty(state)) {
    showNothing();
    say("Give a picture, a text, or both.");
    return;
  }
  const reference = await referenceOf(state);
  if (signal.aborted) return;
  if (reference === undefined) {
    showNothing();
    say("", ELSEWHERE);
    return;
  }
  byId("results").setAttribute("aria-busy", "true");
  say("Searching …");
  try {
    const names = [state.collection, state.compare].filter(Boolean);
    const asked = { reference, text: state.text.trim(), k: state.count, offset: 0 };
    const answers = await Promise.all(
      names.map((collection) => api.search({ ...asked, collection, filter: filterFor(collection) }, signal)),
    );
    const suggest = reference && infoOf(state.collection).suggest ? suggestFor(reference) : null;
    showResults(byId("results"), answers, { start: startFrom, suggest, more: showMore });
    byId("results").setAttribute("aria-busy", "false");
    say(told(answers));
    byId("facts").textContent = answers.map(facts).join(" · ");
  } catch (error) {
    if (!signal.aborted) await failed(error, search, signal);
  }
}

function showNothing() {
  byId("results").replaceChildren();
  byId("results").setAttribute("aria-busy", "false");
}

/** Only a column of the collection can be filtered by. */
function filterFor(collection) {
  const names = new Set(infoOf(collection).columns.map((column) => column.name));
  const parts = partsOf(state.filter).filter((part) => part.column === undefined || names.has(part.column));
  return parts.length ? { and: parts } : null;
}

/** Return what is searched from: a Blob, {id}, null for nothing, or undefined for a picture that is not here. */
async function referenceOf({ id, upload, from, compare, collection }) {
  if (upload) return (await uploads.find(upload)) ?? undefined;
  if (!id) return null;
  const isOwn = (from ?? collection) === collection;
  if (isOwn && !compare) return { id };
  const picture = await fetch(api.imageOf(id, from ?? collection)).catch(() => null);
  if (picture?.ok) return picture.blob();
  return isOwn ? { id } : undefined;
}

async function failed(error, again, signal) {
  byId("results").setAttribute("aria-busy", "false");
  if (error.needsKey) {
    askForKey(again);
    return;
  }
  say("", error instanceof api.Failure ? error.message : `The page has a defect: ${error.message}`);
  if (error.retryAfterS === null || error.retryAfterS === undefined) return;
  await new Promise((resolve) => setTimeout(resolve, 1000 * error.retryAfterS));
  if (!signal?.aborted) await again();
}

function told(answers) {
  const count = answers.reduce((sum, answer) => sum + answer.results[0].items.length, 0);
  return `${count} ${count === 1 ? "picture" : "pictures"} in ${answers[0].timings.total_ms.toFixed(0)} ms`;
}

const facts = ({ collection, bundle, space }) =>
  `${collection}: ${infoOf(collection).images?.toLocaleString("en") ?? "unknown"} pictures, ${bundle.recipe} on ${bundle.backbone}, ` +
  `${bundle.precision}, space ${space.slice(0, 12)}`;

// -- What is asked

/** Search for something else, with the text as it is in its field. */
function change(changes, options) {
  state = { ...state, count: FIRST, text: byId("text").value, ...changes };
  toAddress(state, options);
  return showAndSearch();
}

function startFrom(item, collection) {
  byId("text").focus();
  window.scrollTo({ top: 0 });
  return change({ id: item.id, from: collection, upload: null, text: "" });
}

/** Write the edit that leads from the reference to an item into the text, for the user to change and to search with. */
const suggestFor = (reference) => async (item, collection) => {
  const { signal } = running;
  say("Comparing the two pictures …");
  try {
    byId("text").value = await api.suggest({ collection, reference, target: item.id }, signal);
    say(`This is what leads to ${item.id}. Change it, or search.`);
    byId("text").focus();
  } catch (error) {
    if (!signal.aborted) await failed(error, () => suggestFor(reference)(item, collection), signal);
  }
};

const showMore = () => change({ count: Math.min(state.count + FIRST, MOST) }, { replace: true });

async function take(blob) {
  if (!blob) return;
  const upload = await uploads.keep(blob).catch(() => null);
  if (upload === null) return say("", "This file can't be read.");
  await change({ upload, id: null, from: null });
}

/** Whether a paste into the text is one of text: office programs add a picture of it. */
const isText = ({ target, clipboardData }) =>
  target === byId("text") && ["text/plain", "text/html"].every((type) => clipboardData.types.includes(type));

function prepareReference() {
  const [drop, file, camera] = [byId("drop"), byId("file"), byId("camera")];
  byId("choose").addEventListener("click", () => file.click());
  byId("photograph").addEventListener("click", () => camera.click());
  byId("remove").addEventListener("click", () => change({ id: null, from: null, upload: null }));
  for (const input of [file, camera])
    input.addEventListener("change", () => {
      const [chosen] = input.files;
      input.value = "";
      return take(chosen);
    });
  addEventListener("dragover", (event) => (event.preventDefault(), drop.classList.add("over")));
  addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    return take(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const [pasted] = event.clipboardData.files;
    if (!pasted || isText(event)) return;
    event.preventDefault();
    take(pasted);
  });
  prepareSketch(take);
}

// -- What is shown

function show() {
  byId("text").value = state.text;
  const info = infoOf(state.collection);
  byId("filters").hidden = !showFields(byId("filter-fields"), info.columns, state.filter, (filter) => change({ filter }));
  const count = conditions(state.filter);
  byId("filter-count").textContent = count ? `(${count})` : "";
  byId("clear-filters").hidden = !count;
  if (count) byId("filters").open = true;
  for (const name of ["collection", "compare"]) byId(name).value = state[name] ?? "";
  document.title = `${state.text || state.id || "Search by picture and words"} – Cirrus`;
  return showReference();
}

async function showReference() {
  const [preview, wanted] = [byId("preview"), state];
  let source = state.id && api.thumbnail(api.imageOf(state.id, state.from ?? state.collection), PREVIEW_PX);
  const blob = state.upload && (await uploads.find(state.upload));
  if (state !== wanted) return;
  if (previewed) URL.revokeObjectURL(previewed);
  previewed = blob ? URL.createObjectURL(blob) : null;
  source = previewed ?? source;
  preview.hidden = !source;
  if (source) preview.src = source;
  preview.alt = state.id ? `Reference: ${state.id}` : "Your reference picture";
  byId("reference-name").textContent = state.id ?? "";
  byId("remove").hidden = !source;
  byId("empty").hidden = Boolean(source);
}

function showModels() {
  const options = () => served.map(({ name, bundle }) => element("option", { value: name }, `${name} (${bundle.recipe})`));
  byId("collection").replaceChildren(...options());
  byId("compare").replaceChildren(element("option", { value: "" }, "nothing else"), ...options());
  byId("models").hidden = served.length < 2;
}

function say(notice, problem = "") {
  byId("notice").textContent = notice;
  byId("problem").textContent = problem;
}

const infoOf = (name) => served.find((one) => one.name === name) ?? served[0];

// -- Keys

function askForKey(again) {
  const door = byId("door");
  byId("key-form").onsubmit = async (event) => {
    event.preventDefault();
    try {
      await api.enter(byId("key").value);
    } catch (error) {
      byId("key-problem").textContent = error.needsKey ? "This key is not known here." : error.message;
      return;
    }
    byId("key").value = byId("key-problem").textContent = "";
    door.close();
    await again();
  };
  if (!door.open) door.showModal();
}

// -- Start

let starting = null;

/** Ask for the collections until they are known, once at a time, and do what the state says. */
function start() {
  starting ??= begin().finally(() => (starting = null));
  return starting;
}

async function begin() {
  try {
    served = await api.collections();
  } catch (error) {
    return failed(error, begin);
  }
  if (!served.length) return say("", "Nothing is served.");
  showModels();
  return showAndSearch();
}

function showAndSearch() {
  if (!served.length) return start();
  state.collection = infoOf(state.collection).name;
  if (!served.some(({ name }) => name === state.compare) || state.compare === state.collection) state.compare = null;
  show();
  return search();
}

byId("query").addEventListener("submit", (event) => {
  event.preventDefault();
  return change({});
});
byId("clear-filters").addEventListener("click", () => change({ filter: null }));
byId("collection").addEventListener("change", () => change({ collection: byId("collection").value, compare: null, filter: null, ...alone() }));
byId("compare").addEventListener("change", () => change({ compare: byId("compare").value || null }));
addEventListener("popstate", () => {
  state = fromAddress();
  return showAndSearch();
});
addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.closest("input, select, dialog")) return;
  event.preventDefault();
  byId("text").focus();
});

/** An item of one collection means nothing in another. */
const alone = () => (state.id ? { id: null, from: null } : {});

prepareReference();
start();

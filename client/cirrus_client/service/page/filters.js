// Fields made of a collection's columns, and the filter that they say.

import { element } from "./element.js";
import { number, stringify } from "./exact.js";

const RANGES = { number: "number", integer: "number", date: "date", time: "datetime-local" };

let shown = null;

/**
 * Show fields for the columns, filled from a filter. Columns that can't be chosen from have none. Fields that say it
 * already stay as they are, with the focus.
 */
export function showFields(box, columns, filter, changed) {
  const parts = partsOf(filter);
  const wanted = stringify([columns, filter]);
  if (wanted !== shown) box.replaceChildren(...columns.map((column) => field(column, parts)).filter(Boolean));
  shown = wanted;
  box.onchange = () => {
    const given = read(box, columns);
    shown = stringify([columns, given]);
    changed(given);
  };
  return box.children.length > 0;
}

/** Return how many conditions a filter has. */
export const conditions = (filter) => partsOf(filter).length;

/** Return the conditions that must all be true, of a filter in a link as well, which anybody may have written. */
export function partsOf(filter) {
  const parts = filter?.and ?? (filter ? [filter] : []);
  return Array.isArray(parts) ? parts.filter((part) => part && typeof part === "object") : [];
}

function field(column, parts) {
  const own = parts.filter((part) => part.column === column.name);
  const equal = own.filter((part) => part.op === "==" || part.op === "in").flatMap((part) => part.value);
  if (column.type === "string" && column.values) return choices(column, equal);
  if (column.type === "boolean") return yesOrNo(column, equal[0]);
  if (column.type in RANGES) return range(column, own);
  return null;
}

function choices(column, chosen) {
  const boxes = column.values.map((value) =>
    element("label", {}, element("input", { type: "checkbox", value, checked: chosen.includes(value) }), ` ${value}`),
  );
  return fieldset(column, element("div", { className: "choices" }, ...boxes));
}

function yesOrNo(column, chosen) {
  const options = [["", "any"], ["true", "yes"], ["false", "no"]].map(([value, label]) =>
    element("option", { value, selected: value === String(chosen ?? "") }, label),
  );
  return fieldset(column, element("select", { ariaLabel: column.name }, ...options));
}

function range(column, own) {
  const bound = (op, label, hint) =>
    element("input", {
      type: RANGES[column.type],
      step: column.type === "number" ? "any" : column.type === "time" ? "1" : "",
      name: op,
      ariaLabel: `${column.name} ${label}`,
      placeholder: hint ?? "",
      value: own.find((part) => part.op === op)?.value ?? "",
    });
  return fieldset(column, bound(">=", "at least", column.low), " to ", bound("<=", "at most", column.high));
}

function fieldset(column, ...content) {
  const found = element("fieldset", {}, element("legend", {}, column.name), ...content);
  found.dataset.column = column.name;
  return found;
}

function read(box, columns) {
  const types = Object.fromEntries(columns.map((column) => [column.name, column.type]));
  const parts = [...box.children].flatMap((set) => condition(set, types[set.dataset.column]));
  return parts.length ? { and: parts } : null;
}

function condition(set, type) {
  const column = set.dataset.column;
  if (type === "string") {
    const value = [...set.querySelectorAll(":checked")].map((box) => box.value);
    return value.length ? [{ column, op: "in", value }] : [];
  }
  if (type === "boolean") {
    const { value } = set.querySelector("select");
    return value ? [{ column, op: "==", value: value === "true" }] : [];
  }
  return [...set.querySelectorAll("input")]
    .filter((input) => input.value !== "" && input.validity.valid)
    .map((input) => ({ column, op: input.name, value: RANGES[type] === "number" ? number(input.value) : input.value }));
}

// JSON in which every integer keeps all its digits, in every browser: a Number holds them up to 2^53, a BigInt all.

const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const INTEGER = /^-?\d+$/;

/** Return the value of JSON text. An integer that a Number would round is a BigInt. Throws SyntaxError. */
export function parse(text) {
  const quoted = text.replace(TOKENS, (token) => (isRounded(token) ? `"${token}"` : token));
  return withDigits(JSON.parse(text), JSON.parse(quoted));
}

/** Return a value, in which may be BigInts, as JSON text. */
export function stringify(value) {
  if (typeof value === "bigint") return String(value);
  if (Array.isArray(value)) return `[${value.map(stringify)}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, inner]) => `${JSON.stringify(name)}:${stringify(inner)}`)}}`;
}

/** Return the number that a text says, as a BigInt if a Number would round it. */
export const number = (text) => (isRounded(text) ? BigInt(text) : Number(text));

const isRounded = (text) => INTEGER.test(text) && !Number.isSafeInteger(Number(text));

/** Return a value with BigInts where quoted, which is otherwise the same, has the digits of a number in quotes. */
function withDigits(value, quoted) {
  if (typeof value === "number" && typeof quoted === "string") return BigInt(quoted);
  if (Array.isArray(value)) return value.map((inner, place) => withDigits(inner, quoted[place]));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, withDigits(inner, quoted[name])]));
}

// Pictures of this browser's searches, kept in it so that back, forward and reload find them again.

const STORE = "pictures";
const KEPT = 50;
const inMemory = new Map();

/** Keep a copy of a picture, whose file may change, and return the name by which a link means it: of its SHA-256. */
export async function keep(picture) {
  const blob = new Blob([await picture.arrayBuffer()], { type: picture.type });
  const name = await nameOf(blob);
  inMemory.set(name, blob);
  await inStore("readwrite", (store) => store.put({ name, blob, at: Date.now() })).catch(() => {});
  forgetOld().catch(() => {});
  return name;
}

/** Return a kept picture, or null if another browser has it. */
export async function find(name) {
  if (inMemory.has(name)) return inMemory.get(name);
  const found = await inStore("readonly", (store) => store.get(name)).catch(() => null);
  if (found) inMemory.set(name, found.blob);
  return found?.blob ?? null;
}

async function nameOf(blob) {
  // Without a secure context (plain HTTP from another machine) there is no SubtleCrypto.
  if (!globalThis.crypto?.subtle) return `${blob.size}-${Date.now()}`;
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
  return Array.from(digest.slice(0, 12), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function forgetOld() {
  const all = await inStore("readonly", (store) => store.getAll());
  const old = all.sort((left, right) => right.at - left.at).slice(KEPT);
  for (const { name } of old) await inStore("readwrite", (store) => store.delete(name));
}

function inStore(mode, use) {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open("cirrus", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "name" });
    opening.onerror = () => reject(opening.error);
    opening.onsuccess = () => {
      const base = opening.result;
      const request = use(base.transaction(STORE, mode).objectStore(STORE));
      request.onsuccess = () => (base.close(), resolve(request.result));
      request.onerror = () => (base.close(), reject(request.error));
    };
  });
}

// What is open, in the part of the address after #, so that a reload or a bookmark brings it back. It never leaves the
// browser.

const listeners = new Set();
let values = read();

function read() {
  return new Map(new URLSearchParams(location.hash.slice(1)));
}

export function get(key, missing = "") {
  return values.get(key) ?? missing;
}

export function getNumber(key, missing = null) {
  const text = values.get(key);
  const value = text === undefined || text === "" ? NaN : Number(text);
  return Number.isFinite(value) ? value : missing;
}

export function getJson(key, missing) {
  try { return values.has(key) ? JSON.parse(values.get(key)) : missing; } catch { return missing; }
}

// null takes a key out. `push` makes a step that the browser's Back undoes.
export function set(changes, { push = false } = {}) {
  for (const [key, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") values.delete(key);
    else values.set(key, typeof value === "object" ? JSON.stringify(value) : String(value));
  }
  const hash = "#" + new URLSearchParams([...values]).toString();
  history[push ? "pushState" : "replaceState"](null, "", location.pathname + hash);
}

export function onmove(listener) { listeners.add(listener); }

addEventListener("popstate", () => { values = read(); listeners.forEach(listener => listener()); });
addEventListener("hashchange", () => { values = read(); listeners.forEach(listener => listener()); });

// The token has done its work: the cookie goes on.
if (location.search) history.replaceState(null, "", location.pathname + location.hash);

// The frame: views, theme, keys, messages.

import { Gone, get } from "./api.js";
import { fill, h } from "./dom.js";
import * as state from "./state.js";
import { modelView } from "./model.js";
import { dictionaryView } from "./dictionary.js";
import { graphView } from "./graph.js";
import { runsView } from "./runs.js";

const VIEWS = {
  model: { name: "Model", make: modelView, has: contents => contents.model },
  dictionaries: { name: "Dictionaries", make: dictionaryView, has: contents => contents.dictionaries.length },
  graphs: { name: "Graphs", make: graphView, has: contents => contents.graphs.length },
  experiments: { name: "Experiments", make: runsView, has: contents => contents.runs.length },
};
const KEYS = [
  ["1 2 3 4", "the views"], ["/", "to the text or search field"], ["Ctrl + Enter", "read or run it"],
  ["← → ↑ ↓", "move in a map, or among a graph's nodes"], ["Enter", "choose what is marked"], ["p", "pin the node"],
  ["f", "show the whole graph"], ["+ −", "zoom the graph"], ["Esc", "let go of a choice, stop what runs"], ["t", "light or dark"], ["?", "these keys"],
];

const main = document.getElementById("main");
const message = document.getElementById("message");
let contents, current = null, shown, opened = 0;

export function say(error) {
  if (error instanceof Gone) return;
  console.error(error);
  fill(message, String(error.message ?? error), h("button", { class: "quiet", title: "Close", "aria-label": "Close", onclick: () => { message.hidden = true; } }, "✕"));
  message.hidden = false;
}
addEventListener("unhandledrejection", event => { event.preventDefault(); say(event.reason); });
addEventListener("error", event => say(event.error ?? event.message));

function theme(next) {
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const wanted = next ?? localStorage.getItem("introspect-theme") ?? "auto";
  if (next) localStorage.setItem("introspect-theme", next);
  document.documentElement.dataset.theme = wanted === "auto" ? (scheme.matches ? "dark" : "light") : wanted;
  const button = document.getElementById("theme");
  const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  fill(button, other === "dark" ? "Dark" : "Light");
  button.title = `To the ${other} theme (t)`;
  button.onclick = () => theme(other);
  scheme.onchange = () => theme();
  dispatchEvent(new Event("themechange"));
}

async function show(name, push) {
  if (push) state.set({ view: name }, { push: true });
  if (shown === name && current?.restore) { current.restore(); return; }
  current?.leave?.();
  current = null;
  shown = name;
  const own = ++opened;
  for (const button of document.querySelectorAll("#views button")) {
    if (button.dataset.view === name) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name].name} · introspect`;
  if (!VIEWS[name].has(contents)) {
    fill(main, h("div", { class: "empty" }, EMPTY[name]));
    return;
  }
  const place = h("div", { class: `view ${name}` });
  fill(main, place);
  const made = await VIEWS[name].make(place, contents);
  if (own === opened) current = made;
  else if (shown !== name) made?.leave?.(); // another view was asked for meanwhile
}

const EMPTY = {
  model: "No model is open. Start with: introspect explore MODEL, or --model MODEL beside what is opened.",
  dictionaries: "No dictionary is open. Start with: introspect explore DIR, or --sae DIR beside a model.",
  graphs: "No attribution graph is open. Start with: introspect explore GRAPH.json, or --graph F beside a model.",
  experiments: "No run is open. Start with: introspect explore DIR, the folder that introspect run wrote, or --run DIR.",
};

function keys(event) {
  const typing = event.target.closest("input:not([type=range]):not([type=checkbox]), textarea, select, dialog");
  if (event.key === "Escape") {
    if (typing && event.target.blur) event.target.blur();
    current?.escape?.();
    message.hidden = true;
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const names = Object.keys(VIEWS);
  if (event.key === "?") help();
  else if (event.key === "t") document.getElementById("theme").click();
  else if (event.key === "/") { event.preventDefault(); main.querySelector("[data-first]")?.focus(); }
  else if ("1234".includes(event.key) && names[event.key - 1]) show(names[event.key - 1], true).catch(say);
  else current?.key?.(event);
}

function help() {
  const dialog = document.getElementById("keys");
  fill(dialog, h("h2", {}, "Keys"), h("dl", {}, KEYS.map(([key, what]) => [h("dt", {}, key), h("dd", {}, what)])),
    h("button", { onclick: () => dialog.close() }, "Close"));
  dialog.showModal();
}

async function start() {
  theme();
  document.getElementById("help").onclick = help;
  contents = await get("/api/contents");
  fill(document.getElementById("views"), Object.entries(VIEWS).map(([name, view]) =>
    h("button", { type: "button", "data-view": name, onclick: () => show(name, true).catch(say) }, view.name)));
  document.getElementById("subject").textContent = contents.model ?? "";
  addEventListener("keydown", keys);
  const first = Object.keys(VIEWS).find(name => VIEWS[name].has(contents)) ?? "model";
  const wanted = () => (state.get("view") in VIEWS ? state.get("view") : first);
  state.onmove(() => show(wanted(), false).catch(say));
  await show(wanted(), false);
  if (contents.skipped.length) say(contents.skipped.join(" "));
}

start().catch(say);

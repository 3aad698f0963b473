// Steering: what with, how much and where; its effect on the reading, and texts side by side.

import { stop, stream } from "./api.js";
import { fill, h, option } from "./dom.js";
import { say } from "./main.js";
import * as state from "./state.js";

const KINDS = {
  word: ["a word", "the direction that raises a word, from the unembedding"], concept: ["a concept", "a vector trained from pairs of short texts"],
  vector: ["a vector", "a control vector from a file"], feature: ["a feature", "a feature of a dictionary, raised at its own point"],
};

export function steerPanel(view, changed) {
  const n = view.info.n_layers;
  const start = state.getJson("steer", {});
  const there = { word: true, concept: view.info.chat, vector: view.info.vectors.length > 0, feature: view.contents.dictionaries.length > 0 };
  const kind = h("select", { "aria-label": "Steer with", onchange: () => { arrange(); update(); } }, Object.keys(KINDS).filter(key => there[key]).map(key => option(key, KINDS[key][0])));
  kind.value = there[start.kind] ? start.kind : "word";
  const word = h("input", { size: 10, id: "steer-word", "aria-label": "Word", value: start.word ?? " London", onchange: () => update() });
  const vector = h("select", { "aria-label": "Control vector", onchange: () => update() }, view.info.vectors.map(name => option(name)));
  if (start.name) vector.value = start.name;
  const dictionary = h("select", { "aria-label": "Dictionary", onchange: () => update() }, view.contents.dictionaries.map(name => option(name)));
  if (start.dictionary) dictionary.value = start.dictionary;
  const index = h("input", { type: "number", min: 0, "aria-label": "Feature", value: start.index ?? 0, onchange: () => update() });
  const strength = h("input", { type: "range", min: -1, max: 1, step: 0.01, "aria-label": "Strength", value: start.strength ?? 0.1, oninput: () => { exact.value = strength.value; }, onchange: () => update() });
  const exact = h("input", { type: "number", step: "any", id: "steer-strength", "aria-label": "Strength, as a number", value: start.strength ?? 0.1, onchange: () => { strength.value = exact.value; update(); } });
  const unit = h("select", { "aria-label": "Unit of strength", title: "residual: a fraction of the residual stream's usual length; direction: the direction as it is", onchange: () => update() }, option("residual", "× residual"), option("absolute", "× direction"));
  unit.value = start.unit ?? "residual";
  const operator = h("select", { "aria-label": "What is done", onchange: () => { arrange(); update(); } }, option("add", "add"), option("ablate", "take out"));
  operator.value = start.operator ?? "add";
  const layers = start.layers ?? [Math.floor(0.45 * n), Math.floor(0.6 * n)];
  const first = h("input", { type: "number", min: 0, max: n - 1, value: layers[0], "aria-label": "First layer", onchange: () => update() });
  const last = h("input", { type: "number", min: 0, max: n - 1, value: layers[1], "aria-label": "Last layer", onchange: () => update() });
  const on = h("input", { type: "checkbox", id: "steer-on", checked: state.get("steered") === "1", onchange: () => { state.set({ steered: on.checked ? 1 : null, steer: on.checked ? spec() : null }); changed(); } });
  const most = h("input", { type: "number", min: 1, max: 1000, value: 40, "aria-label": "New tokens", id: "new-tokens" });
  const temperature = h("input", { type: "number", min: 0, max: 10, step: 0.1, value: 0, "aria-label": "Temperature" });
  const write = h("button", { class: "main", id: "write", onclick: () => generate() }, "Write on");
  const halt = h("button", { hidden: true, onclick: () => end() }, "Stop");
  const texts = h("div", { class: "texts", "aria-live": "polite" });
  const what = { word: [word], concept: [word], vector: [vector], feature: [dictionary, h("label", {}, "feature", index)] };
  const chosen = h("span", { class: "row" });
  const where = h("div", { class: "row small" }, "layers", first, "to", last);
  const element = h("section", { class: "panel", id: "steer" }, h("div", { class: "row" }, h("h2", { class: "grow" }, "Steer"), h("label", {}, on, "in effect")),
    h("div", { class: "row" }, operator, kind, chosen), h("div", { class: "row" }, strength, exact, unit), where,
    h("div", { class: "row" }, write, halt, h("label", { class: "small" }, most, "tokens"), h("label", { class: "small", title: "Temperature; 0 takes the most probable token" }, "temp.", temperature)), texts);

  function arrange() {
    kind.title = KINDS[kind.value][1];
    fill(chosen, what[kind.value]);
    where.hidden = kind.value === "feature";
    unit.hidden = kind.value === "feature" || operator.value === "ablate";
    if (kind.value === "feature" && Number(strength.max) === 1) Object.assign(strength, { min: -50, max: 50, step: 0.5 });
    if (kind.value !== "feature" && Number(strength.max) !== 1) Object.assign(strength, { min: -1, max: 1, step: 0.01 });
    strength.value = exact.value;
  }

  function spec() {
    const own = {
      word: { word: word.value }, concept: { word: word.value.trim() }, vector: { name: vector.value },
      feature: { dictionary: dictionary.value, index: Number(index.value) },
    }[kind.value];
    const range = kind.value === "feature" ? {} : { layers: [Number(first.value), Number(last.value)] };
    return { kind: kind.value, ...own, ...range, strength: operator.value === "ablate" ? Math.abs(Number(exact.value)) : Number(exact.value), unit: unit.value, operator: operator.value };
  }

  function update() {
    if (on.checked) { state.set({ steer: spec() }); changed(); }
  }

  async function generate() {
    write.disabled = true;
    halt.hidden = false;
    const columns = [];
    fill(texts);
    const request = view.request({ max_new_tokens: Number(most.value), temperature: Number(temperature.value), steer: spec() });
    try {
      await stream("/api/model/generate", request, event => {
        if (event.rows) {
          fill(texts, event.rows.map((name, i) => {
            columns[i] = h("pre", {});
            return h("figure", {}, h("figcaption", { class: "small soft" }, name), columns[i]);
          }));
        } else columns[event.row].append(event.text);
      }, "generate");
    } catch (error) { say(error); }
    write.disabled = false;
    halt.hidden = true;
  }

  function end() {
    stop("generate");
    write.disabled = false;
    halt.hidden = true;
  }

  arrange();
  return {
    element, spec, stop: end, on: () => on.checked,
    restore: () => { on.checked = state.get("steered") === "1"; },
  };
}

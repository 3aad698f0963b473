// Changes of features from a graph: what its links predict, and what the model does.

import { path, post } from "./api.js";
import { bars, fill, h, number, visible } from "./dom.js";
import { say } from "./main.js";
import * as state from "./state.js";

export function changePanel(view) {
  const list = h("div", { class: "stack tight" });
  const out = h("div", { "aria-live": "polite" });
  const predict = h("button", { class: "main", id: "predict", onclick: () => run(false) }, "Predict");
  const measure = h("button", { id: "measure", onclick: () => run(true), title: "Runs the prompt without and with the changes; needs the model and the dictionaries of the layers" }, "Predict and measure");
  const empty = h("button", { class: "quiet", onclick: () => { changes.clear(); draw(); } }, "Empty");
  const element = h("section", { class: "panel", id: "change" }, h("h2", {}, "Change features"), list, h("div", { class: "row" }, predict, measure, empty), out);
  const changes = new Map(); // node -> factor
  measure.disabled = !view.contents.model || !(view.contents.dictionaries.length || view.contents.cross_layer.length);

  function put(i, factor) {
    const group = view.groups.find(one => one.members.includes(i));
    for (const member of group ? group.members : [i]) if (view.graph.kindOf(member).includes("feature")) changes.set(member, factor);
    draw();
  }

  function draw() {
    element.hidden = changes.size === 0;
    if (!view.graph) return;
    state.set({ changes: changes.size ? [...changes].map(([i, factor]) => [view.graph.id[i], factor]) : null });
    fill(list, [...changes].map(([i, factor]) => h("div", { class: "row small" }, h("button", { class: "pick grow", onclick: () => view.choose(i) }, h("bdi", {}, visible(view.graph.name(i)))),
      h("label", {}, "×", h("input", { type: "number", step: 0.5, min: -100, max: 100, value: factor, "aria-label": `Factor of ${view.graph.name(i)}`, onchange: event => { changes.set(i, Number(event.target.value)); draw(); } })),
      h("button", { class: "quiet", "aria-label": "Take this change away", onclick: () => { changes.delete(i); draw(); } }, "✕"))));
    fill(out);
  }

  async function run(measured) {
    if (!changes.size) return;
    element.classList.add("busy");
    try {
      const found = await post(path("api", "graph", view.name, "change"), { measure: measured, changes: [...changes].map(([i, factor]) => ({ node: view.graph.id[i], factor })) }, "change");
      const called = row => {
        const i = view.graph.place.get(row.node);
        return `${visible(view.graph.name(i))}${view.graph.kindOf(i) === "logit" ? "" : ` · L${view.graph.layer[i]} ${visible(view.graph.tokens[view.graph.position[i]] ?? "")}`}`;
      };
      const rows = list => bars(list.map(row => ({ name: called(row), values: "measured" in row ? [row.predicted, row.measured] : [row.predicted],
        text: "measured" in row ? [number(row.predicted, 2), number(row.measured, 2)] : [number(row.predicted, 2)], onclick: () => view.choose(view.graph.place.get(row.node)) })), { hues: ["var(--blue)", "var(--green)"], label: "Changes" });
      const has = found.logits.some(row => "measured" in row);
      fill(out, h("h3", {}, "Change of the logits"), h("p", { class: "soft small" }, h("span", { class: "key blue" }), " predicted by the links", has ? [" ", h("span", { class: "key green" }), " measured in the model"] : []), rows(found.logits),
        found.correlation !== undefined ? h("p", { class: "small" }, `correlation ${number(found.correlation, 2)}, slope ${number(found.slope, 2)}`) : [],
        found.nodes.length ? [h("h3", {}, "Features that change most"), rows(found.nodes.slice(0, 10))] : []);
    } catch (error) { say(error); }
    element.classList.remove("busy");
  }

  function restore() {
    changes.clear();
    for (const [id, factor] of state.getJson("changes", [])) {
      const i = view.graph.place.get(id);
      if (i !== undefined && Number.isFinite(factor)) changes.set(i, factor);
    }
    draw();
  }

  return { element, put, draw, restore };
}

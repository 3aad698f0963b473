// Why a head attends where it does, computed in the open model; and which heads carry what leads from one node to another.

import { get, path, post } from "./api.js";
import { bars, fill, h, number, option, visible } from "./dom.js";
import { say } from "./main.js";
import * as state from "./state.js";

const LISTED = 12;

export function whyPanel(view) {
  const layer = h("input", { type: "number", min: 0, value: 0, "aria-label": "Layer" });
  const head = h("input", { type: "number", min: 0, value: 0, "aria-label": "Head" });
  const query = h("select", { "aria-label": "From the token" }), key = h("select", { "aria-label": "To the token" });
  const compute = h("button", { class: "main", id: "why", onclick: () => run() }, "Why");
  const carriers = h("button", { id: "carriers", onclick: () => heads(), title: "Which heads carry what leads from one node to the other" }, "Heads on the way");
  const out = h("div", { "aria-live": "polite" }), found = h("div", { "aria-live": "polite" });
  const element = h("section", { class: "panel", id: "qk-live" }, h("h2", {}, "Why a head attends there (QK)"),
    h("div", { class: "row small" }, h("label", {}, "layer ", layer), h("label", {}, "head ", head), compute, carriers),
    h("div", { class: "row small" }, h("label", {}, "from ", query), h("label", {}, "to ", key)), found, out);
  element.hidden = !view.contents.model;
  let ends = null;

  // Of another graph: its tokens.
  async function open() {
    fill(out);
    fill(found);
    if (element.hidden) return;
    for (const list of [query, key]) fill(list, view.graph.tokens.map((token, i) => option(String(i), `${i} ${visible(token).slice(0, 24)}`)));
    const last = view.graph.tokens.length - 1;
    const usual = [0, 0, last, Math.max(0, last - 1)], asked = state.getJson("why", usual);
    const valid = Array.isArray(asked) && asked.length === 4 && asked.every(Number.isInteger) && asked[3] <= asked[2] && asked[2] <= last;
    [layer.value, head.value, query.value, key.value] = valid ? asked : usual;
    try {
      const info = await get("/api/model");
      layer.max = info.n_layers - 1;
      head.max = info.n_heads - 1;
    } catch (error) { say(error); }
    if (state.get("why") && valid) run();
  }

  // The clicked node, and where a path to it begins.
  function choose(from, to) {
    ends = from !== null && to !== null && from !== to ? [from, to] : null;
    carriers.hidden = ends === null;
    fill(found);
    if (!view.graph || to === null) return;
    query.value = String(view.graph.position[to]);
    if (Number(key.value) > view.graph.position[to]) key.value = query.value;
  }

  async function run() {
    element.classList.add("busy");
    const asked = { layer: Number(layer.value), head: Number(head.value), query: Number(query.value), key: Number(key.value) };
    try {
      const answer = await post(path("api", "graph", view.name, "why"), asked, "why");
      state.set({ why: Object.values(asked) });
      const side = one => visible(one.node === null ? one.name : view.graph.name(view.graph.place.get(one.node)));
      const go = one => (one.node === null ? null : () => view.choose(view.graph.place.get(one.node)));
      fill(out, h("p", { class: "small" }, `score ${number(answer.score)}, of which ${number(answer.shown)} is shown; attention ${number(answer.pattern)}`,
          answer.soft_cap ? `; the model caps scores at ${number(answer.soft_cap)} afterwards` : "", answer.dictionaries ? "" : "; without dictionaries MLPs are errors as a whole"),
        bars(answer.pairs.slice(0, LISTED).map(pair => ({ name: `${side(pair.query)} × ${side(pair.key)}`, values: [pair.weight], text: [number(pair.weight, 2)], onclick: go(pair.query) ?? go(pair.key) })), { label: "Pairs of query and key" }));
    } catch (error) { say(error); }
    element.classList.remove("busy");
  }

  async function heads() {
    if (!ends) return;
    element.classList.add("busy");
    try {
      const [source, target] = ends.map(i => view.graph.id[i]);
      const answer = await post(path("api", "graph", view.name, "heads"), { source, target }, "heads");
      const take = row => () => { [layer.value, head.value, query.value, key.value] = [row.layer, row.head, answer.query, answer.key]; run(); };
      fill(found, h("h3", {}, `Heads that carry it, of ${number(answer.edge)}`), answer.heads.length
        ? bars(answer.heads.slice(0, LISTED).map(row => ({ name: `head ${row.layer}.${row.head}`, values: [row.loading], text: [number(row.loading, 2)], onclick: take(row) })), { label: "Heads" })
        : h("p", { class: "soft small" }, "none: it goes past attention"));
    } catch (error) { say(error); }
    element.classList.remove("busy");
  }

  return { element, open, choose };
}

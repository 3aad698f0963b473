// A feature's page: contexts, histogram, what it does to the logits, neighbours. Also the short form in a graph.

import { get, path } from "./api.js";
import { bars, cell, fill, h, number, percent, tokenText } from "./dom.js";

const infos = new Map();

export async function dictionaryOf(contents, layer) {
  for (const name of contents.dictionaries) {
    if (!infos.has(name)) infos.set(name, await get(path("api", "dictionary", name)));
    const info = infos.get(name);
    if ([...info.reads, ...info.writes].some(hook => hook.startsWith(`blocks.${layer}.`))) return name;
  }
  return null;
}

// Fills a place with the page of a feature of a dictionary, or of the dictionary of a layer.
export async function featureCard(place, contents, { name, graph, layer, index, short = false, go }) {
  place.classList.add("busy");
  try {
    if (graph) { // the pages that came with a graph's set
      fill(place, cardBody(await get(path("api", "graph", graph, "feature", String(layer), String(index)), "card"), { short, go }));
      return null;
    }
    const of = name ?? await dictionaryOf(contents, layer);
    if (!of) { fill(place, h("p", { class: "soft small" }, `No dictionary of layer ${layer} is open.`)); return null; }
    const known = infos.get(of);
    if (known && index >= known.d_sae) { fill(place, h("p", { class: "soft small" }, `${of} has ${known.d_sae.toLocaleString()} features, and this is number ${index}: the graph is of another dictionary.`)); return null; }
    const card = await get(path("api", "dictionary", of, "feature", String(index)), short ? "card" : "page");
    fill(place, cardBody(card, { short, go }));
    return card;
  } catch (error) {
    if (place.isConnected && error.message) fill(place, h("p", { class: "soft small" }, error.message));
    return null;
  } finally {
    place.classList.remove("busy");
  }
}

export function cardBody(card, { short = false, go } = {}) {
  const facts = [["active at", percent(card.density)], ["largest", number(card.max)], ["mean where active", number(card.mean)], ["tokens seen", (card.tokens_seen ?? 0).toLocaleString()]];
  const list = (title, rows) => h("div", {}, h("h3", {}, title), bars(rows.slice(0, short ? 5 : 10).map(([token, value]) => ({ name: cell(token), content: h("bdi", { class: "mono" }, cell(token)), values: [value], text: [number(value)] })), { label: title }));
  const near = (title, rows, word) => rows.length ? h("div", {}, h("h3", {}, title), bars(rows.slice(0, 10).map(one => ({ name: one.label || `feature ${one.index}`, values: [one.similarity], text: [number(one.similarity, 2)], onclick: go ? () => go(one.index) : null })), { most: 1, label: word })) : [];
  const groups = short ? card.groups.slice(0, 1) : card.groups;
  const contexts = groups.map(group => h("section", {}, h("h3", {}, group.title), h("ul", { class: "list contexts" }, group.examples.slice(0, short ? 4 : 20).map(example => context(example, card.max, short)))));
  const effects = [list("Raises", card.logits.raised), list("Lowers", card.logits.lowered)];
  if (short) return [h("div", { class: "effects" }, effects), contexts];
  return [
    card.cached ? h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))) : [],
    h("div", { class: "effects" }, effects, histogram("Values where it is active", card.histogram)),
    contexts,
    h("div", { class: "effects" }, near("Points alike", card.neighbours.decoder, "Decoder cosine"), near("Fires at the same tokens", card.neighbours.coactive, "Correlation"), histogram("Effects on all logits", card.logit_histogram)),
  ];
}

function context(example, most, short) {
  const around = short ? 8 : 18, at = example.at, start = Math.max(0, at - around), end = Math.min(example.tokens.length, at + around + 1);
  const part = (a, b) => tokenText(example.tokens.slice(a, b), example.values.slice(a, b), { most, at: at - a });
  const text = h("div", { class: "context" }, start > 0 ? h("span", { class: "cut" }, "… ") : [], part(start, end), end < example.tokens.length ? h("span", { class: "cut" }, " …") : []);
  const whole = () => { fill(text, part(0, example.tokens.length)); };
  return h("li", {}, h("span", { class: "num soft small" }, number(example.values[at])), text,
    start > 0 || end < example.tokens.length ? h("button", { class: "quiet small", title: "The whole context", "aria-label": "The whole context", onclick: event => { whole(); event.target.hidden = true; } }, "⤢") : []);
}

function histogram(title, given) {
  if (!given?.counts?.length) return [];
  const most = Math.max(1, ...given.counts.map(Math.sqrt));
  return h("div", {}, h("h3", {}, title),
    h("div", { class: "histogram", role: "img", "aria-label": `${title}: from ${number(given.edges[0])} to ${number(given.edges[given.edges.length - 1])}` },
      given.counts.map((count, i) => { const bar = h("span", { title: `${number(given.edges[i])} to ${number(given.edges[i + 1])}: ${count}` }); bar.style.height = `${100 * Math.sqrt(count) / most}%`; return bar; })),
    h("div", { class: "row small soft" }, h("span", { class: "grow" }, number(given.edges[0])), number(given.edges[given.edges.length - 1])));
}

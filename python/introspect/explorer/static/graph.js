// An attribution graph: the whole of it, one node's connections, a subgraph of pinned nodes, paths and changes.

import { get, path, postText, stop } from "./api.js";
import { featureCard } from "./card.js";
import { bars, fill, h, number, option, percent, visible } from "./dom.js";
import { changePanel } from "./graph_change.js";
import { Graph } from "./graph_data.js";
import { Drawing } from "./graph_draw.js";
import { subgraphPanel } from "./graph_sub.js";
import { whyPanel } from "./graph_why.js";
import { say } from "./main.js";
import * as state from "./state.js";

const LISTED = 40;

export async function graphView(place, contents) {
  const which = h("select", { "aria-label": "Graph", onchange: () => { state.set({ graph: which.value, node: null, pinned: null, groups: null, changes: null, path: null, why: null }); open(); } },
    contents.graphs.map(name => option(name)));
  if (contents.graphs.includes(state.get("graph"))) which.value = state.get("graph");
  const slider = (id, key, missing, label) => h("input", { type: "range", id, min: 0, max: 1, step: 0.005, value: state.getNumber(key, missing), "aria-label": label,
    oninput: event => { state.set({ [key]: event.target.value }); prune(); } });
  const nodes = slider("node-share", "nodes", 0.8, "Share of influence that nodes are kept for");
  const links = slider("link-share", "links", 0.98, "Share of influence that links are kept for");
  const counts = h("span", { class: "soft small", id: "counts", "aria-live": "polite" });
  const search = h("input", { type: "search", placeholder: "find a node", "aria-label": "Find a node", "data-first": "", size: 14, oninput: () => look() });
  const hits = h("ul", { class: "list hits panel", hidden: true, "aria-label": "Nodes that were found" });
  const about = h("p", { class: "soft small about" });
  const stage = h("div", { class: "stage" });
  const tip = h("div", { class: "tip mono", hidden: true });
  const side = h("div", { class: "side stack" });
  const sub = h("section", { class: "sub" });
  fill(place,
    h("div", { class: "row tools" }, contents.graphs.length > 1 ? which : h("strong", {}, which.value), h("label", { class: "small" }, "nodes", nodes), h("label", { class: "small" }, "links", links), counts,
      h("span", { class: "grow" }), h("div", { class: "find" }, search, hits), h("button", { onclick: () => drawing?.whole(), title: "f" }, "Whole"), h("button", { id: "export", onclick: () => save() }, "Save")),
    h("div", { class: "columns" }, h("div", { class: "drawing" }, about, stage, sub), side));

  let graph, drawing, clicked = null, from = null;
  const view = {
    get graph() { return graph; }, get clicked() { return clicked; }, get name() { return which.value; }, contents,
    pinned: new Set(), groups: [], choose, pin, changed, show,
  };
  const panel = subgraphPanel(sub, view);
  const change = changePanel(view);
  const why = whyPanel(view);
  const details = h("section", { class: "panel", id: "node" });
  const connections = h("section", { class: "panel", id: "connections" });
  const paths = h("section", { class: "panel", id: "paths" });
  const qk = h("section", { class: "panel", id: "qk", hidden: true });
  fill(side, details, connections, paths, change.element, qk, why.element);

  async function open() {
    stage.classList.add("busy");
    let data;
    try { data = await get(path("api", "graph", which.value), "graph"); } catch (error) { say(error); stage.classList.remove("busy"); fill(counts, h("span", { class: "error" }, String(error.message))); return; }
    stage.classList.remove("busy");
    drawing?.leave();
    fill(stage, tip);
    graph = new Graph(data);
    from = null;
    const one = id => graph.place.get(id);
    const known = ids => ids.map(one).filter(i => i !== undefined);
    const q = data.qParams;
    view.pinned = new Set(known(state.getJson("pinned", q.pinnedIds ?? [])));
    view.groups = state.getJson("groups", q.supernodes ?? []).map(([name, ...ids]) => ({ name: String(name), members: known(ids) }));
    drawing = new Drawing(stage, graph, { choose: (i, event) => (event.shiftKey && i !== null ? pin(i) : choose(i)), hover: hint });
    const s = data.scores, meta = data.metadata;
    fill(about, h("bdi", {}, meta.prompt || meta.slug || which.value), ` · ${graph.n.toLocaleString()} nodes, ${graph.links.toLocaleString()} links · replacement ${number(s.replacement, 2)}, completeness ${number(s.completeness, 2)}`,
      data.dropped_links ? ` · ${data.dropped_links} links lead to nodes that are not in the file` : "");
    globalThis.introspectFrames = drawing.frames; // for whoever measures
    clicked = one(state.get("node", q.clickedId ?? "")) ?? null;
    change.restore();
    prune();
    choose(clicked, { keep: true });
    why.open();
  }

  function prune() {
    if (!graph) return; // open() prunes as soon as there is one
    const kept = new Set([...view.pinned, ...view.groups.flatMap(group => group.members), ...(clicked === null ? [] : [clicked])]);
    const left = graph.prune(Number(nodes.value), Number(links.value), kept);
    counts.textContent = `${left.nodes.toLocaleString()} nodes, ${left.links.toLocaleString()} links · ${percent(left.influence)}`;
    counts.title = `what is shown, with ${percent(left.influence)} of the influence`;
    nodes.title = `nodes with ${percent(Number(nodes.value))} of the influence`;
    links.title = `links with ${percent(Number(links.value))} of the influence`;
    drawing.layout();
    drawing.pinned = new Set([...view.pinned, ...view.groups.flatMap(group => group.members)]);
    drawing.draw();
    lists();
    panel.draw();
  }

  function choose(i, { keep = false } = {}) {
    clicked = i;
    if (!keep) state.set({ node: i === null ? null : graph.id[i] });
    if (drawing) {
      drawing.clicked = i;
      drawing.lit = null;
      if (i !== null && !graph.shownNodes[i]) prune(); else drawing.draw();
    }
    lists();
    node();
    findPaths();
    panel.draw();
  }

  function pin(i) {
    if (view.pinned.has(i)) view.pinned.delete(i); else view.pinned.add(i);
    changed();
  }

  function changed() {
    state.set({ pinned: [...view.pinned].map(i => graph.id[i]), groups: view.groups.map(group => [group.name, ...group.members.map(i => graph.id[i])]) });
    if (!view.pinned.size) state.set({ pinned: "[]" });
    drawing.pinned = new Set([...view.pinned, ...view.groups.flatMap(group => group.members)]);
    drawing.remark();
    panel.draw();
    node();
    change.draw();
  }

  function show(links) {
    drawing.lit = links;
    drawing.draw();
  }

  function hint(i, x, y) {
    tip.hidden = i === null;
    if (i === null) return;
    fill(tip, h("bdi", {}, visible(graph.name(i)).slice(0, 120)), h("br"), h("span", { class: "soft" }, visible(graph.where(i)), ` · top ${percent(graph.share[i])} of influence`));
    tip.style.left = `${Math.min(x + 14, stage.clientWidth - 260)}px`;
    tip.style.top = `${y + 50 > stage.clientHeight ? y - 46 : y + 14}px`;
  }

  function node() {
    if (!graph) return;
    if (clicked === null) {
      fill(details, h("h2", {}, "No node chosen"), h("p", { class: "soft small" }, "Click a node, or move with the arrow keys. ", legend()));
      qk.hidden = true;
      return;
    }
    const i = clicked, kind = graph.kindOf(i);
    const value = Number.isFinite(graph.activation[i]) && graph.activation[i] !== null ? ` · activation ${number(graph.activation[i])}` : "";
    const body = h("div", {});
    fill(details, h("h2", {}, h("bdi", {}, visible(graph.name(i)))),
      h("p", { class: "soft small" }, `${kind}, `, h("bdi", {}, visible(graph.where(i))), value, kind === "logit" ? ` · probability ${percent(graph.prob[i])}` : "", ` · top ${percent(graph.share[i])} of influence`),
      h("div", { class: "row" }, h("button", { id: "pin", "aria-pressed": view.pinned.has(i), onclick: () => pin(i), title: "p" }, view.pinned.has(i) ? "Pinned" : "Pin"),
        h("button", { onclick: () => { from = i; findPaths(); } }, "Paths from here"),
        kind.includes("feature") ? [h("button", { onclick: () => change.put(i, 0) }, "Take out"), h("button", { onclick: () => change.put(i, 2) }, "Double")] : []), body);
    const pages = graph.data.has_pages;
    if (kind.includes("feature") && graph.feature[i] !== null && (pages || contents.dictionaries.length)) featureCard(body, contents, { graph: pages ? which.value : null, layer: graph.layer[i], index: graph.feature[i], short: true });
    const traced = graph.data.qk[i];
    qk.hidden = !traced;
    if (traced) fill(qk, h("h2", {}, "Why it attends there (QK)"), qkList("Pairs", traced.pair_wise_contributors), qkList("Queries", traced.top_q_marginal_contributors), qkList("Keys", traced.top_k_marginal_contributors));
  }

  function qkList(title, rows) {
    if (!rows.length) return [];
    const go = name => { const i = graph.place.get(name); return i === undefined ? null : () => choose(i); };
    const named = name => { const i = graph.place.get(name); return i === undefined ? name : graph.name(i); };
    return [h("h3", {}, title), bars(rows.slice(0, 12).map(row => ({ name: row.names.map(named).map(visible).join(" × "), values: [row.weight], text: [number(row.weight)], onclick: go(row.names[0]) })), { label: title })];
  }

  function legend() {
    return h("span", {}, "● feature ◆ error ■ token ▲ output. ", h("span", { class: "key blue" }), " raises, ", h("span", { class: "key orange" }), " lowers.");
  }

  function lists() {
    if (!graph) return;
    if (clicked === null) {
      const outputs = [...Array(graph.n).keys()].filter(i => graph.kindOf(i) === "logit").sort((a, b) => graph.prob[b] - graph.prob[a]);
      fill(connections, h("h2", {}, "Outputs"), bars(outputs.slice(0, 12).map(i => ({ name: visible(graph.name(i)), values: [graph.prob[i]], text: [percent(graph.prob[i])], onclick: () => choose(i) })), { most: 1, label: "Outputs" }));
      return;
    }
    const list = (direction, title) => {
      const found = graph.neighbours(clicked, direction);
      const other = e => (direction === "in" ? graph.source[e] : graph.target[e]);
      return [h("h3", {}, `${title} (${found.length.toLocaleString()})`), found.length ? bars(found.slice(0, LISTED).map(e => ({
        name: visible(graph.name(other(e))), title: `${graph.name(other(e))}, ${graph.where(other(e))}`,
        content: h("span", {}, h("bdi", {}, visible(graph.name(other(e)))), h("span", { class: "soft small" }, ` ${graph.layer[other(e)] < 0 || graph.kindOf(other(e)) === "logit" ? "" : `L${graph.layer[other(e)]} `}${visible(graph.tokens[graph.position[other(e)]] ?? "")}`)),
        values: [graph.part(e)], text: [percentOf(graph.part(e))], onclick: () => choose(other(e)),
      })), { label: title }) : h("p", { class: "soft small" }, "none at these thresholds")];
    };
    fill(connections, list("in", "What it gets"), list("out", "What it gives"));
  }

  const percentOf = part => `${part <= -0.001 ? "−" : ""}${percent(Math.abs(part))}`;

  function findPaths() {
    why.choose(from, clicked);
    if (from === null || clicked === null || from === clicked || !graph) {
      paths.hidden = from === null;
      if (from !== null) fill(paths, h("h2", {}, "Paths"), h("p", { class: "soft small" }, "from ", h("bdi", {}, visible(graph.name(from))), ": choose where they end. ", h("button", { class: "quiet", onclick: () => { from = null; findPaths(); } }, "Let go")));
      return;
    }
    paths.hidden = false;
    const [found, a, b] = [graph.paths(from, clicked), from, clicked];
    fill(paths, h("h2", {}, "Paths"), h("p", { class: "soft small" }, h("bdi", {}, visible(graph.name(a))), " to ", h("bdi", {}, visible(graph.name(b))), " ", h("button", { class: "quiet", onclick: () => { from = null; show(null); findPaths(); } }, "Let go")),
      found.length ? h("ol", { class: "list" }, found.map(one => h("li", {}, h("button", { class: "pick", onclick: () => show(one.links) },
        `${percentOf(one.product * one.sign)} `, one.links.slice(0, -1).map(e => `→ ${visible(graph.name(graph.target[e]))} `).join("") || "direct")))) : h("p", { class: "soft small" }, "There is none among the links that are shown."));
  }

  function look() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    hits.hidden = !words.length;
    if (!words.length || !graph) return;
    const found = [];
    for (let i = 0; i < graph.n && found.length < 20; i++) {
      const text = `${graph.name(i)} ${graph.id[i]} ${graph.tokens[graph.position[i]]}`.toLowerCase();
      if (words.every(word => text.includes(word))) found.push(i);
    }
    fill(hits, found.map(i => h("li", {}, h("button", { class: "pick", onclick: () => { hits.hidden = true; choose(i); } }, h("bdi", {}, visible(graph.name(i))), h("span", { class: "soft small" }, ` ${visible(graph.where(i))}`)))),
      found.length ? [] : h("li", { class: "soft small" }, "nothing"));
  }

  async function save() {
    try {
      const text = await postText(path("api", "graph", which.value, "file"), {
        pinnedIds: [...view.pinned].map(i => graph.id[i]), clickedId: clicked === null ? "" : graph.id[clicked],
        supernodes: view.groups.map(group => [group.name, ...group.members.map(i => graph.id[i])]),
      });
      const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
      h("a", { href: url, download: `${which.value}.json` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    } catch (error) { say(error); }
  }

  function key(event) {
    if (!graph) return;
    if (event.key.startsWith("Arrow")) {
      const start = clicked ?? drawing.drawn.find(i => graph.kindOf(i) === "logit") ?? drawing.drawn[0];
      const next = clicked === null ? start : drawing.towards(start, event.key);
      if (next !== null && next !== undefined) choose(next);
      event.preventDefault();
    } else if (event.key === "p" && clicked !== null) pin(clicked);
    else if (event.key === "f") drawing.whole();
    else if (event.key === "+" || event.key === "=") drawing.zoomAt(1.4, stage.clientWidth / 2, stage.clientHeight / 2);
    else if (event.key === "-" || event.key === "−") drawing.zoomAt(1 / 1.4, stage.clientWidth / 2, stage.clientHeight / 2);
  }

  const repaint = () => { drawing?.draw(); panel.draw(); };
  addEventListener("themechange", repaint);
  await open();
  return {
    key,
    escape: () => { hits.hidden = true; if (from !== null) { from = null; findPaths(); } else choose(null); },
    leave: () => { drawing?.leave(); stop("graph"); removeEventListener("themechange", repaint); },
    restore: () => {
      if (contents.graphs.includes(state.get("graph"))) which.value = state.get("graph");
      nodes.value = state.getNumber("nodes", 0.8);
      links.value = state.getNumber("links", 0.98);
      open();
    },
  };
}

// The subgraph: pinned nodes and supernodes as boxes, and what leads from one to another.

import { fill, h, percent, svg, visible } from "./dom.js";
import { subgraph } from "./graph_data.js";

const WIDE = 132, HIGH = 34;

export function subgraphPanel(place, view) {
  const chosen = new Set(); // places in the list of blocks
  const name = h("input", { size: 14, placeholder: "name", "aria-label": "Name of the supernode" });
  const group = h("button", { onclick: () => join() }, "Group");
  const apart = h("button", { onclick: () => split() }, "Take apart");
  const picture = h("button", { class: "quiet", onclick: () => save() }, "Picture");
  const empty = h("p", { class: "soft small" }, "Pin nodes (button, p, or Shift and click) to see them here with what leads from one to another.");
  const box = h("div", { class: "scroll" });
  const tools = h("div", { class: "row" }, h("h2", {}, "Subgraph"), h("span", { class: "grow" }), name, group, apart, picture);
  fill(place, tools, empty, box);
  let blocks = [];

  function join() {
    const members = [...chosen].flatMap(b => blocks[b].members);
    if (members.length < 2) return;
    const gone = new Set([...chosen].filter(b => blocks[b].group).map(b => blocks[b].name));
    view.groups = [...view.groups.filter(one => !gone.has(one.name)), { name: unused(name.value.trim() || view.graph.name(members[0]).slice(0, 40)), members }];
    members.forEach(i => view.pinned.delete(i));
    chosen.clear();
    name.value = "";
    view.changed();
  }

  function unused(wanted) {
    const names = new Set(view.groups.map(one => one.name));
    for (let n = 2, found = wanted; ; n++) { if (!names.has(found)) return found; found = `${wanted} ${n}`; }
  }

  function split() {
    for (const b of chosen) {
      if (!blocks[b].group) { view.pinned.delete(blocks[b].members[0]); continue; }
      view.groups = view.groups.filter(one => one.name !== blocks[b].name);
      blocks[b].members.forEach(i => view.pinned.add(i));
    }
    chosen.clear();
    view.changed();
  }

  function draw() {
    const graph = view.graph;
    if (!graph) return;
    const found = subgraph(graph, view.pinned, view.groups);
    blocks = found.blocks;
    [...chosen].forEach(b => { if (b >= blocks.length) chosen.delete(b); });
    empty.hidden = blocks.length > 0;
    box.hidden = !blocks.length;
    name.hidden = group.hidden = [...chosen].length < 2;
    apart.hidden = chosen.size === 0;
    picture.hidden = !blocks.length;
    place.classList.toggle("full", blocks.length > 0);
    if (!blocks.length) { fill(box); return; }
    const levels = [...new Set(blocks.map(level))].sort((a, b) => a - b);
    const rows = levels.map(l => blocks.map((block, b) => ({ b, at: across(block) })).filter(({ b }) => level(blocks[b]) === l).sort((x, y) => x.at - y.at));
    const width = Math.max(box.clientWidth - 4, ...rows.map(row => row.length * (WIDE + 14) + 10));
    const room = 0.42 * (place.parentElement?.clientHeight ?? 600) - 52;
    const step = Math.max(44, Math.min(62, room / levels.length)), high = Math.max(60, step * levels.length), at = [];
    rows.forEach((row, k) => {
      let right = -Infinity;
      const xs = row.map(({ at: share }) => { const x = Math.max(share * width, right + WIDE + 14, WIDE / 2 + 4); right = x; return x; });
      const over = Math.max(0, right - (width - WIDE / 2 - 4));
      row.forEach(({ b }, n) => { at[b] = { x: xs[n] - over, y: high - step / 2 - k * step }; });
    });
    const lines = [...found.links].sort((a, b) => Math.abs(a.part) - Math.abs(b.part)).map(link => {
      const a = at[link.source], b = at[link.target], size = Math.min(1, Math.abs(link.part));
      return svg("path", { d: `M${a.x},${a.y - HIGH / 2} C${a.x},${a.y - HIGH} ${b.x},${b.y + HIGH} ${b.x},${b.y + HIGH / 2}`, class: link.part < 0 ? "link down" : "link", "stroke-width": (0.7 + 7 * size).toFixed(2), opacity: (0.3 + 0.6 * size).toFixed(2) },
        svg("title", {}, `${blocks[link.source].name} → ${blocks[link.target].name}: ${link.part < 0 ? "−" : ""}${percent(Math.abs(link.part))} of what enters it`));
    });
    const boxes = blocks.map((block, b) => svg("g", { class: `block${block.group ? " group" : ""}${chosen.has(b) ? " chosen" : ""}${block.members.includes(view.clicked) ? " clicked" : ""}`, transform: `translate(${at[b].x - WIDE / 2},${at[b].y - HIGH / 2})`, tabindex: 0, role: "button",
        "aria-label": `${block.name}${block.group ? `, supernode of ${block.members.length}` : ""}`,
        onclick: event => pick(b, event), onkeydown: event => { if (event.key === "Enter" || event.key === " ") { pick(b, event); event.preventDefault(); } } },
      svg("rect", { width: WIDE, height: HIGH, rx: 5 }), label(block, graph), svg("title", {}, `${block.name}: ${block.members.map(i => graph.where(i)).join("; ")}`)));
    fill(box, svg("svg", { width, height: high, viewBox: `0 0 ${width} ${high}`, role: "group", "aria-label": "Subgraph" }, lines, boxes));
  }

  function label(block, graph) {
    const short = (text, most) => (text.length > most ? text.slice(0, most - 1) + "…" : text);
    const i = block.members[0];
    const where = block.group ? `${block.members.length} nodes` : `${graph.layer[i] < 0 ? "embedding" : `layer ${graph.layer[i]}`} · ${visible(graph.tokens[graph.position[i]] ?? "")}`;
    return [svg("text", { x: 7, y: 14 }, short(visible(block.name), 21)), svg("text", { x: 7, y: 27, class: "soft" }, short(where, 23))];
  }

  function pick(b, event) {
    if (event.shiftKey || event.ctrlKey || event.metaKey || event.key === " ") { if (chosen.has(b)) chosen.delete(b); else chosen.add(b); draw(); return; }
    const alone = chosen.size === 1 && chosen.has(b);
    chosen.clear();
    if (!alone) chosen.add(b);
    view.choose(blocks[b].members[0]);
  }

  const level = block => Math.round(block.members.reduce((sum, i) => sum + view.graph.layer[i], 0) / block.members.length);
  const across = block => block.members.reduce((sum, i) => sum + (view.graph.position[i] + 0.5) / view.graph.tokens.length, 0) / block.members.length;

  function save() {
    const drawn = box.querySelector("svg").cloneNode(true), style = getComputedStyle(document.documentElement);
    const read = name => style.getPropertyValue(name).trim();
    drawn.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    drawn.setAttribute("font-family", "system-ui, sans-serif");
    drawn.setAttribute("font-size", "12");
    drawn.querySelectorAll(".link").forEach(one => { one.setAttribute("fill", "none"); one.setAttribute("stroke", read(one.classList.contains("down") ? "--orange" : "--blue")); });
    drawn.querySelectorAll("rect").forEach(one => { one.setAttribute("fill", read("--raised")); one.setAttribute("stroke", read("--soft")); });
    drawn.querySelectorAll("text").forEach(one => one.setAttribute("fill", read(one.classList.contains("soft") ? "--soft" : "--ink")));
    const url = URL.createObjectURL(new Blob([new XMLSerializer().serializeToString(drawn)], { type: "image/svg+xml" }));
    h("a", { href: url, download: `${view.name} subgraph.svg` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  return { draw };
}

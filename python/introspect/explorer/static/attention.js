// Heads: a map of where each attends from the chosen token, and whole patterns of those that are chosen.

import { post } from "./api.js";
import { fill, h, percent, visible } from "./dom.js";
import { say } from "./main.js";
import * as state from "./state.js";

export function attentionPanel(view) {
  const map = h("div", { class: "heads" });
  const about = h("p", { class: "soft small" });
  const cards = h("div", { class: "cards" });
  const element = h("details", { class: "panel", id: "attention", open: state.get("heads") !== "" || state.get("attention") === "1",
    ontoggle: () => { state.set({ attention: element.open ? 1 : null }); if (element.open) load(); } },
    h("summary", {}, "Attention"), about, map, cards);
  let chosen = state.get("heads").split(" ").filter(one => /^\d+\.\d+$/.test(one)).slice(0, 12);
  let lit = chosen[chosen.length - 1] ?? null;
  let seen = null;

  function toggle(name) {
    chosen = chosen.includes(name) ? chosen.filter(one => one !== name) : [...chosen, name].slice(-12);
    lit = chosen.includes(name) ? name : chosen[chosen.length - 1] ?? null;
    state.set({ heads: chosen.join(" ") });
    draw();
    patterns();
  }

  async function load() {
    if (!element.open) return;
    map.classList.add("busy");
    try {
      seen = await post("/api/model/heads", view.steered({ position: view.position }), "heads");
      draw();
      map.classList.remove("busy");
    } catch (error) { say(error); }
    patterns();
  }

  function draw() {
    if (!seen) return;
    const layers = seen.weight.length, heads = seen.weight[0].length;
    fill(about, "Largest attention from ", h("span", { class: "token" }, visible(view.tokens[seen.position] ?? "")), " to any token but the first. Rows are layers, the first at the bottom.");
    map.style.setProperty("--heads", heads);
    const rows = [];
    for (let layer = layers - 1; layer >= 0; layer--) {
      rows.push(h("span", { class: "soft layer" }, layer % 5 === 0 || layer === layers - 1 ? layer : ""));
      for (let head = 0; head < heads; head++) {
        const name = `${layer}.${head}`, weight = seen.weight[layer][head];
        const says = `head ${name}: ${percent(weight)} to ${JSON.stringify(view.tokens[seen.at[layer][head]] ?? "")}, ${percent(seen.first_token[layer][head])} to the first token`;
        rows.push(h("button", { type: "button", class: "head", "aria-pressed": chosen.includes(name), "aria-label": says, title: says, "--v": weight.toFixed(3), onclick: () => toggle(name) }));
      }
    }
    fill(map, rows);
  }

  async function patterns() {
    if (!chosen.length) { fill(cards); view.colour(null); return; }
    let found;
    try {
      found = await post("/api/model/attention", view.steered({ heads: chosen.map(one => one.split(".").map(Number)) }), "patterns");
    } catch (error) { say(error); return; }
    fill(cards, chosen.filter(name => found.patterns[name]).map(name => card(name, found)));
    light(found);
  }

  function light(found) {
    const pattern = found.patterns[lit];
    view.colour(pattern ? pattern[view.position].map(v => v / found.scale) : null);
  }

  function card(name, found) {
    const pattern = found.patterns[name], n = pattern.length;
    const canvas = h("canvas", { width: n, height: n, role: "img", "aria-label": `Attention of head ${name}, queries down, keys across` });
    const context = canvas.getContext("2d");
    const image = context.createImageData(n, n);
    const dark = document.documentElement.dataset.theme === "dark";
    const [r, g, b] = dark ? [88, 180, 236] : [0, 114, 178], back = dark ? [28, 31, 36] : [255, 255, 255];
    for (let q = 0; q < n; q++) for (let k = 0; k < n; k++) {
      const v = k > q ? 0 : Math.sqrt(pattern[q][k] / found.scale), at = 4 * (q * n + k);
      [r, g, b].forEach((c, i) => { image.data[at + i] = back[i] + (c - back[i]) * v; });
      image.data[at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    const said = h("span", { class: "soft small mono" });
    canvas.onmousemove = event => {
      const q = Math.floor(event.offsetY / canvas.clientHeight * n), k = Math.floor(event.offsetX / canvas.clientWidth * n);
      if (pattern[q]?.[k] !== undefined) said.textContent = k > q ? "" : `${visible(view.tokens[q] ?? "")} → ${visible(view.tokens[k] ?? "")} ${percent(pattern[q][k] / found.scale)}`;
    };
    canvas.onclick = event => view.choose({ position: Math.max(0, Math.min(n - 1, Math.floor(event.offsetY / canvas.clientHeight * n))) });
    return h("figure", { class: "pattern" },
      h("figcaption", { class: "row" }, h("button", { class: "quiet", "aria-pressed": name === lit, title: "Colour the prompt by this head", onclick: () => { lit = name; patterns(); } }, `head ${name}`),
        h("button", { class: "quiet", title: "Take it away", "aria-label": `Take head ${name} away`, onclick: () => toggle(name) }, "✕")),
      canvas, said);
  }

  return { element, load };
}

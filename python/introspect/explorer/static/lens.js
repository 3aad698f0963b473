// The lens as a map: a row for each layer, a column for each position, the layer's first token in the cell.

import { post } from "./api.js";
import { cell, fill, h, number, option, percent, visible } from "./dom.js";
import { say } from "./main.js";
import * as state from "./state.js";

const COLOURS = {
  p: { name: "probability of the token", of: (read, i, j) => read.p[i][j][0], most: () => 1, say: percent },
  entropy: { name: "entropy (nats)", of: (read, i, j) => read.entropy[i][j], say: number },
  forward_kl: { name: "KL from the model's answer (nats)", of: (read, i, j) => read.forward_kl[i][j], say: number },
  rank: { name: "rank of the text's next token", of: (read, i, j) => read.rank[i][j] === null ? null : 1 / read.rank[i][j], most: () => 1,
    say: v => (v === null ? "–" : `rank ${Math.round(1 / v)}`) },
  norm: { name: "length of the residual stream", of: (read, i, j) => Math.log10(Math.max(1e-9, read.norm[i][j])), least: true,
    say: v => number(10 ** v) },
  target: { name: "probability of the word below", of: (read, i, j) => (read.target ? Math.exp(read.target[i][j]) : null), most: () => 1, say: percent },
};
const WIDTH = 76;

export function lensMap(place, view) {
  const colour = h("select", { "aria-label": "Colour", onchange: () => { state.set({ colour: colour.value === "p" ? null : colour.value }); word.hidden = colour.value !== "target"; draw(); } },
    Object.entries(COLOURS).map(([key, one]) => option(key, one.name)));
  colour.value = state.get("colour", "p") in COLOURS ? state.get("colour", "p") : "p";
  const word = h("input", { size: 9, placeholder: "␣Paris", "aria-label": "Word to follow", value: state.get("target"), hidden: colour.value !== "target",
    onchange: () => { state.set({ target: word.value }); load(); } });
  const side = h("select", { "aria-label": "Which run", hidden: true, onchange: () => draw() },
    option("steered", "steered"), option("base", "not steered"), option("difference", "difference"));
  const before = h("button", { title: "Earlier positions", "aria-label": "Earlier positions", onclick: () => page(-1) }, "‹");
  const after = h("button", { title: "Later positions", "aria-label": "Later positions", onclick: () => page(1) }, "›");
  const where = h("span", { class: "soft small num" });
  const box = h("div", { class: "scroll" });
  const detail = h("p", { class: "small detail", "aria-live": "polite" });
  fill(place, h("div", { class: "row top" }, h("h2", {}, "Lens"), colour, word, side, h("span", { class: "grow" }), before, where, after), box, detail);

  let found = null, first = 0, cells = [], asked = 0;
  const columns = () => Math.max(4, Math.floor((place.clientWidth - 52) / WIDTH));
  const observer = new ResizeObserver(() => { if (found && columns() !== found.columns) load(); });
  observer.observe(place);

  function page(by) {
    first = Math.max(0, Math.min(view.ids.length - columns(), first + by * Math.max(1, columns() - 1)));
    load({ keep: true });
  }

  async function load({ keep = false } = {}) {
    const n = view.ids.length, wide = columns();
    if (!n) return;
    if (!keep || view.position < first) first = view.position < first || view.position >= first + wide ? Math.max(0, Math.min(view.position - wide + 1, n - wide)) : Math.min(first, Math.max(0, n - wide));
    first = Math.max(0, first);
    const own = ++asked;
    box.classList.add("busy");
    try {
      const request = { first, last: Math.min(n, first + wide), top_k: 6, lens: view.lens() };
      if (colour.value === "target" && word.value) request.target = word.value.replace(/␣/g, " ");
      const answer = await post("/api/model/lens", view.steered(request), "lens");
      if (own !== asked) return;
      found = { ...answer, columns: wide };
      side.hidden = !found.steered;
      draw();
      box.classList.remove("busy");
    } catch (error) { say(error); }
  }

  function draw() {
    if (!found) return;
    const how = COLOURS[colour.value];
    const which = found.steered ? side.value : "base";
    const read = which === "base" ? found.base : found.steered ?? found.base;
    const value = (i, j) => {
      const v = how.of(read, i, j);
      if (which !== "difference") return v;
      const b = how.of(found.base, i, j);
      return v === null || b === null ? null : v - b;
    };
    const rows = read.streams.length, width = found.tokens.length;
    const all = [];
    for (let i = 0; i < rows; i++) for (let j = 0; j < width; j++) { const v = value(i, j); if (v !== null && Number.isFinite(v)) all.push(v); }
    const diverging = which === "difference";
    const high = diverging ? Math.max(1e-9, ...all.map(Math.abs)) : how.most?.() ?? Math.max(1e-9, ...all);
    const low = how.least && !diverging ? Math.min(...all) : 0;
    const head = h("tr", {}, h("th", { scope: "col" }, "layer"), found.tokens.map((token, j) =>
      h("th", { scope: "col", class: "mono", title: `${found.first + j}: ${JSON.stringify(token)}` }, h("bdi", {}, cell(token)))));
    cells = [];
    const lines = [];
    for (let i = rows - 1; i >= 0; i--) {
      cells[i] = found.tokens.map((_, j) => {
        const v = value(i, j);
        const token = read.top[i][j][0] ?? "";
        return h("td", {
          tabIndex: -1, class: v < 0 ? "down" : "",
          "--v": v === null ? 0 : Math.max(0, Math.min(1, (Math.abs(v) - low) / (high - low || 1))).toFixed(3),
          title: `layer ${read.streams[i]}, position ${found.first + j}: ${JSON.stringify(token)} · ${how.name}: ${diverging ? number(v) : how.say(v)}`,
          onclick: () => view.choose({ position: found.first + j, layer: i - 1 }),
        }, h("bdi", {}, cell(token)));
      });
      lines.push(h("tr", {}, h("th", { scope: "row" }, read.streams[i]), cells[i]));
    }
    fill(box, h("table", { class: "map", "aria-label": `Lens, coloured by ${how.name}` }, h("thead", {}, head), h("tbody", {}, lines)));
    where.textContent = `${found.first}–${found.last - 1} of ${view.ids.length}`;
    before.disabled = found.first === 0;
    after.disabled = found.last >= view.ids.length;
    mark();
  }

  function mark() {
    if (!found) return;
    const j = view.position - found.first;
    if (j < 0 || j >= found.tokens.length) { load(); return; }
    box.querySelectorAll(".at, .column").forEach(one => one.classList.remove("at", "column"));
    const i = view.layer === null ? null : view.layer + 1;
    cells.forEach(row => row[j]?.classList.add("column"));
    if (i === null || !cells[i]) { detail.replaceChildren(`Choose a cell to see what else its layer would say. Coloured by ${COLOURS[colour.value].name}.`); return; }
    cells[i][j].classList.add("at");
    cells[i][j].scrollIntoView({ block: "nearest", inline: "nearest" });
    const line = read => read.top[i][j].map((token, k) => [h("span", { class: "token" }, h("bdi", {}, visible(token))), ` ${percent(read.p[i][j][k])}  `]);
    fill(detail, `layer ${found.base.streams[i]}: `, line(found.base), `· length ${number(found.base.norm[i][j])}`,
      found.steered ? [h("br"), "steered: ", line(found.steered), `· length ${number(found.steered.norm[i][j])}`] : []);
  }

  return { load, mark, leave: () => observer.disconnect() };
}

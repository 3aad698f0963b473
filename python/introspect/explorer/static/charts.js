// Small charts: curves over layers, a map of heads.

import { h, number, percent, svg } from "./dom.js";

export function lines(series, { x, y, width = 560, height = 190 }) {
  const all = series.flatMap(one => one.values).filter(Number.isFinite), n = Math.max(...series.map(one => one.values.length));
  if (!all.length || n < 2) return h("p", { class: "soft small" }, "no finite values");
  const low = Math.min(0, ...all), high = Math.max(0, ...all), L = 44, B = 28, T = 8, R = 10;
  const px = i => L + (i / (n - 1)) * (width - L - R), py = v => T + (1 - (v - low) / (high - low || 1)) * (height - T - B);
  const tick = (v, text) => [svg("line", { x1: L, x2: width - R, y1: py(v), y2: py(v), class: "rule" }), svg("text", { x: L - 6, y: py(v) + 4, "text-anchor": "end" }, text)];
  const drawn = series.map(one => svg("path", { class: "curve", stroke: one.hue, d: one.values.map((v, i) => (Number.isFinite(v) ? `${i && Number.isFinite(one.values[i - 1]) ? "L" : "M"}${px(i).toFixed(1)},${py(v).toFixed(1)}` : "")).join("") }));
  const says = svg("text", { x: width - R, y: 18, "text-anchor": "end" });
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": `${y} by ${x}: ${series.map(one => `${one.name} ends at ${number(one.values[one.values.length - 1])}`).join("; ")}` },
    tick(high, number(high, 2)), tick(low, number(low, 2)), low < 0 && high > 0 ? tick(0, "0") : [], drawn,
    svg("text", { x: L, y: height - 6 }, `${x} 0`), svg("text", { x: width - R, y: height - 6, "text-anchor": "end" }, String(n - 1)), says);
  chart.addEventListener("mousemove", event => {
    const box = chart.getBoundingClientRect(), i = Math.max(0, Math.min(n - 1, Math.round(((event.clientX - box.left) / box.width * width - L) / (width - L - R) * (n - 1))));
    says.textContent = `${x} ${i}: ${series.map(one => `${one.name} ${number(one.values[i])}`).join(", ")}`;
  });
  return h("figure", { class: "chartbox" }, h("figcaption", { class: "soft small" }, `${y}: `, series.map(one => [swatch(one.hue), ` ${one.name} `])), chart);
}

function swatch(hue) {
  const one = h("span", { class: "key" });
  one.style.background = hue;
  return one;
}

// [layer][head] of weights; the first layer at the bottom.
export function headMap(weights, before) {
  const layers = weights.length, heads = weights[0].length;
  const most = Math.max(1e-9, ...weights.flat().filter(Number.isFinite));
  const map = h("div", { class: "heads", role: "table", "aria-label": `Attention, largest ${percent(most)}` });
  map.style.setProperty("--heads", heads);
  for (let layer = layers - 1; layer >= 0; layer--) {
    map.append(h("span", { class: "soft layer" }, layer % 5 === 0 ? layer : ""));
    for (let head = 0; head < heads; head++) {
      const weight = weights[layer][head] ?? 0;
      map.append(h("span", { class: "head", "--v": (weight / most).toFixed(3), title: `head ${layer}.${head}: ${percent(weight)}${before ? `, not injected ${percent(before[layer][head])}` : ""}` }));
    }
  }
  const order = weights.flatMap((row, layer) => row.map((weight, head) => ({ layer, head, weight }))).sort((a, b) => b.weight - a.weight).slice(0, 6);
  return h("div", {}, map, h("p", { class: "soft small" }, "largest: ", order.map(one => `${one.layer}.${one.head} (${percent(one.weight)})`).join(", ")));
}

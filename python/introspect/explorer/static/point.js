// Hook points: what stands at one, at the chosen token.

import { post } from "./api.js";
import { bars, fill, h, number } from "./dom.js";
import { say } from "./main.js";
import * as state from "./state.js";

export function pointPanel(view) {
  const names = view.info.hooks;
  const inBlock = [...new Set(names.filter(name => name.startsWith("blocks.")).map(name => name.split(".").slice(2).join(".")))];
  const outside = names.filter(name => !name.startsWith("blocks."));
  let chosen = names.includes(state.get("point")) || inBlock.includes(state.get("point")) ? state.get("point") : "hook_resid_post";
  const chip = name => h("button", { type: "button", class: "chip", "data-point": name, "aria-pressed": name === chosen, onclick: () => choose(name) }, name);
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Hook points" }, inBlock.map(chip), h("span", { class: "soft small" }, "once:"), outside.map(chip));
  const layer = h("input", { type: "number", min: 0, max: view.info.n_layers - 1, "aria-label": "Layer", onchange: () => view.choose({ layer: Number(layer.value) }) });
  const facts = h("p", { class: "soft small" });
  const shape = h("div", { class: "histogram", role: "img" });
  const largest = h("div", {});
  const element = h("details", { class: "panel", id: "point", open: state.get("point") !== "", ontoggle: () => { if (element.open) load(); } },
    h("summary", {}, "Hook points"), chips, h("label", { class: "small" }, "layer", layer), facts, shape, largest);

  function choose(name) {
    chosen = name;
    state.set({ point: name });
    chips.querySelectorAll("button").forEach(one => one.setAttribute("aria-pressed", one.dataset.point === name));
    load();
  }

  function name() {
    return inBlock.includes(chosen) ? `blocks.${Math.max(0, view.layer ?? view.info.n_layers - 1)}.${chosen}` : chosen;
  }

  async function load() {
    if (!element.open) return;
    layer.value = Math.max(0, view.layer ?? view.info.n_layers - 1);
    try {
      const found = await post("/api/model/point", view.steered({ name: name(), position: view.position }), "point");
      const size = found.norms ? ` · length here ${number(found.norms[found.position])}, mean ${number(found.mean)}, sd ${number(found.std)}` : "";
      facts.textContent = `${found.name} [${found.shape.join(", ")}]${size}`;
      if (!found.histogram) { fill(shape); fill(largest); return; }
      const most = Math.max(...found.histogram.map(count => Math.sqrt(count)));
      shape.setAttribute("aria-label", `Distribution of the values from ${number(found.low)} to ${number(found.high)}`);
      fill(shape, found.histogram.map(count => { const bar = h("span", { title: count }); bar.style.height = `${100 * Math.sqrt(count) / most}%`; return bar; }));
      fill(largest, h("div", { class: "row small soft" }, h("span", { class: "grow" }, number(found.low)), h("span", {}, number(found.high))),
        h("h3", {}, "Largest entries"),
        bars(found.largest.slice(0, 8).map(one => ({ name: `[${one.index}]`, values: [one.value], text: [number(one.value)] })), { label: "Largest entries" }));
    } catch (error) { say(error); }
  }

  return { element, load, layerChanged: () => { if (inBlock.includes(chosen)) load(); } };
}

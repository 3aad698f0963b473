// A model at work: a prompt as tokens, the lens by layer and position, logits, heads, hook points, steering.

import { get, post, stop } from "./api.js";
import { attentionPanel } from "./attention.js";
import { bars, cell, fill, h, number, option, percent, visible } from "./dom.js";
import { lensMap } from "./lens.js";
import { say } from "./main.js";
import { pointPanel } from "./point.js";
import * as state from "./state.js";
import { steerPanel } from "./steer.js";

const FIRST = "The capital of France is";

export async function modelView(place, contents) {
  const info = await get("/api/model");
  const text = h("textarea", { id: "prompt", rows: 2, spellcheck: false, "data-first": "", "aria-label": "Prompt",
    value: state.get("prompt", FIRST), onkeydown: event => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) read(); } });
  const chat = h("input", { type: "checkbox", checked: state.get("chat") === "1", disabled: !info.chat, onchange: () => read() });
  const lens = h("select", { "aria-label": "Lens", onchange: () => { state.set({ lens: lens.value === "logit" ? null : lens.value }); map.load(); } },
    option("logit", "logit lens"), info.lens ? option("trained", `lens: ${info.lens}`) : []);
  lens.value = state.get("lens", "logit");
  const tokens = h("div", { class: "tokens", role: "group", "aria-label": "Tokens of the prompt" });
  const facts = h("span", { class: "soft small" });
  const right = h("div", { class: "side stack" });
  const left = h("div", { class: "lens" });
  fill(place,
    h("div", { class: "prompt" },
      h("div", { class: "row" }, h("div", { class: "grow" }, text),
        h("div", { class: "upright" },
          h("button", { class: "main", onclick: () => read(), title: "Ctrl + Enter" }, "Read"),
          h("label", { title: info.chat ? "As a user's message, written by the chat template" : "This model has no chat template" }, chat, "chat"))),
      tokens, h("div", { class: "row" }, facts)),
    h("div", { class: "columns" }, left, right));

  // What is chosen, shared by the panels.
  const view = {
    info, contents, ids: [], tokens: [], position: 0, layer: null,
    request: extra => ({ prompt: text.value, chat: chat.checked, ...extra }),
    steering: () => (steer.on() ? steer.spec() : null),
    steered: extra => { const spec = view.steering(); return view.request(spec ? { ...extra, steer: spec } : extra); },
    lens: () => lens.value,
    colour: (values, hue) => colour(values, hue),
    choose,
  };
  const logits = logitsPanel(view);
  const map = lensMap(left, view);
  const heads = attentionPanel(view);
  const point = pointPanel(view);
  const steer = steerPanel(view, () => refresh(true));
  fill(right, logits.element, steer.element, heads.element, point.element);

  function colour(values, hue = "var(--orange)") {
    [...tokens.children].forEach((one, i) => {
      one.style.setProperty("--v", values ? Math.min(1, Math.abs(values[i] ?? 0)).toFixed(3) : 0);
      one.style.setProperty("--hue", hue);
    });
  }

  function choose({ position = view.position, layer = view.layer }) {
    const moved = position !== view.position;
    view.position = position;
    view.layer = layer;
    state.set({ pos: position, layer });
    mark();
    map.mark();
    point.layerChanged();
    if (moved) refresh(false);
  }

  function mark() {
    [...tokens.children].forEach((one, i) => {
      one.setAttribute("aria-pressed", i === view.position);
      one.tabIndex = i === view.position ? 0 : -1;
    });
  }

  function refresh(all) {
    if (all) map.load();
    logits.load();
    heads.load();
    point.load();
  }

  async function read() {
    state.set({ prompt: text.value, chat: chat.checked ? 1 : null });
    let found;
    try {
      found = await post("/api/model/tokens", view.request({}), "tokens");
    } catch (error) { say(error); return; }
    view.ids = found.ids;
    view.tokens = found.tokens;
    const wanted = state.getNumber("pos");
    view.position = wanted !== null && wanted >= 0 && wanted < found.ids.length ? wanted : found.ids.length - 1;
    view.layer = state.getNumber("layer");
    facts.textContent = `${found.ids.length} tokens · ${info.architecture}, ${info.n_layers} layers of ${info.n_heads} heads, width ${info.d_model}, ${(info.parameters / 1e6).toFixed(0)}M parameters, ${info.dtype}`;
    fill(tokens, found.tokens.map((token, i) => h("button", { class: "token", type: "button", "aria-label": token.trim() ? null : JSON.stringify(token), tabIndex: -1, "aria-pressed": false,
      title: `${i}: ${JSON.stringify(token)} (id ${found.ids[i]})`, onclick: () => choose({ position: i }) }, h("bdi", {}, visible(token)))));
    mark();
    refresh(true);
  }

  function step(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) {
      choose({ position: Math.min(view.ids.length - 1, Math.max(0, view.position + move)) });
      event.preventDefault();
    }
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      const layer = (view.layer ?? info.n_layers - 1) + (event.key === "ArrowUp" ? 1 : -1);
      choose({ layer: Math.min(info.n_layers - 1, Math.max(-1, layer)) });
      event.preventDefault();
    }
  }

  await read();
  return {
    key: step,
    escape: () => steer.stop(),
    leave: () => { steer.stop(); ["lens", "logits", "heads", "patterns", "point"].forEach(stop); map.leave(); },
    restore: () => {
      text.value = state.get("prompt", FIRST);
      chat.checked = state.get("chat") === "1";
      steer.restore();
      read();
    },
  };
}

function logitsPanel(view) {
  const title = h("h2", {});
  const rows = h("div", { "aria-live": "polite" });
  const note = h("p", { class: "soft small" });
  const element = h("section", { class: "panel", id: "logits" }, title, rows, note);
  return {
    element,
    async load() {
      element.classList.add("busy");
      try {
        const found = await post("/api/model/logits", view.steered({ position: view.position, top_k: 8 }), "logits");
        const steered = found.kl !== undefined;
        fill(title, "Next token after ", h("span", { class: "token" }, h("bdi", {}, visible(view.tokens[found.position] ?? ""))));
        fill(rows, bars(found.rows.slice(0, steered ? 12 : 8).map(row => ({
          name: visible(row.token), title: `${JSON.stringify(row.token)} (id ${row.id})`, content: h("bdi", { class: "mono" }, cell(row.token)),
          values: steered ? [row.p, row.steered] : [row.p],
          text: steered ? [percent(row.p), percent(row.steered)] : [percent(row.p)],
        })), { hues: ["var(--blue)", "var(--orange)"], label: "Most probable next tokens" }));
        fill(note, steered ? [h("span", { class: "key blue" }), " not steered ", h("span", { class: "key orange" }), ` ${found.steering} · KL ${number(found.kl)} nats`] : "");
        element.classList.remove("busy");
      } catch (error) { say(error); }
    },
  };
}

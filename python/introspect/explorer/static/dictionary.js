// Dictionaries: features found by number, label or text, their pages, live tests and steering.

import { get, path, post, stop, stream } from "./api.js";
import { featureCard } from "./card.js";
import { fill, h, number, option, percent, tokenText, visible } from "./dom.js";
import { say } from "./main.js";
import * as state from "./state.js";

const ORDERS = { max_active: "largest value", frequencies: "most frequent", mean_active: "largest mean" };

export async function dictionaryView(place, contents) {
  const which = h("select", { "aria-label": "Dictionary", onchange: () => { state.set({ dictionary: which.value, feature: null }); open(); } }, contents.dictionaries.map(name => option(name)));
  if (contents.dictionaries.includes(state.get("dictionary"))) which.value = state.get("dictionary");
  const facts = h("p", { class: "soft small" });
  const search = h("textarea", { rows: 2, id: "search", "data-first": "", "aria-label": "Search", placeholder: "a number, words of labels, or a text: which features does it activate?", value: state.get("search"),
    onkeydown: event => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); find(); } } });
  const how = h("select", { "aria-label": "Search by", onchange: () => find() }, option("text", "active on this text"), option("labels", "labels with these words"));
  how.value = state.get("by", "text");
  const order = h("select", { "aria-label": "Order", onchange: () => find() }, Object.entries(ORDERS).map(([key, name]) => option(key, name)));
  const read = h("div", { class: "tokens small" });
  const list = h("ul", { class: "list features", "aria-label": "Features" });
  const page = h("div", { class: "page" });
  fill(place, h("div", { class: "split" },
    h("div", { class: "left" }, contents.dictionaries.length > 1 ? which : h("h1", {}, which.value), facts, search,
      h("div", { class: "row" }, how, h("button", { class: "main", onclick: () => find() }, "Find")), read, h("div", { class: "row small soft" }, h("span", { class: "grow" }), order), list), page));
  let info, feature = null, at = null;

  async function open() {
    try {
      info = await get(path("api", "dictionary", which.value), "dictionary");
    } catch (error) { say(error); return; }
    const of = [info.architecture, `${info.d_sae.toLocaleString()} features of ${info.d_in} dimensions`, [...new Set([...info.reads, ...info.writes])].join(" → "), info.model, `${info.labels.toLocaleString()} label${info.labels === 1 ? "" : "s"}`];
    facts.textContent = of.filter(Boolean).join(" · ");
    await find();
    const wanted = state.getNumber("feature");
    if (wanted !== null) choose(wanted);
    else fill(page, h("div", { class: "empty" }, "Choose a feature, or find some by a text."));
  }

  async function find() {
    if (!info) return; // open() finds as soon as it knows the dictionary
    const words = search.value.trim();
    state.set({ search: search.value, by: how.value === "text" ? null : how.value });
    fill(read);
    order.hidden = !info.pages || words !== "";
    list.classList.add("busy");
    try {
      if (/^\d+$/.test(words)) { choose(Number(words)); rows((await post(path("api", "dictionary", which.value, "find"), { words: "" }, "find")).features); }
      else if (words && how.value === "text") {
        const request = { prompt: search.value, most: 40 };
        if (at !== null) request.position = at;
        const found = await post(path("api", "dictionary", which.value, "activations"), request, "find");
        if (at !== null && at >= found.tokens.length) at = null;
        fill(read, h("span", { class: "soft" }, at === null ? "click a token for its features: " : "features of one token, click it again for all: "), found.tokens.map((token, i) =>
          h("button", { class: "token", type: "button", "aria-label": token.trim() ? null : JSON.stringify(token), "aria-pressed": i === at, onclick: () => { at = at === i ? null : i; find(); } }, h("bdi", {}, visible(token)))));
        rows(found.features, found.tokens);
      } else rows((await post(path("api", "dictionary", which.value, "find"), { words: how.value === "labels" ? words : "", by: order.value }, "find")).features);
    } catch (error) { say(error); }
    list.classList.remove("busy");
  }

  function rows(features, tokens) {
    fill(list, features.map(one => h("li", {}, h("button", { class: "pick", "data-index": one.index, onclick: () => choose(one.index) },
      h("span", { class: "num mono index" }, one.index), " ", one.label ? h("bdi", {}, one.label) : h("span", { class: "soft" }, one.density === undefined ? "" : `at ${percent(one.density)}`),
      one.max !== undefined ? h("span", { class: "soft small value" }, number(one.max)) : [],
      tokens ? h("span", { class: "soft small value mono" }, h("bdi", {}, visible(tokens[one.at]).trim())) : []))),
      features.length ? [] : h("li", { class: "soft small" }, "none"));
    markRow();
  }

  function markRow() {
    list.querySelectorAll("[data-index]").forEach(one => { if (Number(one.dataset.index) === feature) one.setAttribute("aria-current", "true"); else one.removeAttribute("aria-current"); });
  }

  async function choose(index) {
    feature = index;
    state.set({ feature: index });
    markRow();
    const body = h("div", { class: "stack" });
    const label = h("input", { class: "grow", placeholder: "no label yet", "aria-label": "Label", maxLength: 2000, onchange: () => name(index, label) });
    const saved = h("span", { class: "soft small", "aria-live": "polite" });
    label.saved = saved;
    const test = testPanel(index), steer = steerPanel(index), cache = cachePanel();
    fill(page, h("div", { class: "row" }, h("h1", {}, `Feature ${index.toLocaleString()}`), label, saved), h("div", { class: "pair" }, test, steer), cache, body);
    page.scrollTop = 0;
    const card = await featureCard(body, contents, { name: which.value, index, go: choose });
    if (card && feature === index) {
      label.value = card.label;
      cache.hidden = card.cached || !info.can_read;
    } else if (feature === index) cache.hidden = true;
  }

  async function name(index, label) {
    try {
      const found = await post(path("api", "dictionary", which.value, "label"), { index, label: label.value });
      label.saved.textContent = `saved in ${found.file}`;
    } catch (error) { say(error); }
  }

  function testPanel(index) {
    const text = h("textarea", { rows: 2, "aria-label": "Text to test", placeholder: "Type a text: where is this feature active?", value: state.get("test"), oninput: () => { clearTimeout(wait); wait = setTimeout(run, 350); } });
    const out = h("div", { class: "tokens", "aria-live": "polite" });
    let wait;
    async function run() {
      state.set({ test: text.value });
      if (!text.value.trim()) { fill(out); return; }
      try {
        const found = await post(path("api", "dictionary", which.value, "activations"), { prompt: text.value, index }, "test");
        const most = Math.max(...found.values);
        fill(out, tokenText(found.tokens, found.values), h("div", { class: "soft small" }, most > 0 ? `largest ${number(most)} at ${JSON.stringify(found.tokens[found.values.indexOf(most)])}` : "not active anywhere"));
      } catch (error) { say(error); }
    }
    if (info.can_read && text.value) run();
    return h("section", { class: "panel", id: "test" }, h("h2", {}, "Try a text"), text, out);
  }

  function steerPanel(index) {
    const text = h("input", { "aria-label": "Prompt to steer", value: "I think that", class: "grow" });
    const strength = h("input", { type: "number", step: "any", value: 20, "aria-label": "Strength" });
    const out = h("div", { class: "texts", "aria-live": "polite" });
    const write = h("button", { class: "main", onclick: () => run() }, "Write on");
    async function run() {
      const columns = [];
      write.disabled = true;
      try {
        await stream("/api/model/generate", { prompt: text.value, max_new_tokens: 30, steer: { kind: "feature", dictionary: which.value, index, strength: Number(strength.value) } }, event => {
          if (event.rows) fill(out, event.rows.map((one, i) => { columns[i] = h("pre", {}); return h("figure", {}, h("figcaption", { class: "soft small" }, i ? `feature + ${strength.value}` : one), columns[i]); }));
          else columns[event.row].append(event.text);
        }, "generate");
      } catch (error) { say(error); }
      write.disabled = false;
    }
    return h("section", { class: "panel" }, h("h2", {}, "Steer with it"), h("div", { class: "row" }, text, h("label", { class: "small" }, "add", strength), write), out);
  }

  function cachePanel() {
    const bar = h("progress", { hidden: true, max: 1, value: 0 });
    const start = h("button", { onclick: () => run() }, "Read the texts");
    const said = h("span", { class: "soft small" }, "No contexts yet: the texts have to be read once, for all features.");
    async function run() {
      start.disabled = true;
      bar.hidden = false;
      try {
        const done = await stream(path("api", "dictionary", which.value, "cache"), {}, event => { bar.max = event.of; bar.value = event.at; }, "cache");
        said.textContent = `${done.texts.toLocaleString()} texts, ${done.tokens.toLocaleString()} tokens`;
        info.pages = true;
        choose(feature);
        find();
      } catch (error) { say(error); start.disabled = false; bar.hidden = true; }
    }
    return h("section", { class: "panel row", hidden: true }, said, start, bar);
  }

  await open();
  return {
    leave: () => ["dictionary", "find", "test", "generate", "cache", "page"].forEach(stop),
    escape: () => stop("generate"),
    key: event => {
      const all = [...list.querySelectorAll("[data-index]")], now = all.findIndex(one => one.hasAttribute("aria-current"));
      const move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (move && all.length) { const next = all[Math.max(0, Math.min(all.length - 1, now + move))]; choose(Number(next.dataset.index)); next.scrollIntoView({ block: "nearest" }); event.preventDefault(); }
    },
    restore: () => { if (contents.dictionaries.includes(state.get("dictionary"))) which.value = state.get("dictionary"); search.value = state.get("search"); open(); },
  };
}

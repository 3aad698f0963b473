// Experiments: what came out of a run, its settings, every cell, and a cell's conversation, texts, lens and heads.

import { get, path, stop } from "./api.js";
import { lines, headMap } from "./charts.js";
import { bars, cell, fill, h, number, option, percent } from "./dom.js";
import { say } from "./main.js";
import * as state from "./state.js";

const LISTED = 400;

export async function runsView(place, contents) {
  const which = h("select", { "aria-label": "Run", onchange: () => { state.set({ run: which.value, protocol: null, cell: null }); open(); } }, contents.runs.map(name => option(name)));
  if (contents.runs.includes(state.get("run"))) which.value = state.get("run");
  const head = h("div", { class: "row tools" }), left = h("div", { class: "left wide" }), right = h("div", { class: "page" });
  fill(place, head, h("div", { class: "split" }, left, right));
  let run, protocol, shown = [];

  async function open() {
    place.classList.add("busy");
    try { run = await get(path("api", "run", which.value), "run"); } catch (error) { say(error); fill(left, h("p", { class: "error" }, error.message)); place.classList.remove("busy"); return; }
    place.classList.remove("busy");
    const tabs = run.protocols.map(one => h("button", { "data-protocol": one.name, onclick: () => { state.set({ protocol: one.name, cell: null }); choose(one.name); } }, one.name));
    fill(head, contents.runs.length > 1 ? which : h("strong", {}, which.value), tabs, h("span", { class: "grow" }),
      run.report ? h("button", { "data-protocol": "report", onclick: () => { state.set({ protocol: "report", cell: null }); report(); } }, "Report page") : []);
    if (!run.protocols.length) { table(); return; }
    const wanted = state.get("protocol");
    if (wanted === "report") report();
    else choose(run.protocols.some(one => one.name === wanted) ? wanted : run.protocols[0].name);
  }

  function press(name) {
    head.querySelectorAll("[data-protocol]").forEach(one => one.setAttribute("aria-pressed", one.dataset.protocol === name));
    place.classList.toggle("whole", name === "report");
  }

  function report() {
    press("report");
    const wait = h("p", { class: "empty" }, "The report page is being made …");
    fill(left, wait, h("iframe", { class: "report", title: "Report page", sandbox: "allow-scripts", src: path("run", which.value, "report"), onload: () => wait.remove() }));
    fill(right);
  }

  // A store alone has no protocols' texts: its readings as a table.
  function table() {
    place.classList.add("whole");
    fill(left, h("h1", {}, run.heading), h("p", { class: "soft" }, `${run.store.cells.toLocaleString()} cells. ${run.store.problems.join(" ")}`),
      h("div", { class: "scroll" }, h("table", { class: "cells" }, h("thead", {}, h("tr", {}, run.columns.map(name => h("th", {}, name)))),
        h("tbody", {}, run.rows.slice(0, LISTED).map(row => h("tr", {}, row.map(value => h("td", {}, typeof value === "number" ? number(value) : value ?? ""))))))));
    fill(right);
  }

  function choose(name) {
    protocol = run.protocols.find(one => one.name === name);
    press(name);
    const { columns, held, n } = protocol.cells;
    const concepts = [...new Set(columns.concept)], kinds = [...new Set(columns.kind)];
    const concept = h("select", { "aria-label": "Concept", onchange: list }, option("", "all concepts"), concepts.map(one => option(one)));
    const kind = h("select", { "aria-label": "Kind", onchange: list }, option("", "all kinds"), kinds.map(one => option(one)));
    kind.value = kinds.includes("introspection") ? "introspection" : "";
    const sort = h("select", { "aria-label": "Order", onchange: list }, option("", "in order"), option("shift", "largest shift first"));
    const body = h("tbody", {}), counts = h("span", { class: "soft small" });
    const word = protocol.verdict;
    fill(left,
      word ? h("p", { class: "verdict" }, h("strong", { class: word.word }, word.word), ` ${word.sentence}`) : [],
      h("p", { class: "soft small" }, protocol.description), protocol.warnings.map(text => h("p", { class: "error small" }, text)),
      protocol.sentences.slice(0, 12).map(text => h("p", { class: "small" }, text)),
      h("details", {}, h("summary", {}, "Settings"), h("dl", { class: "settings" }, protocol.settings.map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)]))),
      h("div", { class: "row" }, h("h2", {}, "Readings"), concept, kind, sort, counts),
      h("div", { class: "scroll" }, h("table", { class: "cells" }, h("thead", {}, h("tr", {}, [["injected"], ["blocks", "num"], ["question"], ["log-odds", "num"], ["shift", "num"], [""]].map(([text, kind]) => h("th", { class: kind ?? "" }, text)))), body)));

    function list() {
      const shift = i => (columns.log_odds_injected[i] ?? 0) - (columns.log_odds_base[i] ?? 0);
      shown = [...Array(n).keys()].filter(i => (!concept.value || columns.concept[i] === concept.value) && (!kind.value || columns.kind[i] === kind.value));
      if (sort.value) shown.sort((a, b) => Math.abs(shift(b)) - Math.abs(shift(a)));
      counts.textContent = `${shown.length.toLocaleString()} of ${protocol.cells.of.toLocaleString()}${shown.length > LISTED ? `, the first ${LISTED} shown` : ""}`;
      fill(body, shown.slice(0, LISTED).map(i => h("tr", { tabIndex: 0, "data-cell": i, onclick: () => drill(i), onkeydown: event => { if (event.key === "Enter") drill(i); } },
        h("td", {}, h("bdi", {}, columns.concept[i]), ` ${number(columns.strength[i])}${columns.kind[i] === "random" ? " (random)" : ""}`),
        h("td", { class: "num" }, `${columns.first_layer[i]}–${columns.last_layer[i]}`),
        h("td", { class: "question", title: columns.question[i] }, h("bdi", {}, columns.question[i])),
        h("td", { class: "num" }, number(columns.log_odds_injected[i])),
        h("td", { class: `num ${shift(i) < 0 ? "down" : "up"}` }, `${shift(i) < 0 ? "−" : "+"}${number(Math.abs(shift(i)))}`),
        h("td", { class: "soft small" }, held[i].filter(one => one !== "tokens").join(" ")))));
    }
    list();
    const wanted = state.getNumber("cell");
    if (wanted !== null && wanted < n) drill(wanted);
    else fill(right, h("div", { class: "empty" }, "Choose a reading to see its conversation, texts, lens and heads."));
  }

  async function drill(i) {
    state.set({ cell: i, protocol: protocol.name });
    left.querySelectorAll("[data-cell]").forEach(one => { if (Number(one.dataset.cell) === i) one.setAttribute("aria-current", "true"); else one.removeAttribute("aria-current"); });
    right.classList.add("busy");
    let found;
    try { found = await get(path("api", "run", which.value, protocol.name, String(i)), "cell"); } catch (error) { say(error); right.classList.remove("busy"); return; }
    right.classList.remove("busy");
    const { base, injected } = found;
    const shift = injected.log_odds - base.log_odds;
    fill(right, h("h1", {}, found.label), h("p", { class: "soft" }, found.setting.kind, " · ", h("bdi", {}, found.setting.question)),
      h("dl", { class: "facts" }, [["log-odds", `${number(base.log_odds)} → ${number(injected.log_odds)} nats`], ["shift", `${shift < 0 ? "−" : "+"}${number(Math.abs(shift))}`],
        [`p(${found.yes.trim()})`, `${percent(base.p_yes)} → ${percent(injected.p_yes)}`], [`p(${found.no.trim()})`, `${percent(base.p_no)} → ${percent(injected.p_no)}`]].map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      h("h2", {}, "Conversation"), h("div", { class: "chat" }, found.conversation.map(turn => h("div", { class: `turn${turn.question ? " asked" : ""}` }, h("b", {}, turn.role + (turn.injected ? " · injected where marked" : "") + (turn.question ? " · the question" : "") + (turn.prefix ? " · written for the model, which goes on from here" : "")),
        h("div", { class: "said" }, turn.question && found.setting.question_kind === "control" ? h("bdi", {}, found.setting.question) : turn.pieces.length ? turn.pieces.map(([text, mark]) => (mark ? h("mark", {}, text) : text)) : h("span", { class: "soft" }, "(empty)"))))),
      injected.text !== undefined ? [h("h2", {}, "What it writes"), h("div", { class: "texts" }, [["not injected", base.text], ["injected", injected.text]].map(([name, text]) => h("figure", {}, h("figcaption", { class: "soft small" }, name), h("pre", {}, text ?? ""))))] : [],
      injected.lens?.log_odds ? [h("h2", {}, "Log-odds by layer, through the lens"), lines([{ name: "not injected", values: base.lens?.log_odds ?? [], hue: "var(--blue)" }, { name: "injected", values: injected.lens.log_odds, hue: "var(--orange)" }], { x: "layer", y: "log-odds (nats)" })] : [],
      injected.attention ? [h("h2", {}, "Attention from the read position to the injected text"), headMap(injected.attention, base.attention)] : [],
      injected.tokens ? [h("h2", {}, "Words of the concepts"), bars(injected.tokens.slice(0, 24).map((one, k) => ({ name: one.token, content: h("bdi", { class: "mono" }, cell(one.token)), values: [one.log_prob - (base.tokens?.[k]?.log_prob ?? one.log_prob)], text: [`rank ${number(one.rank)}`, number(one.log_prob - (base.tokens?.[k]?.log_prob ?? one.log_prob))] })), { label: "Change of log-probability" })] : [],
      ["raised", "lowered"].map(direction => (injected[direction] ? [h("h2", {}, `Tokens most ${direction}`), bars(injected[direction].slice(0, 12).map(one => ({ name: one.token ?? "", content: h("bdi", { class: "mono" }, cell(one.token ?? "")), values: [one.change ?? 0], text: [number(one.change)] })), { label: direction })] : [])));
    right.scrollTop = 0;
  }

  await open();
  return {
    leave: () => ["run", "cell"].forEach(stop),
    key: event => {
      const all = [...left.querySelectorAll("[data-cell]")], now = all.findIndex(one => one.hasAttribute("aria-current")), move = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (move && all.length) { const next = all[Math.max(0, Math.min(all.length - 1, now + move))]; drill(Number(next.dataset.cell)); next.scrollIntoView({ block: "nearest" }); event.preventDefault(); }
    },
    restore: () => { if (contents.runs.includes(state.get("run"))) which.value = state.get("run"); open(); },
  };
}

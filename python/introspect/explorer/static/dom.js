// Elements from plain values. Text is only ever text: nothing here takes markup.

export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  set(element, props);
  add(element, children);
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
export function svg(tag, props = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  add(element, children);
  return element;
}

export function set(element, props) {
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-") && typeof value === "boolean") element.setAttribute(name, String(value));
    else if (name in element && value !== null) element[name] = value;
    else if (value === null || value === undefined || value === false) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : value);
  }
  return element;
}

function add(element, children) {
  for (const child of children.flat(Infinity))
    if (child !== null && child !== undefined && child !== false) element.append(child instanceof Node ? child : String(child));
}

export function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

// A token as it can be seen: blanks, line ends and control characters have signs of their own.
export function visible(token) {
  if (token === "") return "∅";
  return token
    .replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍")
    .replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

// The same where leading blanks would be lost, as in a cell.
export function cell(token) {
  return visible(token).replace(/^ +| +$/g, blanks => "␣".repeat(blanks.length));
}

export function tokenSpan(token, props = {}) {
  const shown = visible(token);
  return h("span", { class: "token", title: JSON.stringify(token), ...props }, h("bdi", {}, /^ +$/.test(shown) ? "␣".repeat(shown.length) : shown));
}

// A text as tokens coloured by values in [0, most]; `at` is marked.
export function tokenText(tokens, values, { most, at = -1, hue = "var(--orange)" } = {}) {
  const largest = most ?? Math.max(1e-12, ...values.map(Math.abs));
  return tokens.map((token, i) => {
    const value = values[i] ?? 0;
    return tokenSpan(token, {
      class: i === at ? "token at" : "token",
      "--v": Math.min(1, Math.abs(value) / largest).toFixed(3),
      "--hue": value < 0 ? "var(--blue)" : hue,
      title: `${JSON.stringify(token)} ${number(value)}`,
    });
  });
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1).replace("e+", "e");
  return String(+value.toPrecision(digits));
}

export function percent(p) {
  if (p === null || p === undefined) return "–";
  return p >= 0.0995 ? `${(100 * p).toFixed(0)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : p > 0 ? "<0.1%" : "0%";
}

// Rows {name, values: [..], text: [..], onclick}; bars on one scale.
export function bars(rows, { most, hues = ["var(--blue)"], label }) {
  const largest = most ?? Math.max(1e-12, ...rows.flatMap(row => row.values.map(v => Math.abs(v ?? 0))));
  return h("table", { class: "bars", "aria-label": label },
    rows.map(row => h("tr", { class: row.onclick ? "pickable" : "", onclick: row.onclick ?? null, tabIndex: row.onclick ? 0 : -1,
        onkeydown: event => { if (event.key === "Enter" && row.onclick) row.onclick(event); } },
      h("td", { title: row.title ?? row.name }, row.content ?? row.name),
      h("td", { class: "line" }, row.values.map((value, i) => {
        const bar = h("span", { class: "bar", "--hue": value < 0 ? "var(--orange)" : hues[i] ?? hues[0] });
        bar.style.width = `${(100 * Math.min(1, Math.abs(value ?? 0) / largest)).toFixed(1)}%`;
        return bar;
      })),
      row.text.map(text => h("td", { class: "num" }, text)))));
}

export function option(value, text = value) {
  return h("option", { value }, text);
}

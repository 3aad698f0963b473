// Drawing a graph on two canvases: links below, nodes above. Tokens lie across, layers upward; what shares a place spreads
// within it. Ten thousand nodes take a few milliseconds a frame: only what moved is drawn again.

const SHAPES = { feature: "circle", "attention feature": "ring", "stream feature": "circle", error: "diamond", token: "square", logit: "triangle", bias: "cross", injection: "triangle", other: "circle" };
const LEFT = 56, RIGHT = 14, TOP = 14, BOTTOM = 34;
const MOST_SHAPES = 2000; // nodes
const MOST_IDLE = 3000, MOST_MOVING = 500; // links that are drawn while nothing is chosen, and while the graph moves

export class Drawing {
  constructor(place, graph, { choose, hover }) {
    this.graph = graph;
    this.place = place;
    this.below = canvas(place, "links");
    this.above = canvas(place, "nodes");
    this.marks = canvas(place, "marks");
    this.view = { x: 0, y: 0, zoom: 1 };
    this.clicked = null;
    this.hovered = null;
    this.pinned = new Set();
    this.lit = null; // links of a path that are drawn alone
    this.frames = []; // milliseconds of the last drawings
    this.hover = hover;
    this.layout();
    this.above.tabIndex = 0;
    this.above.setAttribute("role", "application");
    this.above.setAttribute("aria-label", "Attribution graph. Arrow keys move among its nodes, Enter chooses one; the lists beside it say the same in words.");
    this.listen(choose);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(place);
    this.resize();
  }

  layout() {
    const { graph } = this, cells = new Map();
    const layers = [...new Set(graph.layer)].sort((a, b) => a - b);
    this.layers = layers;
    const band = new Map(layers.map((layer, k) => [layer, k]));
    for (let i = 0; i < graph.n; i++) {
      if (!graph.shownNodes[i]) continue;
      const key = graph.position[i] * 4096 + band.get(graph.layer[i]);
      if (!cells.has(key)) cells.set(key, []);
      cells.get(key).push(i);
    }
    // Columns are as wide as the fullest of their cells asks for, on the scale of a square root.
    const need = new Float64Array(graph.tokens.length).fill(1);
    for (const [key, list] of cells) {
      const column = Math.floor(key / 4096);
      need[column] = Math.max(need[column], Math.sqrt(list.length) * 1.6);
    }
    const whole = need.reduce((a, b) => a + b, 0);
    this.columns = [];
    let at = 0;
    need.forEach(width => { this.columns.push({ from: at / whole, to: (at + width) / whole }); at += width; });
    this.u = new Float32Array(graph.n); // 0 to 1 across
    this.w = new Float32Array(graph.n); // 0 to 1 upward
    this.crowd = new Float32Array(graph.n);
    for (const [key, list] of cells) {
      const column = this.columns[Math.floor(key / 4096)], k = key % 4096;
      list.sort((a, b) => graph.share[a] - graph.share[b]);
      const wide = Math.max(1, Math.ceil(Math.sqrt(list.length * Math.max(1, (column.to - column.from) * layers.length * 1.6))));
      const rows = Math.ceil(list.length / wide);
      list.forEach((i, place) => {
        const row = Math.floor(place / wide), inRow = Math.min(wide, list.length - row * wide);
        this.u[i] = column.from + (column.to - column.from) * ((place % wide) + 0.5 + (wide - inRow) / 2) / wide;
        this.w[i] = (k + 0.14 + 0.72 * (row + 0.5) / rows) / layers.length;
        this.crowd[i] = rows;
      });
    }
    this.drawn = [...cells.values()].flat();
    this.tree = null;
  }

  resize() {
    const ratio = devicePixelRatio || 1;
    this.width = this.place.clientWidth;
    this.height = this.place.clientHeight;
    for (const one of [this.below, this.above, this.marks]) {
      one.width = Math.max(1, Math.round(this.width * ratio));
      one.height = Math.max(1, Math.round(this.height * ratio));
      one.style.width = `${this.width}px`;
      one.style.height = `${this.height}px`;
    }
    this.ratio = ratio;
    this.draw();
  }

  x(i) { return LEFT + (this.u[i] * this.view.zoom + this.view.x) * (this.width - LEFT - RIGHT); }
  y(i) { return this.height - BOTTOM - (this.w[i] * this.view.zoom + this.view.y) * (this.height - TOP - BOTTOM); }
  radius(i) {
    const band = (this.height - TOP - BOTTOM) * this.view.zoom / this.layers.length;
    return Math.max(1.4, Math.min(5.5, 0.36 * band / Math.max(1, this.crowd[i])));
  }

  draw() {
    if (this.asked) return;
    this.asked = requestAnimationFrame(() => {
      this.asked = null;
      const start = performance.now();
      this.colours();
      this.drawLinks();
      this.drawNodes();
      this.drawMarks();
      this.frames.push(performance.now() - start);
      if (this.frames.length > 240) this.frames.shift();
    });
  }

  remark() {
    if (this.asked || this.askedMarks) return;
    this.askedMarks = requestAnimationFrame(() => { this.askedMarks = null; this.drawMarks(); });
  }

  colours() {
    const style = getComputedStyle(document.documentElement), get = name => style.getPropertyValue(name).trim();
    this.ink = get("--ink"); this.soft = get("--soft"); this.rule = get("--rule"); this.blue = get("--blue"); this.orange = get("--orange");
    this.green = get("--green"); this.purple = get("--purple"); this.paper = get("--paper"); this.panel = get("--panel");
    this.hues = { feature: this.ink, "attention feature": this.purple, error: this.soft, token: this.green, logit: this.orange, bias: this.soft, other: this.soft };
  }

  context(of) {
    const context = of.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    return context;
  }

  drawLinks() {
    const context = this.context(this.below), { graph } = this;
    this.grid(context);
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, this.width - LEFT, this.height - BOTTOM + 4);
    context.clip();
    if (this.lit) {
      for (const e of this.lit) this.line(context, e, 0.9, 2.2);
    } else if (this.clicked !== null) {
      for (const e of [...graph.into[this.clicked], ...graph.outOf[this.clicked]])
        if (graph.shownLinks[e]) this.line(context, e, 0.25 + 0.7 * Math.min(1, 3 * Math.abs(graph.part(e))), 0.6 + 5 * Math.min(0.6, Math.abs(graph.part(e))));
    } else {
      // One path a colour: thousands of links in two strokes.
      const positive = new Path2D(), negative = new Path2D();
      let count = 0;
      for (const e of graph.byShare) {
        if (!graph.shownLinks[e]) continue;
        if (++count > (this.moving ? MOST_MOVING : MOST_IDLE)) break;
        const path = graph.weight[e] < 0 ? negative : positive;
        path.moveTo(this.x(graph.source[e]), this.y(graph.source[e]));
        path.lineTo(this.x(graph.target[e]), this.y(graph.target[e]));
      }
      context.lineWidth = 0.7;
      context.globalAlpha = Math.max(0.05, Math.min(0.35, 60 / Math.sqrt(count * 20 + 1)));
      context.strokeStyle = this.blue;
      context.stroke(positive);
      context.strokeStyle = this.orange;
      context.stroke(negative);
    }
    context.restore();
  }

  line(context, e, alpha, width) {
    const { graph } = this, a = graph.source[e], b = graph.target[e];
    const x1 = this.x(a), y1 = this.y(a), x2 = this.x(b), y2 = this.y(b);
    context.globalAlpha = alpha;
    context.lineWidth = width;
    context.strokeStyle = graph.weight[e] < 0 ? this.orange : this.blue;
    context.beginPath();
    context.moveTo(x1, y1);
    context.bezierCurveTo(x1, y1 + (y2 - y1) * 0.45, x2, y2 - (y2 - y1) * 0.45, x2, y2);
    context.stroke();
    context.globalAlpha = 1;
  }

  grid(context) {
    const inner = this.width - LEFT - RIGHT, high = this.height - TOP - BOTTOM, n = this.layers.length;
    context.font = "11px system-ui, sans-serif";
    context.lineWidth = 1;
    const step = Math.max(1, Math.ceil(n * 14 / (high * this.view.zoom)));
    this.layers.forEach((layer, k) => {
      const y = this.height - BOTTOM - ((k / n) * this.view.zoom + this.view.y) * high;
      const y2 = y - high * this.view.zoom / n;
      if (y < 0 || y2 > this.height - BOTTOM) return;
      if (k % 2 === 0) { context.fillStyle = this.panel; context.fillRect(LEFT, y2, inner + RIGHT, Math.min(y, this.height - BOTTOM + 2) - y2); }
      if (k % step === 0 || k === n - 1) {
        context.fillStyle = this.soft;
        context.textAlign = "right";
        context.textBaseline = "middle";
        const name = layer < 0 ? "tokens" : k === n - 1 ? "output" : String(layer);
        context.fillText(name, LEFT - 8, Math.min((y + y2) / 2, this.height - BOTTOM - 4));
      }
    });
    context.strokeStyle = this.rule;
    context.textAlign = "center";
    context.textBaseline = "top";
    context.save();
    context.beginPath();
    context.rect(LEFT - 4, 0, inner + RIGHT + 4, this.height);
    context.clip();
    this.columns.forEach((column, j) => {
      const x1 = LEFT + (column.from * this.view.zoom + this.view.x) * inner, x2 = LEFT + (column.to * this.view.zoom + this.view.x) * inner;
      if (x2 < LEFT || x1 > this.width) return;
      context.beginPath();
      context.moveTo(Math.round(x2) + 0.5, 0);
      context.lineTo(Math.round(x2) + 0.5, this.height - BOTTOM + 2);
      context.stroke();
      if (x2 - x1 < 9) return;
      context.fillStyle = this.ink;
      context.save();
      context.beginPath();
      context.rect(x1 + 2, this.height - BOTTOM, x2 - x1 - 4, BOTTOM);
      context.clip();
      context.font = "12px ui-monospace, monospace";
      const token = this.graph.tokens[j].replace(/\n/g, "⏎").trim() || "␣";
      context.fillText(fitted(context, token, x2 - x1 - 2), (x1 + x2) / 2, this.height - BOTTOM + 8);
      context.restore();
    });
    context.restore();
  }

  drawNodes() {
    const context = this.context(this.above), { graph } = this;
    const near = this.clicked === null ? null : new Map();
    if (near) {
      for (const e of graph.into[this.clicked]) if (graph.shownLinks[e]) near.set(graph.source[e], graph.part(e));
      for (const e of graph.outOf[this.clicked]) if (graph.shownLinks[e]) near.set(graph.target[e], graph.part(e));
      near.set(this.clicked, 1);
    }
    context.save();
    context.beginPath();
    context.rect(LEFT, 0, this.width - LEFT, this.height - BOTTOM + 8);
    context.clip();
    if (this.moving && this.drawn.length > MOST_SHAPES) {
      this.squares(context, near);
      context.restore();
      return;
    }
    const looks = new Map(); // one path for each look: kind, near by sign or not, far
    for (const i of this.drawn) {
      const x = this.x(i), y = this.y(i);
      if (x < LEFT - 8 || x > this.width + 8 || y < -8 || y > this.height - BOTTOM + 8) continue;
      const part = near?.get(i), tone = !near ? 0 : i === this.clicked ? 1 : part !== undefined ? (part < 0 ? 2 : 3) : this.pinned.has(i) ? 1 : 4;
      const look = graph.kind[i] * 8 + tone;
      let path = looks.get(look);
      if (!path) looks.set(look, path = new Path2D());
      shape(path, SHAPES[graph.kindOf(i)], x, y, tone === 2 || tone === 3 ? Math.max(3.5, this.radius(i)) : this.radius(i));
    }
    for (const [look, path] of looks) {
      const kind = graph.kindNames[look >> 3], tone = look & 7;
      const hue = tone === 2 ? this.orange : tone === 3 ? this.blue : this.hues[kind];
      context.globalAlpha = tone === 4 ? 0.18 : kind === "error" && tone < 2 ? 0.5 : 0.85;
      if (["ring", "cross"].includes(SHAPES[kind])) { context.strokeStyle = hue; context.lineWidth = 1.4; context.stroke(path); }
      else { context.fillStyle = hue; context.fill(path); }
    }
    context.restore();
  }

  // Every node as a square, while a large graph moves: a fifth of the time that their shapes take.
  squares(context, near) {
    const { graph } = this;
    context.globalAlpha = near ? 0.3 : 0.85;
    for (const [kind, name] of graph.kindNames.entries()) {
      context.fillStyle = this.hues[name];
      for (const i of this.drawn) {
        if (graph.kind[i] !== kind) continue;
        const r = this.radius(i);
        context.fillRect(Math.round(this.x(i) - r), Math.round(this.y(i) - r), Math.ceil(2 * r), Math.ceil(2 * r));
      }
    }
    context.globalAlpha = 1;
  }

  drawMarks() {
    const context = this.context(this.marks);
    if (!this.ink) this.colours();
    const ring = (i, colour, width) => {
      if (i === null || !this.graph.shownNodes[i]) return;
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.beginPath();
      context.arc(this.x(i), this.y(i), this.radius(i) + 4, 0, 7);
      context.stroke();
    };
    for (const i of this.pinned) ring(i, this.green, 2);
    ring(this.clicked, this.ink, 2.5);
    ring(this.hovered, this.blue, 2);
  }

  // The shown node nearest to a point, within reach.
  nearest(x, y, reach = 14) {
    let best = null, least = reach * reach;
    for (const i of this.drawn) {
      const dx = this.x(i) - x, dy = this.y(i) - y, d = dx * dx + dy * dy;
      if (d < least) { least = d; best = i; }
    }
    return best;
  }

  // The nearest node in a direction, for the arrow keys.
  towards(from, key) {
    const [ux, uy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    let best = null, least = Infinity;
    for (const i of this.drawn) {
      const dx = this.x(i) - this.x(from), dy = this.y(i) - this.y(from), along = dx * ux + dy * uy, aside = Math.abs(dx * uy) + Math.abs(dy * ux);
      if (along <= 0.5) continue;
      const cost = along + 2.5 * aside;
      if (cost < least) { least = cost; best = i; }
    }
    return best;
  }

  zoomAt(factor, x, y) {
    this.moves();
    const inner = this.width - LEFT - RIGHT, high = this.height - TOP - BOTTOM;
    const u = (x - LEFT) / inner, w = (this.height - BOTTOM - y) / high;
    const zoom = Math.max(1, Math.min(40, this.view.zoom * factor)), change = zoom / this.view.zoom;
    this.view = { zoom, x: u - (u - this.view.x) * change, y: w - (w - this.view.y) * change };
    this.inside();
    this.draw();
  }

  // Fewer links until it has come to rest.
  moves() {
    this.moving = true;
    clearTimeout(this.rest);
    this.rest = setTimeout(() => { this.moving = false; this.draw(); }, 160);
  }

  inside() {
    const least = 1 - this.view.zoom;
    this.view.x = Math.max(least, Math.min(0, this.view.x));
    this.view.y = Math.max(least, Math.min(0, this.view.y));
  }

  whole() {
    this.view = { x: 0, y: 0, zoom: 1 };
    this.draw();
  }

  listen(choose) {
    let held = null, moved = false;
    this.above.addEventListener("pointerdown", event => { held = { x: event.clientX, y: event.clientY, view: { ...this.view } }; moved = false; this.above.setPointerCapture(event.pointerId); });
    this.above.addEventListener("pointermove", event => {
      if (held && event.buttons) {
        const dx = event.clientX - held.x, dy = event.clientY - held.y;
        if (Math.abs(dx) + Math.abs(dy) > 4) moved = true;
        if (moved) {
          this.moves();
          this.view.x = held.view.x + dx / (this.width - LEFT - RIGHT);
          this.view.y = held.view.y - dy / (this.height - TOP - BOTTOM);
          this.inside();
          this.draw();
        }
        return;
      }
      const found = this.nearest(event.offsetX, event.offsetY);
      if (found !== this.hovered) { this.hovered = found; this.remark(); this.hover(found, event.offsetX, event.offsetY); }
    });
    this.above.addEventListener("pointerup", event => {
      if (held && !moved) choose(this.nearest(event.offsetX, event.offsetY), event);
      held = null;
    });
    this.above.addEventListener("pointercancel", () => { held = null; });
    this.above.addEventListener("pointerleave", () => { this.hovered = null; this.remark(); this.hover(null); });
    this.above.addEventListener("wheel", event => {
      event.preventDefault();
      this.zoomAt(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY);
    }, { passive: false });
  }

  leave() {
    clearTimeout(this.rest);
    this.observer.disconnect();
  }
}

function canvas(place, name) {
  const element = document.createElement("canvas");
  element.className = name;
  place.append(element);
  return element;
}

// A text with its end left out where it is too wide.
function fitted(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = Math.min(text.length, 40);
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end--;
  return `${text.slice(0, end)}…`;
}

function shape(path, kind, x, y, r) {
  if (r < 2.2) path.rect(x - r * 0.9, y - r * 0.9, 1.8 * r, 1.8 * r); // no one sees the difference
  else if (kind === "diamond") { path.moveTo(x, y - r * 1.25); path.lineTo(x + r * 1.25, y); path.lineTo(x, y + r * 1.25); path.lineTo(x - r * 1.25, y); path.closePath(); }
  else if (kind === "square") path.rect(x - r, y - r, 2 * r, 2 * r);
  else if (kind === "triangle") { path.moveTo(x, y - r * 1.3); path.lineTo(x + r * 1.2, y + r); path.lineTo(x - r * 1.2, y + r); path.closePath(); }
  else if (kind === "cross") { path.moveTo(x - r, y); path.lineTo(x + r, y); path.moveTo(x, y - r); path.lineTo(x, y + r); }
  else { path.moveTo(x + r, y); path.arc(x, y, r, 0, 6.2832); }
}

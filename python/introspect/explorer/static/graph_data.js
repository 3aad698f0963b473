// A graph's numbers in the browser: what thresholds leave, neighbours, paths, groups. No drawing here.

export class Graph {
  constructor(data) {
    Object.assign(this, data.nodes);
    this.data = data;
    this.n = this.id.length;
    this.tokens = data.tokens;
    this.kindNames = data.kinds;
    this.place = new Map(this.id.map((id, i) => [id, i]));
    const { source, target, weight, share } = data.links;
    this.source = Int32Array.from(source);
    this.target = Int32Array.from(target);
    this.weight = Float64Array.from(weight);
    this.linkShare = Float32Array.from(share);
    this.links = this.source.length;
    this.into = lists(this.n, this.target);
    this.outOf = lists(this.n, this.source);
    this.total = new Float64Array(this.n); // sum of |weight| into each node
    for (let e = 0; e < this.links; e++) this.total[this.target[e]] += Math.abs(this.weight[e]);
    this.isFixed = this.kind.map(kind => ["token", "logit", "injection"].includes(this.kindNames[kind]));
    this.byShare = Array.from({ length: this.links }, (_, e) => e).sort((a, b) => this.linkShare[a] - this.linkShare[b]);
    this.shownNodes = new Uint8Array(this.n).fill(1);
    this.shownLinks = new Uint8Array(this.links).fill(1);
  }

  kindOf(i) { return this.kindNames[this.kind[i]]; }

  // What a link is of all that enters its target, signed.
  part(e) { return this.weight[e] / Math.max(this.total[this.target[e]], 1e-12); }

  name(i) {
    const output = /^Output "([^]*)" \(p=[\d.]+\)$/.exec(this.label[i]);
    if (output) return `says ${JSON.stringify(output[1])}`;
    const kind = this.kindOf(i), token = this.tokens[this.position[i]] ?? "";
    if (this.label[i] && kind !== "token") return this.label[i];
    if (kind === "token") return `token ${JSON.stringify(token)}`;
    if (kind === "error") return `error, layer ${this.layer[i]}, ${JSON.stringify(token)}`;
    if (kind.includes("feature") && this.feature[i] !== null) return `${kind} ${this.feature[i]}`;
    return this.id[i];
  }

  where(i) { return `${this.layer[i] < 0 ? "embedding" : `layer ${this.layer[i]}`}, ${JSON.stringify(this.tokens[this.position[i]] ?? "")} (${this.position[i]})`; }

  // Nodes whose cumulative influence is within `nodes`, links within `links`; tokens, logits and `kept` stay. Features
  // that then neither get nor give anything go too, until nothing changes; a threshold of 1 leaves every node.
  prune(nodes, links, kept = new Set()) {
    const shown = this.shownNodes, lines = this.shownLinks;
    for (let i = 0; i < this.n; i++) shown[i] = this.share[i] <= nodes || this.isFixed[i] || kept.has(i) ? 1 : 0;
    for (let e = 0; e < this.links; e++) lines[e] = this.linkShare[e] <= links && shown[this.source[e]] && shown[this.target[e]] ? 1 : 0;
    const ins = new Int32Array(this.n), outs = new Int32Array(this.n);
    for (let e = 0; e < this.links; e++) if (lines[e]) { outs[this.source[e]]++; ins[this.target[e]]++; }
    const queue = [];
    const useless = i => shown[i] && !this.isFixed[i] && !kept.has(i) && (outs[i] === 0 || (ins[i] === 0 && this.kindOf(i).includes("feature")));
    for (let i = 0; i < this.n; i++) if (nodes < 1 && useless(i)) queue.push(i);
    while (queue.length) {
      const i = queue.pop();
      if (!useless(i)) continue;
      shown[i] = 0;
      for (const e of this.into[i]) if (lines[e]) { lines[e] = 0; if (--outs[this.source[e]] === 0 && useless(this.source[e])) queue.push(this.source[e]); }
      for (const e of this.outOf[i]) if (lines[e]) { lines[e] = 0; if (--ins[this.target[e]] === 0 && useless(this.target[e])) queue.push(this.target[e]); }
    }
    let left = 0, lit = 0, weight = 0, all = 0;
    for (let i = 0; i < this.n; i++) { left += shown[i]; all += this.influence[i]; if (shown[i]) weight += this.influence[i]; }
    for (let e = 0; e < this.links; e++) lit += lines[e];
    return { nodes: left, links: lit, influence: all ? weight / all : 1 };
  }

  // Links into and out of a node that are shown, the largest first.
  neighbours(i, direction) {
    const list = direction === "in" ? this.into[i] : this.outOf[i];
    return [...list].filter(e => this.shownNodes[this.source[e]] && this.shownNodes[this.target[e]])
      .sort((a, b) => Math.abs(this.part(b)) - Math.abs(this.part(a)));
  }

  // The strongest paths between two nodes, by the product of each link's part of its target; best first.
  paths(from, to, most = 5) {
    const best = new Float64Array(this.n), order = this.order();
    best[to] = 1; // the largest product from a node to the end
    for (let k = order.length - 1; k >= 0; k--) {
      const i = order[k];
      for (const e of this.outOf[i]) if (this.shownLinks[e]) best[i] = Math.max(best[i], Math.abs(this.part(e)) * best[this.target[e]]);
      if (i === to) best[i] = 1;
    }
    if (!best[from]) return [];
    const found = [], open = [{ at: from, product: 1, sign: 1, links: [], bound: best[from] }];
    for (let steps = 0; open.length && found.length < most && steps < 20000; steps++) {
      let top = 0;
      for (let k = 1; k < open.length; k++) if (open[k].bound > open[top].bound) top = k;
      const path = open.splice(top, 1)[0];
      if (path.at === to) { found.push(path); continue; }
      for (const e of this.outOf[path.at]) {
        const next = this.target[e];
        if (!this.shownLinks[e] || !best[next]) continue;
        const product = path.product * Math.abs(this.part(e));
        open.push({ at: next, product, sign: path.sign * Math.sign(this.weight[e]), links: [...path.links, e], bound: product * best[next] });
      }
    }
    return found;
  }

  // Nodes so that every link leads forward.
  order() {
    if (!this.sorted) {
      const left = Int32Array.from(this.into, list => list.length), ready = [];
      for (let i = 0; i < this.n; i++) if (!left[i]) ready.push(i);
      for (let k = 0; k < ready.length; k++) for (const e of this.outOf[ready[k]]) if (--left[this.target[e]] === 0) ready.push(this.target[e]);
      this.sorted = ready;
    }
    return this.sorted;
  }
}

function lists(n, ends) {
  const count = new Int32Array(n + 1);
  for (const i of ends) count[i + 1]++;
  for (let i = 0; i < n; i++) count[i + 1] += count[i];
  const flat = new Int32Array(ends.length), next = count.slice(0, n);
  ends.forEach((i, e) => { flat[next[i]++] = e; });
  return Array.from({ length: n }, (_, i) => flat.subarray(count[i], count[i + 1]));
}

// Pinned nodes and groups as one small graph: {members, name} and links between them, each the sum of its parts.
export function subgraph(graph, pinned, groups) {
  const inGroup = new Map();
  const blocks = groups.map(group => ({ name: group.name, members: group.members.filter(i => i < graph.n), group: true }));
  blocks.forEach((block, b) => block.members.forEach(i => inGroup.set(i, b)));
  for (const i of pinned) if (!inGroup.has(i)) { inGroup.set(i, blocks.length); blocks.push({ name: graph.name(i), members: [i] }); }
  const sums = new Map();
  blocks.forEach((block, b) => {
    for (const i of block.members) for (const e of graph.into[i]) {
      const a = inGroup.get(graph.source[e]);
      if (a === undefined || a === b) continue;
      const key = `${a} ${b}`;
      sums.set(key, (sums.get(key) ?? 0) + graph.part(e) / block.members.length);
    }
  });
  const links = [...sums].map(([key, part]) => ({ source: Number(key.split(" ")[0]), target: Number(key.split(" ")[1]), part }));
  return { blocks: blocks.filter(block => block.members.length), links };
}

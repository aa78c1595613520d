// One cluster: its measures, weakest bridge, merge candidates, members as pictures or as a map.
"use strict";
const detail = {
  label: null,
  data: null,
  selected: null, // a place among the members
  order: [],
  grid: null,
  asMap: false,

  open() {
    this.scroller = document.getElementById("detail");
    marks.listeners.push(() => this.data && this.marked());
  },

  async show(label, row = null) {
    if (label === this.label && this.data) {
      if (row !== null) this.selectRow(row);
      return;
    }
    this.label = label;
    this.data = this.selected = null;
    clusterList.select(label);
    const data = await starfc.members(label);
    if (this.label !== label) return; // another was opened meanwhile
    this.data = data;
    this.asMap = !starfc.index.thumbs && Boolean(data.xy);
    this.pieces = new Set(data.piece ?? []);
    this.build();
    this.scroller.scrollTop = 0;
    if (row !== null) this.selectRow(row);
    document.title = `${starfc.title(label)}: review`;
  },

  close() {
    this.label = this.data = this.selected = null;
    this.grid?.close();
    this.grid = null;
    fill(this.scroller, h("p", { class: "empty" }, "Choose a cluster, or press j."));
  },

  get size() {
    return starfc.clusters.size[this.label];
  },

  build() {
    const { clusters } = starfc;
    const { label, size } = this;
    const value = (name) => clusters[name][label] / 1000;
    this.wrongButton = toggleButton("This cluster is wrong", false, () => this.markCluster(), "w");
    this.bar = h("div", { class: "selection", role: "status" });
    this.body = h("div", { class: "members" });
    this.mapPlace = h("div", { class: "map-place" });
    const measures = [["suspicion", fixed(value("suspicion"))], ["cohesion", fixed(value("cohesion"), 3)], ["density", fixed(value("density"), 3)], ["kept edges", whole(clusters.edges[label])]];
    if (clusters.strangers) measures.unshift(["expected strangers", `${Math.round(value("strangers") * 100)} %`]);
    fill(this.scroller,
      h("div", { class: "detail-head" },
        h("a", { class: "back", href: "#/clusters" }, "← List"),
        h("h2", {}, starfc.title(label), h("span", { class: "soft" }, ` ${plural(size, "instance")}`)),
        h("div", { class: "buttons" },
          h("button", { type: "button", onclick: () => app.step(-1), title: "k" }, "Previous"),
          h("button", { type: "button", onclick: () => app.step(1), title: "j" }, "Next"),
          server.on ? h("button", { type: "button", onclick: () => this.rename(), title: "a" }, "Name") : null,
          this.wrongButton)),
      label >= starfc.index.numbered ? h("p", { class: "note" }, "This run left clusters of its size out: its label there is -1.") : null,
      h("dl", { class: "measures" }, measures.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text)))),
      h("div", { class: "panels" }, h("div", { class: "stack" }, this.bridge(), this.extremes()), h("div", { class: "stack" }, this.mapPlace, this.merges())),
      this.memberHead(),
      this.body,
      this.bar,
    );
    this.sortMembers();
    this.marked();
  },

  bridge() {
    const cut = starfc.clusters.cuts[this.label];
    if (this.size < 2) return null;
    const title = h("h3", {}, "Weakest bridge");
    if (!cut) return h("section", { class: "panel" }, title, h("p", { class: "note" }, "No cut of one or two edges separates this cluster."));
    this.splitButton = toggleButton("Split here", false, () => this.markSplit(), "s");
    const rest = this.size - cut.piece;
    const text = cut.edges.length === 1 ? "Without this edge" : "Without these two edges";
    return h("section", { class: "panel" }, title,
      cut.edges.map((edge) => edgePair(edge)),
      h("p", { class: "note" }, `${text} the cluster falls into ${whole(cut.piece)} and ${whole(rest)}.`),
      h("div", { class: "buttons" }, this.splitButton));
  },

  // The most typical member beside the least confident ones.
  extremes() {
    const { rows, confidence } = this.data;
    if (rows.length < 3) return null;
    const least = rows.map((_, at) => at).slice(1).sort((a, b) => confidence[a] - confidence[b] || rows[a] - rows[b]).slice(0, 5);
    const sample = (at) => h("li", {}, h("button", { type: "button", class: "tile", "aria-label": `Select row ${rows[at]}, confidence ${fixed(confidence[at] / 1000)}`, onclick: () => this.selectRow(rows[at]) },
      thumbnail(starfc.placeOf(this.label, at, this.data), 56), h("span", { class: "tile-text" }, String(rows[at])), h("span", { class: "soft" }, fixed(confidence[at] / 1000))));
    return h("section", { class: "panel extremes" },
      h("div", {}, h("h3", {}, "Medoid"), h("ul", {}, sample(0))),
      h("div", {}, h("h3", {}, "Least confident"), h("ul", {}, least.map(sample))));
  },

  merges() {
    this.mergeButtons = [];
    if (!this.data.merges.length) return null;
    return h("section", { class: "panel" }, h("h3", {}, "Might be the same as"),
      h("ul", { class: "merge-rows" }, this.data.merges.map((merge) => {
        const [here, there] = merge.a[2] === this.label ? [merge.a, merge.b] : [merge.b, merge.a];
        const buttons = mergeButtons(merge);
        this.mergeButtons.push(buttons);
        return h("li", {}, h("div", { class: starfc.index.thumbs ? "pair tight" : "pair tight plain" }, instanceCard(here, 44), instanceCard(there, 44)),
          h("div", {}, h("a", { href: `#/cluster/${there[2]}` }, starfc.title(there[2])), h("span", { class: "soft" }, `, ${plural(starfc.clusters.size[there[2]], "instance")}`), h("p", { class: "note" }, missed(merge)), buttons.element));
      })));
  },

  memberHead() {
    const sort = h("select", { onchange: () => this.sortMembers() },
      this.data.typical ? h("option", { value: "typical" }, "most typical first") : null,
      h("option", { value: "doubtful" }, "least confident first"),
      h("option", { value: "row" }, "by row"));
    this.sortSelect = sort;
    const which = h("select", { onchange: () => this.sortMembers() },
      h("option", { value: "all" }, "all"), h("option", { value: "piece" }, "the smaller piece"), h("option", { value: "rest" }, "the larger piece"));
    this.whichSelect = which;
    const mapButton = toggleButton("Map", this.asMap, () => {
      this.asMap = !this.asMap;
      mapButton.setAttribute("aria-pressed", String(this.asMap));
      this.drawMembers();
    });
    return h("div", { class: "member-head" }, h("h3", {}, "Members"),
      h("label", {}, "Order ", sort),
      this.pieces.size ? h("label", {}, "Show ", which) : null,
      this.data.xy ? mapButton : null,
      this.pieces.size ? h("span", {}, h("span", { class: "dot" }), " the smaller piece") : null);
  },

  sortMembers() {
    const { rows, confidence } = this.data;
    const which = this.whichSelect.value;
    const order = [];
    for (let at = 0; at < rows.length; at++) if (which === "all" || this.pieces.has(at) === (which === "piece")) order.push(at);
    if (this.sortSelect.value === "doubtful") order.sort((a, b) => confidence[a] - confidence[b] || rows[a] - rows[b]);
    if (this.sortSelect.value === "row") order.sort((a, b) => rows[a] - rows[b]);
    this.order = order;
    this.drawMembers();
  },

  drawMembers() {
    this.grid?.close();
    const side = starfc.index.thumbs ? Math.max(72, starfc.index.thumbs.tile) : 0;
    const across = side ? side + 12 : 150;
    const grid = new VirtualList(this.scroller, {
      height: () => (side ? side + 24 : 34),
      columns: () => Math.floor(this.body.clientWidth / across) || 1,
      render: (at) => this.tile(this.order[at], side),
      label: "Members",
    });
    grid.body.classList.add("grid");
    this.grid = grid;
    fill(this.mapPlace, this.asMap ? this.map() : null);
    fill(this.body, grid.body);
    grid.set(this.order.length);
  },

  tile(at, side) {
    const { rows, confidence, names } = this.data;
    const row = rows[at];
    const wrong = marks.has(`instance ${row}`);
    const text = `row ${row}${names ? `, ${names[at]}` : ""}, confidence ${fixed(confidence[at] / 1000)}${wrong ? ", marked wrong" : ""}`;
    const classes = ["tile", wrong ? "wrong" : "", this.pieces.has(at) ? "piece" : ""].join(" ");
    return h("li", {}, h("button", { type: "button", class: classes, "aria-pressed": String(at === this.selected), "aria-label": text, title: text, onclick: () => this.select(at) },
      side ? thumbnail(starfc.placeOf(this.label, at, this.data), side) : null,
      h("span", { class: "tile-text" }, String(row), side ? null : h("span", { class: "soft" }, fixed(confidence[at] / 1000)))));
  },

  selectRow(row) {
    const at = this.data.rows.indexOf(row);
    if (at < 0) return;
    this.select(at);
    const place = this.order.indexOf(at);
    if (place >= 0) this.grid.show(place);
  },

  select(at) {
    this.selected = at;
    this.grid.refresh();
    this.selection();
    if (this.asMap) this.drawMap();
  },

  move(step) {
    const place = this.selected === null ? -1 : this.order.indexOf(this.selected);
    const next = this.order[Math.max(0, Math.min(this.order.length - 1, place + step))];
    if (next === undefined) return;
    this.select(next);
    this.grid.show(this.order.indexOf(next));
  },

  selection() {
    if (this.selected === null) return fill(this.bar);
    const { rows, confidence, typical, names } = this.data;
    const at = this.selected;
    const row = rows[at];
    const facts = [`confidence ${fixed(confidence[at] / 1000)}`, typical ? `similarity to the mean ${fixed(typical[at] / 1000)}` : null, at === 0 ? "the most typical" : null, this.pieces.has(at) ? "in the smaller piece" : null];
    return fill(this.bar,
      thumbnail(starfc.placeOf(this.label, at, this.data), 44),
      h("div", {}, h("b", {}, `row ${row}`), names ? ` ${names[at]}` : "", h("div", { class: "soft" }, facts.filter(Boolean).join(" · "))),
      this.picture() ? h("a", { id: "picture", href: this.picture(), target: "_blank", rel: "noopener", title: "Open the picture (f)" }, "Open the picture") : null,
      toggleButton("This is wrong", marks.has(`instance ${row}`), () => this.markInstance(), "x"));
  },

  // Where the picture of the selected instance is; null if that is not known.
  picture() {
    const file = this.data?.files?.[this.selected];
    return file ? `${starfc.index.originals}/${file}` : null;
  },

  openPicture() {
    document.getElementById("picture")?.click();
  },

  // Every drawn member at its two principal components; the smaller piece in colour, the weakest bridge as a line.
  map() {
    this.canvas = h("canvas", { class: "map", role: "img", "aria-label": `The members by their two principal components; the list below has the same ${plural(this.size, "instance")}.` });
    this.canvas.addEventListener("click", (event) => this.pick(event));
    const drawn = this.data.drawn?.length ?? this.data.rows.length;
    requestAnimationFrame(() => this.drawMap());
    return h("figure", { class: "map-box" }, this.canvas,
      h("figcaption", { class: "note" }, drawn < this.size ? `${whole(drawn)} of ${plural(this.size, "member")} by two principal components. ` : "Members by two principal components. ", this.pieces.size ? "The line is the weakest bridge." : null));
  },

  // Both axes have one scale, the larger that all points fit with.
  point(at, width, height) {
    const { xy } = this.data;
    const scale = Math.min((width - 24) / 999, (height - 24) / this.highest);
    return [(width - 999 * scale) / 2 + scale * xy[2 * at], (height - this.highest * scale) / 2 + scale * xy[2 * at + 1]];
  },

  drawMap() {
    const { canvas, data } = this;
    if (!canvas?.isConnected) return;
    const { clientWidth: width, clientHeight: height } = canvas;
    const scale = window.devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const places = data.drawn ?? data.rows.map((_, at) => at);
    this.highest = places.reduce((most, _, at) => Math.max(most, data.xy[2 * at + 1]), 1);
    const where = new Map(places.map((at, drawn) => [at, drawn]));
    const radius = places.length > 500 ? 2 : 3.5;
    places.forEach((at, drawn) => {
      const [x, y] = this.point(drawn, width, height);
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      context.globalAlpha = places.length > 500 ? 0.6 : 0.8;
      context.fillStyle = marks.has(`instance ${data.rows[at]}`) ? colour("--bad") : this.pieces.has(at) ? colour("--warm") : colour("--accent");
      context.fill();
    });
    context.globalAlpha = 1;
    context.strokeStyle = colour("--text");
    context.lineWidth = 1.5;
    for (const { a, b } of starfc.clusters.cuts[this.label]?.edges ?? []) {
      const ends = [a[0], b[0]].map((row) => where.get(data.rows.indexOf(row)));
      if (ends.includes(undefined)) continue;
      context.beginPath();
      context.moveTo(...this.point(ends[0], width, height));
      context.lineTo(...this.point(ends[1], width, height));
      context.stroke();
    }
    if (where.has(this.selected)) {
      context.beginPath();
      context.arc(...this.point(where.get(this.selected), width, height), radius + 4, 0, 7);
      context.stroke();
    }
  },

  pick(event) {
    const { canvas, data } = this;
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const places = data.drawn ?? data.rows.map((_, at) => at);
    let [best, nearest] = [null, 20 ** 2];
    places.forEach((at, drawn) => {
      const [px, py] = this.point(drawn, canvas.clientWidth, canvas.clientHeight);
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < nearest) [best, nearest] = [at, far];
    });
    if (best !== null) this.select(best);
  },

  // Bring buttons and tiles up to date with the marks.
  marked() {
    this.wrongButton.setAttribute("aria-pressed", String(marks.has(`cluster ${this.label}`)));
    if (starfc.clusters.cuts[this.label]) this.splitButton?.setAttribute("aria-pressed", String(marks.has(`split ${this.label}`)));
    for (const buttons of this.mergeButtons) buttons.update();
    this.grid?.refresh();
    this.selection();
    if (this.asMap) this.drawMap();
  },

  markInstance() {
    if (!this.data || this.selected === null) return;
    const { rows } = this.data;
    const other = rows.length < 2 ? null : rows[this.selected === 0 ? 1 : 0];
    const set = marks.instance(rows[this.selected], other, this.label);
    announce(`row ${rows[this.selected]} ${set ? "marked wrong" : "no longer marked"}`);
  },

  // A name for the cluster, in place of its title; only a server can keep it.
  rename() {
    if (!this.data || !server.on) return;
    const { label } = this;
    const field = h("input", { id: "cluster-name", maxlength: "200", value: starfc.clusters.called[label] ?? "", autocomplete: "off" });
    const form = h("form", { class: "naming", onsubmit: (event) => {
      event.preventDefault();
      server.name(label, field.value.trim() || null)
        .then(() => announce(`named: ${starfc.title(label)}`), (error) => server.failed(error))
        .finally(() => this.label === label && this.data && this.build());
    } }, h("label", {}, `Name of cluster ${label} `, field), h("button", { class: "primary" }, "Save"), h("button", { type: "button", onclick: () => this.build() }, "Cancel"));
    this.scroller.querySelector("h2").replaceWith(form);
    field.focus();
  },

  markCluster() {
    if (!this.data) return;
    const set = marks.cluster(this.label, this.size, this.data.rows[0]);
    announce(`cluster ${this.label} ${set ? "marked wrong" : "no longer marked"}`);
  },

  markSplit() {
    const cut = this.data && starfc.clusters.cuts[this.label];
    if (!cut) return;
    const set = marks.split(this.label, cut.edges.map(({ a, b }) => [a[0], b[0]]));
    announce(`cluster ${this.label} ${set ? "to be split" : "no longer to be split"}`);
  },
};

// The two ends of an edge side by side, with what is known of it between them.
function edgePair({ a, b, p, intimacy, similarity }) {
  const facts = [["p", p], ["intimacy", intimacy], ["similarity", similarity]].filter(([, value]) => value !== null);
  return h("div", { class: starfc.index.thumbs ? "pair" : "pair plain" }, instanceCard(a, 88),
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, fixed(value, 3))))),
    instanceCard(b, 88));
}

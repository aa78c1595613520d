// The list of clusters: sorted, filtered, virtual.
"use strict";
const clusterList = {
  order: [],
  place: new Map(),

  open() {
    this.list = new VirtualList(document.getElementById("cluster-list"), { height: () => 60, render: (at) => this.item(this.order[at]), label: "Clusters" });
    this.list.scroller.append(this.list.body);
    for (const id of ["sort", "show", "smallest"]) document.getElementById(id).addEventListener("change", () => this.sort());
    marks.listeners.push(() => this.list.refresh());
    this.sort();
  },

  sort() {
    const { size, suspicion, cohesion, cuts, strangers = suspicion } = starfc.clusters;
    const smallest = Number(document.getElementById("smallest").value) || 1;
    const show = document.getElementById("show").value;
    const keep = {
      all: () => true,
      cut: (label) => suspicion[label] > 0 && label in cuts,
      marked: (label) => marks.has(`cluster ${label}`) || marks.has(`split ${label}`),
    }[show];
    const order = [];
    for (let label = 0; label < size.length; label++) if (size[label] >= smallest && keep(label)) order.push(label);
    const by = {
      doubtful: (a, b) => strangers[b] - strangers[a] || suspicion[b] - suspicion[a] || cohesion[a] - cohesion[b] || a - b,
      cohesion: (a, b) => cohesion[a] - cohesion[b] || a - b,
      size: (a, b) => size[b] - size[a] || a - b,
      small: (a, b) => size[a] - size[b] || a - b,
    }[document.getElementById("sort").value];
    this.order = order.sort(by);
    this.place = new Map(this.order.map((label, at) => [label, at]));
    document.getElementById("list-count").textContent = `${whole(order.length)} of ${plural(starfc.index.clusters, "cluster")}`;
    this.list.scroller.scrollTop = 0;
    this.list.set(this.order.length);
  },

  item(label) {
    const { size, suspicion, cohesion, name, cuts, called, strangers } = starfc.clusters;
    const [measure, score] = strangers ? ["expected share of strangers", strangers[label]] : ["suspicion", suspicion[label]];
    const cut = cuts[label];
    const marked = marks.has(`cluster ${label}`) ? "wrong" : marks.has(`split ${label}`) ? "split" : null;
    const note = suspicion[label] > 0 ? `${plural(cut.edges.length, "edge holds", "edges hold")} ${whole(cut.piece)} of ${whole(size[label])}` : `cohesion ${fixed(cohesion[label] / 1000)}`;
    return h("li", { "aria-posinset": this.place.get(label) + 1, "aria-setsize": this.order.length },
      h("a", { class: "entry", href: `#/cluster/${label}`, "aria-current": label === detail.label ? "true" : null },
        thumbnail(starfc.placeOf(label, 0), 44),
        h("span", { class: "entry-text" },
          h("span", { class: "entry-title" }, h("b", {}, `#${label}`), ` ${whole(size[label])}`, called[label] ? h("span", { class: "called" }, called[label]) : name?.[label] ? h("span", { class: "name" }, name[label]) : null, marked ? h("span", { class: "tag" }, marked) : null),
          h("span", { class: "entry-note" }, note)),
        score > 0 ? h("span", { class: "entry-score" }, fixed(score / 1000), meter(measure, score / 1000, "warm")) : null));
  },

  select(label) {
    const at = this.place.get(label);
    if (at !== undefined) this.list.show(at);
    this.list.refresh();
  },

  // The label `step` places from the one shown.
  beside(step) {
    if (!this.order.length) return null;
    const at = this.place.get(detail.label);
    if (at === undefined) return this.order[0];
    return this.order[Math.max(0, Math.min(this.order.length - 1, at + step))];
  },
};

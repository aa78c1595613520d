// Merge candidates: pairs of clusters that an edge would join.
"use strict";

function missed({ count, p, intimacy, margin }) {
  const edges = plural(count, "edge");
  if (starfc.index.rule.communities) return `${edges} between the communities, best p ${fixed(p, 3)}`;
  return `${edges} failed, the best by ${fixed(-margin, 3)} (intimacy ${fixed(intimacy, 3)}, p ${fixed(p, 3)})`;
}

// "Same" and "Different" for a candidate; update() follows the marks.
function mergeButtons({ a, b }) {
  const key = marks.pairKey(a[0], b[0]);
  const set = (type) => {
    const stands = marks.pair(type, a[0], b[0], [a[2], b[2]]);
    announce(`rows ${a[0]} and ${b[0]} ${stands ? `marked as ${type}` : "no longer marked"}`);
  };
  const same = toggleButton("Same person", false, () => set("same"), "y");
  const different = toggleButton("Different", false, () => set("different"), "n");
  const update = () => {
    const type = marks.standing.get(key)?.type;
    same.setAttribute("aria-pressed", String(type === "same"));
    different.setAttribute("aria-pressed", String(type === "different"));
  };
  update();
  return { element: h("div", { class: "buttons" }, same, different), update, set };
}

const mergeList = {
  all: null,
  shown: [],
  current: -1,

  open() {
    const scroller = document.getElementById("merge-list");
    const narrow = window.matchMedia("(max-width: 700px)");
    this.list = new VirtualList(scroller, { height: () => (narrow.matches ? 232 : 112), columns: () => Math.floor(scroller.clientWidth / 620), render: (at) => this.item(at), label: "Merge candidates" });
    scroller.append(this.list.body);
    document.getElementById("merge-size").addEventListener("change", () => this.filter());
    marks.listeners.push(() => this.list.refresh());
  },

  async show() {
    if (!this.all) {
      this.all = await starfc.load("merges");
      this.filter();
    }
    this.list.refresh();
  },

  filter() {
    const { size } = starfc.clusters;
    const smallest = Number(document.getElementById("merge-size").value) || 1;
    this.shown = this.all.filter(({ a, b }) => size[a[2]] >= smallest && size[b[2]] >= smallest);
    this.current = -1;
    const listed = this.all.length < starfc.index.merges ? ` (the nearest ${whole(this.all.length)} are listed)` : "";
    document.getElementById("merge-count").textContent = `${whole(this.shown.length)} of ${plural(starfc.index.merges, "candidate")}${listed}`;
    this.list.scroller.scrollTop = 0;
    this.list.set(this.shown.length);
  },

  item(at) {
    const merge = this.shown[at];
    const { size } = starfc.clusters;
    const link = (end) => h("a", { href: `#/cluster/${end[2]}` }, starfc.title(end[2]), h("span", { class: "soft" }, ` (${whole(size[end[2]])})`));
    return h("li", { class: "merge", "aria-current": at === this.current ? "true" : null, "aria-posinset": at + 1, "aria-setsize": this.shown.length },
      h("div", { class: "pair tight" }, instanceCard(merge.a, 64), instanceCard(merge.b, 64)),
      h("div", { class: "merge-text" }, h("p", {}, link(merge.a), " and ", link(merge.b)), h("p", { class: "note" }, missed(merge), merge.similarity === null ? null : `, similarity ${fixed(merge.similarity, 3)}`), mergeButtons(merge).element));
  },

  move(step) {
    this.current = Math.max(0, Math.min(this.shown.length - 1, this.current + step));
    this.list.refresh();
    this.list.show(this.current);
  },

  mark(type) {
    const merge = this.shown[this.current];
    if (merge) mergeButtons(merge).set(type);
  },
};

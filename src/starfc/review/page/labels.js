// Labels of the data that the graph contradicts; there only if the report was written with labels.
"use strict";
const labelList = {
  all: null,
  shown: [],
  current: -1,
  titles: { label: "doubtful labels", outlier: "outliers", "one identity": "identities that may be one", "two identities": "identities that may be two", "near-duplicate": "near-duplicates" },

  open() {
    const { issues } = starfc.index;
    document.getElementById("labels-link").hidden = !issues;
    if (!issues) return;
    const scroller = document.getElementById("label-list");
    const narrow = window.matchMedia("(max-width: 700px)");
    this.list = new VirtualList(scroller, { height: () => (narrow.matches ? 232 : 112), columns: () => Math.floor(scroller.clientWidth / 620), render: (at) => this.item(at), label: "Labels" });
    scroller.append(this.list.body);
    const kinds = document.getElementById("label-kind");
    fill(kinds, Object.entries(this.titles).map(([kind, title]) => h("option", { value: kind }, `${title} (${whole(issues.found[kind])})`)));
    kinds.addEventListener("change", () => this.filter());
    marks.listeners.push(() => this.list.refresh());
  },

  async show() {
    if (!this.all) {
      this.all = await starfc.load("issues");
      this.filter();
    }
    this.list.refresh();
  },

  filter() {
    const kind = document.getElementById("label-kind").value;
    const { expected, found } = starfc.index.issues;
    this.shown = this.all.filter((issue) => issue.kind === kind);
    this.current = -1;
    const listed = this.shown.length < found[kind] ? ` (the first ${whole(this.shown.length)} are listed)` : "";
    const about = kind === "label" ? `, about ${whole(expected)} labels are expected to be wrong` : "";
    document.getElementById("label-count").textContent = `${whole(found[kind])} ${this.titles[kind]}${listed}${about}`;
    this.list.scroller.scrollTop = 0;
    this.list.set(this.shown.length);
  },

  said({ kind, label, other, count }) {
    return {
      label: `Labelled ${label}; its neighbours have label ${other}.`,
      outlier: `Labelled ${label}; it has few edges to any instance.`,
      "one identity": `Labels ${label} and ${other} may be one identity; the smaller has ${plural(count, "instance")}.`,
      "two identities": `Label ${label} may be two identities; the second has ${plural(count, "instance")}.`,
      "near-duplicate": label === other ? `Almost equal; both have label ${label}.` : `Almost equal, but labelled ${label} and ${other}.`,
    }[kind];
  },

  item(at) {
    const issue = this.shown[at];
    const cards = [issue.a, issue.b].filter((end) => end !== null).map((end) => instanceCard(end, 64));
    return h("li", { class: "merge", "aria-current": at === this.current ? "true" : null, "aria-posinset": at + 1, "aria-setsize": this.shown.length },
      h("div", { class: "pair tight" }, cards),
      h("div", { class: "merge-text" },
        h("p", {}, this.said(issue)),
        h("p", { class: "note" }, issue.kind === "label" ? `probability ${fixed(issue.score)} that the label is wrong` : `score ${fixed(issue.score)}`),
        issue.b === null ? null : mergeButtons(issue).element));
  },

  move(step) {
    this.current = Math.max(0, Math.min(this.shown.length - 1, this.current + step));
    this.list.refresh();
    this.list.show(this.current);
  },

  mark(type) {
    const issue = this.shown[this.current];
    if (issue && issue.b !== null) mergeButtons(issue).set(type);
  },
};

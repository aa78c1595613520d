// The first view: counts, sizes, what the thresholds kept, metrics, warnings.
"use strict";
const overview = {
  show(place) {
    const { index } = starfc;
    fill(place,
      h("h2", { class: "hidden" }, "Overview"),
      this.warnings(index),
      this.figures(index),
      h("div", { class: "cards" }, this.sizes(index), h("div", { class: "stack" }, this.stages(index), this.metrics(index)), this.run(index), this.surface(index)),
    );
  },

  warnings({ warnings }) {
    return warnings.length ? h("ul", { class: "warnings", "aria-label": "Warnings" }, warnings.map((text) => h("li", {}, text))) : null;
  },

  figures(index) {
    const figure = (value, text, href) => h("li", {}, h("b", {}, whole(value)), " ", href ? h("a", { href }, text) : h("span", {}, text));
    return h("ul", { class: "figures" },
      figure(index.instances, "instances"),
      figure(index.clusters, "clusters", "#/clusters"),
      figure(index.singletons, "of one instance"),
      figure(index.doubtful, "hang on one or two edges", "#/clusters"),
      figure(index.merges, "merge candidates", "#/merges"));
  },

  card(title, ...content) {
    return h("section", { class: "card" }, h("h3", {}, title), ...content);
  },

  // Rows of [label, value, text, kind] as a table with bars.
  bars(heads, rows) {
    const most = Math.max(...rows.map((row) => row[1]), 1);
    return h("table", { class: "bars" },
      h("thead", {}, h("tr", {}, heads.map((head, at) => h("th", { scope: "col", class: at ? "number" : null }, head)), h("td", {}))),
      h("tbody", {}, rows.map(([label, value, ...cells]) => {
        const bar = h("span", { class: "bar-fill" });
        bar.style.width = `${(100 * value) / most}%`;
        return h("tr", {}, h("th", { scope: "row" }, label), [whole(value), ...cells].map((cell) => h("td", { class: "number" }, cell)), h("td", { class: "bar-cell", "aria-hidden": "true" }, bar));
      })));
  },

  sizes({ sizes }) {
    const rows = sizes.map(({ low, high, clusters, instances }) => [low === high ? whole(low) : `${whole(low)}–${whole(high)}`, instances, whole(clusters)]);
    return this.card("Cluster sizes", this.bars(["size", "instances", "clusters"], rows));
  },

  stages({ stages, edges, rule }) {
    const second = rule.communities ? `within ${rule.partition} communities` : rule.refinement === "dynamic" ? `intimacy > dynamic, ${rule.tau2}` : `intimacy > ${rule.tau2}`;
    const rows = stages
      ? [["candidates", stages.candidates, ""], [`p > ${rule.tau1}`, stages.parsed.edges, percent(stages.parsed.share)], [second, stages.refined.edges, percent(stages.refined.share)]]
      : [[`p > ${rule.tau1}`, edges.parsed, ""], [second, edges.kept, percent(edges.kept / Math.max(1, edges.parsed))]];
    return this.card("Edges kept", this.bars(["stage", "edges", "share"], rows));
  },

  metrics({ metrics }) {
    if (!Object.keys(metrics).length) return null;
    const cells = (value) => (typeof value === "number" ? ["", "", value] : [value.precision, value.recall, value.fscore]);
    return this.card("Agreement with the labels",
      h("table", { class: "plain" },
        h("thead", {}, h("tr", {}, ["metric", "precision", "recall", "F"].map((head, at) => h("th", { scope: "col", class: at ? "number" : null }, head)))),
        h("tbody", {}, Object.entries(metrics).map(([name, value]) =>
          h("tr", {}, h("th", { scope: "row" }, name), cells(value).map((cell) => h("td", { class: "number" }, cell === "" ? "" : (100 * cell).toFixed(2))))))));
  },

  run({ run, rule }) {
    if (!run) return null;
    const rows = [["features", run.features], ["model", run.model], ["neighbours", run.k], ["thresholds", `tau1 ${rule.tau1}, tau2 ${rule.tau2}`], ["clusters by", rule.communities ? rule.partition : `${rule.refinement} refinement`], ["started", run.started], ["took", `${run.seconds} s`], ...(run.changed ? [["changed since", run.changed]] : [])];
    return this.card("Run", h("dl", {}, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])));
  },

  surface({ surface, rule }) {
    if (!surface) return null;
    const values = surface.rows.flat().filter((value) => value !== null);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const near = (list, value) => list.reduce((best, x) => (Math.abs(x - value) < Math.abs(best - value) ? x : best));
    const chosen = [near(surface.tau1, rule.tau1), near(surface.tau2, rule.tau2)];
    const cell = (value, tau1, tau2) => {
      const element = h("td", { class: tau1 === chosen[0] && tau2 === chosen[1] ? "chosen" : null }, value === null ? "" : high <= 1 ? (100 * value).toFixed(0) : whole(value));
      if (value !== null) element.style.setProperty("--share", `${Math.round(55 * ((value - low) / Math.max(high - low, 1e-9)) ** 6)}%`);
      return element;
    };
    const title = { fscore: "pairwise F, %", largest_share: "share of the largest component, %", num_clusters: "clusters" }[surface.value];
    const table = h("table", { class: "surface" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "τ1 \\ τ2"), surface.tau2.map((tau2) => h("th", { scope: "col" }, tau2)))),
      h("tbody", {}, surface.rows.map((row, at) => h("tr", {}, h("th", { scope: "row" }, surface.tau1[at]), row.map((value, column) => cell(value, surface.tau1[at], surface.tau2[column]))))));
    const section = this.card(`Thresholds: ${title}`, h("div", { class: "scroll-x", tabindex: "0", role: "region", "aria-label": "Threshold surface" }, table), h("p", { class: "note" }, "Framed: the pair nearest to this run's."));
    section.classList.add("wide");
    return section;
  },
};

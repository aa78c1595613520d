// Views, search, keys, theme: what holds the page together.
"use strict";
const app = {
  view: null,

  async start() {
    this.theme();
    try {
      await starfc.open();
    } catch (error) {
      fill(document.getElementById("main"), h("p", { class: "page" }, error.message));
      return;
    }
    document.getElementById("title").textContent = starfc.index.title;
    document.getElementById("questions-link").hidden = !questions.there;
    marks.open();
    server.open();
    questions.open();
    clusterList.open();
    detail.open();
    mergeList.open();
    labelList.open();
    marks.listeners.push(() => this.marked());
    this.marked();
    this.controls();
    window.addEventListener("hashchange", () => this.route());
    this.route();
    document.documentElement.dataset.ready = "true";
  },

  route() {
    const [, view, ...rest] = location.hash.split("/");
    const label = Number(rest[0]);
    const known = view === "cluster" && rest[0] !== undefined && starfc.clusters.size[label] > 0;
    const views = [...(questions.there ? ["questions"] : []), "overview", "clusters", "merges", ...(starfc.index.issues ? ["labels"] : []), "marks"];
    const name = known ? "clusters" : views.includes(view) ? view : views[0];
    if (server.stale && name !== "questions" && this.view === "questions") return server.renew();
    for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== `view-${name}`;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.dataset.view === name) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    this.view = name;
    document.body.classList.toggle("opened", known);
    document.title = `${starfc.index.title}: review`;
    document.getElementById("search-results").hidden = true;
    if (name === "questions") questions.show().catch((error) => server.failed(error));
    if (name === "overview") overview.show(document.getElementById("view-overview"));
    if (name === "marks") this.showMarks();
    if (name === "labels") labelList.show().catch((error) => announce(error.message));
    if (name === "merges") mergeList.show().catch((error) => announce(error.message));
    if (known) {
      clusterList.list.draw();
      detail.show(label, rest[1] === undefined ? null : Number(rest[1])).catch((error) => this.failed(error));
    } else if (name === "clusters") {
      detail.close();
      clusterList.list.refresh();
    }
  },

  failed(error) {
    fill(detail.scroller, h("p", { class: "empty" }, error.message));
  },

  step(by) {
    const label = clusterList.beside(by);
    if (label !== null) location.hash = `#/cluster/${label}`;
  },

  // ---- theme

  theme() {
    let chosen = null;
    try {
      chosen = localStorage.getItem("starfc-theme");
    } catch {
      // no storage: as the system has it
    }
    if (chosen) document.documentElement.dataset.theme = chosen;
  },

  switchTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try {
      localStorage.setItem("starfc-theme", root.dataset.theme);
    } catch {
      // lasts as long as the page
    }
    if (detail.asMap) detail.drawMap();
  },

  // ---- search

  async search(text) {
    const { index, clusters } = starfc;
    const results = document.getElementById("search-results");
    const tell = (...content) => {
      fill(results, content);
      results.hidden = false;
    };
    const wanted = text.trim();
    if (!wanted) {
      results.hidden = true;
      return;
    }
    const label = /^#\s*(\d+)$/.exec(wanted);
    if (label) {
      if (clusters.size[Number(label[1])] > 0) location.hash = `#/cluster/${Number(label[1])}`;
      else tell(h("p", {}, `No cluster ${label[1]}: the last one is ${whole(clusters.size.length - 1)}.`));
      return;
    }
    const rows = await starfc.load("rows");
    const names = index.named ? await starfc.load("names") : null;
    const found = [];
    if (/^\d+$/.test(wanted) && rows[Number(wanted)] >= 0) found.push(Number(wanted));
    const lower = wanted.toLowerCase();
    const named = Object.entries(starfc.clusters.called).filter(([, name]) => name.toLowerCase().includes(lower)).slice(0, 50);
    for (let row = 0; names && row < names.length && found.length < 50; row++) {
      if (rows[row] >= 0 && names[row].toLowerCase().includes(lower) && row !== found[0]) found.push(row);
    }
    if (named.length) {
      tell(h("ul", {}, named.map(([one]) => h("li", {}, h("a", { href: `#/cluster/${one}` }, starfc.title(one)))),
        found.map((row) => h("li", {}, h("a", { href: `#/cluster/${rows[row]}/${row}` }, names?.[row] ?? `row ${row}`)))));
    } else if (!found.length) {
      tell(h("p", {}, /^\d+$/.test(wanted) ? Number(wanted) in rows ? `Row ${wanted} was removed.` : `No row ${wanted}: there are ${whole(rows.length)}, from 0.` : names ? `No name with “${wanted}”.` : "This report has no names: search a row, or #cluster."));
    } else if (found.length === 1) {
      location.hash = `#/cluster/${rows[found[0]]}/${found[0]}`;
    } else {
      tell(h("ul", {}, found.map((row) => h("li", {}, h("a", { href: `#/cluster/${rows[row]}/${row}` }, `${names[row]} `, h("span", { class: "soft" }, `row ${row}, cluster ${rows[row]}`))))),
        found.length === 50 ? h("p", {}, "The first 50 are shown.") : null);
    }
  },

  // ---- marks

  marked() {
    document.getElementById("mark-count").textContent = whole([...marks.standing.values()].filter((mark) => mark.type !== "skipped").length);
    document.getElementById("undo").disabled = !(server.on ? server.undoable : marks.log.length);
    if (this.view === "marks") this.showMarks();
  },

  undo() {
    if (server.on) return server.undo();
    const last = marks.undo();
    if (last) announce(`undone: ${last.key}`);
  },

  showMarks() {
    const content = marks.exported();
    const describe = (mark) => {
      if (mark.type === "answer") return `rows ${mark.answer.a[0]} and ${mark.answer.b[0]}: ${mark.answer.same ? "one person" : "not one person"}`;
      if (mark.type === "skipped") return "a question was skipped";
      if (mark.type === "wrong instance") return [h("a", { href: `#/cluster/${mark.cluster}/${mark.row}` }, `row ${mark.row}`), ` does not belong to cluster ${mark.cluster}`];
      if (mark.type === "wrong cluster") return [h("a", { href: `#/cluster/${mark.cluster}` }, `cluster ${mark.cluster}`), " is wrong"];
      if (mark.type === "split") return [h("a", { href: `#/cluster/${mark.cluster}` }, `cluster ${mark.cluster}`), ` splits between ${mark.pairs.map((pair) => pair.join(" and ")).join(", ")}`];
      return [`rows ${mark.pair.join(" and ")} (`, h("a", { href: `#/cluster/${mark.clusters[0]}` }, `cluster ${mark.clusters[0]}`), ", ", h("a", { href: `#/cluster/${mark.clusters[1]}` }, `cluster ${mark.clusters[1]}`), `) are ${mark.type === "same" ? "the same" : "different"}`];
    };
    fill(document.getElementById("view-marks"),
      h("h2", {}, "Marks"),
      server.on ? h("p", {}, "Answers and marks are applied as they come. Listed here are those since the lists were renewed.") : null,
      marks.stored ? null : h("p", { class: "warnings" }, "This browser keeps nothing for pages from the disk: export before you close the page."),
      h("p", {}, `${plural(content.must_link.length, "pair")} that must be together, ${whole(content.cannot_link.length)} that must not, ${plural(content.answers.length, "answer")}, ${plural(content.wrong_clusters.length, "wrong cluster")}.`),
      h("div", { class: "buttons" },
        h("button", { type: "button", class: "primary", id: "export", onclick: () => this.export() }, "Export as JSON"),
        server.on ? null : h("button", { type: "button", onclick: () => marks.clear(), disabled: !marks.standing.size }, "Take all back")),
      marks.standing.size
        ? h("ul", { class: "mark-list" }, [...marks.standing].reverse().map(([key, mark]) => h("li", {}, h("span", {}, describe(mark)), server.on ? null : h("button", { type: "button", "aria-label": `Take back: ${key}`, onclick: () => { marks.log.push({ key, mark: null }); marks.save(); } }, "Take back"))))
        : h("p", { class: "note" }, "Nothing is marked yet. In a cluster: w, x and s; among merge candidates: y and n."));
  },

  export() {
    const blob = new Blob([`${JSON.stringify(marks.exported(), null, 1)}\n`], { type: "application/json" });
    const link = h("a", { href: URL.createObjectURL(blob), download: `marks-${starfc.index.id}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  },

  // ---- controls and keys

  controls() {
    const by = (id) => document.getElementById(id);
    by("theme").addEventListener("click", () => this.switchTheme());
    by("undo").addEventListener("click", () => this.undo());
    by("help-open").addEventListener("click", () => by("help").showModal());
    by("renew").addEventListener("click", () => server.renew());
    by("search-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.search(by("search").value).catch((error) => announce(error.message));
    });
    by("search").addEventListener("input", () => (by("search-results").hidden = true));
    document.addEventListener("keydown", (event) => this.key(event));
    window.addEventListener("resize", () => detail.asMap && detail.drawMap());
  },

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") {
      document.getElementById("search-results").hidden = true;
      document.activeElement?.blur();
      return;
    }
    if (event.target.closest("input, select, textarea")) return;
    const inCluster = this.view === "clusters";
    const list = { merges: mergeList, labels: labelList }[this.view];
    const asking = this.view === "questions";
    const next = (by) => (list ? list.move(by) : this.step(by));
    const actions = {
      j: () => next(1),
      k: () => next(-1),
      ArrowRight: inCluster && detail.data ? () => detail.move(1) : null,
      ArrowLeft: inCluster && detail.data ? () => detail.move(-1) : null,
      x: inCluster ? () => detail.markInstance() : null,
      f: inCluster ? () => detail.openPicture() : null,
      w: inCluster ? () => detail.markCluster() : null,
      s: asking ? () => questions.answer(null) : inCluster ? () => detail.markSplit() : null,
      a: inCluster && server.on ? () => detail.rename() : null,
      r: server.stale ? () => server.renew() : null,
      y: asking ? () => questions.answer(true) : list ? () => list.mark("same") : null,
      n: asking ? () => questions.answer(false) : list ? () => list.mark("different") : null,
      u: () => this.undo(),
      q: questions.there ? () => (location.hash = "#/questions") : null,
      o: () => (location.hash = "#/overview"),
      c: () => (location.hash = "#/clusters"),
      m: () => (location.hash = "#/merges"),
      l: starfc.index.issues ? () => (location.hash = "#/labels") : null,
      e: () => (location.hash = "#/marks"),
      "/": () => document.getElementById("search").focus(),
      t: () => this.switchTheme(),
      "?": () => document.getElementById("help").showModal(),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  },
};

app.start();

// What the reviewer decided: a log of marks set and taken back, kept in localStorage, folded into the marks that stand.
"use strict";
const marks = {
  log: [],
  standing: new Map(),
  listeners: [],
  stored: true,

  // A run keeps what is applied; the tab keeps the rest until it is closed, also when the lists renew.
  get key() {
    return server.on ? `starfc-review-${starfc.index.rows}-${starfc.index.title}` : `starfc-marks-${starfc.index.id}`;
  },

  get store() {
    return server.on ? sessionStorage : localStorage;
  },

  get kept() {
    const here = ({ mark }) => mark === null || mark.type === "skipped" || mark.type === "wrong cluster";
    return server.on ? this.log.filter(here) : this.log;
  },

  open() {
    try {
      const text = this.store.getItem(this.key);
      const log = text === null ? [] : JSON.parse(text);
      this.log = Array.isArray(log) ? log : [];
    } catch {
      this.stored = false; // storage is off, or unreadable: marks last as long as the page
    }
    this.fold();
  },

  fold() {
    this.standing = new Map();
    for (const { key, mark } of this.log) {
      if (mark === null) this.standing.delete(key);
      else this.standing.set(key, mark);
    }
    for (const listen of this.listeners) listen();
  },

  save() {
    try {
      this.store.setItem(this.key, JSON.stringify(this.kept));
      this.stored = true;
    } catch {
      this.stored = false;
    }
    this.fold();
  },

  has(key) {
    return this.standing.has(key);
  },

  // Set a mark, or take it back where the same one stands.
  toggle(key, mark) {
    const same = this.has(key) && this.standing.get(key).type === mark.type;
    if (server.on && mark.type !== "wrong cluster") {
      if (!same) server.mark(key, mark);
      else server.failed(new Error("this is applied already; undo (u) takes the last step back"));
      return true;
    }
    this.log.push({ key, mark: same ? null : mark });
    this.save();
    return !same;
  },

  undo() {
    const last = this.log.pop();
    if (last) this.save();
    return last;
  },

  clear() {
    for (const key of [...this.standing.keys()]) this.log.push({ key, mark: null });
    this.save();
  },

  instance(row, other, cluster) {
    return this.toggle(`instance ${row}`, { type: "wrong instance", row, other, cluster });
  },

  cluster(label, size, medoid) {
    return this.toggle(`cluster ${label}`, { type: "wrong cluster", cluster: label, size, medoid });
  },

  split(label, pairs) {
    return this.toggle(`split ${label}`, { type: "split", cluster: label, pairs });
  },

  pair(type, a, b, clusters) {
    return this.toggle(this.pairKey(a, b), { type, pair: [a, b], clusters });
  },

  pairKey(a, b) {
    return `pair ${Math.min(a, b)} ${Math.max(a, b)}`;
  },

  // An answer to a question, or null for one that was skipped.
  answer(key, answer, changed) {
    this.log.push({ key, mark: answer ? { type: "answer", answer, changed } : { type: "skipped" } });
    this.save();
  },

  // The documented format: pairs of rows that are, and are not, the same.
  exported() {
    return this.file([...this.standing.values()]);
  },

  file(standing) {
    const must = [];
    const cannot = [];
    for (const mark of standing) {
      if (mark.type === "same") must.push(mark.pair);
      if (mark.type === "different") cannot.push(mark.pair);
      if (mark.type === "split") cannot.push(...mark.pairs);
      if (mark.type === "wrong instance" && mark.other !== null) cannot.push([mark.row, mark.other]);
    }
    const rising = (pair) => [...pair].sort((a, b) => a - b);
    const unique = (pairs) => [...new Map(pairs.map((pair) => [rising(pair).join(" "), rising(pair)])).values()];
    const wrong = standing.filter((mark) => mark.type === "wrong cluster");
    return {
      format: "starfc-marks",
      version: 1,
      report: starfc.index.id,
      num_instances: starfc.index.rows,
      must_link: unique(must),
      cannot_link: unique(cannot),
      wrong_clusters: wrong.map(({ cluster, size, medoid }) => ({ cluster, size, medoid })),
      answers: standing.filter((mark) => mark.type === "answer").map((mark) => mark.answer),
      marks: standing.filter((mark) => mark.type !== "answer" && mark.type !== "skipped"),
    };
  },
};

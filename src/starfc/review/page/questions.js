// The first view: questions whose answers change the most. Yes, no or skip; with a server each answer is applied at once.
"use strict";
const MORE = 20; // so many questions are fetched at a time
const questions = {
  all: null,
  expected: null,
  fetching: null,

  get there() {
    return starfc.index.questions > 0 || server.on;
  },

  get place() {
    return document.getElementById("view-questions");
  },

  open() {
    this.expected = starfc.index.expected;
    marks.listeners.push(() => app.view === "questions" && this.draw());
  },

  key(question) {
    return `question ${question.a[0]} ${question.b[0]} ${question.kind} ${question.a.length} ${question.b.length} ${question.asked}`;
  },

  async show() {
    document.getElementById("stale").hidden = true;
    if (!this.all) this.all = await starfc.load("questions");
    this.draw();
  },

  // The question that is asked: the first without an answer.
  get current() {
    return this.all?.find((question) => !marks.has(this.key(question))) ?? null;
  },

  done(type) {
    return [...marks.standing.values()].filter((mark) => mark.type === type);
  },

  // Pairs of instances that an answer changes: two clusters become one, or one becomes two.
  pairs({ kind, sizes }, same) {
    return same === (kind === "join") ? sizes[0] * sizes[1] : 0;
  },

  answer(same) {
    const question = this.current;
    if (!question) return;
    const key = this.key(question);
    const { a, b, p, kind, asked } = question;
    const answer = same === null ? null : { a, b, same, p, kind, asked };
    if (server.on) {
      if (answer) this.send(question, answer);
      else server.history.push({ key, question, skipped: true });
    }
    marks.answer(key, answer, same === null ? 0 : this.pairs(question, same));
    announce(same === null ? "skipped" : same ? "yes" : "no");
    if (server.on) this.more();
  },

  async send(question, answer) {
    const entry = { key: this.key(question), question };
    server.history.push(entry);
    try {
      const found = await server.apply({ type: "answer", answer });
      // questions about clusters that changed are no longer right: the server has new ones
      const touched = new Set([...found.joined, ...found.divided].flat());
      this.all = this.all.filter((other) => marks.has(this.key(other)) || !other.clusters.some((label) => touched.has(label)));
      if (touched.size || this.left < 3) this.more();
      this.expected = (await api.call("state")).expected;
    } catch (error) {
      server.history = server.history.filter((other) => other !== entry);
      marks.log = marks.log.filter(({ key }) => key !== entry.key);
      marks.save();
      server.failed(error);
    }
    app.marked();
    if (app.view === "questions") this.draw();
  },

  get left() {
    return this.all.filter((question) => !marks.has(this.key(question))).length;
  },

  // New questions behind those that are waiting.
  more() {
    if (this.fetching || this.left >= 3) return;
    const asked = server.waiting.then(() => api.call(`questions?n=${MORE}`)).then(({ questions: found }) => {
      const known = new Set(this.all.map((question) => this.key(question)));
      this.all.push(...found.filter((question) => !known.has(this.key(question))));
    }).catch((error) => server.failed(error));
    this.fetching = asked.finally(() => {
      this.fetching = null;
      if (app.view === "questions") this.draw();
    });
  },

  // After undo: the question comes again, and those that wait are of the clusters as they are again.
  back(question) {
    if (!this.all) return;
    this.all = this.all.filter((other) => marks.has(this.key(other)));
    if (question) this.all.push(question);
    this.more();
    this.draw();
  },

  draw() {
    if (!this.all) return;
    const question = this.current;
    fill(this.place, h("div", { class: "question" }, this.progress(), question ? this.body(question) : this.end()));
  },

  progress() {
    const [answered, skipped] = [this.done("answer"), this.done("skipped")];
    const total = server.on ? null : this.all.length;
    const at = answered.length + skipped.length;
    const pairs = server.on ? server.state.pairs : answered.reduce((sum, mark) => sum + mark.changed, 0);
    const e = this.expected;
    return h("div", { class: "asked" },
      total ? h("progress", { max: total, value: at, "aria-label": "Questions done" }) : null,
      h("p", {}, h("span", { id: "answered" }, total ? `${whole(at)} of ${plural(total, "question")}` : plural(server.state.answers, "answer and mark", "answers and marks")),
        skipped.length ? `, ${whole(skipped.length)} skipped` : "", " · ",
        h("span", { id: "pairs" }, server.on ? `${plural(pairs, "pair")} changed in this review` : `${plural(pairs, "pair")} would change`)),
      e ? h("p", { id: "expected", class: "note" }, `expected precision ${percent(e.precision)}, recall ${percent(e.recall)}${server.on ? "" : " before the answers"}`) : null);
  },

  body(question) {
    const [a, b] = question.shown;
    const text = question.kind === "join" ? "Are these two clusters one person?" : "Are these two parts of a cluster one person?";
    const button = (label, key, same) => h("button", { type: "button", class: "answer", "data-answer": String(same), title: key, onclick: () => this.answer(same) }, label, " ", h("kbd", { "aria-hidden": "true" }, key));
    return [
      h("h2", {}, text),
      h("div", { class: "sides" }, this.side(question, 0, a), this.side(question, 1, b)),
      h("div", { class: "buttons answers" }, button("Yes", "y", true), button("No", "n", false), button("Skip", "s", null)),
      h("p", { class: "note" }, `Probability that they are one: ${percent(question.p)}. Expected gain: ${plural(Math.round(question.gain), "pair")}.${question.asked ? ` Asked before: ${question.asked} times, because much depends on it.` : ""}`)];
  },

  side(question, at, instances) {
    const label = instances[0][2];
    const side = window.matchMedia("(max-width: 700px)").matches ? 56 : 96;
    const title = question.kind === "join" ? starfc.title(label) : `Part ${at + 1} of ${starfc.title(label).replace("C", "c")}`;
    return h("section", { class: "card side-of", "aria-label": title },
      h("h3", {}, title, h("span", { class: "soft" }, ` ${plural(question.sizes[at], "instance")}`)),
      h("div", { class: starfc.index.thumbs ? "telling" : "telling plain" }, instances.map((instance) => instanceCard(instance, side))));
  },

  end() {
    if (this.fetching) return h("p", { class: "empty", role: "status" }, "Looking for questions …");
    return h("div", { class: "empty" }, h("p", {}, server.on ? "No question is left whose answer would change much." : "All questions are done."),
      server.on ? null : h("p", {}, h("a", { href: "#/marks" }, "Export the answers"), ", then apply them: starfc apply DIR FILE."));
  },
};

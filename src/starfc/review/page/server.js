// The server of `starfc review`, which applies answers, marks and names. A page from the disk has none, and no api.js.
"use strict";
const server = {
  stale: false, // whether the run changed since the lists were made
  state: null, // steps, answers and pairs of the run
  history: [], // what was done since the page was opened: { key, question }
  waiting: Promise.resolve(),

  get on() {
    return Boolean(starfc.index.served);
  },

  get undoable() {
    return this.history.length > 0 || this.state.steps > 0;
  },

  open() {
    this.state = starfc.index.served;
  },

  // Calls that change the run go one after the other.
  change(what, body, lists = true) {
    const done = this.waiting.then(() => api.call(what, body));
    this.waiting = done.catch(() => null);
    return done.then((result) => {
      if (result.changed) this.state = result.changed;
      this.stale ||= lists;
      document.getElementById("stale").hidden = !this.stale || app.view === "questions";
      return result;
    });
  },

  apply(mark) {
    return this.change("answers", marks.file([mark]));
  },

  mark(key, mark) {
    this.apply(mark).then(() => {
      this.history.push({ key });
      marks.log.push({ key, mark });
      marks.save();
      announce("applied");
    }).catch((error) => this.failed(error));
  },

  // Take the last thing back: here if it was skipped, else the last step of the run.
  async undo() {
    const last = this.history.at(-1);
    if (!this.undoable) return;
    try {
      if (!last?.skipped) await this.change("undo", {});
      this.history.pop();
      if (last?.key) marks.log = marks.log.filter(({ key }) => key !== last.key);
      marks.save();
      questions.back(last?.question ?? null);
      announce("undone");
    } catch (error) {
      this.failed(error);
    }
  },

  async name(label, name) {
    starfc.clusters.called = (await this.change("names", { cluster: label, name }, false)).names;
    clusterList.list.refresh();
  },

  renew() {
    location.reload();
  },

  failed(error) {
    announce("");
    fill(document.getElementById("failed"), error.message);
    document.getElementById("failed").hidden = false;
    setTimeout(() => (document.getElementById("failed").hidden = true), 8000);
  },
};

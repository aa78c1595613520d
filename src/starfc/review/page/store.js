// Data of the report. Each file in data/ is a script that hands over one value: starfc.put(name, value).
"use strict";
const starfc = {
  values: new Map(),
  waiting: new Map(),

  put(name, value) {
    this.values.set(name, value);
  },

  // The value of data/NAME.js, read at most once.
  load(name) {
    if (!this.waiting.has(name)) {
      this.waiting.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onload = () => {
          script.remove();
          resolve(this.values.get(name));
        };
        script.onerror = () => {
          this.waiting.delete(name);
          reject(new Error(`data/${name}.js cannot be read; is the folder whole?`));
        };
        document.head.append(script);
      }));
    }
    return this.waiting.get(name);
  },

  // The file that holds a cluster's members: files hold consecutive labels, from starts[file] on.
  fileOf(label) {
    const { starts } = this.clusters;
    let low = 0;
    let high = starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (starts[middle] <= label) low = middle;
      else high = middle - 1;
    }
    return low;
  },

  async members(label) {
    const file = this.fileOf(label);
    const chunk = await this.load(`members-${file}`);
    return chunk[label - this.clusters.starts[file]];
  },

  // Where the thumbnail of a cluster's member lies; the first member is the medoid.
  placeOf(label, at, data = null) {
    return data?.places?.[at] ?? (at === 0 ? this.clusters.place?.[label] : null) ?? this.offsets[label] + at;
  },

  // "Cluster 18", with its name if it has one.
  title(label) {
    const name = this.clusters.called[label];
    return name ? `Cluster ${label}, ${name}` : `Cluster ${label}`;
  },

  async open() {
    [this.index, this.clusters] = await Promise.all([this.load("index"), this.load("clusters")]);
    // thumbnails lie cluster by cluster: where each begins
    let place = 0;
    this.offsets = this.clusters.size.map((size) => (place += size) - size);
  },
};

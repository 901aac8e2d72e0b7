// SPDX-License-Identifier: Apache-2.0
// The painter's tools: what a pointer or a key does to the sheet.

const MOST_REGIONS = 255; // a label is one byte, and 0 is no region

class Tools {
  constructor(sheet) {
    Object.assign(this, { sheet, tool: "brush", active: 1 });
    this.at = null; // the cursor, [x, y]
    this.points = null; // of the stroke under way
    this.corner = null; // of the box under way
    this.size = Math.max(1, Math.round(this.longer(sheet.state) / 9));
  }

  get state() {
    return this.sheet.state;
  }

  longer({ w, h }) {
    return Math.max(w, h);
  }

  get mostSize() {
    return Math.ceil(this.longer(this.state) / 2);
  }

  resize(size) {
    this.size = Math.max(1, Math.min(this.mostSize, size));
  }

  // The labels to show: the sheet's, with the stroke under way.
  get labels() {
    return this.points ? this.preview : this.state.labels;
  }

  // After a change of the sheet: sizes and positions follow another grid, and a stroke or box under
  // way goes on on top of what is there now.
  follow(before) {
    const { w, h, regions } = this.state;
    if (w !== before.w || h !== before.h) {
      const scale = ([x, y]) => [
        Math.floor(((x + 0.5) / before.w) * w),
        Math.floor(((y + 0.5) / before.h) * h),
      ];
      this.resize(Math.round((this.size * this.longer(this.state)) / this.longer(before)));
      this.at = this.at && scale(this.at);
      this.corner = this.corner && scale(this.corner);
      this.points = this.points && this.points.map(scale);
    }
    const painting = (this.points || this.corner) && this.tool !== "eraser";
    const most = Math.max(1, regions.length + (painting ? 1 : 0)); // what was painted gets a region
    this.active = Math.max(1, Math.min(this.active, most));
    if (!this.points) return;
    this.preview = this.state.labels.slice();
    this.points.forEach((point, i) => this.ink(this.points[Math.max(0, i - 1)], point));
  }

  // -- regions

  add() {
    if (this.state.regions.length >= MOST_REGIONS) return false;
    this.sheet.commit({ regions: [...this.state.regions, { text: "", box: null }] });
    this.active = this.state.regions.length;
    return true;
  }

  remove(k) {
    const moved = (label) => (label > k ? label - 1 : label);
    const labels = this.state.labels.map((label) => (label === k ? 0 : moved(label)));
    const regions = this.state.regions.filter((_, i) => i !== k - 1);
    this.active = Math.max(1, Math.min(moved(this.active), regions.length));
    this.sheet.commit({ labels, regions });
  }

  rename(k, text) {
    const regions = this.state.regions.map((r, i) => (i === k - 1 ? { ...r, text } : r));
    this.sheet.commit({ regions });
  }

  clear() {
    this.active = 1;
    this.sheet.commit({ labels: new Uint8Array(this.state.w * this.state.h), regions: [] });
  }

  // The regions to paint for: where the active one is missing, it comes by itself.
  ready() {
    const { regions } = this.state;
    if (this.tool === "eraser" || this.active <= regions.length) return regions;
    this.active = regions.length + 1;
    return [...regions, { text: this.text ?? "", box: null }];
  }

  mark() {
    return this.tool === "eraser" ? 0 : this.active;
  }

  // The regions, the active one painted and no box any more.
  painted(regions) {
    const k = this.mark();
    return regions.map((r, i) => (i === k - 1 && r.box ? { ...r, box: null } : r));
  }

  // -- strokes, fillings, boxes

  begin(at) {
    this.text = this.state.regions[this.active - 1]?.text;
    if (this.tool === "box") {
      this.corner = at;
    } else if (this.tool === "fill") {
      if (!this.inside(at)) return;
      const [labels, regions] = [this.state.labels.slice(), this.ready()];
      flood(labels, this.state.w, this.state.h, at[0], at[1], this.mark());
      this.sheet.commit({ labels, regions: this.painted(regions) });
    } else {
      this.ready();
      this.preview = this.state.labels.slice();
      this.points = [at];
      this.ink(at, at);
    }
  }

  go(at) {
    if (!this.points) return;
    const last = this.points[this.points.length - 1];
    if (last[0] === at[0] && last[1] === at[1]) return;
    this.points.push(at);
    this.ink(last, at);
  }

  ink(from, to) {
    segment(this.preview, this.state.w, this.state.h, from, to, this.size, this.mark());
  }

  // Commits the stroke or box under way; what it was: "stroke", "box" or null.
  end() {
    const box = this.corner && this.boxTo(this.at);
    const change = this.points && {
      labels: this.preview,
      regions: this.painted(this.ready()),
    };
    this.points = this.corner = null;
    if (change) this.sheet.commit(change);
    else if (box) this.commitBox(box);
    return change ? "stroke" : box ? "box" : null;
  }

  cancel() {
    this.points = this.corner = null;
  }

  // [x0, y0, x1, y1] of the pixels from the corner to another one, both included
  boxTo(to) {
    const { w, h } = this.state;
    const [xs, ys] = [0, 1].map((i) => [this.corner[i], to[i]].sort((a, b) => a - b));
    const inside = (value, side) => Math.max(0, Math.min(side, value));
    const [x0, x1] = [inside(xs[0], w), inside(xs[1] + 1, w)];
    const [y0, y1] = [inside(ys[0], h), inside(ys[1] + 1, h)];
    return x0 < x1 && y0 < y1 ? [x0 / w, y0 / h, x1 / w, y1 / h] : null;
  }

  commitBox(box) {
    const ready = this.ready();
    const k = this.active;
    const regions = ready.map((r, i) => (i === k - 1 ? { ...r, box } : r));
    const labels = this.state.labels.map((label) => (label === k ? 0 : label));
    this.sheet.commit({ labels, regions });
  }

  inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.state.w && y < this.state.h;
  }

  // -- the cursor of the keyboard

  get middle() {
    return [Math.floor(this.state.w / 2), Math.floor(this.state.h / 2)];
  }

  move([dx, dy], by) {
    const within = (value, side) => Math.max(0, Math.min(side - 1, value));
    const { w, h } = this.state;
    this.at = this.at
      ? [within(this.at[0] + dx * by, w), within(this.at[1] + dy * by, h)]
      : this.middle;
    this.go(this.at);
  }

  // Space or Enter: begins, or sets the box's second corner.
  press() {
    this.at ??= this.middle;
    if (this.corner) return this.end();
    this.begin(this.at);
    return null;
  }
}

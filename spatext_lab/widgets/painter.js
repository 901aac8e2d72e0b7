// SPDX-License-Identifier: Apache-2.0
// The painter's view. What it may change are the model's labels, regions and caption, and it sends
// them once for each stroke. Texts go to the page by textContent and value only, never as HTML.

// ---- pixels: the same two functions as in strokes.py, in whole numbers --------------------------

// Marks with k every pixel whose centre is at most size / 2 from the line from a to b.
export function segment(labels, w, h, a, b, size, k) {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]];
  const length = dx * dx + dy * dy;
  const reach = Math.ceil(size / 2);
  const x1 = Math.min(w - 1, Math.max(a[0], b[0]) + reach);
  const y1 = Math.min(h - 1, Math.max(a[1], b[1]) + reach);
  for (let y = Math.max(0, Math.min(a[1], b[1]) - reach); y <= y1; y++) {
    for (let x = Math.max(0, Math.min(a[0], b[0]) - reach); x <= x1; x++) {
      const [px, py] = [x - a[0], y - a[1]];
      const along = px * dx + py * dy;
      const across = px * dy - py * dx;
      const near =
        along <= 0
          ? 4 * (px * px + py * py) <= size * size
          : along >= length
            ? 4 * ((px - dx) ** 2 + (py - dy) ** 2) <= size * size
            : 4 * across * across <= size * size * length;
      if (near) labels[y * w + x] = k;
    }
  }
}

// Marks with k all that hangs together with the pixel at (x, y), side by side, and has its label.
export function flood(labels, w, h, x, y, k) {
  const old = labels[y * w + x];
  if (old === k) return;
  const todo = [[x, y]];
  while (todo.length) {
    const [i, j] = todo.pop();
    if (i < 0 || j < 0 || i >= w || j >= h || labels[j * w + i] !== old) continue;
    labels[j * w + i] = k;
    todo.push([i - 1, j], [i + 1, j], [i, j - 1], [i, j + 1]);
  }
}

// A place deep inside region k, for its number: the pixel farthest from any other, rim included.
// Large maps are looked at in steps; a region that slips through is looked at pixel by pixel.
function deepest(labels, w, h, k, step = Math.ceil(Math.max(w, h) / 96)) {
  const [columns, rows] = [Math.ceil(w / step), Math.ceil(h / step)];
  const row = columns + 2;
  const far = new Float32Array(row * (rows + 2)); // the rim stays 0
  const own = (x, y) => labels[y * step * w + x * step] === k;
  const grow = (i, side) => {
    const straight = Math.min(far[i - side], far[i - row * side]) + 1;
    return Math.min(straight, Math.min(far[i - (row + 1) * side], far[i - (row - 1) * side]) + 1.4);
  };
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < columns; x++) {
      const i = (y + 1) * row + x + 1;
      if (own(x, y)) far[i] = grow(i, 1);
    }
  let best = null;
  for (let y = rows - 1; y >= 0; y--)
    for (let x = columns - 1; x >= 0; x--) {
      if (!own(x, y)) continue;
      const i = (y + 1) * row + x + 1;
      far[i] = Math.min(far[i], grow(i, -1));
      if (!best || far[i] > best.far) best = { far: far[i], x: x * step, y: y * step };
    }
  return best || step === 1 ? best : deepest(labels, w, h, k, 1);
}

// ---- the page -----------------------------------------------------------------------------------

const PATHS = {
  brush: "M13.5 2.5l4 4L9 15l-4.5.9.6-4.7zM3 18h8",
  eraser: "M7.5 16.5L3 12l8-8.5 6 6-7 7zM7 8l6 6M7.5 16.5H17",
  fill:
    "M8 3l7.5 7.5-5.5 5.5L3 9l5.5-5.5M3 9h12" +
    "M17 12.5c1 1.5 1.5 2.3 1.5 3a1.5 1.5 0 01-3 0c0-.7.5-1.5 1.5-3z",
  box: "M3.5 5h13v10h-13zM2 5h3M15 15h3M3.5 3.5v3M16.5 13.5v3",
  undo: "M7 4L3 8l4 4M3.5 8H12a4.5 4.5 0 010 9H8",
  redo: "M13 4l4 4-4 4M16.5 8H8a4.5 4.5 0 000 9h4",
  clear: "M4 5.5h12M8 5.5V3.5h4v2M5.5 5.5l.8 11h7.4l.8-11M8.5 8.5v5M11.5 8.5v5",
};

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawing = document.createElementNS(space, "svg");
  drawing.setAttribute("viewBox", "0 0 20 20");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return drawing;
}

const TOOLS = { brush: "Brush (B)", eraser: "Eraser (E)", fill: "Fill (F)", box: "Box (R)" };
const TOOL_KEYS = { b: "brush", e: "eraser", f: "fill", r: "box", 0: "eraser" };
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SHOWN = 448; // pixels of the longer side, on the page
const KEYS =
  "Arrows move the cursor, with Shift eight pixels. Space paints, held down it draws a line; " +
  "in box mode it sets one corner, then the other. Digits choose a region. " +
  "B brush, E eraser, F fill, R box, minus and plus change the brush, N a new region, " +
  "Ctrl Z undoes, Ctrl Y does it again.";

class View {
  constructor(model, el) {
    this.model = model;
    Object.assign(this, { tool: "brush", active: 1, opacity: 0.65, past: [], future: [] });
    this.at = null; // the cursor, [x, y]
    this.points = null; // of the stroke that is being drawn
    this.corner = null; // of the box that is being drawn
    this.state = this.read();
    this.size = Math.max(1, Math.round(Math.max(this.state.w, this.state.h) / 9));
    this.build(el);
    this.refresh();
    this.pick(this.tool);
    this.onChange = () => this.heard();
    this.onMessage = (message) => this.answered(message);
    model.on("change", this.onChange);
    model.on("msg:custom", this.onMessage);
    const background = model.get("background");
    if (background?.byteLength) this.showBackground(background);
  }

  // -- state: what the model holds, as plain values

  read() {
    const { buffer, byteOffset, byteLength } = this.model.get("labels");
    return {
      w: this.model.get("width"),
      h: this.model.get("height"),
      labels: new Uint8Array(buffer, byteOffset, byteLength).slice(),
      regions: this.model.get("regions"),
      caption: this.model.get("caption"),
    };
  }

  // Takes a new state as one step that can be undone, and tells the kernel in one message.
  commit(change) {
    const next = { ...this.state, ...change };
    if (same(next, this.state)) return this.draw();
    this.past.push(this.state);
    this.future = [];
    this.take(next);
  }

  take(next) {
    this.state = next;
    this.model.set({
      width: next.w,
      height: next.h,
      labels: new DataView(next.labels.slice().buffer),
      regions: next.regions,
      caption: next.caption,
    });
    this.model.save_changes();
    this.refresh();
  }

  // The kernel, or another view of the same painter, has changed something.
  heard() {
    const next = this.read();
    if (next.labels.length !== next.w * next.h || same(next, this.state)) return;
    this.past.push(this.state);
    this.future = [];
    this.state = next;
    this.points = this.corner = null;
    this.refresh();
  }

  step(from, to, said) {
    if (!from.length) return this.say(`Nothing to ${said}`);
    to.push(this.state);
    this.take(from.pop());
    this.say(said === "undo" ? "Undone" : "Done again");
  }

  undo() {
    this.step(this.past, this.future, "undo");
  }

  redo() {
    this.step(this.future, this.past, "do again");
  }

  // -- what the tools do

  addRegion() {
    if (this.state.regions.length >= 255) return this.say("A label map has room for 255 regions");
    this.commit({ regions: [...this.state.regions, { text: "", box: null }] });
    this.choose(this.state.regions.length);
    this.list.querySelector(`li:nth-child(${this.active}) input`).focus();
  }

  removeRegion(k) {
    const moved = (label) => (label > k ? label - 1 : label);
    const labels = this.state.labels.map((label) => (label === k ? 0 : moved(label)));
    const regions = this.state.regions.filter((_, i) => i !== k - 1);
    this.active = Math.max(1, Math.min(moved(this.active), regions.length));
    this.commit({ labels, regions });
    this.say(`Region ${k} removed`);
  }

  rename(k, text) {
    this.commit({ regions: this.state.regions.map((r, i) => (i === k - 1 ? { ...r, text } : r)) });
  }

  clear() {
    this.commit({ labels: new Uint8Array(this.state.w * this.state.h), regions: [] });
    this.active = 1;
    this.refresh();
    this.say("An empty sheet");
  }

  // A region to paint for: the first one comes by itself.
  ready() {
    if (this.tool === "eraser" || this.state.regions.length) return this.state.regions;
    this.active = 1;
    return [{ text: "", box: null }];
  }

  mark() {
    return this.tool === "eraser" ? 0 : this.active;
  }

  painted(regions) {
    const k = this.mark();
    return regions.map((r, i) => (i === k - 1 && r.box ? { ...r, box: null } : r));
  }

  begin(at) {
    if (this.tool === "box") {
      this.corner = at;
    } else if (this.tool === "fill") {
      if (!this.inside(at)) return;
      const labels = this.state.labels.slice();
      const regions = this.ready();
      flood(labels, this.state.w, this.state.h, at[0], at[1], this.mark());
      this.commit({ labels, regions: this.painted(regions) });
    } else {
      this.preview = this.state.labels.slice();
      this.previewRegions = this.ready();
      this.points = [at];
      this.ink(at, at);
    }
    this.draw();
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

  end() {
    if (this.points) {
      const change = { labels: this.preview, regions: this.painted(this.previewRegions) };
      this.points = null;
      this.commit(change);
      this.say(this.tool === "eraser" ? "Erased" : `Painted ${this.name(this.active)}`);
    } else if (this.corner) {
      const box = this.boxTo(this.at);
      this.corner = null;
      if (box) this.commitBox(box);
      else this.draw();
    }
  }

  cancel() {
    this.points = this.corner = null;
    this.draw();
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
    const k = this.active;
    const regions = this.ready().map((r, i) => (i === k - 1 ? { ...r, box } : r));
    this.commit({ labels: this.state.labels.map((label) => (label === k ? 0 : label)), regions });
    this.say(`A box for ${this.name(k)}`);
  }

  inside([x, y]) {
    return x >= 0 && y >= 0 && x < this.state.w && y < this.state.h;
  }

  choose(k) {
    if (k < 1 || k > this.state.regions.length) return;
    this.active = k;
    if (this.tool === "eraser") this.pick("brush");
    this.refresh();
    this.say(this.name(k));
  }

  pick(tool) {
    this.cancel();
    this.tool = tool;
    for (const [name, button] of Object.entries(this.toolButtons))
      button.setAttribute("aria-pressed", String(name === tool));
    this.sizeField.toggleAttribute("data-off", tool === "fill" || tool === "box");
    this.draw();
  }

  resize(size) {
    this.size = Math.max(1, Math.min(this.mostSize, size));
    this.showSize(this.size);
    this.draw();
  }

  // -- words

  name(k) {
    const region = this.state.regions[k - 1];
    return `region ${k}, ${region?.text.trim() || this.model.get("empty_text")}`;
  }

  say(words) {
    this.status.textContent = words;
  }

  where() {
    const [x, y] = this.at;
    const k = this.state.labels[y * this.state.w + x];
    this.say(`Row ${y + 1}, column ${x + 1}: ${k ? this.name(k) : "nothing"}`);
  }

  colour(k) {
    const colours = this.model.get("palette");
    return k ? colours[1 + ((k - 1) % (colours.length - 1))] : colours[0];
  }

  css(k) {
    return `rgb(${this.colour(k).join(" ")})`;
  }

  inkOn(k) {
    const [r, g, b] = this.colour(k);
    return 0.299 * r + 0.587 * g + 0.114 * b > 130 ? "#262626" : "#ffffff";
  }

  // -- building

  build(el) {
    this.root = node("div", "sx sx-painter");
    this.status = node("div", "sx-status", { role: "status", "aria-live": "polite" });
    this.root.append(this.buildTools(), this.buildBody(), this.buildGallery(), this.buildFoot());
    this.root.addEventListener("keydown", (event) => this.rootKey(event));
    el.append(this.root);
  }

  buildTools() {
    this.toolButtons = {};
    const tools = node("div", "sx-group", { role: "group", "aria-label": "Tool" });
    for (const [name, label] of Object.entries(TOOLS)) {
      const word = node("span", "", {}, label.split(" ")[0]);
      this.toolButtons[name] = button(label, () => this.pick(name), icon(name), word);
      tools.append(this.toolButtons[name]);
    }
    const most = Math.ceil(Math.max(this.state.w, this.state.h) / 2);
    const range = { min: 1, max: most, value: this.size };
    const resize = (size) => this.resize(size);
    [this.sizeField, this.showSize] = slider("Size", "Brush size in pixels", range, resize);
    this.mostSize = most;
    this.undoButton = button("Undo (Ctrl Z)", () => this.undo(), icon("undo"));
    this.redoButton = button("Do again (Ctrl Y)", () => this.redo(), icon("redo"));
    const clear = button("Clear everything", () => this.clear(), icon("clear"));
    const steps = node("div", "sx-group", { role: "group", "aria-label": "Steps" });
    steps.append(this.undoButton, this.redoButton, clear);
    const bar = node("div", "sx-tools", { role: "toolbar", "aria-label": "Painting" });
    bar.append(tools, this.sizeField, steps);
    return bar;
  }

  buildBody() {
    this.canvas = node("canvas", "sx-canvas", {
      tabindex: 0,
      role: "application",
      "aria-label": "The sheet to paint on",
    });
    const help = node("p", "sx-hidden", { id: `sx-${Math.random().toString(36).slice(2)}` }, KEYS);
    this.canvas.setAttribute("aria-describedby", help.id);
    this.canvas.title = KEYS;
    this.hint = node("p", "sx-hint", { "aria-hidden": "true" }, "Paint here");
    const stage = node("div", "sx-stage", {}, this.canvas, this.hint, help);
    this.listenToPointer();
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("keyup", ({ key }) => key === " " && this.points && this.end());
    this.canvas.addEventListener("blur", () => this.points && this.end());

    const about = { rows: 2, "aria-label": "Caption of the whole picture" };
    this.captionInput = node("textarea", "sx-text", about);
    this.typed(this.captionInput, (text) => this.commit({ caption: text }));
    this.list = node("ol", "sx-regions", { "aria-label": "Regions" });
    const add = button("Add a region (N)", () => this.addRegion(), "+ Add a region");
    add.classList.add("sx-add");
    const side = node("div", "sx-side");
    side.append(node("span", "sx-title", {}, "Caption"), this.captionInput);
    side.append(node("span", "sx-title", {}, "Regions"), this.list, add);
    return node("div", "sx-body", {}, stage, side);
  }

  buildGallery() {
    const about = { role: "group", "aria-label": "Scenes to begin with" };
    const strip = node("div", "sx-gallery", about);
    for (const { name, title, png } of this.model.get("gallery")) {
      const made = button(`Begin with the scene ${title}`, () => this.model.send({ preset: name }));
      const image = node("img", "", { alt: "", draggable: "false" });
      image.src = pngAddress(png);
      image.onload = () => URL.revokeObjectURL(image.src);
      made.className = "sx-thumb";
      made.append(image, node("span", "", {}, title));
      strip.append(made);
    }
    return strip;
  }

  buildFoot() {
    const hidden = { type: "file", accept: ".json", tabindex: -1, "aria-hidden": "true" };
    const file = node("input", "sx-hidden", hidden);
    file.addEventListener("change", async () => {
      if (file.files[0]) this.model.send({ json: await file.files[0].text() });
      file.value = "";
    });
    const open = button("Open a scene file", () => file.click(), "Open");
    const save = button("Save as a scene file", () => this.model.send({ save: true }), "Save");
    const percent = { min: 0, max: 100, value: 100 * this.opacity };
    [this.veil] = slider("Opacity", "Opacity of the regions in percent", percent, (value) => {
      this.opacity = value / 100;
      this.draw();
    });
    this.veil.hidden = true;
    return node("div", "sx-foot", {}, this.status, this.veil, file, open, save);
  }

  // A pause in typing is a step; so is leaving the field.
  typed(field, action) {
    let waiting = null;
    const now = () => {
      clearTimeout(waiting);
      waiting = null;
      action(field.value);
    };
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(now, 300);
    });
    field.addEventListener("change", () => waiting && now());
  }

  // -- pointer and keys

  listenToPointer() {
    const canvas = this.canvas;
    const at = (event) => {
      const { left, top, width, height } = canvas.getBoundingClientRect();
      const { w, h } = this.state;
      const x = Math.floor(((event.clientX - left) / width) * w);
      const y = Math.floor(((event.clientY - top) / height) * h);
      return [Math.max(-w, Math.min(2 * w, x)), Math.max(-h, Math.min(2 * h, y))];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!event.isPrimary || event.button) return;
      event.preventDefault();
      canvas.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.at = at(event);
      this.begin(this.at);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.isPrimary) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const one of passed.length ? passed : [event]) this.go(at(one));
      this.at = at(event);
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => event.isPrimary && this.end());
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("pointerleave", () => {
      if (this.points || this.corner) return;
      this.at = null;
      this.draw();
    });
  }

  rootKey(event) {
    event.stopPropagation(); // the notebook has shortcuts of its own for these keys
    const typing = event.target.matches("input:not([type=range]), textarea");
    if (!(event.ctrlKey || event.metaKey) || typing) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    if (key === "z" && !event.shiftKey) this.undo();
    else this.redo();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const act = this.action(key, event);
    if (!act) return;
    event.preventDefault();
    act();
  }

  action(key, event) {
    if (MOVES[key]) return () => this.moveCursor(MOVES[key], event.shiftKey ? 8 : 1);
    if (key === " " || key === "Enter") return () => event.repeat || this.press();
    if (TOOL_KEYS[key]) return () => this.pick(TOOL_KEYS[key]);
    if (key >= "1" && key <= "9") return () => this.choose(Number(key));
    if (key === "-" || key === "[") return () => this.resize(this.size - 1);
    if (key === "+" || key === "=" || key === "]") return () => this.resize(this.size + 1);
    if (key === "n") return () => this.addRegion();
    if (key === "Escape") return () => this.cancel();
    return null;
  }

  moveCursor([dx, dy], by) {
    const { w, h } = this.state;
    const [x, y] = this.at ?? [Math.floor(w / 2), Math.floor(h / 2)];
    const within = (value, side) => Math.max(0, Math.min(side - 1, value));
    this.at = this.at ? [within(x + dx * by, w), within(y + dy * by, h)] : [x, y];
    this.go(this.at);
    this.where();
    this.draw();
  }

  press() {
    const { w, h } = this.state;
    this.at ??= [Math.floor(w / 2), Math.floor(h / 2)];
    if (this.corner) this.end();
    else this.begin(this.at);
  }

  // -- showing

  refresh() {
    const { labels, w, h, regions, caption } = this.state;
    this.active = Math.max(1, Math.min(this.active, regions.length || 1));
    if (document.activeElement !== this.captionInput || this.captionInput.value !== caption)
      this.captionInput.value = caption;
    while (this.list.children.length > regions.length) this.list.lastChild.remove();
    const rows = this.list.children;
    while (rows.length < regions.length) this.list.append(this.row(rows.length + 1));
    this.spots = regions.map((_, i) => deepest(labels, w, h, i + 1));
    regions.forEach((region, i) => this.refreshRow(rows[i], region, i + 1));
    this.undoButton.disabled = !this.past.length;
    this.redoButton.disabled = !this.future.length;
    this.hint.hidden = this.spots.some(Boolean) || regions.some((r) => r.box);
    this.draw();
  }

  row(k) {
    const badge = node("button", "sx-badge", { type: "button" }, String(k));
    badge.style.background = this.css(k);
    badge.style.color = this.inkOn(k);
    badge.addEventListener("click", () => this.choose(k));
    const field = node("input", "sx-text", { type: "text", "aria-label": `Text of region ${k}` });
    field.placeholder = this.model.get("empty_text");
    field.addEventListener("focus", () => {
      this.active = k;
      this.refresh();
    });
    this.typed(field, (text) => this.rename(k, text));
    const kind = node("span", "sx-kind");
    const about = { type: "button", "aria-label": `Remove region ${k}` };
    const remove = node("button", "sx-remove", about, "×");
    remove.addEventListener("click", () => this.removeRegion(k));
    return node("li", "", {}, badge, field, kind, remove);
  }

  refreshRow(row, region, k) {
    const [badge, field, kind] = row.children;
    const active = k === this.active;
    row.toggleAttribute("data-active", active);
    badge.setAttribute("aria-pressed", String(active));
    badge.setAttribute("aria-label", `Choose ${this.name(k)}`);
    if (field.value !== region.text) field.value = region.text;
    kind.textContent = region.box ? "box" : this.spots[k - 1] ? "" : "no place yet";
  }

  showBackground(png) {
    const image = new Image();
    image.onload = () => {
      URL.revokeObjectURL(image.src);
      this.photo = image;
      this.veil.hidden = false;
      this.draw();
    };
    image.src = pngAddress(png);
  }

  draw() {
    const { w, h } = this.state;
    const labels = this.points ? this.preview : this.state.labels;
    const shown = SHOWN * (window.devicePixelRatio || 1);
    const scale = Math.max(1, Math.round(shown / Math.max(w, h)));
    if (this.canvas.width !== w * scale || this.canvas.height !== h * scale)
      Object.assign(this.canvas, { width: w * scale, height: h * scale });
    const pen = this.canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = this.css(0);
    pen.fillRect(0, 0, w * scale, h * scale);
    if (this.photo) pen.drawImage(this.photo, 0, 0, w * scale, h * scale);
    pen.drawImage(this.picture(labels), 0, 0, w * scale, h * scale);
    this.drawEdges(pen, labels, scale);
    this.drawBoxes(pen, scale);
    this.drawNumbers(pen, scale);
    this.drawCursor(pen, scale);
  }

  // The label map, a pixel a label, on a canvas of its own size: enlarged, it stays sharp.
  picture(labels) {
    const { w, h } = this.state;
    const small = Object.assign(document.createElement("canvas"), { width: w, height: h });
    const pen = small.getContext("2d");
    const image = pen.createImageData(w, h);
    const alpha = Math.round(255 * (this.photo ? this.opacity : 1));
    for (let i = 0; i < labels.length; i++)
      if (labels[i]) image.data.set([...this.colour(labels[i]), alpha], 4 * i);
    for (const [box, k] of this.boxes()) this.tint(image, labels, box, k);
    pen.putImageData(image, 0, 0);
    return small;
  }

  // A box is a veil over what lies under it: not over later regions, which lie on top of it.
  tint(image, labels, [x0, y0, x1, y1], k) {
    const { w, h } = this.state;
    const inside = (value, from, to) => from <= value && value < to;
    for (let i = 0; i < labels.length; i++) {
      const [x, y] = [((i % w) + 0.5) / w, (Math.floor(i / w) + 0.5) / h];
      if (!inside(x, x0, x1) || !inside(y, y0, y1) || labels[i] > k) continue;
      const old = image.data[4 * i + 3] ? image.data.slice(4 * i, 4 * i + 3) : this.colour(0);
      const mixed = this.colour(k).map((value, c) => 0.45 * value + 0.55 * old[c]);
      image.data.set([...mixed, Math.max(image.data[4 * i + 3], this.photo ? 115 : 255)], 4 * i);
    }
  }

  // [[box, k], ...] of all regions that are boxes, and of the one that is being drawn
  boxes() {
    const boxes = this.state.regions.map((region, i) => [region.box, i + 1]).filter(([box]) => box);
    const drawn = this.corner && this.at && this.boxTo(this.at);
    return drawn ? [...boxes, [drawn, this.active]] : boxes;
  }

  drawEdges(pen, labels, scale) {
    const { w, h } = this.state;
    pen.beginPath();
    for (let y = 0; y < h; y++)
      for (let x = 0; x < w; x++) {
        const k = labels[y * w + x];
        if (x + 1 < w && labels[y * w + x + 1] !== k) line(pen, x + 1, y, x + 1, y + 1, scale);
        if (y + 1 < h && labels[(y + 1) * w + x] !== k) line(pen, x, y + 1, x + 1, y + 1, scale);
      }
    pen.lineWidth = Math.max(1.5, this.canvas.width / 260);
    pen.lineCap = "square";
    pen.strokeStyle = "#ffffff";
    pen.stroke();
  }

  drawBoxes(pen, scale) {
    const { w, h } = this.state;
    const thick = Math.max(2, this.canvas.width / 130);
    for (const [[x0, y0, x1, y1], k] of this.boxes()) {
      const rect = [x0 * w * scale, y0 * h * scale, (x1 - x0) * w * scale, (y1 - y0) * h * scale];
      const [left, top, wide, high] = rect;
      const less = (side, by) => Math.max(0, side - 2 * by);
      const inset = (by) => [left + by, top + by, less(wide, by), less(high, by)];
      pen.lineJoin = "round";
      pen.lineWidth = thick + 3;
      pen.strokeStyle = "#ffffff";
      pen.strokeRect(...inset(thick / 2));
      pen.lineWidth = thick;
      pen.strokeStyle = this.css(k);
      pen.strokeRect(...inset(thick / 2));
    }
  }

  drawNumbers(pen, scale) {
    const radius = Math.max(9, this.canvas.width / 34);
    const { w, h } = this.state;
    this.state.regions.forEach(({ box }, i) => {
      const spot = this.spots[i];
      if (!box && !spot) return;
      const x = box ? box[0] * w * scale + 1.3 * radius : (spot.x + 0.5) * scale;
      const y = box ? box[1] * h * scale + 1.3 * radius : (spot.y + 0.5) * scale;
      this.badge(pen, x, y, radius, i + 1);
    });
  }

  badge(pen, x, y, radius, k) {
    const within = (value, side) => Math.max(radius + 1, Math.min(side - radius - 1, value));
    [x, y] = [within(x, this.canvas.width), within(y, this.canvas.height)];
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    pen.fillStyle = this.css(k);
    pen.fill();
    pen.lineWidth = radius / 6;
    pen.strokeStyle = "#ffffff";
    pen.stroke();
    pen.fillStyle = this.inkOn(k);
    pen.font = `600 ${radius * 1.15}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(String(k), x, y + radius * 0.06);
  }

  drawCursor(pen, scale) {
    if (!this.at) return;
    const [x, y] = this.at.map((value) => (value + 0.5) * scale);
    const brush = this.tool === "brush" || this.tool === "eraser";
    const radius = brush ? Math.max(0.5, this.size / 2) * scale : 0.7 * scale;
    pen.beginPath();
    pen.arc(x, y, radius, 0, 2 * Math.PI);
    if (!brush)
      for (const [dx, dy] of Object.values(MOVES)) {
        pen.moveTo(x + dx * radius, y + dy * radius);
        pen.lineTo(x + 2.6 * dx * radius, y + 2.6 * dy * radius);
      }
    for (const [width, colour] of [[3, "#ffffff"], [1.3, "#262626"]]) {
      pen.lineWidth = width * (window.devicePixelRatio || 1);
      pen.strokeStyle = colour;
      pen.stroke();
    }
  }

  // -- answers of the kernel

  answered(message) {
    if (message.problem) this.say(`This file is not a scene: ${message.problem}`);
    if (!message.json) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([message.json], { type: "application/json" }));
    link.download = "scene.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    this.say("Saved as scene.json");
  }

  close() {
    this.model.off("change", this.onChange);
    this.model.off("msg:custom", this.onMessage);
    this.root.remove();
  }
}

function line(pen, x0, y0, x1, y1, scale) {
  pen.moveTo(x0 * scale, y0 * scale);
  pen.lineTo(x1 * scale, y1 * scale);
}

function same(a, b) {
  return (
    a.w === b.w &&
    a.h === b.h &&
    a.caption === b.caption &&
    a.labels.every((label, i) => label === b.labels[i]) &&
    JSON.stringify(a.regions) === JSON.stringify(b.regions)
  );
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.close();
  },
};

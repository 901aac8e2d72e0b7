// SPDX-License-Identifier: Apache-2.0
// The painter's view: buttons, lists, pointer and keys. What it may change are the model's labels,
// regions and caption. Texts go to the page by textContent and value only, never as HTML.

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
const KEYS =
  "Arrows move the cursor, with Shift eight pixels. Space paints, held down it draws a line; " +
  "in box mode it sets one corner, then the other. Digits choose a region. " +
  "B brush, E eraser, F fill, R box, minus and plus change the brush, N a new region, " +
  "Ctrl Z undoes, Ctrl Y does it again.";

class View {
  constructor(model, el) {
    this.model = model;
    this.sheet = new Sheet(model, (before) => this.changed(before));
    this.tools = new Tools(this.sheet);
    this.colours = new Colours(model.get("palette"));
    this.build(el);
    this.drawing = new Drawing(this.canvas, this.tools, this.colours);
    this.kernel = new Kernel(model, this.root, (words) => this.say(words));
    this.onMessage = (message) => this.answered(message);
    model.on("msg:custom", this.onMessage);
    this.refresh();
    this.pick(this.tools.tool);
    const background = model.get("background");
    if (background?.byteLength) this.showBackground(background);
  }

  get state() {
    return this.sheet.state;
  }

  changed(before) {
    this.tools.follow(before);
    this.refresh();
  }

  draw() {
    this.drawing.draw();
  }

  // -- what the buttons do

  undo() {
    this.say(this.sheet.undo() ? "Undone" : "Nothing to undo");
  }

  redo() {
    this.say(this.sheet.redo() ? "Done again" : "Nothing to do again");
  }

  addRegion() {
    if (!this.tools.add()) return this.say(`A label map has room for ${MOST_REGIONS} regions`);
    this.choose(this.tools.active);
    this.list.querySelector(`li:nth-child(${this.tools.active}) input`).focus();
  }

  removeRegion(k) {
    this.tools.remove(k);
    this.say(`Region ${k} removed`);
  }

  clear() {
    this.tools.clear();
    this.say("An empty sheet");
  }

  choose(k) {
    if (k < 1 || k > this.state.regions.length) return;
    this.tools.active = k;
    if (this.tools.tool === "eraser") this.pick("brush");
    this.refresh();
    this.say(this.name(k));
  }

  pick(tool) {
    this.tools.cancel();
    this.tools.tool = tool;
    for (const [name, button] of Object.entries(this.toolButtons))
      button.setAttribute("aria-pressed", String(name === tool));
    this.sizeField.toggleAttribute("data-off", tool === "fill" || tool === "box");
    this.draw();
  }

  resize(size) {
    this.tools.resize(size);
    this.showSize(this.tools.size);
    this.draw();
  }

  begin(at) {
    this.tools.begin(at);
    this.draw();
  }

  end() {
    this.ended(this.tools.end());
  }

  ended(what) {
    const name = this.name(this.tools.active);
    const painted = this.tools.tool === "eraser" ? "Erased" : `Painted ${name}`;
    if (what) this.say(what === "box" ? `A box for ${name}` : painted);
    this.draw();
  }

  cancel() {
    this.tools.cancel();
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
    const [x, y] = this.tools.at;
    const k = this.state.labels[y * this.state.w + x];
    this.say(`Row ${y + 1}, column ${x + 1}: ${k ? this.name(k) : "nothing"}`);
  }

  // -- building

  build(el) {
    this.root = node("div", "sx sx-painter");
    this.status = node("div", "sx-status", { role: "status", "aria-live": "polite" });
    this.root.append(this.buildTools(), this.buildBody(), this.buildGallery(), this.buildFoot());
    this.root.addEventListener("keydown", (event) => this.rootKey(event));
    keepKeys(this.root);
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
    const range = { min: 1, max: this.tools.mostSize, value: this.tools.size };
    const resize = (size) => this.resize(size);
    [this.sizeField, this.showSize] = slider("Size", "Brush size in pixels", range, resize);
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
    const end = () => this.tools.points && this.end();
    this.canvas.addEventListener("keyup", ({ key }) => key === " " && end());
    this.canvas.addEventListener("blur", end);

    const about = { rows: 2, "aria-label": "Caption of the whole image" };
    this.captionInput = node("textarea", "sx-text", about);
    this.typed(this.captionInput, (text) => this.sheet.commit({ caption: text }));
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
      const made = button(`Begin with the scene ${title}`, () => this.kernel.ask({ preset: name }));
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
      if (file.files[0]) this.kernel.ask({ json: await file.files[0].text() });
      file.value = "";
    });
    const open = button("Open a scene file", () => file.click(), "Open");
    const save = button("Save as a scene file", () => this.kernel.ask({ save: true }), "Save");
    const percent = { min: 0, max: 100, value: 65 };
    [this.veil] = slider("Opacity", "Opacity of the regions in percent", percent, (value) => {
      this.drawing.opacity = value / 100;
      this.draw();
    });
    this.veil.hidden = true;
    return node("div", "sx-foot", {}, this.status, this.veil, file, open, save);
  }

  // A pause in typing is a step; so is leaving the field. Until then nothing overwrites it.
  typed(field, action) {
    let waiting = null;
    const now = () => {
      clearTimeout(waiting);
      waiting = null;
      delete field.dataset.typing;
      action(field.value);
    };
    field.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(now, 300);
      field.dataset.typing = "true";
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
      this.tools.at = at(event);
      this.begin(this.tools.at);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.isPrimary) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      for (const one of passed.length ? passed : [event]) this.tools.go(at(one));
      this.tools.at = at(event);
      this.draw();
    });
    canvas.addEventListener("pointerup", (event) => event.isPrimary && this.end());
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("pointerleave", () => {
      if (this.tools.points || this.tools.corner) return;
      this.tools.at = null;
      this.draw();
    });
  }

  rootKey(event) {
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
    if (key === "-" || key === "[") return () => this.resize(this.tools.size - 1);
    if (key === "+" || key === "=" || key === "]") return () => this.resize(this.tools.size + 1);
    if (key === "n") return () => this.addRegion();
    if (key === "Escape") return () => this.cancel();
    return null;
  }

  moveCursor(move, by) {
    this.tools.move(move, by);
    this.where();
    this.draw();
  }

  press() {
    this.ended(this.tools.press());
  }

  // -- showing

  refresh() {
    const { regions, caption } = this.state;
    show(this.captionInput, caption);
    while (this.list.children.length > regions.length) this.list.lastChild.remove();
    const rows = this.list.children;
    while (rows.length < regions.length) this.list.append(this.row(rows.length + 1));
    this.drawing.findSpots();
    regions.forEach((region, i) => this.refreshRow(rows[i], region, i + 1));
    this.undoButton.disabled = !this.sheet.past.length;
    this.redoButton.disabled = !this.sheet.future.length;
    this.sizeField.querySelector("input").max = this.tools.mostSize;
    this.showSize(this.tools.size);
    this.hint.hidden = this.drawing.spots.some(Boolean) || regions.some((r) => r.box);
    this.draw();
  }

  row(k) {
    const badge = node("button", "sx-badge", { type: "button" }, String(k));
    badge.style.background = this.colours.css(k);
    badge.style.color = this.colours.ink(k);
    badge.addEventListener("click", () => this.choose(k));
    const field = node("input", "sx-text", { type: "text", "aria-label": `Text of region ${k}` });
    field.placeholder = this.model.get("empty_text");
    field.addEventListener("focus", () => {
      this.tools.active = k;
      this.refresh();
    });
    this.typed(field, (text) => this.tools.rename(k, text));
    const kind = node("span", "sx-kind");
    const about = { type: "button", "aria-label": `Remove region ${k}` };
    const remove = node("button", "sx-remove", about, "×");
    remove.addEventListener("click", () => this.removeRegion(k));
    return node("li", "", {}, badge, field, kind, remove);
  }

  refreshRow(row, region, k) {
    const [badge, field, kind] = row.children;
    const active = k === this.tools.active;
    row.toggleAttribute("data-active", active);
    badge.setAttribute("aria-pressed", String(active));
    badge.setAttribute("aria-label", `Choose ${this.name(k)}`);
    show(field, region.text);
    kind.textContent = region.box ? "box" : this.drawing.spots[k - 1] ? "" : "not painted yet";
  }

  showBackground(png) {
    const image = new Image();
    image.onload = () => {
      URL.revokeObjectURL(image.src);
      this.drawing.photo = image;
      this.veil.hidden = false;
      this.draw();
    };
    image.src = pngAddress(png);
  }

  // -- answers of the kernel

  answered(message) {
    if (message.problem) this.say(`No scene: ${message.problem}`);
    if (!message.json) return;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([message.json], { type: "application/json" }));
    link.download = "scene.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    this.say("Saved as scene.json");
  }

  close() {
    this.sheet.close();
    this.kernel.close();
    this.model.off("msg:custom", this.onMessage);
    this.root.remove();
  }
}

// A field is not overwritten while it is typed in; the caret stays where nothing changes.
function show(field, text) {
  if (!field.dataset.typing && field.value !== text) field.value = text;
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    return () => view.close();
  },
};

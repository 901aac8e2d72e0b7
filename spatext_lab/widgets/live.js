// SPDX-License-Identifier: Apache-2.0
// The live widget's view: settings go to the model, the image comes in messages step by step.

const FIRST_SCALE = 2; // of the map, when it gets a scale of its own

class LiveView {
  constructor(model, el) {
    this.model = model;
    this.root = node("section", "sx sx-live", { "aria-label": "The image" });
    this.image = node("img", "", { alt: "", hidden: "" });
    this.hint = node("p", "", {}, "Paint a scene, then generate its image");
    this.bar = node("progress", "", { max: 1, value: 0, "aria-label": "Steps done" });
    this.status = node("div", "sx-status", { role: "status", "aria-live": "polite" });
    this.generateButton = button("Generate the image", () => this.generate(), "Generate");
    this.generateButton.classList.add("sx-main");
    this.stopButton = button("Stop generating", () => this.kernel.ask({ stop: true }), "Stop");
    const names = model.get("methods").map(({ name }) => name);
    [this.methodRow, this.pressMethod] = choice("Method", names, (method) => this.set({ method }));
    this.root.append(
      node("div", "sx-picture", {}, this.image, this.hint),
      this.bar,
      this.methodRow,
      this.buildSettings(),
      node("div", "sx-row", {}, this.generateButton, this.stopButton),
      this.status,
    );
    keepKeys(this.root);
    el.append(this.root);
    this.kernel = new Kernel(model, this.root, (words) => this.silent(words));
    this.onChange = () => this.refresh();
    this.onMessage = (message, buffers) => this.heard(message, buffers);
    model.on("change", this.onChange);
    model.on("msg:custom", this.onMessage);
    this.busy(false);
    this.refresh();
    if (model.get("image")?.byteLength) this.show(model.get("image"), model.get("alt"));
  }

  buildSettings() {
    const whole = { type: "number", min: 0, step: 1, "aria-label": "Seed" };
    const seed = (this.seed = node("input", "sx-text", whole));
    const written = () => Math.max(0, Math.round(Number(seed.value) || 0));
    seed.addEventListener("change", () => this.set({ seed: written() }));
    const another = () => this.set({ seed: this.model.get("seed") + 1 });
    const next = button("Another seed", another, "Another");
    const [steps, showSteps] = slider("Steps", "Steps", { min: 1, max: 50 }, (value) =>
      this.set({ steps: value }));
    const scale = { min: 0, max: 8, step: 0.5 };
    const [guidance, showScale] = slider("Guidance", "Guidance scale", scale, (value) =>
      this.set({ guidance_scale: value }));
    const [mapRow, showMapScale] = slider("Map", "Guidance scale of the map", scale, (value) =>
      this.set({ region_guidance_scale: value }));
    Object.assign(this, { mapRow, showSteps, showScale, showMapScale });
    this.apart = node("input", "", { type: "checkbox" });
    this.apart.addEventListener("change", () =>
      this.set({ region_guidance_scale: this.apart.checked ? FIRST_SCALE : null }));
    this.apartRow = node("label", "sx-check", {}, this.apart, "The map has a scale of its own");
    const seedRow = [node("span", "", {}, "Seed"), node("div", "sx-seed", {}, seed, next)];
    const rows = [...seedRow, steps, guidance, mapRow, this.apartRow];
    return node("div", "sx-settings", {}, ...rows);
  }

  set(change) {
    this.model.set(change);
    this.model.save_changes();
    this.refresh();
  }

  generate() {
    this.bar.value = 0;
    this.generates();
    this.kernel.ask({ generate: true });
  }

  generates() {
    this.busy(true);
    this.say("Generating");
  }

  busy(is) {
    this.kernel.watch(is);
    this.stopButton.disabled = !is;
    this.root.setAttribute("aria-busy", String(is));
  }

  say(words) {
    this.status.textContent = words;
  }

  // Nothing is known of an image under way; should a step of it come, it goes on.
  silent(words) {
    this.busy(false);
    this.say(words);
  }

  heard(message, buffers) {
    if ((message.working || message.done) && !this.kernel.working) this.generates();
    if (message.working) return;
    if (message.done) {
      this.bar.value = message.done / message.steps;
      this.show(buffers[0], `Step ${message.done} of ${message.steps}`);
      return;
    }
    const lost = "working" in message && this.kernel.working;
    this.busy(false);
    if (lost) this.say("Not generated: the kernel stopped without a word");
    if (message.problem) this.say(`Not generated: ${message.problem}`);
    if (message.stopped) this.say("Stopped");
    if (message.finished) {
      this.image.alt = this.model.get("alt");
      this.say(["Done", ...message.notes].join("; "));
    }
  }

  show(bytes, alt) {
    const old = this.image.src;
    this.image.src = pngAddress(bytes);
    this.image.alt = alt;
    this.image.hidden = false;
    this.hint.hidden = true;
    if (old) URL.revokeObjectURL(old);
  }

  refresh() {
    const get = (name) => this.model.get(name);
    const hasMap = get("methods").some(({ name, map }) => map && name === get("method"));
    const mapScale = get("region_guidance_scale");
    this.pressMethod(get("method"));
    this.seed.value = get("seed");
    this.showSteps(get("steps"));
    this.showScale(get("guidance_scale"));
    this.apart.checked = mapScale !== null;
    if (mapScale !== null) this.showMapScale(mapScale);
    this.apartRow.hidden = !hasMap;
    this.mapRow.hidden = !hasMap || mapScale === null;
  }

  close() {
    this.kernel.close();
    this.model.off("change", this.onChange);
    this.model.off("msg:custom", this.onMessage);
    this.root.remove();
  }
}

export default {
  render({ model, el }) {
    const view = new LiveView(model, el);
    return () => view.close();
  },
};

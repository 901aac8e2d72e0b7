// SPDX-License-Identifier: Apache-2.0
// The explorer's view: sliders over images that are all here already. Runs without a kernel.

const AXES = [
  ["captions", "Caption", "Guidance scale of the caption"],
  ["maps", "Map", "Guidance scale of the map"],
  ["steps", "Steps", "Denoising steps"],
  ["seeds", "Seed", "Seed of the noise"],
];
const VIEWS = {
  seen: "the image so far",
  null: "no condition",
  caption: "what the caption changes",
  map: "what the map changes",
};

function webp(data) {
  const image = new Image();
  image.src = `data:image/webp;base64,${data}`;
  return image;
}

// A slider over the entries of a list.
function listSlider(word, label, values, start, action) {
  const range = { min: 0, max: values.length - 1, value: start };
  const [row, show] = slider(word, label, range, (index) => {
    settle(index);
    action(index);
  });
  const input = row.querySelector("input");
  const settle = (index) => {
    show(index);
    row.querySelector(".sx-number").textContent = values[index];
    input.setAttribute("aria-valuetext", String(values[index]));
  };
  row.hidden = values.length < 2;
  settle(start);
  return row;
}

function middle(values, wanted) {
  return Math.max(0, values.indexOf(wanted));
}

class Explorer {
  constructor(root, data) {
    Object.assign(this, { data, axes: AXES.map(([name]) => data.parameters[name]) });
    this.images = data.images.map(webp); // decoded before they are asked for
    this.at = [middle(this.axes[0], 2), middle(this.axes[1], 2), this.axes[2].length - 1, 0];
    const sliders = AXES.map(([, word, label], i) =>
      listSlider(word, label, this.axes[i], this.at[i], (index) => {
        this.at[i] = index;
        this.show();
      }));
    this.frame = node("div", "sx-frame");
    const side = node("div", "sx-settings", {}, ...sliders);
    const hint = "A condition with scale 0 is ignored; larger scales exaggerate it.";
    const beside = node("div", "sx-side", {}, side, node("p", "sx-note", {}, hint));
    root.replaceChildren(node("div", "sx-top", {}, this.frame, beside), this.buildFilm());
    keepKeys(root);
    this.show();
  }

  show() {
    const index = this.at.reduce((sum, at, i) => sum * this.axes[i].length + at, 0);
    const image = this.images[index];
    const [caption, map, steps, seed] = this.at.map((at, i) => this.axes[i][at]);
    const settings = `caption scale ${caption}, map scale ${map}, ${steps} steps, seed ${seed}`;
    image.alt = `${this.data.caption}, ${settings}`;
    this.frame.replaceChildren(image);
  }

  buildFilm() {
    const decoded = (frame) => Object.entries(frame).map(([name, data]) => [name, webp(data)]);
    const steps = this.data.film.map((frame) => Object.fromEntries(decoded(frame)));
    const frames = Object.entries(VIEWS).map(([name, title]) =>
      node("figure", "", {}, node("div", "sx-frame"), node("figcaption", "", {}, title)));
    const show = (index) =>
      Object.entries(VIEWS).forEach(([name, title], i) => {
        const image = steps[index][name];
        image.alt = `Step ${index + 1}: ${title}`;
        frames[i].firstChild.replaceChildren(image);
      });
    const numbers = steps.map((_, i) => i + 1);
    const start = Math.min(1, steps.length - 1); // the conditions speak early
    const row = listSlider("Step", "Denoising step", numbers, start, show);
    show(start);
    const title = node("div", "sx-title", {}, "The directions along the way, both scales at 2");
    const images = node("div", "sx-frames", {}, ...frames);
    return node("div", "sx-film", {}, title, images, node("div", "sx-settings", {}, row));
  }
}

function begin(roots, data) {
  for (const root of roots) {
    root.dataset.on = "true";
    new Explorer(root, data);
  }
}

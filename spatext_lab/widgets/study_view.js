// SPDX-License-Identifier: Apache-2.0
// A blind study's view. Where answers are kept is up to its store, which is the widget's or the
// page's (study.js): last(), load(rater), save(answer), where(done), and file(rater) or nothing.

const SIDES = ["left", "right"];
const KEYS = { 1: 0, ArrowLeft: 0, 2: 1, ArrowRight: 1 };
const GLANCE = 150; // ms in which nobody can have looked: a key was pressed twice
const HOW =
  "Look at both images, then choose: key 1 or ← for the left one, 2 or → for the right one, or " +
  "press the image. Choose also where you are not sure. You can stop after each answer and go on " +
  "later under the same name.";

// Random numbers from 0 to below 1, the same ones for the same text (FNV-1a, then xorshift).
function randomOf(text) {
  let state = 2166136261;
  for (const byte of new TextEncoder().encode(text)) state = Math.imul(state ^ byte, 16777619);
  return () => {
    state ||= 1;
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) / 2 ** 32;
  };
}

// All questions to a rater, in the order in which they are asked: pairs at random, each pair's
// questions one after the other. Image x is at the left, or for half of the raters at the right.
function turns({ study, pairs }, rater) {
  const random = randomOf(`${study}/${rater}`);
  const places = random() < 0.5 ? [0, 1] : [1, 0];
  const order = [...pairs];
  for (let i = order.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order.flatMap((pair) => pair.questions.map((question) => ({ pair, question, places })));
}

function studyImage(alt) {
  return node("img", "", { alt, draggable: "false" });
}

function webpAddress(data) {
  return `data:image/webp;base64,${data}`;
}

class StudyView {
  constructor(root, data, store) {
    Object.assign(this, { root, data, store });
    this.bar = node("progress", "", { value: 0, "aria-label": "Questions answered" });
    this.place = node("div", "sx-status");
    this.question = node("h2", "");
    this.given = node("div", "sx-given");
    const asked = { "aria-live": "polite", "aria-atomic": "true" };
    const head = node("div", "sx-head", asked, this.place, this.question, this.given);
    this.choices = SIDES.map((side, index) => this.buildChoice(side, index));
    this.stopButton = button("Stop here; the answers are kept", () => this.rest(), "Stop");
    this.outlineButton = button("Outlines of the regions (O)", () => this.outline(), "Outlines");
    const row = node("div", "sx-row", {}, this.stopButton, this.outlineButton);
    this.turn = node("div", "sx-turn", { tabindex: "-1", hidden: "" }, head,
      node("div", "sx-pair", {}, ...this.choices), row);
    this.page = node("div", "sx-page");
    this.trouble = node("div", "sx-trouble", { role: "alert" });
    root.replaceChildren(this.bar, this.page, this.turn, this.trouble);
    this.welcome();
  }

  buildChoice(side, index) {
    const outlines = node("img", "sx-outlines", { alt: "", hidden: "" });
    const key = node("kbd", "", { "aria-hidden": "true" }, String(index + 1));
    const frame = node("span", "sx-frame", {}, studyImage(`The ${side} image`), outlines);
    const made = button(`The ${side} image`, () => this.choose(index), frame, key, side);
    made.classList.add("sx-choice");
    return made;
  }

  // --- before, between and after the questions ---------------------------------------------------

  welcome(name = this.store.last() || `rater-${Math.random().toString(36).slice(2, 7)}`) {
    const field = node("input", "sx-text", { required: "", maxlength: 60, autocomplete: "off" });
    field.value = name;
    const begin = node("button", "sx-button sx-main", { type: "submit" }, "Begin");
    const label = node("label", "", {}, "Your name in this study, not your real one", field);
    const form = node("form", "", {}, label, begin);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) this.begin(field.value.trim());
    });
    const pairs = `${this.data.pairs.length} pairs of images, up to three questions each. `;
    this.bar.value = 0;
    this.show("Which image?", pairs + HOW, form);
  }

  // A text and its controls in place of a question.
  show(title, text, ...controls) {
    this.turn.hidden = true;
    this.page.hidden = false;
    const said = { tabindex: "-1" };
    const words = [node("h2", "", said, title), node("p", "", {}, text)];
    this.page.replaceChildren(...words, node("div", "sx-row", {}, ...controls));
  }

  async begin(rater) {
    let done;
    try {
      done = new Set((await this.store.load(rater)).map((each) => each.join("/")));
    } catch (problem) {
      return this.complain(problem);
    }
    this.complain("");
    this.rater = rater;
    const all = turns(this.data, rater);
    this.all = all.length;
    this.left = all.filter(({ pair, question }) => !done.has(`${pair.id}/${question}`));
    if (!this.left.length) return this.rest();
    this.page.hidden = true;
    this.turn.hidden = false;
    await this.ask();
    this.turn.focus();
  }

  rest() {
    const answered = this.all - this.left.length;
    this.bar.value = answered / this.all;
    const done = !this.left.length;
    const text = `${answered} of ${this.all} questions answered. ${this.store.where(done)}`;
    const controls = [];
    const add = (label, action) => controls.push(button(label, action, label));
    if (!done) add("Go on", () => this.begin(this.rater));
    if (this.store.file) add("Save the answers", () => this.download());
    add("Another rater", () => this.welcome(""));
    controls[0].classList.add("sx-main");
    this.show(done ? "Thank you" : "Stopped", text, ...controls);
    this.page.querySelector("h2").focus();
  }

  download() {
    const url = URL.createObjectURL(new Blob([this.store.file(this.rater)]));
    const name = `${this.data.study}-${this.rater.replace(/[^\w-]+/g, "_")}`;
    const link = node("a", "", { href: url, download: `answers-${name}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  }

  // --- a question --------------------------------------------------------------------------------

  async ask() {
    const { pair, question, places } = this.left[0];
    const pairs = new Set(this.left.map((each) => each.pair)).size;
    const number = `Pair ${this.data.pairs.length - pairs + 1} of ${this.data.pairs.length}`;
    const which = `question ${pair.questions.indexOf(question) + 1} of ${pair.questions.length}`;
    this.busy = true;
    this.bar.value = (this.all - this.left.length) / this.all;
    const shown = this.choices.map((choice, side) => {
      const [image, outlines] = choice.querySelectorAll("img");
      image.src = webpAddress(pair.images[places[side]]);
      if (pair.outlines) outlines.src = webpAddress(pair.outlines);
      return image.decode();
    });
    this.outlineButton.hidden = question !== "regions";
    this.outline(question === "regions");
    this.place.textContent = `${number}, ${which}`;
    this.question.textContent = this.data.texts[question];
    this.given.replaceChildren(...this.conditions(pair, question));
    await Promise.allSettled(shown);
    this.since = performance.now();
    this.busy = false;
  }

  // What the images are compared with.
  conditions({ caption, regions }, question) {
    if (question === "caption") return [node("blockquote", "", {}, caption)];
    if (question !== "regions") return [];
    const entries = regions.map(({ text, back, ink }, k) => {
      const style = `background: ${back}; color: ${ink}`;
      return node("li", "", {}, node("b", "", { style }, String(k + 1)), text);
    });
    return [node("ol", "", {}, ...entries)];
  }

  // The outlines lie over the images and hide a part of them.
  outline(shown = this.outlineButton.getAttribute("aria-pressed") !== "true") {
    this.outlineButton.setAttribute("aria-pressed", String(shown));
    for (const image of this.turn.querySelectorAll(".sx-outlines")) image.hidden = !shown;
  }

  async choose(side) {
    if (this.busy || this.turn.hidden || performance.now() - this.since < GLANCE) return;
    const { pair, question, places } = this.left[0];
    const answer = {
      study: this.data.study,
      rater: this.rater,
      pair: pair.id,
      question,
      answer: "xy"[places[side]],
      side: SIDES[side],
      time: new Date().toISOString(),
      seconds: Math.round(performance.now() - this.since) / 1000,
    };
    this.busy = true;
    try {
      await this.store.save(answer);
    } catch (problem) {
      this.busy = false;
      return this.complain(`Not saved, choose once more: ${problem}`);
    }
    this.complain("");
    this.left.shift();
    if (this.left.length) await this.ask();
    else this.rest();
  }

  key(event) {
    const { key, repeat, ctrlKey, metaKey, altKey } = event;
    if (this.turn.hidden || repeat || ctrlKey || metaKey || altKey) return;
    if (key in KEYS) {
      event.preventDefault();
      this.choose(KEYS[key]);
    } else if (key.toLowerCase() === "o" && !this.outlineButton.hidden) this.outline();
  }

  complain(problem) {
    this.trouble.textContent = String(problem);
  }
}

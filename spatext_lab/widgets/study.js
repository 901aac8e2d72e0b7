// SPDX-License-Identifier: Apache-2.0
// Where a study's answers go: in a notebook to the kernel, in a page of its own to the browser.

class KernelStore {
  constructor(model, root) {
    this.kernel = new Kernel(model, root, (words) => words && this.settle({ problem: words }));
    this.model = model;
    this.number = 0;
    this.onMessage = (message) => message.number === this.number && this.settle(message);
    model.on("msg:custom", this.onMessage);
  }

  // The kernel's answer; none but the last question's counts.
  ask(message) {
    const number = (this.number += 1);
    return new Promise((resolve, reject) => {
      this.pending = { resolve, reject };
      this.kernel.ask({ number, ...message });
    });
  }

  settle(message) {
    if ("problem" in message) this.pending?.reject(message.problem);
    else this.pending?.resolve(message.answered);
  }

  last() {
    return this.model.get("rater");
  }

  load(rater) {
    return this.ask({ rater });
  }

  save(answer) {
    return this.ask({ answer });
  }

  where() {
    return `The answers are in ${this.model.get("answers")}.`;
  }

  close() {
    this.kernel.close();
    this.model.off("msg:custom", this.onMessage);
  }
}

// The browser's storage; where a page may not use it, memory.
class PageStore {
  constructor(study) {
    this.prefix = `spatext-study/${study}`;
    try {
      this.storage = window.localStorage;
      this.storage.setItem(`${this.prefix}/used`, "yes");
      this.kept = true;
    } catch {
      const memory = new Map();
      const setItem = (name, text) => memory.set(name, text);
      this.storage = { getItem: (name) => memory.get(name), setItem };
    }
  }

  last() {
    return this.storage.getItem(`${this.prefix}/last`);
  }

  answers(rater) {
    return JSON.parse(this.storage.getItem(`${this.prefix}/of/${rater}`) || "[]");
  }

  async load(rater) {
    this.storage.setItem(`${this.prefix}/last`, rater);
    return this.answers(rater).map(({ pair, question }) => [pair, question]);
  }

  async save(answer) {
    const before = this.answers(answer.rater);
    const text = JSON.stringify([...before, answer]);
    this.storage.setItem(`${this.prefix}/of/${answer.rater}`, text);
  }

  where(done) {
    const there = this.kept
      ? "They are kept in this browser."
      : "This browser keeps nothing: do not close the page before you have saved them.";
    return `${there} Save them as a file${done ? "" : " when you are through"}, and hand it in.`;
  }

  // A line an answer, so that the rest of a damaged file can be read.
  file(rater) {
    const lines = this.answers(rater).map((answer) => JSON.stringify(answer));
    return `[\n${lines.join(",\n")}\n]\n`;
  }
}

function begin(root, data) {
  const view = new StudyView(root, data, new PageStore(data.study));
  document.addEventListener("keydown", (event) => view.key(event));
}

export default {
  render({ model, el }) {
    const root = node("section", "sx sx-study", { "aria-label": "Blind study" });
    el.append(root);
    const store = new KernelStore(model, root);
    const view = new StudyView(root, model.get("sheet"), store);
    root.addEventListener("keydown", (event) => view.key(event));
    keepKeys(root);
    return () => {
      store.close();
      root.remove();
    };
  },
};

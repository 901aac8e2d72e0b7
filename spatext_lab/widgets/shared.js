// SPDX-License-Identifier: Apache-2.0
// What every widget builds its page from; it is put before each widget's own script.

// A new element. Children that are texts become text nodes, never markup.
function node(tag, className, attributes = {}, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// A button whose label is for screen readers and, when the pointer rests on it, for all.
function button(label, action, ...children) {
  const named = { type: "button", "aria-label": label, title: label };
  const made = node("button", "sx-button", named, ...children);
  made.addEventListener("click", action);
  return made;
}

// A row of buttons of which one is pressed; gives back the row, and a function that presses one.
function choice(label, options, action) {
  const row = node("div", "sx-group", { role: "group", "aria-label": label });
  for (const name of options) {
    const made = node("button", "sx-button", { type: "button" }, name);
    made.addEventListener("click", () => action(name));
    made.dataset.name = name;
    row.append(made);
  }
  const press = (name) => {
    for (const made of row.children)
      made.setAttribute("aria-pressed", String(made.dataset.name === name));
  };
  return [row, press];
}

// A slider with a word before it and its number behind; gives back both it and a way to set it.
function slider(word, label, range, action) {
  const input = node("input", "", { type: "range", "aria-label": label, ...range });
  const number = node("span", "sx-number", {}, input.value);
  const show = (value) => {
    input.value = value;
    number.textContent = value;
  };
  input.addEventListener("input", () => {
    number.textContent = input.value;
    action(Number(input.value));
  });
  return [node("label", "sx-slider", {}, node("span", "", {}, word), input, number), show];
}

function pngAddress(bytes) {
  return URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}

// Keys that mean something in a widget stay there: the notebook has shortcuts of its own for them.
// The page's, such as Ctrl S, go on to it; Ctrl Enter stays, or the cell would run and be redrawn.
function keepKeys(root) {
  root.addEventListener("keydown", (event) => {
    const { key, ctrlKey, metaKey } = event;
    const command = (ctrlKey || metaKey) && !event.getModifierState("AltGraph");
    const editing = key.length > 1 || "acvxyz".includes(key.toLowerCase());
    if (!command || editing) event.stopPropagation();
  });
}

const PATIENCE = 5000; // ms that the kernel has for an answer
const GONE = "The kernel has stopped or was restarted: run the cells of this widget again";
const SILENT =
  "No answer yet: the kernel is busy with another cell, or it was stopped or restarted. Then run " +
  "the cells of this widget again";

// Questions to the kernel. Any message of it is an answer; where none comes, silent(words) is
// called, and with no words when one has come after all.
class Kernel {
  constructor(model, root, silent) {
    Object.assign(this, { model, root, silent, working: false });
    this.onMessage = () => this.heard();
    const check = () => this.gone && this.ask({ ping: true });
    this.onLive = () => setTimeout(check); // the mark comes right after the event
    model.on("msg:custom", this.onMessage);
    model.on("comm_live_update", this.onLive); // JupyterLab's: the kernel has gone
  }

  // JupyterLab marks a widget whose kernel is not there any more.
  get gone() {
    return Boolean(this.root.closest(".jupyter-widgets-disconnected"));
  }

  ask(message) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.complain(), this.gone ? 0 : PATIENCE);
    try {
      if (!this.gone) this.model.send(message);
    } catch {
      this.complain(); // the connection is closed
    }
  }

  // While the kernel is working, it is asked now and then whether it is still there.
  watch(working) {
    this.working = working;
    this.heard();
  }

  complain() {
    this.complained = true;
    this.silent(this.gone ? GONE : SILENT);
  }

  heard() {
    clearTimeout(this.timer);
    if (this.complained) {
      this.complained = false;
      this.silent("");
    }
    if (this.working) this.timer = setTimeout(() => this.ask({ ping: true }), PATIENCE);
  }

  close() {
    clearTimeout(this.timer);
    this.model.off("msg:custom", this.onMessage);
    this.model.off("comm_live_update", this.onLive);
  }
}

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

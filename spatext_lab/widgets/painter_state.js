// SPDX-License-Identifier: Apache-2.0
// The painter's state: label map, regions and caption, with undo; kept equal to the kernel's.

function same(a, b) {
  return (
    a.w === b.w &&
    a.h === b.h &&
    a.caption === b.caption &&
    a.labels.every((label, i) => label === b.labels[i]) &&
    JSON.stringify(a.regions) === JSON.stringify(b.regions)
  );
}

class Sheet {
  // changed(before): called after every change, with the state before it.
  constructor(model, changed) {
    Object.assign(this, { model, changed, past: [], future: [] });
    this.state = this.read();
    this.onChange = () => this.receive();
    model.on("change", this.onChange);
  }

  // The model's state as plain values.
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

  // A change that can be undone.
  commit(change) {
    const next = { ...this.state, ...change };
    if (same(next, this.state)) return;
    this.remember();
    this.send(next);
  }

  // The kernel, or another view of the same painter, has changed something.
  receive() {
    const next = this.read();
    if (next.labels.length !== next.w * next.h || same(next, this.state)) return;
    this.remember();
    this.replace(next);
  }

  undo() {
    return this.step(this.past, this.future);
  }

  redo() {
    return this.step(this.future, this.past);
  }

  // Whether there was a state to go to.
  step(from, to) {
    if (!from.length) return false;
    to.push(this.state);
    this.send(from.pop());
    return true;
  }

  remember() {
    this.past.push(this.state);
    this.future = [];
  }

  // In one message to the kernel.
  send(next) {
    const before = this.state;
    this.state = next; // first, so that the model's own event finds nothing new
    this.model.set({
      width: next.w,
      height: next.h,
      labels: new DataView(next.labels.slice().buffer),
      regions: next.regions,
      caption: next.caption,
    });
    this.model.save_changes();
    this.changed(before);
  }

  replace(next) {
    const before = this.state;
    this.state = next;
    this.changed(before);
  }

  close() {
    this.model.off("change", this.onChange);
  }
}

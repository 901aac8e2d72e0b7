// SPDX-License-Identifier: Apache-2.0
// The painter's canvas: label map, boxes, numbers and cursor, drawn anew after every change.

const SHOWN = 448; // pixels of the longer side, on the page
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Region k's colour and the ink on it; figures.png has the same rules.
class Colours {
  constructor(palette) {
    this.palette = palette;
  }

  of(k) {
    return k ? this.palette[1 + ((k - 1) % (this.palette.length - 1))] : this.palette[0];
  }

  css(k) {
    return `rgb(${this.of(k).join(" ")})`;
  }

  ink(k) {
    const [r, g, b] = this.of(k);
    return 0.299 * r + 0.587 * g + 0.114 * b > 130 ? "#262626" : "#ffffff";
  }
}

class Drawing {
  constructor(canvas, tools, colours) {
    Object.assign(this, { canvas, tools, colours, spots: [], photo: null, opacity: 0.65 });
  }

  // Where the numbers stand; null for a region without a pixel.
  findSpots() {
    const { labels, w, h, regions } = this.tools.state;
    this.spots = regions.map((_, i) => deepest(labels, w, h, i + 1));
  }

  draw() {
    const { w, h } = this.tools.state;
    const { labels } = this.tools;
    const shown = SHOWN * (window.devicePixelRatio || 1);
    const scale = Math.max(1, Math.round(shown / Math.max(w, h)));
    if (this.canvas.width !== w * scale || this.canvas.height !== h * scale)
      Object.assign(this.canvas, { width: w * scale, height: h * scale });
    const pen = this.canvas.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.fillStyle = this.colours.css(0);
    pen.fillRect(0, 0, w * scale, h * scale);
    if (this.photo) pen.drawImage(this.photo, 0, 0, w * scale, h * scale);
    pen.drawImage(this.image(labels), 0, 0, w * scale, h * scale);
    this.drawEdges(pen, labels, scale);
    this.drawBoxes(pen, scale);
    this.drawNumbers(pen, scale);
    this.drawCursor(pen, scale);
  }

  // The label map, a pixel a label, on a canvas of its own size: enlarged, it stays sharp.
  image(labels) {
    const { w, h } = this.tools.state;
    const small = Object.assign(document.createElement("canvas"), { width: w, height: h });
    const pen = small.getContext("2d");
    const image = pen.createImageData(w, h);
    const alpha = Math.round(255 * (this.photo ? this.opacity : 1));
    for (let i = 0; i < labels.length; i++)
      if (labels[i]) image.data.set([...this.colours.of(labels[i]), alpha], 4 * i);
    for (const [box, k] of this.boxes()) this.tint(image, labels, box, k);
    pen.putImageData(image, 0, 0);
    return small;
  }

  // A box is a veil over what lies under it: not over later regions, which lie on top of it.
  tint(image, labels, [x0, y0, x1, y1], k) {
    const { w, h } = this.tools.state;
    const inside = (value, from, to) => from <= value && value < to;
    for (let i = 0; i < labels.length; i++) {
      const [x, y] = [((i % w) + 0.5) / w, (Math.floor(i / w) + 0.5) / h];
      if (!inside(x, x0, x1) || !inside(y, y0, y1) || labels[i] > k) continue;
      const old = image.data[4 * i + 3] ? image.data.slice(4 * i, 4 * i + 3) : this.colours.of(0);
      const mixed = this.colours.of(k).map((value, c) => 0.45 * value + 0.55 * old[c]);
      image.data.set([...mixed, Math.max(image.data[4 * i + 3], this.photo ? 115 : 255)], 4 * i);
    }
  }

  // [[box, k], ...] of all regions that are boxes, and of the box under way
  boxes() {
    const { state, corner, at, active } = this.tools;
    const boxes = state.regions.map((region, i) => [region.box, i + 1]).filter(([box]) => box);
    const drawn = corner && at && this.tools.boxTo(at);
    return drawn ? [...boxes, [drawn, active]] : boxes;
  }

  drawEdges(pen, labels, scale) {
    const { w, h } = this.tools.state;
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
    const { w, h } = this.tools.state;
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
      pen.strokeStyle = this.colours.css(k);
      pen.strokeRect(...inset(thick / 2));
    }
  }

  drawNumbers(pen, scale) {
    const radius = Math.max(9, this.canvas.width / 34);
    const { w, h } = this.tools.state;
    this.tools.state.regions.forEach(({ box }, i) => {
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
    pen.fillStyle = this.colours.css(k);
    pen.fill();
    pen.lineWidth = radius / 6;
    pen.strokeStyle = "#ffffff";
    pen.stroke();
    pen.fillStyle = this.colours.ink(k);
    pen.font = `600 ${radius * 1.15}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(String(k), x, y + radius * 0.06);
  }

  drawCursor(pen, scale) {
    const { at, tool, size } = this.tools;
    if (!at) return;
    const [x, y] = at.map((value) => (value + 0.5) * scale);
    const brush = tool === "brush" || tool === "eraser";
    const radius = brush ? Math.max(0.5, size / 2) * scale : 0.7 * scale;
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
}

function line(pen, x0, y0, x1, y1, scale) {
  pen.moveTo(x0 * scale, y0 * scale);
  pen.lineTo(x1 * scale, y1 * scale);
}

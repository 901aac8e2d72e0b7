// SPDX-License-Identifier: Apache-2.0
// Pixels of strokes and fillings: the same two functions as in strokes.py, in whole numbers.

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

// Marks with k the connected pixels (side by side) around (x, y) that have its label.
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

// The pixel of region k that is farthest from any other region and from the border, for its number.
// Large maps are sampled in steps; a region that slips through is searched pixel by pixel.
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

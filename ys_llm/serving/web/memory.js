// Draws how much each part of the state holds and how much each token changed it.

const ROW = 38, GAP = 8, LABEL = 104, COLOURS = 6, MOST_ROWS = 18, LEAST_CELL = 2, MOST_CELL = 12;

/** The rows to draw: one for each kind of memory, or one for each kind in each layer. */
export function rowsOf(tokens, byLayer) {
  const names = [...new Set(tokens.flatMap((token) => Object.keys(token.memory ?? {})))];
  const groups = new Map();
  for (const name of names) {
    const group = byLayer ? name.replace(".", ": ") : kindOf(name);
    groups.set(group, [...(groups.get(group) ?? []), name]);
  }
  const kinds = [...new Set(names.map(kindOf))];
  return [...groups].slice(0, MOST_ROWS).map(([title, parts]) => ({
    title,
    colour: kinds.indexOf(kindOf(parts[0])) % COLOURS,
    norms: tokens.map((token) => length(parts, token, "norm")),
    changes: tokens.map((token) => length(parts, token, "change")),
  }));
}

/** `main` of `1.main`: the same part of every layer. */
export function kindOf(name) {
  return name.split(".").slice(1).join(".") || name;
}

export function readable(kind) {
  return /^\d+$/.test(kind) ? `layer ${kind}` : kind.replaceAll("_", " ").replaceAll(".", " ");
}

function length(parts, token, field) {
  return Math.hypot(...parts.map((name) => token.memory?.[name]?.[field] ?? 0));
}

/** What a drawing shows, in words. */
export function inWords(rows) {
  const said = rows.map(({ title, norms, changes }) => {
    const norm = norms.at(-1) ?? 0, change = changes.at(-1) ?? 0;
    return `${readable(title)} holds ${norm.toFixed(1)}, and the last token changed it by ${share(change, norm)}`;
  });
  return `Memory after ${rows[0]?.norms.length ?? 0} tokens. ${said.join("; ")}.`;
}

function share(change, norm) {
  return `${Math.min(999, norm > 0 ? (100 * change) / norm : 0).toFixed(0)} %`;
}

/** Draw the rows; returns a function from a horizontal place to the token drawn there. */
export function draw(canvas, rows, chosen) {
  const width = canvas.clientWidth, height = rows.length * (ROW + GAP);
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const count = rows[0]?.norms.length ?? 0, room = Math.max(1, width - LABEL);
  const cell = Math.min(MOST_CELL, Math.max(LEAST_CELL, room / Math.max(1, count)));
  const first = Math.max(0, count - Math.floor(room / cell)); // the latest, where not all fit
  const style = getComputedStyle(canvas);
  rows.forEach((row, index) => drawRow(pen, row, index * (ROW + GAP), { first, cell, style }));
  if (chosen !== null && chosen >= first && chosen < count) {
    pen.fillStyle = style.getPropertyValue("--text");
    pen.fillRect(LABEL + (chosen - first + 0.5) * cell, 0, 1, height);
  }
  return (x) => {
    const token = first + Math.floor((x - LABEL) / cell);
    return x >= LABEL && token < count ? token : null;
  };
}

function drawRow(pen, row, top, { first, cell, style }) {
  const colour = style.getPropertyValue(`--c${row.colour}`), bottom = top + ROW;
  const highest = Math.max(...row.norms.slice(first), 1e-9);
  pen.fillStyle = style.getPropertyValue("--soft");
  pen.font = "12px system-ui, sans-serif";
  pen.fillText(cut(readable(row.title)), 0, top + 14);
  pen.fillText((row.norms.at(-1) ?? 0).toPrecision(3), 0, top + 30);
  pen.fillStyle = colour;
  for (let i = first; i < row.norms.length; i += 1) {
    // Whole pixels: between parts of them the page would show as stripes.
    const x = Math.round(LABEL + (i - first) * cell), end = Math.round(LABEL + (i - first + 1) * cell);
    const tall = (ROW * row.norms[i]) / highest;
    pen.globalAlpha = 0.28;
    pen.fillRect(x, bottom - tall, end - x, tall);
    // Of unrelated memories the difference is 1.4 times as long as one, of opposite ones twice.
    const changed = tall * Math.min(1, row.norms[i] > 0 ? row.changes[i] / row.norms[i] / 2 : 0);
    pen.globalAlpha = 1;
    pen.fillRect(x, bottom - changed, Math.max(1, end - x - 1), changed);
  }
  pen.fillStyle = style.getPropertyValue("--line");
  pen.fillRect(LABEL, bottom, pen.canvas.clientWidth - LABEL, 1);
}

function cut(text) {
  return text.length > 16 ? `${text.slice(0, 15)}…` : text;
}

// What is said of a text and of the writing of it.

import { readable } from "./memory.js";

/** How a text was written. */
export function noteOf({ set, note, tokens, end }) {
  const muted = set.muted.length ? `without ${set.muted.map(readable).join(" and ")}` : "";
  const ended = end?.reason === "length" ? "cut off" : "";
  const parts = [note, `seed ${set.seed}`, `temperature ${set.temperature}`, muted, count(tokens.length), ended];
  return parts.filter(Boolean).join(", ");
}

export function count(tokens) {
  return `${tokens} ${tokens === 1 ? "token" : "tokens"}`;
}

/** How long it took. */
export function summary(tokens, milliseconds) {
  const seconds = milliseconds / 1000;
  return `Done: ${count(tokens)} in ${seconds.toFixed(1)} s, ${Math.round(tokens / seconds)} a second`;
}

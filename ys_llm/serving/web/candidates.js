// What else could have stood in the place of a token.

export const END = "<end>";

/** A token in words: how likely it was, how uncertain the model, how much was copied. */
export function factsOf({ token, logprob, entropy, copied }) {
  const facts = [percent(Math.exp(logprob))];
  if (typeof entropy === "number") facts.push(`entropy ${entropy.toFixed(2)} nats`);
  if (typeof copied === "number") facts.push(`${Math.round(100 * copied)} % copied`);
  return `${visible(token)}: ${facts.join(", ")}`;
}

/** List items with a button each, which calls `take` with the candidate. */
export function candidateItems(token, isBusy, take) {
  return (token.candidates ?? []).map((one) => item(one, one.id === token.id, isBusy, take));
}

function item(one, isDrawn, isBusy, take) {
  const entry = document.createElement("li"), button = document.createElement("button");
  const [share, bar, word] = ["share", "bar", "word"].map(part);
  const filled = document.createElement("i");
  filled.style.width = `${100 * one.probability}%`;
  share.textContent = percent(one.probability);
  bar.append(filled);
  word.textContent = visible(one.token);
  entry.classList.toggle("is-drawn", isDrawn);
  button.type = "button";
  button.disabled = isBusy || one.token === END;
  button.setAttribute("aria-label", `${visible(one.token)}, ${percent(one.probability)}: fork with it`);
  button.append(share, bar, word);
  button.onclick = () => take(one);
  entry.append(button);
  return entry;
}

function part(className) {
  return Object.assign(document.createElement("span"), { className });
}

function percent(probability) {
  const share = 100 * probability;
  return `${share < 0.1 ? "<0.1" : share < 10 ? share.toFixed(1) : share.toFixed(0)} %`;
}

/** A token with its white space shown. */
function visible(token) {
  return token === END ? "the end" : token.replaceAll("\n", "↵").replace(/^ /, "␣");
}

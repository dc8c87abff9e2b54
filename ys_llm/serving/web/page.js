// The page: prompts, texts side by side, candidates under the pointer, settings, memories.

import { END, candidateItems, factsOf } from "./candidates.js";
import { draw, inWords, kindOf, readable, rowsOf } from "./memory.js";
import { generate, models } from "./stream.js";
import { firstTurns, turnItem } from "./turns.js";
import { count, noteOf, summary } from "./words.js";

const $ = (id) => document.getElementById(id);
const SLIDERS = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"];
const CANDIDATES = 10, LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", STORED = "page";

let known = []; // the models
let texts = []; // see `addText`
let chosen = null; // {text, index, isKept}: the token whose candidates are shown
let writing = null; // {text, abort}
let letters = 0;

// --- settings ---

function settings() {
  const values = Object.fromEntries(SLIDERS.map((id) => [id, Number($(id).value)]));
  const muted = [...$("mute").querySelectorAll("input:checked")].map(({ value }) => value);
  return { model: $("model").value, seed: Number($("seed").value), muted, ...values };
}

function showSettings() {
  for (const id of SLIDERS) {
    document.querySelector(`output[for="${id}"]`).value = $(id).value;
  }
}

function modelNow() {
  return known.find(({ name }) => name === $("model").value);
}

/** Show the model that is chosen, and list its kinds of memory, to be muted. */
function showModel(muted = []) {
  const model = modelNow();
  if (!model) return;
  $("before").hidden = !model.chats;
  $("branches").classList.toggle("chat", model.chats);
  const layers = [...new Set(model.layers)].map(readable).join(", ");
  $("about").textContent = `${model.parameter_size} parameters, ${model.n_layers} layers: ${layers}`;
  const boxes = sorted(model.memories).map((kind) => {
    const box = Object.assign(document.createElement("input"), { type: "checkbox", value: kind });
    box.checked = muted.includes(kind);
    const label = document.createElement("label");
    label.append(box, readable(kind));
    return label;
  });
  $("mute").replaceChildren($("mute").querySelector("legend"), ...boxes, $("mute-help"));
}

/** The kinds of memory before the layers, which have numbers. */
function sorted(memories) {
  const isLayer = (name) => /^\d+$/.test(name);
  return [...memories.filter((name) => !isLayer(name)), ...memories.filter(isLayer)];
}

function useDefaults() {
  const model = modelNow();
  for (const [id, value] of Object.entries(model?.defaults ?? {})) $(id).value = value;
  showSettings();
}

// --- texts ---

/**
 * A new text. `start` is what its answer begins from, `again` the same without a kept state, `asked`
 * the turns and `given` the text that are shown before the answer, and `like` names the text that it
 * is to be compared with.
 */
function addText({ start, again = null, asked = [], given = "", note = "", like = null, set = settings() }) {
  const name = LETTERS[letters % LETTERS.length];
  letters += 1;
  const text = { name, start, again, asked, given, tokens: [], note, like, set, end: null };
  texts.push(text);
  show(text);
  return text;
}

function show(text) {
  const view = $("branch").content.cloneNode(true).firstElementChild;
  text.view = view;
  view.setAttribute("aria-label", `Text ${text.name}`);
  view.querySelector("h2").textContent = `Text ${text.name}`;
  view.querySelector(".text").setAttribute("aria-label", `Text ${text.name}. The arrow keys go through its words.`);
  view.querySelector(".more").onclick = () => goOn(text);
  view.querySelector(".again").onclick = () => onceMore(text);
  view.querySelector(".drop").onclick = () => remove(text);
  listen(text, view.querySelector(".text"), view.querySelector("canvas"));
  view.querySelector(".asked").append(...text.asked.map(turnItem));
  $("branches").append(view);
  const given = document.createElement("span");
  given.className = "given";
  given.textContent = text.given;
  view.querySelector(".text").append(given);
  text.shown = 0;
  refresh(text);
}

/** Show what has come since the last time; once a frame while a text is written. */
function refresh(text) {
  text.pending = false;
  const body = text.view.querySelector(".text");
  for (; text.shown < text.tokens.length; text.shown += 1) {
    const span = document.createElement("span");
    span.textContent = text.tokens[text.shown].text;
    span.dataset.i = text.shown;
    span.classList.toggle("other", differs(text, text.shown));
    span.classList.toggle("end", text.tokens[text.shown].isEnd);
    body.append(span);
  }
  body.classList.toggle("writing", writing?.text === text);
  body.setAttribute("aria-busy", String(writing?.text === text));
  text.view.querySelector(".note").textContent = noteOf(text);
  const more = text.view.querySelector(".more");
  more.disabled = writing !== null || !text.tokens.length;
  more.textContent = text.end?.reason === "stop" ? "Ask further" : "Go on";
  text.view.querySelector(".again").disabled = writing !== null;
  drawMemory(text);
}

/** Whether a token is not the one that the text beside it has in its place. */
function differs(text, index) {
  const other = text.like && texts.find(({ name }) => name === text.like);
  return Boolean(other) && other.tokens[index]?.id !== text.tokens[index].id;
}

function later(text) {
  if (text.pending) return;
  text.pending = true;
  requestAnimationFrame(() => refresh(text));
}

function remove(text) {
  if (writing?.text === text) stop();
  texts = texts.filter((one) => one !== text);
  text.view.remove();
  if (chosen?.text === text) choose(null);
  store();
}

// --- writing ---

async function write(text) {
  stop();
  const abort = new AbortController(), mine = { text, abort };
  writing = mine;
  $("stop").disabled = false;
  const began = performance.now();
  say("Reading…");
  try {
    await read(text, abort.signal);
    say(summary(text.tokens.length, performance.now() - began));
  } catch (error) {
    if (error.name === "AbortError") say("Stopped.");
    else say(error.message, true);
  }
  if (writing === mine) writing = null;
  $("stop").disabled = writing === null;
  texts.forEach(refresh);
  store();
}

/** Ask for the answer; where the state that it begins from is kept no longer, it is read again. */
async function read(text, signal) {
  const asked = { ...text.set, candidates: CANDIDATES, explain: true, contexts: true };
  try {
    for await (const event of generate({ ...asked, ...text.start }, signal)) take(text, event);
  } catch (error) {
    if (!text.again || text.tokens.length || !error.message.startsWith("unknown context")) throw error;
    for await (const event of generate({ ...asked, ...text.again }, signal)) take(text, event);
  }
}

function take(text, event) {
  if (event.type === "token") {
    const { id, logprob, entropy, copied, memory, context, candidates, token } = event;
    const isEnd = token === END;
    text.tokens.push({ text: event.text, id, token, logprob, entropy, copied, memory, context, candidates, isEnd });
    say(`Writing: ${count(text.tokens.length)}`);
  }
  if (event.type === "done") {
    text.end = { reason: event.reason, context: event.context };
    if (event.text) text.tokens.at(-1).text += event.text; // what was held back
    text.view.querySelector(`[data-i="${text.tokens.length - 1}"]`)?.append(event.text);
  }
  later(text);
}

function stop() {
  writing?.abort.abort();
}

function say(text, isBad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", isBad);
}

/** The same text with the settings of now, beside it. */
function onceMore(text, changes = {}) {
  const { start, again, asked, given, name } = text;
  const set = { ...settings(), ...changes };
  return write(addText({ start, again, asked, given, set, like: name, note: `as ${name}` }));
}

/** Begin a text, or a conversation; one whose last answer has ended goes on with another turn. */
function ask() {
  const last = texts.at(-1), prompt = $("prompt").value, system = $("system").value;
  if (!modelNow()?.chats) return write(addText({ start: { prompt } }));
  const isOpen = last?.asked.length && last.end?.reason === "stop" && last.set.model === $("model").value;
  if (!prompt.trim()) return null;
  if (isOpen) return goOn(last);
  $("prompt").value = "";
  return write(addText({ start: { prompt, system }, asked: firstTurns(system, prompt) }));
}

/** Write on from the end of a text; one that has ended is asked what stands in the prompt. */
function goOn(text) {
  const last = text.tokens.at(-1), given = shownBefore(text, text.tokens.length);
  const note = `goes on from ${text.name}`;
  if (text.end?.reason === "stop") {
    const prompt = $("prompt").value;
    if (text.asked.length) {
      $("prompt").value = "";
      return write(addText({ start: { context: text.end.context, prompt }, asked: firstTurns("", prompt), note }));
    }
    return write(addText({ start: { context: text.end.context, prompt }, given: `${given}\n\n${prompt}\n\n`, note }));
  }
  const start = text.end ? { context: text.end.context } : { context: last.context, ids: [last.id] };
  const again = againAt(text, text.tokens.length);
  return write(addText({ start, again, asked: text.asked, given, note }));
}

/** Another text that shares the tokens before `index`; it goes on with `word` where one is given. */
function fork({ text, index }, word = null) {
  const ids = word === null ? [] : [word.id], again = againAt(text, index);
  const start = { context: text.tokens[index].context, ids };
  const given = shownBefore(text, index) + (word?.token ?? ""), { asked } = text;
  choose(null);
  if (again) again.ids = [...again.ids, ...ids];
  return write(addText({ start, again, asked, given, note: `fork of ${text.name}` }));
}

/** What to read for the beginning of a text without its state; null where that is not known. */
function againAt({ start, again, tokens }, index) {
  const from = again ?? (start.context ? null : start);
  return from && { ...from, ids: [...(from.ids ?? []), ...tokens.slice(0, index).map(({ id }) => id)] };
}

function shownBefore({ given, tokens }, index) {
  return given + tokens.slice(0, index).map(({ text }) => text).join("");
}

// --- candidates ---

function listen(text, body, canvas) {
  const at = (event) => event.target.closest?.("[data-i]")?.dataset.i;
  body.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse" && at(event) !== undefined && !chosen?.isKept) choose({ text, index: Number(at(event)) });
  });
  body.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") leaveSoon();
  });
  body.addEventListener("click", (event) => {
    if (at(event) !== undefined) choose({ text, index: Number(at(event)), isKept: true });
  });
  body.addEventListener("keydown", (event) => step(text, event));
  canvas.addEventListener("pointermove", (event) => {
    const index = text.tokenAt?.(event.offsetX) ?? null;
    if (index !== null && !chosen?.isKept) choose({ text, index });
  });
  canvas.addEventListener("pointerleave", leaveSoon);
}

let leaving = 0;

/** Close the candidates unless the pointer goes to them. */
function leaveSoon() {
  clearTimeout(leaving);
  leaving = setTimeout(() => {
    if (chosen && !chosen.isKept && !$("candidates").matches(":hover")) choose(null);
  }, 300);
}

function step(text, event) {
  const index = chosen?.text === text ? chosen.index : -1, last = text.tokens.length - 1;
  const moves = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: last };
  if (event.key === "Escape") choose(null);
  if (event.key === "Enter" && index >= 0) $("list").querySelector("button")?.focus();
  if (!(event.key in moves) || last < 0) return;
  event.preventDefault();
  choose({ text, index: Math.max(0, Math.min(last, moves[event.key])), isKept: true });
}

function choose(next) {
  const before = chosen;
  chosen = next;
  before?.text.view.querySelector(".chosen")?.classList.remove("chosen");
  if (before && before.text !== next?.text) drawMemory(before.text);
  $("candidates").hidden = next === null;
  if (next === null) return;
  const span = next.text.view.querySelector(`[data-i="${next.index}"]`);
  span?.classList.add("chosen");
  showCandidates(next);
  if (span) place(span);
  drawMemory(next.text);
}

function showCandidates({ text, index }) {
  const token = text.tokens[index], isBusy = writing !== null;
  $("chosen").textContent = factsOf(token);
  $("list").replaceChildren(...candidateItems(token, isBusy, (word) => fork({ text, index }, word)));
  $("fork").disabled = isBusy;
}

/** Put the candidates below a word; on a narrow screen the style sheet puts them at the bottom. */
function place(span) {
  const card = $("candidates"), word = span.getBoundingClientRect();
  card.style.left = card.style.top = "";
  if (getComputedStyle(card).position === "fixed") return;
  const left = Math.min(word.left, document.documentElement.clientWidth - card.offsetWidth - 16);
  card.style.left = `${Math.max(8, left) + window.scrollX}px`;
  card.style.top = `${word.bottom + window.scrollY + 4}px`;
}

// --- memories ---

function drawMemory(text) {
  const figure = text.view.querySelector(".memory"), canvas = figure.querySelector("canvas");
  const rows = rowsOf(text.tokens, $("by-layer").checked);
  figure.hidden = rows.length === 0;
  if (!rows.length) return;
  text.tokenAt = draw(canvas, rows, chosen?.text === text ? chosen.index : null);
  canvas.setAttribute("aria-label", inWords(rows));
}

// --- what is kept over a reload ---

function store() {
  const kept = texts.map(({ view, shown, pending, tokenAt, ...text }) => text);
  const page = { set: settings(), prompt: $("prompt").value, system: $("system").value, letters, texts: kept };
  try {
    sessionStorage.setItem(STORED, JSON.stringify(page));
  } catch {
    sessionStorage.setItem(STORED, JSON.stringify({ ...page, texts: [] })); // too long to be kept
  }
}

function restore() {
  const page = JSON.parse(sessionStorage.getItem(STORED) ?? "null");
  if (!page) return useDefaults();
  if (known.some(({ name }) => name === page.set.model)) $("model").value = page.set.model;
  for (const id of [...SLIDERS, "seed"]) $(id).value = page.set[id];
  $("prompt").value = page.prompt;
  $("system").value = page.system ?? "";
  letters = page.letters;
  texts = page.texts.map((text) => ({ asked: [], ...text }));
  showModel(page.set.muted);
  showSettings();
  texts.forEach(show);
}

// --- what the user does ---

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
$("stop").onclick = stop;
$("clear").onclick = () => {
  [...texts].forEach(remove);
  letters = 0;
  say("");
  store();
};
$("settings").addEventListener("submit", (event) => event.preventDefault());
$("settings").addEventListener("input", () => {
  showSettings();
  texts.forEach(drawMemory);
  store();
});
$("mute").addEventListener("change", () => {
  const last = texts.at(-1);
  if (last) onceMore(last, { seed: last.set.seed });
});
$("fork").onclick = () => fork(chosen);
$("close").onclick = () => {
  const { text } = chosen;
  choose(null);
  text.view.querySelector(".text").focus();
};
$("candidates").addEventListener("pointerleave", leaveSoon);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && chosen) $("close").click();
});
window.addEventListener("resize", () => texts.forEach(drawMemory));
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => texts.forEach(drawMemory));

$("model").addEventListener("change", () => {
  useDefaults();
  showModel();
});

async function open() {
  showSettings();
  try {
    known = await models();
    $("model").replaceChildren(...known.map(({ name }) => new Option(name)));
    showModel();
    restore();
  } catch (error) {
    say(error.message, true);
  }
}

open();

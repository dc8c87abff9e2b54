// The turns of a conversation that come before an answer: as they are asked, and as they are shown.

/** The turns that a conversation begins with. */
export function firstTurns(system, prompt) {
  const user = { role: "user", text: prompt };
  return system ? [{ role: "system", text: system }, user] : [user];
}

/** A turn as an element of the page. */
export function turnItem({ role, text }) {
  const item = document.createElement("p"), who = document.createElement("b");
  item.className = role;
  who.textContent = role === "system" ? "System text" : "You";
  item.append(who, text);
  return item;
}

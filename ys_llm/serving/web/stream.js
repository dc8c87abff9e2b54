// Talks to the server: which models there are, and an answer as it is generated.

let key = sessionStorage.getItem("key") ?? "";

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    const given = window.prompt("This server wants its API key");
    if (given) {
      key = given;
      sessionStorage.setItem("key", key);
      return call(path, options);
    }
  }
  if (!answer.ok) throw new Error(await problem(answer));
  return answer;
}

async function problem(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error;
  } catch {
    return text || `the server answered ${answer.status}`;
  }
}

/** The models: names, sizes, parts of their memory, and how they are used by default. */
export async function models() {
  return (await (await call("/ys/models")).json()).models;
}

/** The events of an answer, one after the other, until `signal` is aborted. */
export async function* generate(request, signal) {
  const answer = await call("/ys/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  for await (const line of linesOf(answer.body)) {
    const event = JSON.parse(line);
    if (event.type === "error") throw new Error(event.error);
    yield event;
  }
}

async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines.filter(Boolean);
  }
  if (rest) yield rest;
}

// Requests to the server that this page came from. A request that is no longer wanted is given up at once.

export class Gone extends Error {}

async function checked(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try { message = (await response.json()).error ?? message; } catch { /* not ours: the status says it */ }
  throw new Error(message);
}

const going = new Map();

function signalOf(slot) {
  if (!slot) return undefined;
  going.get(slot)?.abort();
  const controller = new AbortController();
  going.set(slot, controller);
  return controller.signal;
}

export function stop(slot) {
  going.get(slot)?.abort();
  going.delete(slot);
}

// What `read` makes of the answer.
async function send(path, options, slot, read) {
  try {
    return await read(await checked(await fetch(path, { ...options, signal: signalOf(slot), credentials: "same-origin" })));
  } catch (error) {
    if (error.name === "AbortError") throw new Gone();
    if (error instanceof TypeError) throw new Error("The server does not answer: has `introspect explore` ended?");
    throw error;
  }
}

export const get = (path, slot) => send(path, {}, slot, response => response.json());

// A later request of the same slot takes the place of this one.
export const post = (path, data, slot) => send(path, request(data), slot, response => response.json());

export const postText = (path, data) => send(path, request(data), null, response => response.text());

function request(data) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(data) };
}

// Server-sent events of a request: `event` is called with each, and the last one's `done` is returned.
export function stream(path, data, event, slot) {
  return send(path, request(data), slot, async response => {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new Gone();
      held += value;
      const parts = held.split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        const said = JSON.parse(part.replace(/^data: /, ""));
        if ("error" in said) throw new Error(said.error);
        if ("done" in said) return said.done;
        event(said);
      }
    }
  });
}

export const path = (...parts) => "/" + parts.map(encodeURIComponent).join("/");

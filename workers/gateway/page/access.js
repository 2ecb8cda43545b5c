/* The gateway's key, where it wants one: kept in this tab only, and sent with every request. */

let key = sessionStorage.getItem("chatterline-key") ?? "";

/** An answer that is no success, in the server's words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function remember(value) {
  key = value;
  sessionStorage.setItem("chatterline-key", value);
}

/** `fetch` on this gateway; raises `Refused` with what the server says. */
export async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new Refused(response.status, said?.error?.message ?? `${response.status} ${response.statusText}`);
}

/** A WebSocket to this gateway. Browsers send a key with one only as a subprotocol. */
export function socket(path) {
  const url = new URL(path, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  if (!key) return new WebSocket(url);
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  const packed = btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return new WebSocket(url, ["chatterline-tts", `chatterline-key.${packed}`]);
}

/** The `data:` of server-sent events, one after another, until the stream ends. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value.replaceAll("\r", "");
      const blocks = held.split("\n\n");
      held = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    await reader.cancel().catch(() => {}); // nobody reads on: the connection is given up
  }
}

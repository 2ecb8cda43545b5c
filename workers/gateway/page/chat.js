/* A language model behind an OpenAI-compatible chat endpoint, read while it writes. */

import { ask, events, Refused } from "./access.js";

/** The address of `POST …/chat/completions`, from the server's, its /v1's or the whole one. */
export function endpoint(address) {
  const url = new URL(address);
  if (!/^https?:$/.test(url.protocol)) throw new Refused(0, "the address must begin with http:// or https://");
  const base = url.pathname.replace(/\/+$/, "").replace(/\/chat\/completions$/, "") || "/v1";
  return { chat: `${url.origin}${base}/chat/completions${url.search}`, models: `${url.origin}${base}/models${url.search}` };
}

/** What the model says, piece by piece. `target` is `{gateway: true}` or `{url, model, key}`. What it thinks before it
 * answers (`<think>…</think>` in front) is not said. */
export async function* answer(target, messages, signal) {
  let front = ""; // until it is known whether it thinks
  let said = false;
  for await (const piece of told(target, messages, signal)) {
    if (said) {
      yield piece;
      continue;
    }
    front += piece;
    const begun = front.trimStart();
    if ("<think>".startsWith(begun.slice(0, 7)) && !begun.includes("</think>")) continue;
    said = true;
    yield begun.replace(/^<think>[^]*?<\/think>\s*/, "");
  }
  if (!said && !front.trimStart().startsWith("<think>")) yield front;
}

async function* told(target, messages, signal) {
  const response = target.gateway ? await throughGateway(messages, signal) : await directly(target, messages, signal);
  if (!response.headers.get("content-type")?.startsWith("text/event-stream")) {
    const whole = await response.json(); // it does not stream: all at once is better than nothing
    yield whole.choices?.[0]?.message?.content ?? "";
    return;
  }
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Refused(0, event.error.message ?? String(event.error));
    const piece = event.choices?.[0]?.delta?.content;
    if (piece) yield piece;
  }
}

function throughGateway(messages, signal) {
  const body = JSON.stringify({ messages });
  return ask("/api/chat", { method: "POST", body, headers: { "Content-Type": "application/json" }, signal });
}

async function directly({ url, model, key }, messages, signal) {
  const { chat, models } = endpoint(url);
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const chosen = model || (await firstModel(models, headers, signal));
  const body = JSON.stringify({ model: chosen, messages, stream: true });
  return checked(await called(chat, { method: "POST", headers, body, signal }));
}

async function firstModel(url, headers, signal) {
  const listed = await (await checked(await called(url, { headers, signal }))).json();
  const name = listed.data?.[0]?.id;
  if (!name) throw new Refused(0, "the server lists no models: say which one to ask");
  return name;
}

async function called(url, options) {
  try {
    return await fetch(url, { ...options, credentials: "omit", referrerPolicy: "no-referrer" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const { origin } = new URL(url);
    throw new Refused(0, `${origin} does not answer this browser. Is it running, and does it allow pages from ${location.origin} (CORS)?`);
  }
}

async function checked(response) {
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  throw new Refused(response.status, `the model’s server says: ${said?.error?.message ?? response.statusText}`);
}

/** A recording as part of a question. */
export async function spokenQuestion(file, text) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = "";
  for (let at = 0; at < bytes.length; at += 0x8000) binary += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  const format = file.name.split(".").pop().toLowerCase();
  const parts = [{ type: "input_audio", input_audio: { data: btoa(binary), format } }];
  return text ? [...parts, { type: "text", text }] : parts;
}

/** What the model is told: what was asked, and what was *heard* of its answers. Of one that was not heard
nothing is told; its question and the next go as one, since many models insist that the roles alternate. */
export class Memory {
  constructor() {
    this.exchanges = [];
  }

  add(question, heard) {
    this.exchanges.push([question, heard.trim()]);
    if (this.exchanges.length > 100) this.exchanges.shift();
  }

  messages(system, question) {
    const told = system ? [{ role: "system", content: system }] : [];
    for (const [asked, heard] of [...this.exchanges, [question, ""]]) {
      const last = told.at(-1);
      if (last?.role === "user") last.content = joined(last.content, asked);
      else told.push({ role: "user", content: asked });
      if (heard) told.push({ role: "assistant", content: heard });
    }
    return told;
  }
}

function joined(first, second) {
  if (typeof first === "string" && typeof second === "string") return `${first}\n\n${second}`;
  const parts = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : content);
  return [...parts(first), ...parts(second)];
}

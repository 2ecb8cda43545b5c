/* One utterance over /ws/tts/live: text goes in as it grows, sound comes out while it grows.

The socket gives sound as fast as it is made. So that no hour of speech is made that nobody may want to hear,
text is handed over in portions, whole sentences, and the next one when the ear has nearly caught up. */

import { SAMPLE_RATE } from "./player.js";
import { socket } from "./access.js";

const AHEAD_S = 8;
const SETTLE_MS = 250; // time for a portion to become sound before it is judged how much there is
const LONGEST_SILENCE_MS = 15_000; // the pipeline takes a writer that is silent for longer (30 s) for gone
const PORTION_CHARS = 400;

const sentences = new Intl.Segmenter(undefined, { granularity: "sentence" });

/** The first portion of a text: whole sentences, as many as make `PORTION_CHARS`. */
export function portion(text) {
  if (text.length <= 1.5 * PORTION_CHARS) return text;
  let end = 0;
  for (const { index, segment } of sentences.segment(text.slice(0, 20 * PORTION_CHARS))) {
    end = index + segment.length;
    if (end >= PORTION_CHARS) break;
  }
  return text.slice(0, end);
}

/** Exactly `{"type": "cancel"}` or `{"type": "flush"}` is an order and not a text; in two pieces it is spoken. */
function speakable(text) {
  const bare = text.trim();
  return bare.startsWith("{") && bare.endsWith("}") ? [text.slice(0, text.indexOf("{") + 1), text.slice(text.indexOf("{") + 1)] : [text];
}

export class LiveSpeech {
  /** `on` has `sound(Int16Array)`, `words(chars, samples)` (each from, to), `over(problem)`. `heard_s()` tells what was heard. */
  constructor(options, on, heard_s) {
    this.on = on;
    this.heard_s = heard_s;
    this.pending = "";
    this.sent_chars = 0;
    this.sent_at = 0;
    this.received = 0;
    this.ready = false;
    this.complete = false;
    this.endSent = false;
    this.flushing = false;
    this.isOver = false;
    this.problem = "";
    this.socket = socket("/ws/tts/live");
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.socket.send(JSON.stringify({ ...options, alignment: true }));
    this.socket.onmessage = ({ data }) => this.took(data);
    this.socket.onclose = ({ reason }) => this.finish(this.problem || reason || "the connection to the gateway broke");
    this.timer = setInterval(() => this.feed(), 100);
  }

  write(text) {
    this.pending += text;
    this.feed();
  }

  /** Have spoken what is there, complete clause or not. */
  flush() {
    this.flushing = true;
    this.feed();
  }

  end() {
    this.complete = true;
    this.feed();
  }

  /** Make no more. */
  cancel() {
    if (this.isOver) return;
    if (this.ready && this.socket.readyState === WebSocket.OPEN) this.socket.send('{"type": "cancel"}');
    this.finish("");
  }

  feed() {
    if (!this.ready || this.isOver || this.endSent) return;
    while (this.pending && this.mayGo()) {
      const piece = portion(this.pending);
      this.pending = this.pending.slice(piece.length);
      for (const frame of speakable(piece)) this.socket.send(frame);
      this.sent_chars += piece.length;
      this.sent_at = performance.now();
    }
    if (this.pending) return;
    if (this.flushing) this.socket.send('{"type": "flush"}');
    this.flushing = false;
    if (this.complete) {
      this.socket.send("");
      this.endSent = true;
    }
  }

  /** Short texts go at once; a long one in portions. */
  mayGo() {
    if (this.sent_chars < PORTION_CHARS) return true;
    const since = performance.now() - this.sent_at;
    if (since > LONGEST_SILENCE_MS) return true;
    return since > SETTLE_MS && this.received / SAMPLE_RATE - this.heard_s() < AHEAD_S;
  }

  took(data) {
    if (this.isOver) return;
    if (data instanceof ArrayBuffer) {
      this.received += data.byteLength / 2;
      this.on.sound(new Int16Array(data));
      return;
    }
    const message = JSON.parse(data);
    if (message.type === "ready") {
      this.ready = true;
      this.feed();
    } else if (message.type === "aligned") {
      this.on.words(message.chars, message.samples);
    } else if (message.type === "end") {
      this.finish(this.problem);
    } else if (message.type === "error") {
      this.problem = message.message; // perhaps of one part only: the end, or the connection's, follows
    }
  }

  finish(problem) {
    if (this.isOver) return;
    this.isOver = true;
    clearInterval(this.timer);
    this.socket.close();
    this.on.over(problem);
  }
}

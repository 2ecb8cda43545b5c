/* What is to be said, and in which order: conversations, each with its own queue, and one mouth for all.

Of all that waits, what was asked for first is said first; two utterances never overlap, whichever
conversations they belong to. A conversation's voice is chosen before its first utterance and stays. */

import { LiveSpeech } from "./live.js";
import { SAMPLE_RATE } from "./player.js";
import { position } from "./dom.js";

let count = 0;

export class Utterance {
  constructor(conversation, kind, text, question = "") {
    this.id = ++count;
    this.conversation = conversation;
    this.kind = kind; // "say" | "ask"
    this.question = question;
    this.text = text;
    this.complete = false; // nothing is added to the text any more
    this.state = "waiting"; // speaking, done, stopped, failed
    this.pieces = [];
    this.samples = 0;
    this.heard = 0;
    this.points = [[0, 0]]; // [samples, characters]: the text up to there is sound up to there
    this.dry = true; // nothing of it is being played
    this.problem = "";
    this.figures = {};
    this.speed = 1;
    this.over = new Promise((resolve) => (this.resolve = resolve));
  }

  get open() {
    return this.state === "waiting" || this.state === "speaking";
  }

  /** Seconds of sound that are there and not heard yet. */
  get ahead_s() {
    return (this.samples - this.heard) / SAMPLE_RATE;
  }

  /** How far the ear is, in JavaScript's count of the text. */
  get heardChars() {
    if (this.state === "done") return this.text.length;
    const next = this.points.findIndex(([samples]) => samples > this.heard);
    const [before, chars] = this.points.at(next < 0 ? -1 : next - 1);
    if (next < 0) return position(this.text, chars);
    const [after, until] = this.points[next];
    return position(this.text, Math.floor(chars + ((until - chars) * (this.heard - before)) / (after - before)));
  }

  /** The text that was heard, in whole words. */
  get heardText() {
    const at = this.heardChars;
    if (at >= this.text.length || /\s/.test(this.text[at])) return this.text.slice(0, at);
    return this.text.slice(0, at).replace(/\S+$/, "");
  }
}

export class Conversation {
  constructor(name, options) {
    this.id = crypto.randomUUID?.() ?? String(Math.random()).slice(2);
    this.name = name;
    this.options = options; // voice, language, settings
    this.utterances = [];
    this.memory = null;
  }

  /** Its voice has been heard, or will be: it does not change any more. */
  get settled() {
    return this.utterances.length > 0;
  }
}

export class Mouth {
  /** `changed(utterance)` is called whenever something of it is news. */
  constructor(player, changed) {
    this.player = player;
    this.changed = changed;
    this.queue = [];
    this.current = null;
    player.onHeard = (_id, samples, dry, starved) => this.heard(samples, dry, starved);
    player.onDone = (_id, samples, stopped) => this.done(samples, stopped);
  }

  /** Add an utterance; with `complete: false` its text is still growing (`write`, `end`). */
  say(conversation, text, { kind = "say", question = "", complete = true, speed = 1 } = {}) {
    const utterance = new Utterance(conversation, kind, text, question);
    Object.assign(utterance, { complete, speed });
    conversation.utterances.push(utterance);
    this.queue.push({ utterance, replay: false });
    this.changed(utterance);
    this.next();
    return utterance;
  }

  write(utterance, piece) {
    utterance.text += piece;
    this.begins(utterance);
    if (this.live(utterance)) this.current.live.write(piece);
    this.changed(utterance);
  }

  flush(utterance) {
    if (this.live(utterance)) this.current.live.flush();
  }

  end(utterance) {
    utterance.complete = true;
    if (this.live(utterance)) this.current.live.end();
  }

  live(utterance) {
    return this.current?.utterance === utterance && this.current.live;
  }

  /** Play again what has been received. */
  replay(utterance) {
    this.queue.push({ utterance, replay: true });
    this.next();
  }

  /** Silence at once, and nothing of what waits. */
  stop() {
    const waiting = this.queue.splice(0);
    waiting.forEach((job) => this.drop(job));
    this.silence();
  }

  /** Leave out one utterance, speaking or waiting. */
  skip(utterance) {
    const mine = this.queue.filter((job) => job.utterance === utterance);
    this.queue = this.queue.filter((job) => job.utterance !== utterance);
    mine.forEach((job) => this.drop(job));
    if (this.current?.utterance === utterance) this.silence();
  }

  drop({ utterance, replay }) {
    if (!replay) this.finish(utterance, "stopped");
  }

  silence() {
    if (!this.current) return;
    this.current.live?.cancel();
    this.player.stop();
  }

  next() {
    if (this.current || !this.queue.length) return;
    const job = this.queue.shift();
    this.current = job;
    const { utterance } = job;
    this.player.open().then(
      () => this.begin(job),
      (error) => {
        this.current = null;
        utterance.problem = `this browser gives no sound: ${error.message}`;
        this.finish(utterance, "failed");
        this.next();
      },
    );
  }

  begin(job) {
    const { utterance, replay } = job;
    job.whole = utterance.complete;
    job.playing = `${utterance.id}${replay ? `-${performance.now()}` : ""}`;
    this.player.begin(job.playing, !job.whole);
    if (replay) {
      utterance.heard = 0;
      utterance.pieces.forEach((pcm) => this.player.push(job.playing, pcm));
      this.player.end(job.playing);
      this.changed(utterance);
      return;
    }
    utterance.state = "speaking";
    this.begins(utterance);
    const { conversation } = utterance;
    const options = { ...conversation.options, speed: utterance.speed, conversation: conversation.id };
    const on = {
      sound: (pcm) => this.sound(job, pcm),
      words: (chars, samples) => utterance.points.push([samples[0], chars[0]], [samples[1], chars[1]]),
      over: (problem) => {
        if (problem) utterance.problem = problem;
        utterance.complete = true;
        this.player.end(job.playing);
        this.changed(utterance);
      },
    };
    job.live = new LiveSpeech(options, on, () => utterance.heard / SAMPLE_RATE);
    if (utterance.text) job.live.write(utterance.text);
    if (utterance.complete) job.live.end();
    this.changed(utterance);
  }

  /** From here on its first sound is waited for. */
  begins(utterance) {
    if (utterance.text.trim() && utterance.state === "speaking") utterance.figures.asked_at ??= performance.now();
  }

  sound(job, pcm) {
    const { utterance } = job;
    utterance.figures.received_ms ??= performance.now() - utterance.figures.asked_at;
    utterance.pieces.push(pcm);
    utterance.samples += pcm.length;
    this.player.push(job.playing, pcm);
    this.changed(utterance);
  }

  heard(samples, dry, starved) {
    if (!this.current) return;
    const { utterance, replay } = this.current;
    if (samples && !replay && utterance.figures.first_sound_ms === undefined) {
      const waited = performance.now() - utterance.figures.asked_at;
      utterance.figures.first_sound_ms = waited + this.player.latency_s * 1000;
    }
    utterance.heard = samples;
    utterance.dry = dry;
    if (!replay && this.current.whole) utterance.figures.gaps = starved;
    this.changed(utterance);
  }

  done(samples, stopped) {
    const { utterance, replay, live } = this.current;
    this.current = null;
    utterance.heard = samples;
    if (replay) this.changed(utterance);
    else {
      live?.cancel();
      const failed = utterance.problem && !stopped;
      this.finish(utterance, stopped ? "stopped" : failed ? "failed" : "done");
    }
    this.next();
  }

  finish(utterance, state) {
    utterance.state = state;
    utterance.dry = true;
    utterance.complete = true;
    utterance.resolve();
    this.changed(utterance);
  }
}

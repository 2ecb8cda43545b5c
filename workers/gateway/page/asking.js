/* Speech from a language model: its answer is spoken while it is written, a new question interrupts it, and
the model is told of its answers only what was heard. */

import { answer, Memory, spokenQuestion } from "./chat.js";

const SPARE_S = 0.25; // what must be left to hear when the next words are asked for
const MARKUP = /[*_`~[\]<>|#=$]/; // where a flush could tear markup apart, the pipeline decides

export class Asking {
  /** `target()` says which model, `system()` what it is told first, `eager()` whether the voice begins with
   * the first word, alone if it must: right where making sound of it costs nothing. */
  constructor(mouth, { target, system, eager }) {
    Object.assign(this, { mouth, target, system, eager });
    this.running = new Map(); // by conversation: {utterance, abort, settled}
  }

  async ask(conversation, text, recording, speed) {
    const shown = recording ? `${text || "Spoken question"} (${recording.name})` : text;
    const question = recording ? await spokenQuestion(recording, text) : text;
    while (this.running.has(conversation.id)) await this.interrupt(conversation);
    const abort = new AbortController();
    const utterance = this.mouth.say(conversation, "", { kind: "ask", question: shown, complete: false, speed });
    conversation.memory ??= new Memory();
    const settled = this.run(conversation, utterance, question, abort);
    this.running.set(conversation.id, { utterance, abort, settled });
    await settled;
  }

  /** Silence the answer that is being given; returns when it is known what of it was heard. */
  async interrupt(conversation) {
    const current = this.running.get(conversation.id);
    current.abort.abort();
    this.mouth.skip(current.utterance);
    await current.settled;
  }

  async run(conversation, utterance, question, abort) {
    const { memory } = conversation;
    const asked_at = performance.now();
    const arrivals = [];
    utterance.figures.question_at = asked_at;
    utterance.over.then(() => abort.abort()); // stopped: the model need not go on
    const hurry = setInterval(() => this.hurry(utterance), 30);
    let held = "";
    try {
      for await (const piece of answer(this.target(), memory.messages(this.system(), question), abort.signal)) {
        const now = performance.now();
        arrivals.push(now);
        utterance.figures.first_token_ms ??= now - asked_at;
        held += piece;
        const words = held.slice(0, held.search(/\S*$/)); // the last word may still grow
        held = held.slice(words.length);
        if (!words.trim()) continue;
        utterance.figures.first_word_ms ??= now - asked_at;
        this.write(utterance, words);
      }
      if (held.trim()) utterance.figures.first_word_ms ??= performance.now() - asked_at;
      if (held) this.write(utterance, held);
      if (!utterance.text) utterance.problem = "the model said nothing";
    } catch (error) {
      if (error.name !== "AbortError") utterance.problem = error.message;
    } finally {
      clearInterval(hurry);
    }
    const gaps = arrivals.slice(1).map((at, i) => at - arrivals[i]).sort((a, b) => a - b);
    if (gaps.length) utterance.figures.token_gap_ms = gaps[gaps.length >> 1];
    this.mouth.end(utterance);
    await utterance.over;
    memory.add(question, utterance.heardText);
    this.mouth.changed(utterance);
    if (this.running.get(conversation.id)?.utterance === utterance) this.running.delete(conversation.id);
  }

  write(utterance, words) {
    if (!utterance.open) return;
    utterance.unspoken = (utterance.unspoken ?? "") + words;
    this.mouth.write(utterance, words);
    this.hurry(utterance);
  }

  /** Ask for what is there when the voice would fall silent before more comes. */
  hurry(utterance) {
    const pending = utterance.unspoken ?? "";
    if (!/[\p{L}\p{N}]/u.test(pending) || MARKUP.test(pending) || !this.mouth.live(utterance)) return;
    const begun = utterance.samples > 0;
    if (begun ? utterance.ahead_s > SPARE_S : utterance.hurried || !this.eager()) return;
    if (begun && utterance.hurried && utterance.samples === utterance.hurried_samples) return; // it is being made
    utterance.hurried = true;
    utterance.hurried_samples = utterance.samples;
    utterance.unspoken = "";
    this.mouth.flush(utterance);
  }
}

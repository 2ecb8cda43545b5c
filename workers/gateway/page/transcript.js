/* What was said, is being said and will be said in a conversation. */

import { el, milliseconds, seconds } from "./dom.js";
import { SAMPLE_RATE } from "./player.js";
import { save, wav } from "./sound.js";

const ICONS = {
  play: "M5 3.5v9l7-4.5z",
  skip: "M4 4h8v8H4z",
  save: "M8 2v8M4.5 7 8 10.500 11.500 7M3 13.500h10",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

const DRAW_AFTER_MS = 60;

const STATES = { waiting: "Waiting", speaking: "Speaking", done: "Spoken", stopped: "Stopped", failed: "Not spoken" };

export class Transcript {
  constructor(box, mouth) {
    this.box = box;
    this.mouth = mouth;
    this.rows = new Map();
    this.due = new Set();
  }

  /** Show this conversation. */
  show(conversation) {
    this.conversation = conversation;
    this.rows.clear();
    this.list = el("ol", { class: "said-list" });
    this.box.replaceChildren(conversation.utterances.length ? this.list : empty());
    conversation.utterances.forEach((utterance) => this.row(utterance));
    this.box.scrollTop = this.box.scrollHeight;
  }

  /** Something of this utterance is news: shown soon, together with what else is. */
  changed(utterance) {
    if (utterance.conversation !== this.conversation) return;
    if (!this.due.size) setTimeout(() => this.draw(), this.rows.has(utterance) ? DRAW_AFTER_MS : 0);
    this.due.add(utterance);
  }

  draw() {
    const due = [...this.due];
    this.due.clear();
    for (const utterance of due) {
      if (utterance.conversation !== this.conversation) continue;
      if (!this.rows.has(utterance)) this.row(utterance);
      else this.update(utterance);
    }
  }

  row(utterance) {
    if (!this.list.isConnected) this.box.replaceChildren(this.list);
    const row = { heard: el("span", { class: "heard" }), rest: el("span", { class: "rest" }) };
    row.state = el("span", { class: "state" });
    row.facts = el("span", { class: "facts" });
    row.problem = el("p", { class: "problem" });
    const button = (name, label, act) => {
      return el("button", { type: "button", class: "quiet small", onclick: act }, icon(name), label);
    };
    row.again = button("play", "Again", () => this.mouth.replay(utterance));
    row.save = button("save", "WAV", () => save(wav(utterance.pieces), `chatterline-${utterance.id}.wav`));
    row.skip = button("skip", "Skip", () => this.mouth.skip(utterance));
    const question = utterance.question && el("p", { class: "question" }, el("span", { class: "hidden", text: "Question: " }), utterance.question);
    row.text = el("p", { class: "text", dir: "auto" }, row.heard, row.rest);
    const meta = el("div", { class: "meta" }, row.state, row.facts, el("span", { class: "actions" }, row.skip, row.again, row.save));
    row.item = el("li", {}, question || null, el("div", { class: "said" }, row.text, row.problem, meta));
    this.rows.set(utterance, row);
    const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 80;
    this.list.append(row.item);
    this.update(utterance);
    if (atEnd) this.box.scrollTop = this.box.scrollHeight;
  }

  update(utterance) {
    const row = this.rows.get(utterance);
    let at = utterance.heardChars;
    if (at) at += /^\S*/.exec(utterance.text.slice(at))[0].length; // a word that has begun is shown as heard
    const atEnd = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 80;
    put(row.heard, utterance.text.slice(0, at));
    put(row.rest, utterance.text.slice(at));
    put(row.state, STATES[utterance.state]);
    put(row.facts, facts(utterance));
    put(row.problem, utterance.problem);
    row.item.dataset.state = utterance.state;
    row.skip.hidden = !utterance.open;
    row.again.hidden = row.save.hidden = utterance.open || !utterance.samples;
    row.text.hidden = !utterance.text;
    const about = (utterance.question || utterance.text).slice(0, 80);
    for (const button of [row.skip, row.again, row.save]) {
      const label = `${button.textContent}: ${about}`;
      if (button.ariaLabel !== label) button.ariaLabel = label;
    }
    if (atEnd && utterance.state === "speaking") this.box.scrollTop = this.box.scrollHeight;
  }
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function empty() {
  return el("div", { class: "empty" }, el("p", { text: "Nothing has been said here yet." }), el("p", { class: "help", text: "The voice begins while the rest of the text is still being made, and what you have heard stands out." }));
}

function facts(utterance) {
  const { figures, samples, heard, state } = utterance;
  const told = [];
  if (state === "speaking") told.push(`${seconds(heard / SAMPLE_RATE)}, ${seconds((samples - heard) / SAMPLE_RATE)} ahead`);
  else if (state === "stopped") told.push(`after ${seconds(heard / SAMPLE_RATE)}`);
  else if (samples) told.push(seconds(samples / SAMPLE_RATE));
  if (figures.first_token_ms !== undefined) told.push(`first token ${milliseconds(figures.first_token_ms)} ms`);
  if (figures.first_word_ms !== undefined) told.push(`first word ${milliseconds(figures.first_word_ms)} ms`);
  const since_question_ms = figures.question_at === undefined ? 0 : figures.asked_at - figures.question_at;
  const first_ms = since_question_ms + figures.first_sound_ms;
  if (!Number.isNaN(first_ms)) told.push(`first sound ${milliseconds(first_ms)} ms`);
  if (figures.token_gap_ms !== undefined) told.push(`${milliseconds(figures.token_gap_ms)} ms between tokens`);
  if (figures.gaps) told.push(figures.gaps === 1 ? "ran dry once" : `ran dry ${figures.gaps} times`);
  return told.join(" · ");
}

/* Voice, language and settings of a conversation. */

import { byId, el } from "./dom.js";

const languageNames = new Intl.DisplayNames(["en"], { type: "language", fallback: "none" });

const known = new Map();

export function languageName(tag) {
  if (!known.has(tag)) known.set(tag, nameOf(tag));
  return known.get(tag);
}

function nameOf(tag) {
  try {
    return languageNames.of(tag) ?? tag;
  } catch {
    return tag; // no tag of BCP 47, as engines of speech have some
  }
}

export class Panel {
  /** `facts` is what the pipeline says of its voices; `chosen(options)` is told every choice. */
  constructor(chosen) {
    this.chosen = chosen;
    this.options = {};
    byId("language").onchange = () => this.choose({ language: byId("language").value || undefined });
    byId("voice").onchange = () => this.choose({ voice: byId("voice").value });
    byId("speed").oninput = () => (byId("speed-value").value = `${Number(byId("speed").value)}×`);
  }

  get speed() {
    return Number(byId("speed").value);
  }

  learn(facts) {
    this.facts = facts;
    const languages = facts.languages.map((tag) => [tag, languageName(tag)]).sort((a, b) => a[1].localeCompare(b[1]));
    byId("language").replaceChildren(
      el("option", { value: "", text: "As the voice" }),
      ...languages.map(([tag, name]) => el("option", { value: tag, text: name === tag ? tag : `${name} (${tag})` })),
    );
    byId("settings-box").hidden = !facts.settings.length;
    byId("settings").replaceChildren(...facts.settings.map((setting) => this.field(setting)));
  }

  /** Show a conversation's choices; `settled`: they can't be changed any more. */
  show(options, settled) {
    this.options = options;
    this.settled = settled;
    byId("language").value = options.language ?? "";
    this.listVoices();
    for (const field of byId("settings").querySelectorAll("[data-setting]")) {
      const value = options.settings?.[field.dataset.setting] ?? field.dataset.default;
      if (field.type === "checkbox") field.checked = String(value) === "true";
      else field.value = value;
      field.oninput?.();
    }
    const fixed = [byId("language"), byId("voice"), ...byId("settings").querySelectorAll("[data-setting]")];
    for (const field of fixed) field.disabled = settled;
    byId("voice-note").textContent = settled
      ? "This conversation keeps its voice to the end. For another one begin a new conversation."
      : "Chosen for this conversation, and kept for all of it.";
  }

  listVoices() {
    if (!this.facts) return;
    const wanted = this.options.language;
    const groups = new Map();
    const option = (voice) => el("option", { value: voice.id, text: voice.gender ? `${voice.name} (${voice.gender})` : voice.name });
    for (const voice of this.facts.voices) {
      if (!groups.has(voice.language)) groups.set(voice.language, []);
      groups.get(voice.language).push(voice);
    }
    const sorted = [...groups].sort(([a], [b]) => (b === wanted) - (a === wanted) || languageName(a).localeCompare(languageName(b)));
    byId("voice").replaceChildren(
      ...sorted.map(([tag, voices]) => el("optgroup", { label: languageName(tag) || "Any language" }, ...voices.map(option))),
    );
    byId("voice").value = this.options.voice ?? this.facts.default;
  }

  choose(change) {
    this.options = { ...this.options, ...change };
    if ("language" in change && change.language) {
      const speaks = this.facts.voices.filter((voice) => voice.language === change.language);
      const current = this.facts.voices.find((voice) => voice.id === this.options.voice);
      if (speaks.length && current?.language !== change.language && !this.facts.cloning) this.options.voice = speaks[0].id;
    }
    if ("language" in change) this.listVoices();
    this.chosen(this.options);
  }

  field({ name, kind, help, least, most, choices, default: standard }) {
    const id = `setting-${name}`;
    const common = { id, "data-setting": name, "data-default": String(standard), "aria-describedby": `${id}-help` };
    const note = el("p", { class: "help", id: `${id}-help`, text: sentence(help) });
    const set = (value) => this.choose({ settings: { ...this.options.settings, [name]: value } });
    const words = name.replaceAll("_", " ").replace(/ (ms|s|db)$/, ", $1");
    const label = words[0].toUpperCase() + words.slice(1);
    if (kind === "bool") {
      const box = el("input", { type: "checkbox", ...common, onchange: () => set(box.checked) });
      return el("div", {}, el("label", { class: "check" }, box, label), note);
    }
    if (choices?.length) {
      const select = el("select", { ...common, onchange: () => set(select.value) }, ...choices.map((one) => el("option", { value: one, text: one })));
      return el("div", {}, el("label", { class: "field" }, label, select), note);
    }
    if (kind === "str") {
      const input = el("input", { ...common, onchange: () => set(input.value) });
      return el("div", {}, el("label", { class: "field" }, label, input), note);
    }
    const whole = kind === "int";
    const bounded = least !== null && most !== null && least !== undefined && most !== undefined;
    const step = whole ? 1 : bounded ? stepOf(most - least) : "any";
    const input = el("input", { type: bounded ? "range" : "number", min: least, max: most, step, ...common, onchange: () => set(Number(input.value)) });
    const value = el("output", { for: id });
    input.oninput = () => (value.value = input.value);
    return el("div", {}, el("div", { class: "field" }, el("label", { for: id, text: label }), value, input), note);
  }
}

const stepOf = (span) => (span > 20 ? 1 : span > 2 ? 0.1 : 0.01);
const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}` : "");

/* The page: puts the parts together. */

import { ask, remember } from "./access.js";
import { Asking } from "./asking.js";
import { byId, el } from "./dom.js";
import { Panel } from "./panel.js";
import { Picture } from "./picture.js";
import { Player, SAMPLE_RATE } from "./player.js";
import { Recording } from "./recording.js";
import { save, wav } from "./sound.js";
import { Conversation, Mouth } from "./speaking.js";
import { Transcript } from "./transcript.js";
import { Typing } from "./typing.js";

const text = byId("text");
const conversations = [];
let current = null;
let numbered = 0;
let facts = null;

const player = new Player({});
const mouth = new Mouth(player, changed);
const transcript = new Transcript(byId("transcript"), mouth);
const panel = new Panel((options) => (current.options = options));
const picture = new Picture({ health: showHealth, asked: askForKey });
const recording = new Recording(learnVoices);
const typing = new Typing(mouth, () => mouth.say(current, "", { complete: false, speed: panel.speed }));
const asking = new Asking(mouth, { target: modelTarget, system: () => byId("model-system").value.trim(), eager: () => facts?.engine === "espeak" });

// -------------------------------------------------------------------- news of an utterance

function changed(utterance) {
  transcript.changed(utterance);
  const playing = mouth.current;
  byId("stop").disabled = !playing && !mouth.queue.length;
  if (playing?.utterance === utterance) {
    picture.played(playing.playing, utterance.heard / SAMPLE_RATE, !utterance.dry);
    if (!playing.counted && utterance.figures.first_sound_ms !== undefined && !playing.replay) {
      playing.counted = true;
      picture.firstSound(utterance.figures.received_ms, utterance.figures.first_sound_ms);
    }
  } else if (!utterance.open) {
    picture.played(null, 0, false);
  }
  if (!utterance.open && !utterance.announced && (utterance.problem || utterance.state === "stopped")) {
    utterance.announced = true;
    announce(utterance.problem || "Stopped.");
  }
  if (utterance.conversation === current && panel.settled !== current.settled) panel.show(current.options, current.settled);
  drawTabs();
}

function announce(words) {
  byId("announcer").textContent = words;
}

function showHealth(good, words) {
  byId("health").dataset.good = good;
  const label = byId("health").querySelector(".label");
  if (label.textContent !== words) label.textContent = words;
}

// -------------------------------------------------------------------- conversations

function newConversation() {
  numbered += 1;
  const options = { ...current?.options };
  const conversation = new Conversation(`Conversation ${numbered}`, options);
  conversations.push(conversation);
  show(conversation);
}

function show(conversation) {
  if (current !== conversation) typing.finish("");
  current = conversation;
  transcript.show(conversation);
  panel.show(conversation.options, conversation.settled);
  drawTabs();
}

function close(conversation) {
  conversation.utterances.filter((one) => one.open).forEach((one) => mouth.skip(one));
  const at = conversations.indexOf(conversation);
  conversations.splice(at, 1);
  if (!conversations.length) newConversation();
  else if (current === conversation) show(conversations[Math.max(0, at - 1)]);
  drawTabs();
  byId("tabs").querySelector('[aria-selected="true"]').focus();
}

let tabsDue = false;

function drawTabs() {
  if (tabsDue) return;
  tabsDue = true;
  queueMicrotask(() => {
    tabsDue = false;
    const signs = conversations.map((one) => [one.id, one === current, sign(one), one.name].join()).join("|");
    if (signs === drawTabs.shown) return;
    drawTabs.shown = signs;
    const focused = byId("tabs").contains(document.activeElement);
    byId("tabs").replaceChildren(...conversations.map(tab));
    byId("transcript").setAttribute("aria-labelledby", `tab-${current.id}`);
    byId("close-conversation").hidden = conversations.length < 2;
    byId("save-conversation").hidden = !current.utterances.some((one) => one.samples && !one.open);
    if (focused) byId(`tab-${current.id}`).focus();
  });
}

/** What a tab says beside its name. */
function sign(conversation) {
  const speaking = mouth.current?.utterance.conversation === conversation;
  const waiting = mouth.queue.filter(({ utterance }) => utterance.conversation === conversation).length;
  const saved = conversation.utterances.some((one) => one.samples && !one.open);
  return `${speaking ? "speaking" : ""}/${waiting || ""}/${saved ? 1 : ""}`;
}

function tab(conversation) {
  const chosen = conversation === current;
  const [speaking, waiting] = sign(conversation).split("/");
  const notes = [];
  if (speaking) notes.push(el("span", { class: "wave", "aria-hidden": "true" }), el("span", { class: "hidden", text: ", speaking" }));
  if (waiting) notes.push(el("span", { class: "count", "aria-hidden": "true", text: waiting }), el("span", { class: "hidden", text: `, ${waiting} waiting` }));
  return el(
    "button",
    {
      type: "button", role: "tab", id: `tab-${conversation.id}`, "aria-selected": String(chosen), "aria-controls": "transcript",
      tabindex: chosen ? 0 : -1, onclick: () => show(conversation), onkeydown: (event) => tabKey(event, conversation),
    },
    conversation.name,
    ...notes,
  );
}

function tabKey(event, conversation) {
  const at = conversations.indexOf(conversation);
  const last = conversations.length - 1;
  const to = { ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at ? at - 1 : last, Home: 0, End: last }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    show(conversations[to]);
    queueMicrotask(() => byId(`tab-${current.id}`).focus());
  } else if (event.key === "Delete" && last > 0) close(conversation);
}

byId("new-conversation").onclick = () => {
  newConversation();
  text.focus();
};
byId("close-conversation").onclick = () => close(current);
byId("save-conversation").onclick = () => {
  const pieces = current.utterances.filter((one) => !one.open).flatMap((one) => one.pieces);
  save(wav(pieces), `chatterline-${current.name.toLowerCase().replaceAll(" ", "-")}.wav`);
};

// -------------------------------------------------------------------- the text box

const asks = () => document.querySelector('input[name="mode"]:checked').value === "ask";
const isLive = () => byId("live").checked && !asks();

function submit() {
  const said = text.value;
  const file = asks() ? byId("question-audio").files[0] : null;
  player.open().catch(() => {}); // while the key is down, or the browser would not allow it; said again when it speaks
  if (asks()) {
    if (!said.trim() && !file) return;
    asking.ask(current, said.trim(), file, panel.speed);
    byId("question-audio").value = "";
  } else if (isLive()) {
    if (!typing.finish(said)) return;
  } else {
    if (!said.trim()) return;
    mouth.say(current, said, { speed: panel.speed });
  }
  text.value = "";
  grow();
}

function stop() {
  asking.running.forEach(({ abort }) => abort.abort());
  mouth.stop();
  typing.skipTo(isLive() ? text.value : "");
}

function grow() {
  text.style.blockSize = "auto";
  text.style.blockSize = `${Math.min(text.scrollHeight + 2, 320)}px`;
}

function showMode() {
  byId("text-label").textContent = asks() ? "Question to the model" : "Text to read aloud";
  text.placeholder = asks() ? "Ask something; the answer is spoken while it is written." : "Write or paste something to hear it.";
  byId("speak-label").textContent = asks() ? "Ask" : "Speak";
  byId("live-options").hidden = asks();
  byId("question-audio-options").hidden = !asks();
  byId("grain").disabled = !byId("live").checked;
  if (asks() && !modelTarget()) byId("model-box").open = true;
}

byId("composer").onsubmit = (event) => {
  event.preventDefault();
  submit();
};
text.oninput = () => {
  grow();
  if (!isLive()) return;
  player.open().catch(() => {});
  typing.changed(text.value, byId("grain").value);
};
text.onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
};
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.defaultPrevented) stop();
});
byId("stop").onclick = stop;
for (const touch of ["pointerdown", "keydown"]) {
  // Browsers make sound possible only then; the first sound need not wait for it later.
  document.addEventListener(touch, () => player.open().catch(() => {}), { once: true });
}
byId("live").onchange = () => {
  if (!byId("live").checked) typing.finish("");
  showMode();
};
document.querySelectorAll('input[name="mode"]').forEach((radio) => (radio.onchange = showMode));

// -------------------------------------------------------------------- the model

function modelTarget() {
  if (facts?.chat && document.querySelector('input[name="route"]:checked').value === "gateway") return { gateway: true };
  const url = byId("model-url").value.trim();
  return url && { url, model: byId("model-name").value.trim(), key: byId("model-key").value };
}

function showModel() {
  byId("model-routes").hidden = !facts.chat;
  if (facts.chat) {
    byId("gateway-model").textContent = facts.chat;
    document.querySelector('input[name="route"][value="gateway"]').checked = true;
  }
  showRoute();
}

byId("browser-model").onsubmit = (event) => event.preventDefault();

function showRoute() {
  byId("browser-model").hidden = modelTarget()?.gateway === true;
}

document.querySelectorAll('input[name="route"]').forEach((radio) => (radio.onchange = showRoute));
for (const id of ["model-url", "model-name"]) {
  byId(id).value = localStorage.getItem(`chatterline-${id}`) ?? "";
  byId(id).onchange = () => localStorage.setItem(`chatterline-${id}`, byId(id).value);
}

// -------------------------------------------------------------------- colours, key, start

byId("theme").value = localStorage.getItem("chatterline-theme") ?? "";
byId("theme").onchange = () => {
  localStorage.setItem("chatterline-theme", byId("theme").value);
  showTheme();
};

function showTheme() {
  document.documentElement.dataset.theme = byId("theme").value;
}

function askForKey() {
  showHealth(false, "A key is needed");
  byId("key-form").hidden = false;
  byId("main").hidden = true;
  byId("key").focus();
}

byId("key-form").onsubmit = async (event) => {
  event.preventDefault();
  remember(byId("key").value.trim());
  try {
    await learnVoices();
    byId("key-form").hidden = true;
    byId("main").hidden = false;
    picture.watch();
    text.focus();
  } catch (error) {
    byId("key-problem").textContent = error.status === 401 ? "That is none of this gateway’s keys." : error.message;
  }
};

async function learnVoices(chosen) {
  facts = await (await ask("/api/voices")).json();
  panel.learn(facts);
  recording.learn(facts);
  showModel();
  if (chosen && !current.settled) current.options = { ...current.options, voice: chosen };
  panel.show(current.options, current.settled);
}

async function start() {
  showTheme();
  newConversation();
  showMode();
  new ResizeObserver(() => recording.draw()).observe(byId("recording-wave"));
  byId("record-box").addEventListener("toggle", () => recording.draw());
  while (true) {
    try {
      await learnVoices();
      return picture.watch();
    } catch (error) {
      if (error.status === 401) return askForKey();
      showHealth(false, error.status ? error.message : "The gateway does not answer; trying again");
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
}

start();

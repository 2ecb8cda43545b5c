/* What the pipeline is doing: stages, queues, the first sound, and a timeline of the last seconds. */

import { ask, events } from "./access.js";
import { byId, colour, drawing, el, milliseconds, seconds } from "./dom.js";

const WINDOW_S = 20;
const EVERY_MS = 200;
const DRAW_EVERY_MS = 100; // often enough to see it move, and no burden on the machine that also speaks
const RETRY_MS = 2000;

const LANES = [
  { role: "t3", name: "T3", colour: "t3", words: "T3 made" },
  { role: "s3gen", name: "S3Gen", colour: "s3gen", words: "S3Gen made" },
  { role: "player", name: "Loudspeaker", colour: "player", words: "the pipeline’s loudspeaker played" },
  { role: "page", name: "This page", colour: "page", words: "this page played" },
];

const OUTPUTS = { none: "no loudspeaker", speaker: "loudspeaker" };

const HOPS = { accepted: "Taken in", first_tokens: "First speech tokens", first_pcm: "First sound made", loudspeaker: "At the pipeline’s loudspeaker", listener: "Sent to a program" };

export class Picture {
  /** `health(good, words)` is told how the pipeline is; `asked()` that a key is wanted. */
  constructor({ health, asked }) {
    this.health = health;
    this.asked = asked;
    this.work = []; // {role, from, to, speech_s} in seconds on this page's clock
    this.playing = null; // what this page plays just now
    this.firstSounds = { received: [], ear: [] };
    this.offset_s = Infinity; // of this page's clock over the pipeline's, as small as it was ever seen
    this.stages = new Map();
    this.slow = matchMedia("(prefers-reduced-motion: reduce)");
    this.frame();
  }

  async watch() {
    while (true) {
      try {
        for await (const data of events(await ask(`/api/watch?every_ms=${EVERY_MS}`))) this.took(JSON.parse(data));
        this.health(false, "The gateway ended the connection; trying again");
      } catch (error) {
        if (error.status === 401) return this.asked();
        this.health(false, error.status ? error.message : "The gateway does not answer; trying again");
      }
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }

  took(state) {
    if (state.type === "problem") {
      this.health(false, state.message);
      return;
    }
    if (state.uptime_s < (this.state?.uptime_s ?? 0)) this.offset_s = Infinity; // the dispatcher was restarted
    this.state = state;
    this.offset_s = Math.min(this.offset_s, performance.now() / 1000 - state.uptime_s);
    for (const { worker, from_s, to_s, speech_s } of state.timeline) {
      this.work.push({ role: worker.replace(/-\d+$/, ""), from: from_s + this.offset_s, to: to_s + this.offset_s, speech_s });
    }
    const oldest = performance.now() / 1000 - WINDOW_S;
    this.work = this.work.filter(({ to }) => to > oldest);
    const down = state.stages.filter((stage) => stage.state !== "RUNNING").map((stage) => stage.worker);
    if (state.healthy) this.health(true, state.paused ? "Paused" : "Ready");
    else this.health(false, down.length ? `Not ready: ${down.join(", ")}` : "Not ready: the engine is still loading");
    byId("engine-note").textContent = sentence(state.engine_reason || `engine ${state.engine}`);
    this.drawStages();
    this.drawLatencies();
  }

  /** This page has played up to `samples` of an utterance; `going`: it goes on. */
  played(id, speech_s, going) {
    const now = performance.now() / 1000;
    if (this.playing?.id !== id) this.playing = null;
    if (this.playing) {
      this.playing.speech_s = speech_s - this.playing.before_s;
      this.playing.to = now;
    } else if (going) {
      this.playing = { role: "page", id, from: now, to: now, speech_s: 0, before_s: speech_s };
      this.work.push(this.playing);
    }
    if (!going) this.playing = null;
  }

  firstSound(received_ms, ear_ms) {
    this.firstSounds.received.push(received_ms);
    this.firstSounds.ear.push(ear_ms);
    if (this.firstSounds.ear.length > 200) Object.values(this.firstSounds).forEach((list) => list.shift());
    this.drawLatencies();
  }

  // ---------------------------------------------------------------- stages and queues

  drawStages() {
    const { state } = this;
    const queue = (name) => state.queues[name] ?? { now: 0, most: 0, bound: null };
    const of = (role) => state.stages.filter((stage) => stage.worker.startsWith(`${role}-`));
    const streams = (role) => of(role).reduce((sum, stage) => sum + stage.streams, 0);
    const rows = [
      { id: "text", name: "Text", does: "waits to be spoken", value: `${queue("text_waiting").now.toLocaleString("en")} characters`, queue: true },
      { id: "t3", name: "T3", does: "turns text into speech tokens", workers: of("t3"), value: busy(this.share("t3"), streams("t3")), load: this.share("t3") },
      { id: "tokens", name: "Tokens", does: "wait to become sound", ...fill(queue("tokens_waiting")), queue: true },
      { id: "s3gen", name: "S3Gen", does: "turns tokens into sound", workers: of("s3gen"), value: busy(this.share("s3gen"), streams("s3gen")), load: this.share("s3gen") },
      { id: "ring", name: "Speaker’s ring", does: "sound for the pipeline’s loudspeaker", ...fill(queue("ring")), queue: true },
      { id: "streams", name: "For programs", does: "sound on its way to listeners, this page too", ...fill(queue("stream_rings")), queue: true },
      { id: "player", name: "Player", does: "plays on the pipeline’s machine", workers: of("player"), value: OUTPUTS[state.player.output] ?? String(state.player.output ?? "").replace(/^wav:.*/, "into a file") },
    ];
    for (const row of rows) this.stage(row, this.speaks || (row.id !== "ring" && row.id !== "player"));
  }

  /** Whether the pipeline has a loudspeaker (or a file in its place) of its own. */
  get speaks() {
    return (this.state?.player.output ?? "none") !== "none";
  }

  stage({ id, name, does, value, load, workers, queue }, shown) {
    let parts = this.stages.get(id);
    if (!parts) {
      parts = { value: el("span", { class: "value" }), state: el("span", { class: "state" }), bar: el("span", { class: "fill" }) };
      const bar = el("span", { class: "bar", "aria-hidden": "true" }, parts.bar);
      parts.barBox = bar;
      parts.item = el("li", { class: `stage ${queue ? "queue" : "worker"} ${id}` }, el("span", { class: "name", text: name }), parts.state, el("span", { class: "does", text: does }), bar, parts.value);
      this.stages.set(id, parts);
      byId("stages").append(parts.item);
    }
    parts.item.hidden = !shown;
    put(parts.value, value);
    parts.barBox.hidden = load === undefined;
    if (load !== undefined) parts.bar.style.inlineSize = `${Math.min(100, load * 100).toFixed(1)}%`;
    if (workers) {
      const states = [...new Set(workers.map((worker) => worker.state))];
      const good = workers.length > 0 && states.every((state) => state === "RUNNING");
      const many = workers.length > 1 ? `${workers.length} × ` : "";
      put(parts.state, good ? `${many}running` : states.join(", ").toLowerCase() || "missing");
      parts.item.dataset.good = good;
    }
  }

  /** Share of the last ten seconds that a stage was at work. */
  share(role) {
    return Math.min(1, this.busy_s(role, 10) / 10);
  }

  /** Seconds of the last `span_s` that a stage was at work, on one thing or several at once. */
  busy_s(role, span_s) {
    const now = performance.now() / 1000;
    const pieces = this.work.filter((one) => one.role === role && one.to > now - span_s).sort((a, b) => a.from - b.from);
    let until = now - span_s;
    let busy_s = 0;
    for (const { from, to } of pieces) {
      busy_s += Math.max(0, to - Math.max(from, until));
      until = Math.max(until, to);
    }
    return busy_s;
  }

  // ---------------------------------------------------------------- first sound

  drawLatencies() {
    const rows = [];
    for (const [name, list] of [["Come to this page", this.firstSounds.received], ["At your ear, from this page", this.firstSounds.ear]]) {
      if (!list.length) continue;
      const sorted = [...list].sort((a, b) => a - b);
      const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
      rows.push([name, list.at(-1), at(0.5), at(0.9)]);
    }
    for (const [name, { count, last_ms, p50_ms, p90_ms }] of Object.entries(this.state?.latencies ?? {})) {
      if (count) rows.push([HOPS[name] ?? name, last_ms, p50_ms, p90_ms]);
    }
    const words = JSON.stringify(rows);
    if (words === this.latencyWords) return;
    this.latencyWords = words;
    const body = byId("latencies").tBodies[0];
    if (!rows.length) body.replaceChildren(el("tr", {}, el("td", { colspan: 4, class: "help", text: "Nothing was spoken yet." })));
    else body.replaceChildren(...rows.map(([name, ...values]) => el("tr", {}, el("th", { scope: "row", text: name }), ...values.map((ms) => el("td", { text: milliseconds(ms) })))));
  }

  // ---------------------------------------------------------------- timeline

  frame() {
    if (!document.hidden) this.drawTimeline();
    setTimeout(() => this.frame(), this.slow.matches ? 1000 : DRAW_EVERY_MS);
  }

  drawTimeline() {
    const canvas = byId("timeline");
    const now = performance.now() / 1000;
    const recent = this.work.some(({ to }) => to > now - WINDOW_S - 1);
    if (!recent && this.blank && canvas.clientWidth === this.blank) return;
    this.blank = recent ? 0 : canvas.clientWidth;
    const { context, width, height } = drawing(canvas);
    const left = 92;
    const axis = 18;
    const lanes = LANES.filter(({ role }) => role !== "player" || this.speaks);
    const lane = (height - axis) / lanes.length;
    const x = (at) => left + ((at - (now - WINDOW_S)) / WINDOW_S) * (width - left - 1);
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "middle";
    lanes.forEach(({ name }, i) => {
      context.fillStyle = colour("lane");
      context.fillRect(left, i * lane + 2, width - left, lane - 4);
      context.fillStyle = colour("muted");
      context.textAlign = "left";
      context.fillText(name, 0, (i + 0.5) * lane);
    });
    context.textAlign = "center";
    for (let ago = 0; ago <= WINDOW_S; ago += width < 480 ? 10 : 5) {
      context.fillStyle = colour("line");
      context.fillRect(Math.round(x(now - ago)), 0, 1, height - axis);
      context.fillStyle = colour("muted");
      context.textAlign = ago === 0 ? "right" : ago === WINDOW_S ? "left" : "center";
      context.fillText(ago ? `−${ago} s` : "now", x(now - ago), height - axis / 2 + 1);
    }
    context.save();
    context.beginPath();
    context.rect(left, 0, width - left, height - axis);
    context.clip();
    lanes.forEach(({ role, colour: name }, i) => {
      context.fillStyle = colour(name);
      for (const { from, to } of this.work.filter((one) => one.role === role)) {
        context.fillRect(x(from), i * lane + 5, Math.max(2, x(to) - x(from)), lane - 10);
      }
    });
    context.restore();
    this.tellTimeline(now);
  }

  /** The timeline in words, for those who cannot see it or do not trust it; once a second. */
  tellTimeline(now) {
    if (now < (this.told ?? 0) + 1) return;
    this.told = now;
    const told = LANES.map(({ role, words }) => {
      const mine = this.work.filter((one) => one.role === role && one.to > now - WINDOW_S);
      const speech_s = mine.reduce((sum, one) => sum + one.speech_s, 0);
      if (!speech_s) return "";
      const spent_s = this.busy_s(role, WINDOW_S);
      const how = role === "t3" || role === "s3gen" ? ` in ${spent_s < 1 ? `${(1000 * spent_s).toFixed(0)} ms` : seconds(spent_s)}` : "";
      return `${words} ${seconds(speech_s)} of speech${how}`;
    }).filter(Boolean);
    put(byId("timeline-words"), told.length ? `In the last ${WINDOW_S} seconds ${told.join(", ")}.` : "Nothing was spoken in the last 20 seconds.");
  }
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function fill({ now, most, bound }) {
  const value = `${bound ? `${now.toFixed(1)} of ${seconds(bound)}` : seconds(now)} (most: ${most.toFixed(1)})`;
  return { value, load: bound ? now / bound : undefined };
}

function busy(share, streams) {
  return `busy ${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %${streams ? `, ${streams} at once` : ""}`;
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

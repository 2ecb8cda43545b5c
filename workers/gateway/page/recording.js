/* A voice from a recording: what it is like is shown before it is sent. */

import { ask } from "./access.js";
import { byId, colour, drawing, seconds } from "./dom.js";
import { measure, verdict } from "./sound.js";

const level = (db) => (Number.isFinite(db) ? `${db.toFixed(1)} dB` : "silence");

export class Recording {
  /** `added(name)`: the voice can be used now. */
  constructor(added) {
    this.added = added;
    byId("recording").onchange = () => this.look();
    byId("record-form").onsubmit = (event) => {
      event.preventDefault();
      this.send();
    };
  }

  learn(facts) {
    this.facts = facts;
    byId("record-form").hidden = !facts.cloning;
    byId("clone-note").textContent = facts.cloning
      ? "Ten seconds of one person speaking steadily, without music or echo. Use only voices of people who agreed. It is stored with this pipeline, for all its programs."
      : `The engine ${facts.engine} has its own voices only. With one that imitates a voice, as Chatterbox does, a recording can be given here.`;
  }

  async look() {
    const [file] = byId("recording").files;
    byId("recording-problem").textContent = "";
    byId("recording-reading").hidden = true;
    byId("recording-send").disabled = true;
    if (!file) return;
    try {
      if (file.size > this.facts.upload_bytes) throw new Error(`at most ${Math.floor(this.facts.upload_bytes / 2 ** 20)} MB are taken`);
      const found = await measure(file, 240);
      byId("recording-reading").hidden = false;
      byId("recording-duration").textContent = seconds(found.duration_s);
      byId("recording-level").textContent = level(found.level_db);
      byId("recording-peak").textContent = level(found.peak_db);
      const [usable, words] = verdict(found, this.facts.shortest_s, this.facts.longest_s);
      byId("recording-verdict").textContent = words;
      byId("recording-send").disabled = !usable;
      this.outline = found.outline;
      this.draw();
      byId("recording-name").value ||= file.name.replace(/\.[^.]*$/, "").replace(/[^\p{L}\p{N}_]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 64);
    } catch (error) {
      byId("recording-problem").textContent = `This cannot be read as sound: ${error.message}`;
    }
  }

  draw() {
    if (!this.outline || byId("recording-reading").hidden) return;
    const { context, width, height } = drawing(byId("recording-wave"));
    context.fillStyle = colour("accent");
    const step = width / this.outline.length;
    this.outline.forEach((size, i) => {
      const tall = Math.max(1, size * height);
      context.fillRect(i * step, (height - tall) / 2, Math.max(1, step - 1), tall);
    });
  }

  async send() {
    const [file] = byId("recording").files;
    const name = byId("recording-name").value.trim();
    byId("recording-send").disabled = true;
    byId("recording-problem").textContent = "";
    try {
      const response = await ask(`/api/voices/${encodeURIComponent(name)}`, { method: "POST", body: file });
      const { duration_s } = await response.json();
      await this.added(name);
      byId("recording-verdict").textContent = `Added: ${name}, ${seconds(duration_s)}.`;
    } catch (error) {
      byId("recording-problem").textContent = error.message;
    } finally {
      byId("recording-send").disabled = false;
    }
  }
}

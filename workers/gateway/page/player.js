/* The page's one loudspeaker. There is a single clock, the audio thread's: it pulls samples out of a ring
(worklet.js), and what does not fit into the ring waits here. */

export const SAMPLE_RATE = 24000;
const RING_SAMPLES = 1 << 20;

export class Player {
  /** `onHeard(id, samples, dry, starved)` follows the ear (it is `dry` now, and was `starved` so often), `onDone(id, samples, stopped)` comes once for each utterance. */
  constructor({ onHeard, onDone }) {
    this.onHeard = onHeard;
    this.onDone = onDone;
    this.id = null;
    this.waiting = [];
    this.free = RING_SAMPLES;
    this.ended = false;
    this.heard = 0;
    this.dry = true;
  }

  /** Make the audio context. Browsers allow that only while a key or button is being pressed. */
  async open() {
    if (!this.opening) this.opening = this.make();
    await this.opening;
    if (this.context.state !== "running") await this.context.resume();
  }

  async make() {
    if (!window.isSecureContext) {
      throw new Error("browsers play sound like this from https pages and from this machine (localhost) alone");
    }
    this.context = new AudioContext({ sampleRate: SAMPLE_RATE, latencyHint: "interactive" });
    await this.context.audioWorklet.addModule("/page/worklet.js");
    this.node = new AudioWorkletNode(this.context, "loudspeaker", { numberOfInputs: 0, outputChannelCount: [1] });
    this.node.port.onmessage = ({ data }) => this.told(data);
    this.node.connect(this.context.destination);
  }

  /** Seconds between the ring and the ear. */
  get latency_s() {
    return (this.context?.baseLatency ?? 0) + (this.context?.outputLatency ?? 0);
  }

  /** Make way for an utterance; `growing`: where nothing comes for a while, nobody is late. */
  begin(id, growing = false) {
    this.id = id;
    this.waiting = [];
    this.free = RING_SAMPLES;
    this.ended = false;
    this.heard = 0;
    this.dry = true;
    this.node.port.postMessage({ begin: id, growing });
  }

  push(id, pcm) {
    if (id !== this.id) return;
    this.waiting.push(pcm);
    this.feed();
  }

  end(id) {
    if (id !== this.id) return;
    this.ended = true;
    this.feed();
  }

  /** Silence within a few milliseconds. */
  stop() {
    if (this.id !== null) this.node.port.postMessage({ stop: true });
    this.waiting = [];
  }

  feed() {
    while (this.waiting.length && this.waiting[0].length <= this.free) {
      const pcm = this.waiting.shift();
      this.free -= pcm.length;
      this.node.port.postMessage({ push: this.id, pcm });
    }
    if (this.ended && !this.waiting.length) this.node.port.postMessage({ end: this.id });
  }

  told(news) {
    if ("done" in news) {
      if (news.done !== this.id) return;
      this.id = null;
      this.onDone(news.done, news.heard, news.stopped);
    } else if (news.at === this.id && this.id !== null) {
      const pushed = this.heard + (RING_SAMPLES - this.free);
      this.free = RING_SAMPLES - (pushed - news.heard);
      this.heard = news.heard;
      this.dry = news.dry;
      this.onHeard(news.at, news.heard, news.dry, news.starved);
      if (this.waiting.length) this.feed();
    }
  }
}

/* The loudspeaker: plays one utterance at a time out of a ring, sample for sample, on the audio thread.

In:  {begin: id, growing}, {push: id, pcm: Int16Array}, {end: id}, {stop: true}
Out: {at: id, heard, free, starved, dry}  every 1024 samples and whenever something changed
     {done: id, heard, stopped}           once for each utterance

`heard` counts samples of the utterance that have left this ring. Samples are played exactly as they came;
only where the ring runs dry, or at a stop, what is left fades out, so that nothing clicks. */

const RING_SAMPLES = 1 << 20; // 43.7 s at 24 kHz
const PREFILL_SAMPLES = 2880; // what must be there before it begins, or goes on: 120 ms
const MOST_PREFILL_SAMPLES = 24000; // where it runs dry it begins with more, up to this
const FADE_SAMPLES = 120; // 5 ms: held back for a fade as long as more is to come
const TELL_EVERY_SAMPLES = 1024;

class Loudspeaker extends AudioWorkletProcessor {
  constructor() {
    super();
    this.ring = new Float32Array(RING_SAMPLES);
    this.prefill = PREFILL_SAMPLES;
    this.reset(null);
    this.port.onmessage = ({ data }) => this.take(data);
  }

  reset(id, growing = false) {
    this.id = id;
    this.growing = growing; // silence may be the writer's, not the machine's or the network's
    this.written = 0;
    this.read = 0;
    this.told = 0;
    this.ended = false;
    this.playing = false;
    this.dry = 0;
    this.fadeIn = 0; // samples of a fade that are still to come
    this.stopping = false;
  }

  take(message) {
    if (message.begin !== undefined) {
      this.reset(message.begin, message.growing);
      this.tell();
    } else if (message.stop) {
      if (this.id === null) return;
      if (this.playing) this.stopping = true;
      else this.finish(true);
    } else if (message.push === this.id && this.id !== null) {
      const { pcm } = message;
      for (let i = 0; i < pcm.length; i++) this.ring[(this.written + i) % RING_SAMPLES] = pcm[i] / 32768;
      this.written += pcm.length;
    } else if (message.end === this.id) {
      this.ended = true;
    }
  }

  process(_inputs, [[out]]) {
    const wanted = out.length;
    if (this.id === null) return true;
    const there = this.written - this.read;
    const idle = !this.playing;
    if (idle) {
      if (there >= this.prefill || (this.ended && there > 0)) this.playing = true;
      else if (this.ended) this.finish(false);
    }
    if (!this.playing || this.id === null) return true;
    if (this.stopping) {
      this.copy(out, Math.min(wanted, there, FADE_SAMPLES), true);
      this.finish(true);
    } else if (there - (this.ended ? 0 : FADE_SAMPLES) >= wanted) {
      this.copy(out, wanted, false);
      if (idle || this.read - this.told >= TELL_EVERY_SAMPLES) this.tell();
    } else if (this.ended) {
      this.copy(out, there, false);
      this.finish(false);
    } else {
      this.copy(out, Math.min(wanted, there), true);
      this.playing = false;
      this.dry += 1;
      if (!this.growing) this.prefill = Math.min(2 * this.prefill, MOST_PREFILL_SAMPLES);
      this.fadeIn = FADE_SAMPLES;
      this.tell();
    }
    return true;
  }

  copy(out, count, fadeOut) {
    for (let i = 0; i < count; i++) {
      let sample = this.ring[(this.read + i) % RING_SAMPLES];
      if (fadeOut) sample *= 1 - i / count;
      if (this.fadeIn > 0) sample *= 1 - this.fadeIn-- / FADE_SAMPLES;
      out[i] = sample;
    }
    this.read += count;
  }

  tell() {
    this.told = this.read;
    const free = RING_SAMPLES - (this.written - this.read);
    this.port.postMessage({ at: this.id, heard: this.read, free, starved: this.dry, dry: !this.playing });
  }

  finish(stopped) {
    if (!this.growing && !this.dry) this.prefill = Math.max(this.prefill / 2, PREFILL_SAMPLES);
    this.port.postMessage({ done: this.id, heard: this.read, starved: this.dry, stopped });
    this.reset(null);
  }
}

registerProcessor("loudspeaker", Loudspeaker);

/* Sound as numbers: WAV files, and how long and loud a recording is. */

import { SAMPLE_RATE } from "./player.js";

/** 16-bit mono samples, in pieces, as a WAV file. */
export function wav(pieces, rate = SAMPLE_RATE) {
  const bytes = 2 * pieces.reduce((sum, piece) => sum + piece.length, 0);
  const head = new DataView(new ArrayBuffer(44));
  const word = (at, text) => [...text].forEach((char, i) => head.setUint8(at + i, char.charCodeAt(0)));
  word(0, "RIFF");
  head.setUint32(4, 36 + bytes, true);
  word(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true); // PCM
  head.setUint16(22, 1, true); // mono
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  word(36, "data");
  head.setUint32(40, bytes, true);
  return new Blob([head, ...pieces], { type: "audio/wav" });
}

/** Have the browser save a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const decibels = (value) => (value > 0 ? 20 * Math.log10(value) : -Infinity);

/** How long and how loud a recording is, and its outline for a picture of `columns`. */
export async function measure(file, columns) {
  const context = new OfflineAudioContext(1, 1, 48000);
  const decoded = await context.decodeAudioData(await file.arrayBuffer());
  const samples = decoded.getChannelData(0);
  const outline = new Float32Array(columns);
  let peak = 0;
  let squares = 0;
  let clipped = 0;
  for (let i = 0; i < samples.length; i++) {
    const size = Math.abs(samples[i]);
    squares += size * size;
    if (size > peak) peak = size;
    if (size >= 0.999) clipped += 1;
    const column = Math.floor((i * columns) / samples.length);
    if (size > outline[column]) outline[column] = size;
  }
  const level_db = decibels(Math.sqrt(squares / Math.max(1, samples.length)));
  return { duration_s: decoded.duration, peak_db: decibels(peak), level_db, clipped, outline };
}

/** What is to be said about a recording, and whether it can be used. */
export function verdict({ duration_s, level_db, clipped }, shortest_s, longest_s) {
  if (duration_s < shortest_s) return [false, `Too short: at least ${shortest_s} s are needed.`];
  if (duration_s > longest_s) return [false, `Too long: at most ${longest_s} s are taken.`];
  if (level_db < -60) return [false, "There is nothing to hear in it."];
  if (clipped > 10) return [true, "Some peaks are cut off: the voice may sound harsh. Record it a little quieter."];
  if (level_db < -38) return [true, "Very quiet: noise may become part of the voice. Record it closer."];
  if (duration_s < 5) return [true, "Usable. Ten seconds of steady speech would be better."];
  return [true, "Good: long and loud enough."];
}

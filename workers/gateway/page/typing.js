/* Speaking while somebody types: what is complete goes, the rest waits.

What has gone can't be taken back. An edit within it moves the mark of what has gone along with the text, so
that everything behind it is spoken exactly once. */

const ENDS = {
  word: /[\s\S]*\s/, // up to the last gap between words
  clause: /[\s\S]*(?:[,;:.!?…)"”»]\s|\n|[，。、；：！？])/,
  sentence: /[\s\S]*(?:[.!?…]["”»)]*\s|\n|[。！？])/,
};

export class Typing {
  /** `begin()` opens an utterance that grows and returns it; `mouth` takes its pieces. */
  constructor(mouth, begin) {
    this.mouth = mouth;
    this.begin = begin;
    this.reset();
  }

  reset() {
    this.utterance = null;
    this.text = "";
    this.gone = 0;
  }

  /** What stands in the box now is not spoken; only what comes after it. */
  skipTo(text) {
    this.reset();
    this.text = text;
    this.gone = text.length;
  }

  /** The text box says `text` now. */
  changed(text, grain) {
    this.gone = moved(this.text, text, this.gone);
    this.text = text;
    const complete = ENDS[grain].exec(text.slice(this.gone));
    if (complete) this.give(complete[0]);
  }

  /** All of it, and nothing comes any more. Returns whether there was anything. */
  finish(text) {
    this.gone = moved(this.text, text, this.gone);
    this.text = text;
    const rest = text.slice(this.gone);
    if (rest.trim()) this.give(rest);
    const any = this.utterance !== null;
    if (this.utterance?.open) this.mouth.end(this.utterance);
    this.reset();
    return any;
  }

  give(piece) {
    this.gone += piece.length;
    if (this.utterance && (!this.utterance.open || this.utterance.complete)) this.utterance = null; // stopped, or ended
    if (!this.utterance && !piece.trim()) return;
    this.utterance ??= this.begin();
    this.mouth.write(this.utterance, piece);
  }
}

/** Where `mark` in `before` stands in `after`, which differs from it in one place. */
export function moved(before, after, mark) {
  let head = 0;
  const shorter = Math.min(before.length, after.length);
  while (head < shorter && before[head] === after[head]) head++;
  if (head >= mark) return mark;
  let tail = 0;
  while (tail < shorter - head && before.at(-1 - tail) === after.at(-1 - tail)) tail++;
  const editEnd = before.length - tail;
  if (editEnd <= mark) return mark + after.length - before.length;
  return after.length - tail; // the edit spans the mark: what was put in its place counts as gone
}

"""From a growing text as written to the characters that are spoken, each with its place in the text.

`Cleaner` is a transducer: text goes in piece by piece, clean characters come out as soon as the
text decides what they are, never depending on how it was cut into pieces. What it drops and keeps:

- emphasis, headings, list bullets, quote signs, link targets, HTML tags and comments: the marks go, the
  words stay; an entity becomes its character; a list item's number is spoken; table cells are
  joined by commas; ``code`` in a line is spoken;
- a fenced code block is dropped with its content (nobody wants 40 lines of code read out), and so are
  link definitions and rules;
- emoji and category C (control, format, unassigned) go; ZWJ and ZWNJ stay inside words;
- every run of white space becomes one space, a no-break space stays one.

Markup that a line or a few hundred characters do not complete is text. Memory is bounded by the same few hundred
characters.
"""

from __future__ import annotations

import re
from typing import Literal

from msgspec import Struct, field

from pipeline import blocks, markup
from pipeline.blocks import held_by_flush
from pipeline.markup import NeedMore
from pipeline.spoken import Gap, Spoken, gap_of, runs_words_together

Mode = Literal["more", "flush", "end"]
"""More may come at once; the writer has fallen silent (only beginnings of markup are kept back); that was all."""

_PLAIN = re.compile(r"[^\s*_~`<\[\]&!|#\\]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_REST_OF_TARGET = re.compile(r"[^\s)]*")
_NEWLINES = "\n\r"
_OPENING, _CLOSING = frozenset("“‘«「『【《〈(（[\"'"), frozenset("”’»」』】》〉)）]\"'.!?。！？:：…")
_CLOSER_CHARS = 80


class Cleaner(Struct):
    """The state between two pieces of text, all of it plain data that msgpack takes.

    ``raw`` is what is written and not decided yet, its first character at ``base`` in the text as
    given, ``before`` the character in front of it.
    """

    raw: str = ""
    base: int = 0
    before: str = ""
    line_start: bool = True
    paragraph: bool = False
    table: bool = False
    quote: bool = False
    item: bool = False
    in_list: bool = False
    heading: bool = False
    row: bool = False
    fence: str = ""
    skip_to: str = ""
    emphasis: dict[str, int] = field(default_factory=dict)
    links: list[tuple[int, int]] = field(default_factory=list)
    at: int = 0
    spoken: Spoken = field(default_factory=Spoken)

    @property
    def position(self) -> int:
        """How much of the text as given is decided; all later characters come from there on."""
        return self.base + self.at

    def pending_words(self) -> str:
        """What is written, not decided and worth a flush."""
        if self.fence or self.skip_to or held_by_flush(self.raw, 0, self.line_start):
            return ""
        return self.raw

    def feed(self, text: str, mode: Mode = "more") -> tuple[str, list[int]]:
        """Take more text; return the characters now decided and the offset of each.

        The offset of LINE, PARAGRAPH and pauses is where what follows them begins. The last two
        modes decide what more text might have decided otherwise.
        """
        self.raw += text if text.isascii() else _SURROGATE.sub("\0", text)
        while self.at < len(self.raw):
            try:
                self._step(mode == "end")
            except NeedMore:
                if mode != "flush" or self.fence or self.skip_to or held_by_flush(self.raw, self.at, self.line_start):
                    break
                if not self._speak_label():
                    self._step(True)
        if self.at:
            self.before = self.raw[self.at - 1]
            self.base += self.at
            self.raw, self.at = self.raw[self.at :], 0
        return self.spoken.take()

    # ------------------------------------------------------------------ one step

    def _step(self, ended: bool) -> None:
        """Decide at least one character, or raise `NeedMore` with nothing changed."""
        if self.fence or self.skip_to:
            self._skip(ended)
        elif self.links and self.position >= self.links[-1][0]:
            self.at = max(self.at, self.links.pop()[1] - self.base)
        elif self.line_start:
            self._begin_line(ended)
        else:
            self._read(ended)

    def _speak_label(self) -> bool:
        """A writer who pauses inside a link's target has said its label; the rest of the target is dropped."""
        at = self.at + self.raw.startswith("![", self.at)
        close = markup.link_begun(self.raw, at) if self.raw.startswith("[", at) else -1
        if close < 0:
            return False
        self.line_start = False
        self._put(at + 1, close)
        self.at, self.skip_to = len(self.raw), ")"
        return True

    def _skip(self, ended: bool) -> None:
        if self.skip_to == ")":
            rest = _REST_OF_TARGET.match(self.raw, self.at)
            self.at = rest.end() if rest else self.at
            if self.at < len(self.raw):
                self.at += self.raw[self.at] == ")"
                self.skip_to = ""
            return
        if self.skip_to:
            found = self.raw.find(self.skip_to, self.at)
            if found >= 0:
                self.at, self.skip_to = found + len(self.skip_to), ""
            else:
                kept = 0 if ended else len(self.skip_to) - 1
                if len(self.raw) - self.at <= kept:
                    raise NeedMore
                self.at = len(self.raw) - kept
            return
        if self.line_start:
            end = blocks.closes_fence(self.raw, self.at, ended, self.fence)
            self.line_start = False
            if end >= 0:
                self.at, self.fence = end, ""
            return
        newline = self.raw.find("\n", self.at)
        self.line_start = newline >= 0
        self.at = newline + 1 if newline >= 0 else len(self.raw)

    def _begin_line(self, ended: bool) -> None:
        char = self.raw[self.at]
        if char in _NEWLINES:
            if self._newline(ended):
                self._widen_gap(Gap.PARAGRAPH)
                self.paragraph = self.table = self.quote = self.item = self.in_list = False
                self.emphasis.clear()
            return
        if char.isspace() or not char.isprintable():
            self._widen_gap(Gap.SPACE)
            self.at += 1
            return
        kind, end = blocks.line_kind(
            self.raw, self.at, ended, self.paragraph and not self.in_list, self.table, self.item
        )
        self._apply_line(kind, end)

    def _apply_line(self, kind: blocks.LineKind, end: int) -> None:
        """Act on a line's prefix. Only quotes and bullets leave more prefix to read on the same line."""
        start, self.at = self.at, end
        footnote = kind == "drop" and not self.item
        if kind == "fence":
            self.fence = self.raw[start:end]
        if kind in ("heading", "rule", "fence"):
            self._widen_gap(Gap.PARAGRAPH)
        elif kind in ("bullet", "ordered", "row", "delimiter") or footnote or (kind == "quote" and not self.quote):
            self._widen_gap(Gap.LINE)
        if kind == "text" and self.in_list and self._starts_at_margin(start):
            self._widen_gap(Gap.LINE)
            self.in_list = False
        if kind not in ("text", "drop", "quote"):
            self.emphasis.clear()
        self.heading, self.row = kind == "heading", kind == "row" or (self.table and kind == "text")
        self.table = self.table or kind == "delimiter"
        self.quote = self.quote or kind == "quote"
        self.in_list = kind in ("bullet", "ordered") or (self.in_list and kind not in ("heading", "rule"))
        self.item = self.item if kind == "quote" else kind in ("bullet", "ordered")
        if kind != "quote":
            self.paragraph = kind in ("text", "ordered", "drop")
        self.line_start = kind in ("quote", "bullet")
        if kind == "ordered":
            self._put(start, end)

    def _starts_at_margin(self, start: int) -> bool:
        """True if nothing stands before ``start`` on its line: after list items that is new text to a reader."""
        return (self.raw[start - 1] if start else self.before) in ("\n", "\r")

    def _read(self, ended: bool) -> None:
        plain = _PLAIN.match(self.raw, self.at)
        if plain:
            start, self.at = self.at, plain.end()
            self._put(start, self.at)
            return
        char = self.raw[self.at]
        if char.isspace():
            self._space(char, ended)
        elif char in "*_~":
            self._emphasis(ended)
        elif char == "`":
            self._code(ended)
        elif char == "[" or char == "!":
            self._bracket(ended)
        elif char == "<":
            self._tag(ended)
        elif char == "&":
            self._entity(ended)
        elif char == "\\":
            self._escape(ended)
        elif char == "|" and self.row:
            self.spoken.comma(self.position)
            self.at += 1
        elif char == "#" and self.heading:
            self._closing_marks(ended)
        else:
            self._literal(1)

    # ------------------------------------------------------------------ white space

    def _space(self, char: str, ended: bool) -> None:
        if char in _NEWLINES:
            hard_break = self.spoken.spaces >= 2
            if self._newline(ended):
                self._widen_gap(Gap.PARAGRAPH if self.heading else Gap.LINE if self.row or hard_break else Gap.SPACE)
                self.heading = self.row = self.item = False
            return
        self._widen_gap(gap_of(char))
        self.spoken.spaces += 1
        self.at += 1

    def _newline(self, ended: bool) -> bool:
        """Step over a line end; false for the first half of a CR LF."""
        if self.raw[self.at] == "\r":
            if self.at + 1 == len(self.raw) and not ended:
                raise NeedMore
            if self.raw.startswith("\n", self.at + 1):
                self.at += 1
                return False
        self._widen_gap(Gap.SPACE)
        self.at += 1
        self.spoken.spaces, self.line_start = 0, True
        return True

    def _widen_gap(self, gap: Gap) -> None:
        self.spoken.widen_gap(gap, self.position)

    def _put(self, start: int, end: int) -> None:
        self.spoken.put(self.raw[start:end], self.base + start)

    def _literal(self, count: int) -> None:
        start, self.at = self.at, self.at + count
        self._put(start, self.at)

    # ------------------------------------------------------------------ marks

    def _char_before(self) -> str:
        return self.raw[self.at - 1] if self.at else self.before

    def _emphasis(self, ended: bool) -> None:
        mark, end = self.raw[self.at], self.at
        while end < len(self.raw) and self.raw[end] == mark and end - self.at < 64:
            end += 1
        if end == len(self.raw) and not ended and end - self.at < 64:
            raise NeedMore
        count, before, after = end - self.at, self._char_before(), self.raw[end : end + 1]
        literal = self.spoken.address or count > 3 or (mark == "~" and count != 2)
        within_word = before.isalnum() and after.isalnum()
        if within_word and (mark == "_" or (count == 1 and before.isdigit() and after.isdigit())):
            literal = True
        if literal:
            self._literal(count)
            return
        left, right = markup.flanks(before, after)
        opened = self.emphasis.get(mark, 0)
        if opened and (right or before in _CLOSING):
            self.emphasis[mark] = max(0, opened - count)
        elif self._opens(mark, count, end, left or after in _OPENING, within_word, ended):
            self.emphasis[mark] = opened + count
        else:
            self._literal(count)
            return
        self.at = end

    def _opens(self, mark: str, count: int, end: int, left: bool, within_word: bool, ended: bool) -> bool:
        """A mark before a letter opens emphasis. Before anything else a single one must be closed soon: ``*.txt``."""
        after = self.raw[end : end + 1]
        if not left or not after:
            return False
        if within_word:
            return runs_words_together(after) or runs_words_together(self._char_before())
        if count > 1 or after.isalpha():
            return True
        stop = self.raw.find("\n", end, end + _CLOSER_CHARS)
        within = stop if stop >= 0 else min(len(self.raw), end + _CLOSER_CHARS)
        for here in range(end + 1, within):
            if self.raw[here] == mark and not self.raw[here - 1].isspace() and self.raw[here - 1] != mark:
                return True
        if stop < 0 and len(self.raw) - end < _CLOSER_CHARS and not ended:
            raise NeedMore
        return False

    def _code(self, ended: bool) -> None:
        found = markup.code_span(self.raw, self.at, ended)
        if found:
            start, stop, end = found
            self._put(start, stop)
            self.at = end
            return
        run = re.compile("`{1,64}").match(self.raw, self.at)
        count = run.end() - self.at if run else 1
        if self._char_before().isalnum() and self.raw[self.at + count : self.at + count + 1].isalnum():
            self._literal(count)  # an apostrophe
        else:
            self.at += count

    def _bracket(self, ended: bool) -> None:
        image = self.raw[self.at] == "!"
        at = self.at + image
        if image and at == len(self.raw) and not ended:
            raise NeedMore
        if self.raw[at : at + 1] != "[":
            self._literal(1)
            return
        if not image and (pause := markup.pause_ms(self.raw, at)):
            self.at = pause[1]
            self.spoken.pause(pause[0], self.position)
            return
        if (footnote := markup.footnote_end(self.raw, at)) >= 0 and not image:
            self.at = footnote
            return
        found = markup.link(self.raw, at, ended, "" if image else self._char_before())
        if found is None:
            self._literal(1)
            return
        self.links.append((self.base + found[0], self.base + found[1]))
        self.at = at + 1

    def _tag(self, ended: bool) -> None:
        found = markup.tag(self.raw, self.at, ended)
        if found is None:
            self._literal(1)
            return
        kind, end = found
        if kind == "address":
            self._put(self.at + 1, end - 1)
        elif kind == "comment":
            self.skip_to = "-->"
        elif kind == "block":
            self._widen_gap(Gap.LINE)
        self.at = end

    def _entity(self, ended: bool) -> None:
        found = markup.entity(self.raw, self.at, ended)
        if found is None:
            self._literal(1)
            return
        meant, end = found
        self.spoken.put(meant, self.position, one_place=True)
        self.at = end

    def _escape(self, ended: bool) -> None:
        if self.at + 1 == len(self.raw) and not ended:
            raise NeedMore
        escaped = self.raw[self.at + 1 : self.at + 2]
        if escaped in ("\n", "\r"):
            self._widen_gap(Gap.LINE)
            self.at += 1
        elif escaped and escaped in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" and not self.spoken.address:
            self.at += 1
            self._literal(1)
        else:
            self._literal(1)

    def _closing_marks(self, ended: bool) -> None:
        """``## Heading ##``: marks at the end of a heading are no text."""
        run = re.compile(r"#{1,64}[ \t]{0,64}").match(self.raw, self.at)
        end = run.end() if run else self.at + 1
        if end == len(self.raw) and not ended:
            raise NeedMore
        if self._char_before().isspace() and (end == len(self.raw) or self.raw[end] in _NEWLINES):
            self._widen_gap(Gap.SPACE)
            self.at = end
        else:
            self._literal(1)

"""A growing text is cut early, at the right places, and every character can be found again."""

from __future__ import annotations

import itertools
import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline.text as text_module
from pipeline.spoken import first_word, has_words
from pipeline.text import FIRST_CHARS, PARAGRAPH_PAUSE_MS, TextSegment, TextSegmenter

FRAGMENTS = [
    *(
        "Hello",
        "world",
        " ",
        "A",
        "a",
        "é",
        "\u0301",
        ". ",
        "! ",
        "? ",
        "…",
        ", ",
        "; ",
        ": ",
        " - ",
        "—",
        '"',
        "”",
        "“",
    ),
    *("\n", "\n\n", "\r\n", "\r", "\u2028", "\u00a0", "\x00", "\x1b", "\u00ad", "\ufeff", "\u200d", "\ud800"),
    *(
        "*",
        "**",
        "_",
        "__",
        "~~",
        "`",
        "```",
        "```py\n",
        "#",
        "# ",
        "> ",
        "- ",
        "1. ",
        "12. ",
        "[x] ",
        "---\n",
        "===\n",
    ),
    *("[", "]", "(", ")", "](http://a.b/c)", "![", "[^1]", "<b>", "</b>", "<", "<!--", "-->", "&amp;", "&", "\\"),
    *("|", "| a | b |\n", "|---|---|\n", "😀", "👍🏽", "你好", "。", "，", "「", "」", "؟", "हिं", "।", "สวัสดี"),
    *("3.14", "Dr. ", "e.g. ", "U.S. ", "J. R. ", "http://x.y/z_a ", "a_b_c", "2 * 3", "x" * 40, "word " * 15),
    *("[pause:500ms]", "[pause:1s]", "[pause:", "500ms]"),
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join) | st.text(max_size=60)
limits = st.sampled_from([1, 5, 17, 40, 120, 300])
languages = st.sampled_from(["en", "de", "fr", "zh", "hi", "el", "nobody-knows"])
thorough = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)


def segments(text: str, language: str = "en", longest_chars: int = 300, **options: int) -> list[TextSegment]:
    segmenter = TextSegmenter(language, longest_chars, **options)
    return segmenter.feed(text) + segmenter.end()


def spoken(text: str, language: str = "en", longest_chars: int = 300, **options: int) -> list[str]:
    return [segment.text for segment in segments(text, language, longest_chars, **options) if segment.text]


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


def check_map(text: str, found: list[TextSegment], longest_chars: int) -> None:
    """Segments tile the text, offsets grow and lead to where each character stands."""
    position, last = 0, 0
    for segment in found:
        assert segment.start == position
        position = segment.end
        assert len(segment.text) <= longest_chars
        assert segment.text == segment.text.strip()
        assert len(segment.offsets) == len(segment.text) + 1
        for char, offset in zip(segment.text, segment.offsets, strict=False):
            assert max(last, segment.start) <= offset < segment.end
            last = offset
            # Gaps become spaces, table bars commas; entities are the only other thing rewritten.
            assert text[offset] == char or char in " ," or text[offset] == "&"
        assert segment.start <= segment.offsets[-1] <= segment.end
    assert position == len(text)


# ------------------------------------------------------------------ properties


@thorough
@given(texts, st.lists(st.integers(0, 2000), max_size=60), languages, limits)
def test_cuts_depend_on_the_text_and_never_on_the_pieces(
    text: str, cuts: list[int], language: str, longest: int
) -> None:
    segmenter = TextSegmenter(language, longest, min(longest, 9), 100)
    grown = [segment for piece in pieces_of(text, cuts) for segment in segmenter.feed(piece)] + segmenter.end()
    assert grown == segments(text, language, longest, shortest_chars=min(longest, 9), sentence_pause_ms=100)


@thorough
@given(texts, languages, limits)
def test_segments_tile_the_text_and_offsets_lead_to_each_character(text: str, language: str, longest: int) -> None:
    check_map(text, segments(text, language, longest), longest)


@thorough
@given(texts, st.lists(st.integers(0, 2000), max_size=8), languages, limits)
def test_flushes_anywhere_keep_the_map_and_hold_nothing_back(
    text: str, cuts: list[int], language: str, longest: int
) -> None:
    segmenter, found = TextSegmenter(language, longest), []
    for piece in pieces_of(text, cuts):
        found += segmenter.feed(piece) + segmenter.flush()
        assert segmenter.pending_chars == 0
        assert segmenter.flush() == []
    check_map(text, found + segmenter.end(), longest)


@thorough
@given(texts, st.lists(st.integers(0, 2000), max_size=12), st.lists(st.booleans(), min_size=15, max_size=15), languages)
def test_a_restored_segmenter_goes_on_as_if_nothing_had_happened(
    text: str, cuts: list[int], flushes: list[bool], language: str
) -> None:
    undisturbed, restored = TextSegmenter(language, 120, 5, 80), TextSegmenter(language, 120, 5, 80)
    for count, piece in enumerate(pieces_of(text, cuts)):
        restored = TextSegmenter.restore(restored.state())
        assert restored.feed(piece) == undisturbed.feed(piece)
        restored = TextSegmenter.restore(restored.state())
        if flushes[count % 15]:
            assert restored.flush() == undisturbed.flush()
        assert restored.pending_chars == undisturbed.pending_chars
    assert TextSegmenter.restore(restored.state()).end() == undisturbed.end()


@thorough
@given(st.text(alphabet=st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=30))
def test_a_flush_speaks_half_a_word(word: str) -> None:
    segmenter = TextSegmenter("en", 300)
    assert "".join(segment.text for segment in segmenter.feed(word) + segmenter.flush()) == word


@thorough
@given(texts, languages)
def test_every_segment_says_something_or_is_only_a_pause_or_the_end(text: str, language: str) -> None:
    for segment in segments(text, language):
        assert has_words(segment.text) or (segment.text == "" and segment.boundary in ("pause", "end"))


TRICKY = [
    "a\r\nb\r\n\r\nc\rd\r\r\ne  \r\nf\\\r\ng",
    "x*y 2*3 a *b* **c** foo_bar _d_ e_ 2**3 中**文**字 f*** *.txt *5* 6",
    "é://a_b_ www.é_x_ http://é_y_ http://a/_b_ c_ x://_y_",
    "[x] y\n[x]: http://a\n[^1]: z[^1]\n- [x] done\n[y]: not one\n[z](u 't') [a](b c) [q][r] ![i](j)",
    "```py\ncode\n``` \n``a`b`` `c` ``` d\n```\n~~~~\n~~~\n~~~~\ne ```f``` g\n```h``` i\n```j",
    "```h``` i\n``j``\n~~~k\nl\n~~~\nm `n\no` p ````q```` r\n```s",
    "<b>x</b> <!-- a -- > --> <br/>y <i z> <http://a.b> <a@b.c> < <3 &amp; &x; &#65; &",
    "# h ##\n## i # j\n#k\n####### l\n===\nm\n---\nn\n--\n- - -\n-\n* * x\n+ y\n> > z",
    "|a|b|\n|-|-|\n|1||\n||2|\nx|y\n\n|c| < d\n",
    "1. a\n2) b\n10. c\n\n1234567890. d\n5. e\nf 6. G 7. H",
    '"A." B. "C?" d. E! — f. G… (H.) i.e. J. K. L.',
    "Wait [pause:5ms][pause:x] [PAUSE: 1.5 s]\n[pause:1s]\n\nx [pause:2s",
    "😀 a😀! 👩🏽‍🚀 1️⃣ क्‍ष \u200d x\u200d\ud800y",
]


@pytest.mark.parametrize("text", TRICKY)
def test_tricky_texts_are_cut_alike_in_whatever_pieces_and_after_every_restart(text: str) -> None:
    for longest in (7, 300):
        whole = segments(text, "en", longest)
        for at in range(len(text) + 1):
            segmenter = TextSegmenter("en", longest)
            found = segmenter.feed(text[:at])
            segmenter = TextSegmenter.restore(segmenter.state())
            assert found + segmenter.feed(text[at:]) + segmenter.end() == whole, at
        segmenter, found = TextSegmenter("en", longest), []
        for char in text:
            found += segmenter.feed(char)
            segmenter = TextSegmenter.restore(segmenter.state())
        assert found + segmenter.end() == whole


# ------------------------------------------------------------------ when the first clause leaves


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Yes, of course, I can help you.", "Yes, of course,"),
        ("Well, yes, I think so too.", "Well, yes, I think so too."),
        ("Sure! Here is the answer.", "Sure!"),
        ("On March 5, 2024, we met in Rome.", "On March 5, 2024,"),
        ("It costs 1,000 dollars: too much.", "It costs 1,000 dollars:"),
        ("My best friend – a dentist – called.", "My best friend –"),
        ("A well-known 5–6 year old, they say.", "A well-known 5–6 year old,"),
        ("今天天气很好，我们去公园吧。", "今天天气很好，"),
        ("你好，我是小明。", "你好，我是小明。"),
        ("مرحبا يا صديقي، كيف حالك؟", "مرحبا يا صديقي،"),
    ],
)
def test_the_first_segment_is_one_clause_that_says_something(text: str, first: str) -> None:
    assert spoken(text)[0] == first


def test_the_first_clause_leaves_with_the_first_letter_after_it() -> None:
    segmenter = TextSegmenter("en", 300)
    assert segmenter.feed("Of course I can, ") == []
    assert [segment.text for segment in segmenter.feed("w")] == ["Of course I can,"]
    assert segmenter.feed("e will, or maybe not, as it were, t") == []


def test_a_long_first_sentence_without_a_clause_is_cut_at_a_word() -> None:
    words = "word " * 40
    first = spoken(words)[0]
    assert FIRST_CHARS // 2 <= len(first) <= FIRST_CHARS
    assert set(first.split()) == {"word"}
    assert len(spoken(words)[1]) > FIRST_CHARS
    almost = "word " * 17 + "end."
    assert spoken(almost + " Next sentence.")[0] == almost


# ------------------------------------------------------------------ boundaries and pauses


def test_paragraphs_pause_longer_than_sentences_and_the_end_not_at_all() -> None:
    found = segments("One here. Two here.\n\nThree here.\nfour it is", sentence_pause_ms=120)
    assert [(segment.text, segment.boundary, segment.pause_ms) for segment in found] == [
        ("One here.", "sentence", 120),
        ("Two here.", "paragraph", 120 + PARAGRAPH_PAUSE_MS),
        ("Three here. four it is", "end", 0),
    ]


def test_headings_items_and_rows_are_segments() -> None:
    found = segments("# Plan\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nDone")
    assert [(segment.text, segment.boundary) for segment in found] == [
        ("Plan", "paragraph"),
        ("one", "sentence"),
        ("two", "paragraph"),
        ("a, b", "sentence"),
        ("1, 2", "paragraph"),
        ("Done", "end"),
    ]


def test_pause_markers_end_segments_and_are_bounded() -> None:
    found = segments("[pause:1s]Hello there [pause:500ms] you. [pause: 1.5 s][PAUSE:3600s] Bye")
    assert [(segment.text, segment.boundary, segment.pause_ms) for segment in found] == [
        ("", "pause", 1000),
        ("Hello there", "pause", 500),
        ("you.", "pause", 1500),
        ("", "pause", 10_000),
        ("Bye", "end", 0),
    ]


@pytest.mark.parametrize("marker", ["[pause]", "[pause:]", "[pause:5]", "[pause:-1s]", "[pause:1,5s]", "[pause:5m s]"])
def test_a_malformed_pause_marker_is_spoken(marker: str) -> None:
    assert spoken(f"Say {marker} now") == [f"Say {marker} now"]


def test_a_pause_marker_that_arrives_slowly_is_never_spoken() -> None:
    segmenter, found = TextSegmenter("en", 300), []
    for char in "Wait[pause:250ms]go":
        found += segmenter.feed(char) + segmenter.flush()
    assert "".join(segment.text for segment in found) == "Waitgo"
    assert [segment.pause_ms for segment in found if segment.boundary == "pause"] == [250]


def test_a_paragraph_that_shows_after_a_flush_still_pauses() -> None:
    segmenter = TextSegmenter("en", 300)
    assert [segment.boundary for segment in segmenter.feed("One.") + segmenter.flush()] == ["sentence"]
    segmenter = TextSegmenter.restore(segmenter.state())
    found = segmenter.feed("\n\nTwo")
    assert [(segment.text, segment.boundary, segment.pause_ms) for segment in found] == [
        ("", "paragraph", PARAGRAPH_PAUSE_MS)
    ]
    assert [segment.text for segment in segmenter.end()] == ["Two"]


@pytest.mark.parametrize(
    ("text", "boundary"),
    [
        ("Half a", "clause"),
        ("Dr.", "clause"),
        ("All of it!", "sentence"),
        ('"Go."', "sentence"),
        ("x\n\n", "paragraph"),
    ],
)
def test_a_flush_tells_what_it_cut(text: str, boundary: str) -> None:
    segmenter = TextSegmenter("en", 300)
    assert [segment.boundary for segment in segmenter.feed(text) + segmenter.flush()] == [boundary]


def test_a_pause_inside_a_links_target_does_not_get_the_address_spoken() -> None:
    segmenter, found = TextSegmenter("en", 300), []
    for piece in ("Read [the manual](http://exa", "mple.com/foo) before", " you start."):
        found += segmenter.feed(piece) + segmenter.flush()
    assert [segment.text for segment in found] == ["Read the manual", "before", "you start."]


# ------------------------------------------------------------------ lengths


def test_too_long_a_sentence_is_cut_at_a_clause_then_a_space_then_anywhere() -> None:
    assert spoken("aaaa bbbb cccc, dddd eeee ffff", longest_chars=20) == ["aaaa bbbb cccc,", "dddd eeee ffff"]
    assert spoken("aaaa bbbb cccc dddd eeee ffff", longest_chars=20) == ["aaaa bbbb cccc", "dddd eeee ffff"]
    assert spoken("aaaa bbbb\n\ncccc", longest_chars=9) == ["aaaa bbbb", "cccc"]
    assert spoken("a" * 50, longest_chars=20) == ["a" * 20, "a" * 20, "a" * 10]
    assert spoken("我" * 50, "zh", longest_chars=20) == ["我" * 20, "我" * 20, "我" * 10]


def test_a_cut_between_letters_spares_their_marks() -> None:
    text = "e\u0301" * 30
    assert [len(piece) % 2 for piece in spoken(text, longest_chars=15)] == [0] * 5
    assert "".join(spoken(text, longest_chars=15)) == text


def test_a_cut_inside_what_an_entity_means_stays_within_the_text() -> None:
    found = segments("a &ampt; b", longest_chars=1)
    assert [segment.text for segment in found] == ["a", "&", "t", "b"]
    for segment in found:
        assert segment.start <= segment.offsets[-1] <= segment.end


def test_short_sentences_are_joined_to_the_next() -> None:
    assert spoken("No. Oh! Yes? I see it now. Good.", shortest_chars=12) == ["No. Oh! Yes?", "I see it now.", "Good."]
    assert spoken("Hi\n\nThis is a text.\n\nBye", shortest_chars=5) == ["Hi This is a text.", "Bye"]


@pytest.mark.parametrize("options", [(0, 0, 0), (10, 11, 0), (10, -1, 0), (10, 1, -1)])
def test_impossible_limits_are_refused(options: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"_chars is|_ms is"):
        TextSegmenter("en", *options)


@pytest.mark.parametrize("text", ["", " ", "\n\n", "😀", "**", "---", "...", "```\ncode\n```\n", "\x00\ufeff"])
def test_nothing_to_say_is_still_accounted_for(text: str) -> None:
    found = segments(text)
    assert [segment.text for segment in found] == ([""] if text else [])
    check_map(text, found, 300)


# ------------------------------------------------------------------ size and time


def long_text(chars: int) -> str:
    page = (
        "## Part\n\nThe *quick* brown fox, who had never been to the **U.S.** before, jumped over 3.14 lazy dogs. "
        "It was a `long` and rather [dull](https://example.com/a) sentence about nothing at all.\n\n- one 😀\n- two\n\n"
    )
    return (page * (chars // len(page) + 1))[:chars]


@pytest.mark.slow
def test_state_and_memory_stay_small_however_long_the_text() -> None:
    segmenter = TextSegmenter("en", 300)
    text = long_text(100_000)
    tracemalloc.start()
    for at in range(0, len(text), 40):
        segmenter.feed(text[at : at + 40])
        if at % 4000 == 0:
            assert len(segmenter.state()) < 2000
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 200_000


@pytest.mark.parametrize(
    "unit",
    ["", "*", "`", "[", "[a](", "<b ", "|", "!", ". ", "-", " ", "\n", "a", "```x\n", "1. ", "😀", "*5 ", "| a\n"],
)
def test_time_grows_with_the_text_and_not_with_its_square(unit: str) -> None:
    def cpu_s(chars: int) -> float:
        text = (unit * chars)[:chars] if unit else long_text(chars)
        segmenter, began = TextSegmenter("en", 300), time.process_time()
        for at in range(0, chars, 4):
            segmenter.feed(text[at : at + 4])
        segmenter.end()
        return time.process_time() - began

    # Ten times the text: a factor of 10 if linear, 100 if not; the constant forgives a noisy machine.
    assert cpu_s(20_000) < 30 * cpu_s(2_000) + 0.5


@pytest.mark.parametrize("unit", ["\u2028[", "\u2028*", "\n\n[", ". ", "a\n\n", "[pause] - "])
def test_no_character_is_looked_at_for_words_again_and_again(unit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where every other character ends a segment with nothing to say in it."""
    looked_at = 0

    def counted(text: str, start: int = 0) -> int:
        nonlocal looked_at
        found = first_word(text, start)
        looked_at += (found if found >= 0 else len(text)) - start
        return found

    monkeypatch.setattr(text_module, "first_word", counted)
    chars = 10_000
    segmenter = TextSegmenter("en", 300)
    segmenter.feed((unit * chars)[:chars])
    segmenter.end()
    assert looked_at <= 2 * chars

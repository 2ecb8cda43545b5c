"""Markup goes, words stay, and what only looks like markup survives."""

from __future__ import annotations

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.clean import Cleaner
from pipeline.spoken import LINE, PARAGRAPH, PAUSE_BASE


def cleaned(text: str) -> str:
    """Clean text on one line: | for an item's end, || for a paragraph's."""
    found, offsets = Cleaner().feed(text, "end")
    assert len(found) == len(offsets)
    return found.replace(LINE, "|").replace(PARAGRAPH, "||").replace("\u00a0", "~")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("**Bold** and *soft* and ***both***.", "Bold and soft and both."),
        ("__Bold__ and _soft_, ~~gone~~.", "Bold and soft, gone."),
        ("**Note:** one **(two)** *“three”*, **four**five", "Note: one (two) “three”, fourfive"),
        ("**foo (*bar*)** end", "foo (bar) end"),
        ("这是**重点**内容，**“很重要”**的", "这是重点内容，“很重要”的"),
        ("**중요**합니다", "중요합니다"),
        ("Use `x_y * 2` and ``a`b``.", "Use x_y * 2 and a`b."),
        ("See [the *docs*](https://e.org/a_(b)?c=1 'T') now", "See the docs now"),
        ("![a cat](cat.png) and [![x](y.png)](z)", "a cat and x"),
        ("[one][1] and [two][]\n\n[1]: https://e.org\n[two]: <b> 'T'\n\nend", "one and two||end"),
        ("Claim[^1].\n\n[^1]: Proof.", "Claim.||Proof."),
        ("<https://e.org/a_b> and <me@e.org>", "https://e.org/a_b and me@e.org"),
        ("a<br>b <b>c</b> <span class='x'>d</span><!-- no\n * -->e", "a|b c de"),
        ("Tom &amp; Jerry &lt;3 &#233;&#x20AC;&nbsp;x", "Tom & Jerry <3 é€~x"),
        (r"\*not\* 1\. C:\dir \_x", "*not* 1. C:\\dir _x"),
        ("# One\nText\n## Two ##\nMore\n\nTitle\n===\nEnd", "One||Text||Two||More||Title||End"),
        ("- a\n- b\n  c\n* d\n+ e", "a|b c|d|e"),
        ("- a\nb\n\n1. c\n   d\ne", "a|b||1. c d|e"),
        ("Do:\n1. a\n2. b\n10) c", "Do:|1. a|2. b|10) c"),
        ("- [ ] open\n- [x] done", "open|done"),
        ("> said\n> she\n\n> > deep", "said she||deep"),
        ("a\n\n---\n\nb\n***\nc", "a||b||c"),
        ("a  \nb\\\nc\nd", "a|b|c d"),
        ("x\n\n```python\nprint('no')\n\n# no\n```\ny\n~~~\nno\n~~~", "x||y"),
        ("x\n```\nnever closed", "x"),
        ("| A | B |\n|:--|--:|\n| 1 | |\n| | `2` |\nend", "A, B|1|2|end"),
        ("A | B\n--|--\n1 | 2", "A | B|1, 2"),
        ("a\r\nb\r\n\r\nc\rd", "a b||c d"),
    ],
)
def test_markup_goes_and_words_stay(text: str, spoken: str) -> None:
    assert cleaned(text) == spoken


@pytest.mark.parametrize(
    "text",
    [
        *("2 * 3 = 6", "2*3*4", "a * b * c", "x**2", "f*** it", "5 stars *", "*.txt and *.py", "** alone", "*5 of 6"),
        *("snake_case_name", "a_b", "_", "__", "file_name.py_", "~5 minutes", "~/bin", "a ~ b"),
        *("a < b and c > d", "1<2", "<3", "<your name here>", "<foo>", "a <b", "x -> y", "=> z", "a <- b"),
        *("[1]", "see [note] here", "a[0](x)", "m[1][2]", "[ ]", "array[i]", "[text] (aside)", "]["),
        *("#tag", "C# and F#", "#1 hit", "Section # 4", "####### seven"),
        *("AT&T", "Q & A", "&x;", "&nosuchentity;", "R&D;", "a && b"),
        *("-5 degrees", "+1", "1986 was good", "3.5 kg", "1.x", "=", "a = b", "x | y", "|x| < 5", "100 %"),
        *("don`t", "C:\\dir", "http://e.org/_a_*b*~~c~~d", "www.e.org/__x__", "(c) (tm)", "5 > 3"),
        *("© 2024 Acme™ ®", "$5 + €3 = £7", "→ ok", "50°", "क्‍ष", "می‌خواهم", "été", "𝒳"),
    ],
)
def test_text_that_only_looks_like_markup_survives(text: str) -> None:
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Great 👍! Yes 😀😀 and 👩🏽‍🚀 go", "Great! Yes and go"),
        ("a❤️b 1️⃣ 🇩🇪 ok", "a b 1 ok"),
        ("a\x00b\x1b[31mc\u00add\ufeffe\u202ef\ue000g\ud800h", "ab[31mcdefgh"),
        ("tab\there\x0band\x0cthere", "tab here and there"),
        ("a\u200db \u200dc x\u200d", "a\u200db c x\u200d"),
        ("5\u202f000\u00a0€", "5~000~€"),
        ("a\u2028b\u2029c", "a|b||c"),
        ("\ufeff# Title\n\u200btext", "Title||text"),
    ],
)
def test_emoji_and_control_characters_go(text: str, spoken: str) -> None:
    assert cleaned(text) == spoken


def test_a_pause_marker_is_one_character_that_no_text_can_contain() -> None:
    found, offsets = Cleaner().feed("a [pause:0.5s] b `[pause:1s]`", "end")
    assert found == f"a{chr(PAUSE_BASE + 500)} b [pause:1s]"
    assert offsets[1] == len("a [pause:0.5s]")
    assert Cleaner().feed(chr(PAUSE_BASE + 500), "end")[0] == ""


def test_an_entity_stands_where_it_is_written() -> None:
    assert Cleaner().feed("a &amp; b", "end") == ("a & b", [0, 1, 2, 7, 8])


def test_what_is_held_undecided_is_bounded() -> None:
    for opening in ("[", "[x](", "`", "<b ", "&", "| ", "[x]: ", "```", "# ", "*5", "**", "<!--", "~~~ "):
        cleaner = Cleaner()
        for _ in range(2000):
            cleaner.feed(opening if not cleaner.base else "abcd")
            assert len(cleaner.raw) < 2100, opening


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a <b\n>c", "a <b\nc"),
        ("a <b\r\n>c", "a <b\nc"),
        ('a <a href="x<y">c', 'a <a href="x<y">c'),
        ("a <1a@b.c> d", "a 1a@b.c d"),
        ("a <é@b.c> d", "a é@b.c d"),
        ("a <i>b</i> <3 d", "a b <3 d"),
    ],
)
def test_a_tag_that_could_not_be_waited_for_is_text_in_whatever_pieces_it_comes(text: str, expected: str) -> None:
    cleaner = Cleaner()
    by_character = "".join(cleaner.feed(char)[0] for char in text) + cleaner.feed("", "end")[0]
    assert by_character == Cleaner().feed(text, "end")[0] == expected


@pytest.mark.parametrize("info_chars", [199, 200, 201])
def test_a_fence_is_one_or_not_in_whatever_pieces_it_comes(info_chars: int) -> None:
    text = f"```{'x' * info_chars}\nprint()\n```\nDone."
    cleaner = Cleaner()
    by_character = "".join(cleaner.feed(char)[0] for char in text) + cleaner.feed("", "end")[0]
    assert by_character == Cleaner().feed(text, "end")[0]
    assert ("print" in by_character) == (info_chars >= 200)


words = st.sampled_from(["alpha", "beta", "gamma", "delta", "naïve", "漢字", "9", "3.14", "x_y"])
plain = st.lists(words, min_size=1, max_size=4).map(" ".join)
inline = st.one_of(
    plain,
    plain.map("**{}**".format),
    plain.filter(lambda text: text[0].isalpha()).map("*{}*".format),
    plain.map("`{}`".format),
    plain.map("[{}](https://e.org/a_b)".format),
    plain.map("~~{}~~".format),
)
sentence = st.lists(inline, min_size=1, max_size=4).map(" and ".join)
block = st.one_of(
    sentence.map(lambda text: f"So {text}"),
    sentence.map("## {}".format),
    st.lists(sentence, min_size=1, max_size=3).map(lambda items: "\n".join(f"- {item}" for item in items)),
    sentence.map("> {}".format),
    plain.map("```\n{}\n```".format),
    st.just("---"),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(st.lists(block, min_size=1, max_size=5).map("\n\n".join))
def test_ordinary_markdown_reads_as_a_markdown_parser_reads_it(text: str) -> None:
    expected: list[str] = []
    for token in MarkdownIt("commonmark").enable("strikethrough").parse(text):
        if token.type == "inline":
            inner = token.children or []
            expected.append("".join(child.content for child in inner if child.type in ("text", "code_inline")))
    found = [line for line in re.split(f"[{LINE}{PARAGRAPH}]", Cleaner().feed(text, "end")[0]) if line]
    assert found == expected

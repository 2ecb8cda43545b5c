"""Sentences end where a reader would say so, in any language."""

from __future__ import annotations

import pytest

from pipeline.sentences import Sentences
from pipeline.text import TextSegmenter

CORPUS = {
    "initials": ("en", "J. R. R. Tolkien wrote it.| Then he slept."),
    "in brackets": ("en", "It costs $5 (incl. VAT) now.| (Yes.)| Good."),
    "titles": ("en", "Dr. Smith met Mrs. Jones and Prof. Lee.| They talked."),
    "latin": ("en", "Bring fruit, e.g. apples, i.e. food."),
    "country": ("en", "The U.S. Army and U.S. troops came.| They left."),
    "number": ("en", "No. 5 is alive.| See Fig. 3 now."),
    "plain no": ("en", "The answer is no.| Ask again."),
    "decimals": ("en", "Pi is 3.14 or so.| It costs $1,299.99 now."),
    "version": ("en", "v1.2.3 is out.| Get it."),
    "times": ("en", "We met at 5 p.m. Tuesday and at 10:30 a.m. again.| Fine."),
    "date": ("en", "It was 12.05.2024 then.| Not now."),
    "year": ("en", "That was in 1986.| The next year was fine."),
    "enumeration": ("en", "1. Open the box.| 2. Close it.| 3. Leave."),
    "address": ("en", "See https://example.com/a.b?c=1.2 for it.| Or mail a.b@c.org. | Bye."),
    "address last": ("en", "Go to www.example.com.| Then read."),
    "marks": ("en", "What?!| Really...| Yes!!!| Hm… maybe.| Fine."),
    "ellipsis": ("en", "Wait... what is it?| Well…| Nothing."),
    "quotes": ("en", 'He said "Go." | Then he went.| "Really?" he asked.| “Yes.”| (So he did.)| End.'),
    "lower case": ("en", "Yahoo! is old but ok? i think so.| Yes."),
    "company": ("en", "Acme Inc. was sold.| It moved."),
    "glued": ("en", "foo.bar is a file.Not a sentence.| Yes."),
    "fallback": ("tlh", "Dr. Foo came.| He left."),
    "german": ("de", "Am 3. Mai kam Hr. Dr. Müller mit z. B. 3,5 kg.| Er ging.| »Nein!«| „So?“| Der 2. Weltkrieg."),
    "french": ("fr", "« Bonjour ! »| M. Dupont est là.| Il paie 3,50 €.| Ça va ?| Oui."),
    "spanish": ("es", "¡Hola, señor!| ¿Cómo está el Sr. López?| Bien."),
    "russian": ("ru", "Он жил на ул. Ленина.| Потом, т.е. позже, уехал.| А. С. Пушкин писал."),
    "chinese": ("zh", "今天很好！|3.14是圆周率。|“真的吗？”|他问。|好的!|走吧"),
    "japanese": ("ja", "「行こう。」|はい。|そうです！|3.5キロ。"),
    "arabic": ("ar", "كيف حالك؟| أنا بخير.| شكرا"),
    "hindi": ("hi", "यह अच्छा है।| डॉ. शर्मा आए।| क्यों?"),
    "urdu": ("ur", "یہ اچھا ہے۔| کیوں؟| ہاں"),
    "greek": ("el", "Πού είναι ο φίλος; |Εδώ είναι."),
    "armenian": ("hy", "Բարեւ բոլորին։| Լավ եմ։"),
    "amharic": ("am", "ሰላም ነው።| ደህና ነኝ።"),
    "thai": ("th", "สวัสดีครับ ผมชื่อสมชาย"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_sentences_end_where_a_reader_would_say(name: str) -> None:
    language, marked = CORPUS[name]
    expected = [sentence.strip() for sentence in marked.split("|")]
    segmenter = TextSegmenter(language, 500)
    found = segmenter.feed(marked.replace("|", "")) + segmenter.end()
    joined: list[str] = []
    glue = False
    for segment in found:  # the first clause is not at issue here
        joined = [*joined[:-1], f"{joined[-1]} {segment.text}"] if glue else [*joined, segment.text]
        glue = segment.boundary == "clause"
    assert joined == expected


@pytest.mark.parametrize("tag", ["en-US", "en_GB", "EN", "pt-BR", "cmn", "", "x", "../etc", "é", "q" * 1000])
def test_any_language_tag_is_taken(tag: str) -> None:
    sentences = Sentences(tag)
    assert sentences.sentence_end("It is done. Now", 10) == ("cut", 11)
    assert sentences.sentence_end("Pi is 3.14 now", 7)[0] == "go on"


@pytest.mark.parametrize("text", ["Done.", "Done. ", 'Done."', 'Done. "', "Done. ("])
def test_a_mark_with_too_little_after_it_waits(text: str) -> None:
    assert Sentences("en").sentence_end(text, 4)[0] == "wait"


@pytest.mark.parametrize("language", ["en", "fr", "ja", "nobody-knows"])
@pytest.mark.parametrize("text", ["B\u00a0. Yes.", "No\u202f. 1", "z.B\u00a0. X", "« M\u00a0. »\u00a0. Oui."])
def test_a_no_break_space_before_a_period_is_no_trouble(language: str, text: str) -> None:
    segmenter = TextSegmenter(language, 300)
    found = segmenter.feed(text) + segmenter.flush() + segmenter.end()
    assert "".join(segment.text for segment in found).replace(" ", "") == "".join(text.split())

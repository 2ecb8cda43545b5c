"""Text tokens are those of the stock tokenizers, and each knows the character that it stands for."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("chatterbox")

import chatterbox.mtl_tts
import chatterbox.tts
import chatterbox.tts_turbo
from chatterbox.models.tokenizers import EnTokenizer, MTLTokenizer
from chatterbox.models.tokenizers import tokenizer as stock

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.languages import CANGJIE, LanguageProcessing
from pipeline.engines.chatterbox.spelling import Encoded, TextEncoder, normal
from pipeline.engines.chatterbox.tracing import Traced
from pipeline.engines.chatterbox.variants import CHATTERBOX, MULTILINGUAL_V2, TURBO

pytestmark = pytest.mark.chatterbox

Checkpoint = Callable[[str], Path]

TEXTS = (
    "Hello there, this is the thing.",
    "hello",
    "  two  words\nand a\ttab  ",
    "Wait... what — “quoted” ‘text’: yes; no - maybe , and so…",
    "ßtraße begins small, İstanbul ends!",
    "Already ends with a dash-",
    "Ends in space. ",
    "Numbers 123 & signs @#%",
    "Ärger über Öl – déjà vu; naïve?",
    "ΟΔΟΣ ends in a sigma.",
    "…",
    "one...two......three",
    "[laugh] That was [cough] funny.",
    "emoji 😀 inside",
)


@pytest.mark.parametrize(
    ("variant", "package"),
    [(CHATTERBOX, chatterbox.tts), (MULTILINGUAL_V2, chatterbox.mtl_tts), (TURBO, chatterbox.tts_turbo)],
    ids=lambda one: getattr(one, "name", ""),
)
@pytest.mark.parametrize("text", [*TEXTS, "全部。", "そう、"])
def test_punctuation_is_normalised_as_the_package_does(variant, package, text: str) -> None:
    made = normal(variant, Traced.of(text))
    assert made.text == package.punc_norm(text)
    assert len(made.origin) == len(made.text)
    assert list(made.origin) == sorted(made.origin)


@pytest.mark.parametrize("text", TEXTS)
def test_english_tokens_are_the_stock_ones(text: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint("chatterbox")
    expected = EnTokenizer(str(folder / CHATTERBOX.tokenizer)).encode(chatterbox.tts.punc_norm(text))
    made = TextEncoder(CHATTERBOX, folder).encode(text, "en")
    assert list(made.ids) == expected
    sane(made, text)


@pytest.mark.parametrize("text", TEXTS)
def test_turbo_tokens_are_the_stock_ones(text: str, checkpoint: Checkpoint) -> None:
    from transformers import AutoTokenizer

    folder = checkpoint("chatterbox-turbo")
    expected = AutoTokenizer.from_pretrained(folder)(chatterbox.tts_turbo.punc_norm(text), truncation=True)
    made = TextEncoder(TURBO, folder).encode(text, "en")
    assert list(made.ids) == expected.input_ids
    sane(made, text)


def test_turbos_tags_are_one_token_each(checkpoint: Checkpoint) -> None:
    encoder = TextEncoder(TURBO, checkpoint("chatterbox-turbo"))
    tagged = encoder.encode("[laugh] Hi.", "en")
    assert len(tagged.ids) == len(encoder.encode(" Hi.", "en").ids) + 2  # the tag, and the space that is kept after it
    assert (folder_tags := json.loads((checkpoint("chatterbox-turbo") / "added_tokens.json").read_text()))
    assert tagged.ids[0] == folder_tags["[laugh]"]


class Segmenter:
    """Stands for pkuseg, whose model is downloaded at its first use: two characters are a word."""

    def cut(self, text: str) -> list[str]:
        whole = "".join(text.split())
        return [whole[at : at + 2] for at in range(0, len(whole), 2)]


@pytest.fixture
def stock_multilingual(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> MTLTokenizer:
    folder = checkpoint("chatterbox-multilingual")
    package = types.ModuleType("spacy_pkuseg")
    package.pkuseg = Segmenter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy_pkuseg", package)
    monkeypatch.setattr(stock, "hf_hub_download", lambda **_: str(folder / CANGJIE))
    return MTLTokenizer(str(folder / MULTILINGUAL_V2.tokenizer))


FOREIGN = (
    ("de", "Größe zählt – über alles!"),
    ("fr", "L’été à Paris… c’est “beau”"),
    ("el", "Καλημέρα ΚΟΣΜΟΣ"),
    ("ar", "مرحبا بالعالم"),
    ("hi", "नमस्ते दुनिया"),
    ("ko", "안녕하세요, 세계"),
    ("zh", "你好 我曰日月。"),
    ("ja", "今日は東京へ 行きます。カタカナ"),
    ("tr", "İstanbul'da IŞIK"),
    ("en", "Hello there."),
)


@pytest.mark.parametrize(("language", "text"), FOREIGN)
def test_multilingual_tokens_are_the_stock_ones(
    language: str, text: str, stock_multilingual: MTLTokenizer, checkpoint: Checkpoint
) -> None:
    expected = stock_multilingual.encode(chatterbox.mtl_tts.punc_norm(text), language_id=language)
    made = TextEncoder(MULTILINGUAL_V2, checkpoint("chatterbox-multilingual")).encode(text, language)
    assert list(made.ids) == expected
    assert stock_multilingual.tokenizer.id_to_token(made.ids[0]) == f"[{language}]"
    sane(made, text)


def sane(made: Encoded, text: str) -> None:
    assert len(made.chars) == len(made.ids)
    assert list(made.chars) == sorted(made.chars)
    assert all(0 <= char < len(text) for char in made.chars)


def test_characters_are_found_again_behind_what_was_rewritten(checkpoint: Checkpoint) -> None:
    encoder = TextEncoder(CHATTERBOX, checkpoint("chatterbox"))
    text = "a…  b — zq"
    made = encoder.encode(text, "en")
    tokenizer = EnTokenizer(str(checkpoint("chatterbox") / CHATTERBOX.tokenizer)).tokenizer
    found = {tokenizer.id_to_token(id_): char for id_, char in zip(made.ids, made.chars, strict=True)}
    assert (found["A"], found["b"], found["z"], found["q"]) == (0, 4, 8, 9)
    assert found["."] == len(text) - 1, "the full stop that was added stands for the end"


def test_characters_are_found_again_through_decomposition(checkpoint: Checkpoint) -> None:
    encoder = TextEncoder(MULTILINGUAL_V2, checkpoint("chatterbox-multilingual"))
    made = encoder.encode("Äöü x", "de")
    assert made.chars[0] == 0
    assert made.chars[1:7] == (0, 0, 1, 1, 2, 2)


def test_what_cannot_be_spoken_is_refused(checkpoint: Checkpoint) -> None:
    encoder = TextEncoder(CHATTERBOX, checkpoint("chatterbox"))
    with pytest.raises(EngineError, match="nothing in it to speak"):
        encoder.encode(" \n", "en")
    with pytest.raises(EngineError, match="'de' is not spoken by chatterbox; languages: en"):
        encoder.encode("Hallo", "de")


@pytest.mark.parametrize(
    ("language", "module", "package"),
    [
        ("zh", "spacy_pkuseg", "spacy-pkuseg"),
        ("ja", "pykakasi", "pykakasi"),
        ("he", "dicta_onnx", "dicta-onnx"),
        ("ru", "russian_text_stresser.text_stresser", "russian-text-stresser"),
    ],
)
def test_a_language_whose_package_is_missing_is_refused_with_its_name(
    language: str, module: str, package: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    folder = checkpoint("chatterbox-multilingual")
    with pytest.raises(EngineError, match=f"language {language}: needs `pip install {package}`"):
        TextEncoder(MULTILINGUAL_V2, folder).encode("abc", language)
    assert TextEncoder(MULTILINGUAL_V2, folder, unprocessed=True).encode("abc", language).ids


def test_a_language_that_needs_nothing_imports_nothing(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("spacy_pkuseg", "pykakasi", "dicta_onnx", "russian_text_stresser"):
        monkeypatch.setitem(sys.modules, module, None)
    encoder = TextEncoder(MULTILINGUAL_V2, checkpoint("chatterbox-multilingual"))
    for language in ("en", "de", "ko", "ar"):
        assert encoder.encode("Ein Wort", language).ids


def test_a_processing_that_fails_is_an_error_and_not_another_pronunciation(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def add_diacritics(self, text: str) -> str:
            raise RuntimeError("no model")

    package = types.ModuleType("dicta_onnx")
    package.Dicta = Broken  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dicta_onnx", package)
    with pytest.raises(EngineError, match="language he: dicta-onnx failed: no model"):
        TextEncoder(MULTILINGUAL_V2, checkpoint("chatterbox-multilingual")).encode("שלום", "he")


def test_rewritten_words_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Marks:
        def add_diacritics(self, text: str) -> str:
            return text.replace("a", "a\u0301").replace("b", "bb")

    package = types.ModuleType("dicta_onnx")
    package.Dicta = Marks  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dicta_onnx", package)
    made = LanguageProcessing(tmp_path).process(Traced.of("aa bb cc"), "he")
    assert made.text == "a\u0301a\u0301 bbbb cc"
    assert (made.origin[0], made.origin[5], made.origin[10]) == (0, 3, 6)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    for variant in (CHATTERBOX, TURBO):
        with pytest.raises(EngineError, match="cannot be read"):
            TextEncoder(variant, tmp_path)

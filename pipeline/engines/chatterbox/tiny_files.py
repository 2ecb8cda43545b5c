"""A whole checkpoint folder of a small model with random weights, in the file layout of the published one.

Deterministic by its seed. What it says is babble; everything that reads it is the real thing: for tests, and for a dry
run of a pipeline without the gigabytes (`python -m perf.tiny_checkpoint`).
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chatterbox.models.voice_encoder import VoiceEncoder

from pipeline.engines.base import Samples
from pipeline.engines.chatterbox.conditionals import Conditionals
from pipeline.engines.chatterbox.languages import CANGJIE
from pipeline.engines.chatterbox.recordings import RATE
from pipeline.engines.chatterbox.tiny import tiny_s3gen, tiny_t3
from pipeline.engines.chatterbox.variants import LANGUAGES, START_TEXT, Variant

VOICE_S = 10.5
TAGS = ("[laugh]", "[chuckle]", "[cough]", "[sigh]", "[gasp]", "[sniff]", "[groan]", "[clear throat]", "[shush]")
_MERGES = ("t h", "th e", "i n", "e r", "a n", "o u", "in g", "an d", "r e", "o n", "e n", "l l", "s t")
_SCRIPTS = (
    range(0x00DF, 0x0100),  # what no decomposition takes apart
    range(0x0300, 0x0370),  # marks
    range(0x03B1, 0x03CA),  # Greek
    range(0x0430, 0x0450),  # Cyrillic
    range(0x05B0, 0x05EB),  # Hebrew
    range(0x0621, 0x0653),  # Arabic
    range(0x0900, 0x0970),  # Devanagari
    range(0x1100, 0x1200),  # Korean letters
    range(0x3041, 0x3100),  # Japanese syllables
    range(0x3001, 0x3003),
)
_CANGJIE = ("日\ta", "月\tb", "你\tonf", "好\tvnd", "我\thqi", "曰\ta")


def write_checkpoint(variant: Variant, folder: Path, seed: int = 0) -> None:
    """Everything that the model reads, below 100 MB. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(variant, folder, seed)
    if variant.turbo:
        _write_turbo_tokenizer(folder)
    else:
        _write_graphemes(folder / variant.tokenizer, many=len(variant.languages) > 1)
    if CANGJIE in variant.extra_files:
        (folder / CANGJIE).write_text(json.dumps(list(_CANGJIE), ensure_ascii=False), encoding="utf-8")
    _write_builtin(variant, folder, seed)


def _write_weights(variant: Variant, folder: Path, seed: int) -> None:
    t3 = tiny_t3(variant, seed).state_dict()
    if variant.turbo:
        t3["tfmr.wte.weight"] = torch.zeros(1, t3["speech_emb.weight"].shape[1])  # published files have one too
    _save(folder / variant.t3, t3)
    _save(folder / variant.s3gen, tiny_s3gen(variant, seed + 1).state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        _save(folder / variant.voice_encoder, VoiceEncoder().state_dict())


def _save(path: Path, state: dict[str, torch.Tensor]) -> None:
    """In half precision, which takes half the room: random weights are as good."""
    from safetensors.torch import save_file

    small = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    small = {name: tensor.clone().contiguous() for name, tensor in small.items()}
    if path.suffix == ".safetensors":
        save_file(small, str(path))
    else:
        torch.save(small, path)


def _write_graphemes(path: Path, many: bool) -> None:
    """A tokenizer of letters with a few pairs; special tokens have the ids that the models are built around."""
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import Whitespace

    letters = [*string.ascii_letters, *string.digits, *"!\"'(),-.?¿¡"]
    if many:
        letters += [chr(code) for script in _SCRIPTS for code in script]
    pairs = [tuple(merge.split()) for merge in _MERGES]
    special = ["[STOP]", "[UNK]", "[SPACE]"]
    tags = [f"[{language}]" for language in LANGUAGES] if many else []
    codes = [f"[cj_{sign}]" for sign in (*string.ascii_lowercase, *string.digits, ".")] if many else []
    names = [*special, *letters, *("".join(pair) for pair in pairs), *tags, *codes]
    names = list(dict.fromkeys(names))
    vocabulary = {name: number + (number >= START_TEXT) for number, name in enumerate(names)}
    vocabulary["[START]"] = START_TEXT
    vocabulary |= {f"[{number}]": number for number in range(len(names), START_TEXT)}  # ids run without a gap
    tokenizer = Tokenizer(BPE(vocabulary, pairs, unk_token="[UNK]"))  # type: ignore[arg-type, unused-ignore]  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens([*special, "[START]", *tags, *codes])
    tokenizer.save(str(path))


def _write_turbo_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer of GPT-2's kind, with the tags for sounds that are no words."""
    from tokenizers.pre_tokenizers import ByteLevel

    names = [*sorted(ByteLevel.alphabet()), *("".join(merge.split()) for merge in _MERGES), "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tags = {tag: len(vocabulary) + number for number, tag in enumerate(TAGS)}
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024, "add_prefix_space": False, **end}
    settings["added_tokens_decoder"] = {str(number): _added(tag) for tag, number in tags.items()}
    for name, content in (
        ("vocab.json", vocabulary),
        ("added_tokens.json", tags),
        ("special_tokens_map.json", end),
        ("tokenizer_config.json", settings),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_MERGES, ""]), encoding="utf-8")


def _added(tag: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
    return {"content": tag, **flags}


def _write_builtin(variant: Variant, folder: Path, seed: int) -> None:
    """The model's own voice, prepared by the real classes from sound that is made here."""
    from pipeline.engines.chatterbox.preparing import Preparer

    length_s = max(VOICE_S, variant.t3_reference_s + 0.5)
    made = Preparer(variant, folder).prepare(hum(length_s, seed))
    torch.save(stored(made, 0.0 if variant.turbo else 0.5), folder / variant.conditionals)


def stored(voice: Conditionals, exaggeration: float) -> dict[str, Any]:
    """A voice as the stock package's `Conditionals.save` writes it."""
    return {
        "t3": {
            "speaker_emb": voice.t3.speaker,
            "clap_emb": None,
            "cond_prompt_speech_tokens": voice.t3.prompt_tokens,
            "cond_prompt_speech_emb": None,
            "emotion_adv": exaggeration * torch.ones(1, 1, 1),
        },
        "gen": {
            "prompt_token": voice.s3gen.prompt_tokens,
            "prompt_token_len": torch.tensor([voice.s3gen.prompt_tokens.shape[1]]),
            "prompt_feat": voice.s3gen.prompt_mel,
            "prompt_feat_len": None,
            "embedding": voice.s3gen.speaker,
        },
    }


def hum(seconds: float, seed: int = 0) -> Samples:
    """Something like a voice at 24 kHz: harmonics whose pitch and strength wander, and breath."""
    random = np.random.default_rng(seed)
    time_s = np.arange(int(seconds * RATE)) / RATE
    pitch_hz = 120 + 25 * np.sin(2 * np.pi * 0.7 * time_s) + 10 * np.sin(2 * np.pi * 2.3 * time_s + seed)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / RATE
    harmonics = sum(np.sin(number * phase) / number**1.2 for number in range(1, 16))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * time_s)
    sound = 0.15 * syllables * (harmonics + 0.2 * random.standard_normal(len(time_s)))
    return sound.astype(np.float32)

"""The models of the Chatterbox family: what each is called, reads, speaks and lets one set. No torch here.

Figures and file names are those of the `chatterbox-tts` package (tts.py, mtl_tts.py, tts_turbo.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

SPEECH_TOKENS = 6561
"""Ids below are sound; the two after are start and stop of speech."""

START_SPEECH, STOP_SPEECH = 6561, 6562
START_TEXT, STOP_TEXT = 255, 0
SILENCE_TOKEN = 4299
"""What S3Gen renders as silence."""

TOKENS_PER_S = 25
SAMPLES_PER_TOKEN = 960
FRAMES_PER_TOKEN = 2
SAMPLES_PER_FRAME = 480
LOOKAHEAD_TOKENS = 3

ENGLISH = {"en": "English"}
LANGUAGES = {
    "ar": "Arabic",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fi": "Finnish",
    "fr": "French",
    "he": "Hebrew",
    "hi": "Hindi",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ms": "Malay",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "tr": "Turkish",
    "zh": "Chinese",
}


@dataclass(frozen=True)
class Defaults:
    """What a request gets that sets nothing."""

    temperature: float = 0.8
    top_p: float = 1.0
    min_p: float = 0.05
    top_k: int = 0
    repetition_penalty: float = 1.2
    cfg_weight: float = 0.5
    exaggeration: float = 0.5


@dataclass(frozen=True)
class Variant:
    """One model. ``t3``, ``s3gen``, … name its files in a checkpoint folder; ``repo`` is where the hub has them.

    ``analyzer``: the stock package watches the attention to the text and suppresses or forces the end of speech
    (multilingual v2). ``drops_last_token``: the last token's 40 ms are not heard (multilingual v3).
    """

    name: str
    backbone: Literal["llama", "gpt2"]
    repo: str
    t3: str
    s3gen: str
    voice_encoder: str
    tokenizer: str
    conditionals: str = "conds.pt"
    extra_files: tuple[str, ...] = ()
    languages: dict[str, str] = field(default_factory=lambda: ENGLISH)
    prompt_tokens: int = 150
    t3_reference_s: float = 6.0
    s3gen_reference_s: float = 10.0
    shortest_reference_s: float = 1.0
    meanflow: bool = False
    cfm_steps: int = 10
    end_silence_tokens: int = 0
    reference_loudness_lufs: float | None = None
    analyzer: bool = False
    drops_last_token: bool = False
    defaults: Defaults = field(default_factory=Defaults)

    @property
    def turbo(self) -> bool:
        """Whether it is of the Turbo kind: no CFG, no exaggeration, no min_p, but top_k."""
        return self.backbone == "gpt2"


_ORIGINAL = "ResembleAI/chatterbox"

CHATTERBOX = Variant(
    name="chatterbox",
    backbone="llama",
    repo=_ORIGINAL,
    t3="t3_cfg.safetensors",
    s3gen="s3gen.safetensors",
    voice_encoder="ve.safetensors",
    tokenizer="tokenizer.json",
)
MULTILINGUAL_V2 = Variant(
    name="chatterbox-multilingual",
    backbone="llama",
    repo=_ORIGINAL,
    t3="t3_mtl23ls_v2.safetensors",
    s3gen="s3gen.pt",
    voice_encoder="ve.pt",
    tokenizer="grapheme_mtl_merged_expanded_v1.json",
    extra_files=("Cangjie5_TC.json",),
    languages=LANGUAGES,
    analyzer=True,
    defaults=Defaults(repetition_penalty=2.0),
)
MULTILINGUAL_V3 = replace(
    MULTILINGUAL_V2, t3="t3_mtl23ls_v3.safetensors", analyzer=False, drops_last_token=True, defaults=Defaults()
)
TURBO = Variant(
    name="chatterbox-turbo",
    backbone="gpt2",
    repo="ResembleAI/chatterbox-turbo",
    t3="t3_turbo_v1.safetensors",
    s3gen="s3gen_meanflow.safetensors",
    voice_encoder="ve.safetensors",
    tokenizer="tokenizer_config.json",
    extra_files=("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"),
    prompt_tokens=375,
    t3_reference_s=15.0,
    shortest_reference_s=5.0,
    meanflow=True,
    cfm_steps=2,
    end_silence_tokens=3,
    reference_loudness_lufs=-27.0,
    defaults=Defaults(top_p=0.95, min_p=0.0, top_k=1000, cfg_weight=0.0, exaggeration=0.0),
)
NANO = replace(TURBO, repo="ResembleAI/chatterbox-nano", t3="t3_nano_v1.safetensors")
VARIANTS = (CHATTERBOX, MULTILINGUAL_V2, MULTILINGUAL_V3, TURBO, NANO)

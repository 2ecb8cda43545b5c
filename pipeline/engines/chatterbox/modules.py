"""The stock classes of `chatterbox-tts`, built in whatever size a checkpoint has.

The package hard-wires one size for each model. Here the sizes are read off the shapes of the weights, so that the
published models, a smaller sibling and the small random checkpoints of tests and dry runs all load the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.s3gen.decoder import ConditionalDecoder
from chatterbox.models.s3gen.f0_predictor import ConvRNNF0Predictor
from chatterbox.models.s3gen.hifigan import HiFTGenerator
from chatterbox.models.s3gen.transformer.upsample_encoder import UpsampleConformerEncoder
from chatterbox.models.s3tokenizer import S3Tokenizer
from chatterbox.models.t3 import T3
from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
from chatterbox.models.t3.modules.perceiver import Perceiver
from chatterbox.models.t3.modules.t3_config import T3Config
from s3tokenizer.model_v2 import ModelConfig

from pipeline.engines.chatterbox.variants import Variant

State = Mapping[str, torch.Tensor]

HEAD_DIM = 64
"""Of every attention in the family, in T3 as in S3Gen's estimator and the speech tokenizer."""

_ENCODER_HEADS = 8
_MEL_CHANNELS = 80
_FLOW_WIDTH = 512
"""Hard-wired in the package's pre-lookahead and upsampling layers."""


@dataclass(frozen=True)
class T3Sizes:
    """Everything that can differ between two T3 models of one backbone."""

    width: int = 1024
    layers: int = 30
    heads: int = 16
    ffn: int = 4096
    text_vocabulary: int = 704
    speech_vocabulary: int = 8194
    text_positions: int = 2050
    speech_positions: int = 4100
    perceiver_queries: int = 32


@dataclass(frozen=True)
class S3GenSizes:
    """Everything that can differ between two S3Gen models. ``tokenizer_layers`` 0: without what only a reference
    recording needs (speech tokenizer, speaker encoder)."""

    encoder_ffn: int = 2048
    encoder_layers: int = 6
    up_layers: int = 4
    estimator_width: int = 256
    estimator_heads: int = 8
    estimator_blocks: int = 4
    estimator_mid_blocks: int = 12
    hift_width: int = 512
    f0_width: int = 512
    meanflow: bool = False
    tokenizer_width: int = 1280
    tokenizer_layers: int = 6


def t3_sizes(state: State) -> T3Sizes:
    """Sizes of the T3 whose weights these are."""
    width = state["speech_emb.weight"].shape[1]
    llama = "tfmr.norm.weight" in state
    prefix, ffn = ("tfmr.layers", "mlp.gate_proj.weight") if llama else ("tfmr.h", "mlp.c_fc.weight")
    shape = state[f"{prefix}.0.{ffn}"].shape
    heads = state[f"{prefix}.0.self_attn.q_proj.weight"].shape[0] // HEAD_DIM if llama else width // HEAD_DIM
    learned = "speech_pos_emb.emb.weight" in state
    query = state.get("cond_enc.perceiver.pre_attention_query")
    return T3Sizes(
        width=width,
        layers=_count(state, prefix),
        heads=heads,
        ffn=shape[0] if llama else shape[1],
        text_vocabulary=state["text_emb.weight"].shape[0],
        speech_vocabulary=state["speech_emb.weight"].shape[0],
        text_positions=state["text_pos_emb.emb.weight"].shape[0] if learned else 0,
        speech_positions=state["speech_pos_emb.emb.weight"].shape[0] if learned else 0,
        perceiver_queries=query.shape[1] if query is not None else 0,
    )


def build_t3(variant: Variant, sizes: T3Sizes) -> T3:
    """A stock T3 of that size with random weights, on the current default device, in evaluation mode."""
    config = T3Config(text_tokens_dict_size=sizes.text_vocabulary)
    config.llama_config_name = _registered(variant, sizes)
    config.speech_tokens_dict_size = sizes.speech_vocabulary
    config.speech_cond_prompt_len = variant.prompt_tokens
    if variant.turbo:
        config.input_pos_emb = None
        config.use_perceiver_resampler = False
        config.emotion_adv = False
    else:
        config.max_text_tokens = sizes.text_positions - 2
        config.max_speech_tokens = sizes.speech_positions - 4
    t3 = T3(config)
    if not variant.turbo and (sizes.width, sizes.perceiver_queries) != (1024, 32):
        t3.cond_enc.perceiver = Perceiver(sizes.perceiver_queries, sizes.width, sizes.width)
    if variant.turbo:
        del t3.tfmr.wte  # never used: T3 embeds text and speech itself
    return t3.eval()


def _registered(variant: Variant, sizes: T3Sizes) -> str:
    """The name under which the package finds the backbone's configuration: it looks in a table of its own."""
    stock = "GPT2_medium" if variant.turbo else "Llama_520M"
    name = f"{stock} {sizes.width}x{sizes.layers}x{sizes.heads}x{sizes.ffn}"
    config = dict(LLAMA_CONFIGS[stock])
    if variant.turbo:
        config |= {
            "n_embd": sizes.width,
            "hidden_size": sizes.width,
            "n_head": sizes.heads,
            "n_layer": sizes.layers,
            "n_inner": sizes.ffn,
            "vocab_size": 1,
        }
    else:
        config |= {
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.heads,
            "intermediate_size": sizes.ffn,
        }
    LLAMA_CONFIGS[name] = config
    return name


def s3gen_sizes(state: State) -> S3GenSizes:
    """Sizes of the S3Gen whose weights these are."""
    estimator = "flow.decoder.estimator"
    width = state[f"{estimator}.final_proj.weight"].shape[1]
    return S3GenSizes(
        encoder_ffn=state["flow.encoder.encoders.0.feed_forward.w_1.weight"].shape[0],
        encoder_layers=_count(state, "flow.encoder.encoders"),
        up_layers=_count(state, "flow.encoder.up_encoders"),
        estimator_width=width,
        estimator_heads=state[f"{estimator}.down_blocks.0.1.0.attn1.to_q.weight"].shape[0] // HEAD_DIM,
        estimator_blocks=_count(state, f"{estimator}.down_blocks.0.1"),
        estimator_mid_blocks=_count(state, f"{estimator}.mid_blocks"),
        hift_width=_hift_width(state),
        f0_width=state["mel2wav.f0_predictor.classifier.weight"].shape[1],
        meanflow=f"{estimator}.time_embed_mixer.weight" in state,
        tokenizer_width=_tokenizer_width(state),
        tokenizer_layers=_count(state, "tokenizer.encoder.blocks"),
    )


def tokenizer_sizes(state: State) -> S3GenSizes:
    """Sizes of the speech tokenizer among these weights of an S3Gen; the rest is as published."""
    return S3GenSizes(
        tokenizer_width=_tokenizer_width(state), tokenizer_layers=_count(state, "tokenizer.encoder.blocks")
    )


def build_s3gen(sizes: S3GenSizes) -> S3Gen:
    """A stock S3Gen of that size with random weights, on the current default device, in evaluation mode.

    Without `tokenizer_layers` it has no ``tokenizer`` and no ``speaker_encoder``.
    """
    with torch.device("meta"):  # the parts that differ in size are replaced, and the largest may not be needed
        s3gen = S3Gen(meanflow=sizes.meanflow)
    encoder = UpsampleConformerEncoder(
        output_size=_FLOW_WIDTH,
        attention_heads=_ENCODER_HEADS,
        linear_units=sizes.encoder_ffn,
        num_blocks=sizes.encoder_layers,
        normalize_before=True,
        input_layer="linear",
        pos_enc_layer_type="rel_pos_espnet",
        selfattention_layer_type="rel_selfattn",
        input_size=_FLOW_WIDTH,
        use_cnn_module=False,
        macaron_style=False,
    )
    encoder.up_encoders = encoder.up_encoders[: sizes.up_layers]
    estimator = ConditionalDecoder(
        in_channels=4 * _MEL_CHANNELS,
        out_channels=_MEL_CHANNELS,
        causal=True,
        channels=[sizes.estimator_width],
        dropout=0.0,
        attention_head_dim=HEAD_DIM,
        n_blocks=sizes.estimator_blocks,
        num_mid_blocks=sizes.estimator_mid_blocks,
        num_heads=sizes.estimator_heads,
        act_fn="gelu",
        meanflow=sizes.meanflow,
    )
    flow = type(s3gen.flow)(encoder=encoder, decoder=type(s3gen.flow.decoder)(estimator=estimator))
    s3gen.flow = flow
    s3gen.mel2wav = HiFTGenerator(
        base_channels=sizes.hift_width,
        sampling_rate=24000,
        upsample_rates=[8, 5, 3],
        upsample_kernel_sizes=[16, 11, 7],
        source_resblock_kernel_sizes=[7, 7, 11],
        source_resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5], [1, 3, 5]],
        f0_predictor=ConvRNNF0Predictor(cond_channels=sizes.f0_width),
    )
    s3gen.trim_fade = _trim_fade()
    if sizes.tokenizer_layers:
        s3gen.tokenizer = build_tokenizer(sizes)
        s3gen.speaker_encoder = type(s3gen.speaker_encoder)(memory_efficient=False)
    else:
        del s3gen.tokenizer, s3gen.speaker_encoder
    return s3gen.eval()


def build_tokenizer(sizes: S3GenSizes) -> S3Tokenizer:
    """The speech tokenizer alone, in evaluation mode.

    The package's subclass passes its size on to nobody: it gets there as the default that is fallen back to.
    """
    config = ModelConfig(
        n_audio_state=sizes.tokenizer_width,
        n_audio_head=sizes.tokenizer_width // HEAD_DIM,
        n_audio_layer=sizes.tokenizer_layers,
    )
    tokenizer = S3Tokenizer.__new__(S3Tokenizer)
    torch.nn.Module.__init__(tokenizer)
    initial = S3Tokenizer.__bases__[0].__init__.__defaults__
    S3Tokenizer.__bases__[0].__init__.__defaults__ = (config,)
    try:
        tokenizer.__init__("speech_tokenizer_v2_25hz", config)
    finally:
        S3Tokenizer.__bases__[0].__init__.__defaults__ = initial
    return tokenizer.eval()


def _trim_fade() -> torch.Tensor:
    """20 ms of silence and 20 ms of fade, as `S3Token2Wav` has it (it is made on no device above)."""
    fade = torch.zeros(960)
    fade[480:] = (torch.cos(torch.linspace(torch.pi, 0, 480)) + 1) / 2
    return fade


def _hift_width(state: State) -> int:
    for name in ("mel2wav.conv_pre.parametrizations.weight.original1", "mel2wav.conv_pre.weight"):
        if name in state:
            return state[name].shape[0]
    raise KeyError("mel2wav.conv_pre")


def _tokenizer_width(state: State) -> int:
    name = "tokenizer.encoder.blocks.0.attn.query.weight"
    return state[name].shape[0] if name in state else 1280


def _count(state: State, prefix: str) -> int:
    """How many numbered children ``prefix`` has."""
    start = len(prefix) + 1
    found = {name[start:].partition(".")[0] for name in state if name.startswith(f"{prefix}.")}
    return sum(1 for one in found if one.isdigit())

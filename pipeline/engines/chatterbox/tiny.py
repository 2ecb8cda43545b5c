"""Small models of the family with random weights: they babble, but everything else about them is real.

For tests, and for a dry run of a pipeline without the gigabytes (`python -m perf.tiny_checkpoint`).
"""

from __future__ import annotations

import torch
from chatterbox.models.s3gen import S3Gen
from chatterbox.models.t3 import T3

from pipeline.engines.chatterbox.modules import S3GenSizes, T3Sizes, build_s3gen, build_t3
from pipeline.engines.chatterbox.variants import Variant

TINY_TEXT_VOCABULARY = {"chatterbox": 704, "chatterbox-multilingual": 2454, "chatterbox-turbo": 50276}


def tiny_t3_sizes(variant: Variant) -> T3Sizes:
    """Two layers; with an analyzer as many layers and heads as it looks at (layer 13, head 15)."""
    vocabulary = TINY_TEXT_VOCABULARY[variant.name]
    if variant.turbo:
        return T3Sizes(128, 2, 2, 512, vocabulary, 6563, 0, 0, 0)
    if variant.name == "chatterbox-multilingual":
        return T3Sizes(width=128, layers=14, heads=16, ffn=256, text_vocabulary=vocabulary)
    return T3Sizes(width=128, layers=2, heads=2, ffn=256, text_vocabulary=vocabulary)


def tiny_s3gen_sizes(variant: Variant) -> S3GenSizes:
    """One block of each kind."""
    return S3GenSizes(
        encoder_ffn=128,
        encoder_layers=1,
        up_layers=1,
        estimator_width=64,
        estimator_heads=1,
        estimator_blocks=1,
        estimator_mid_blocks=1,
        hift_width=64,
        f0_width=64,
        meanflow=variant.meanflow,
        tokenizer_width=128,
        tokenizer_layers=1,
    )


def tiny_t3(variant: Variant, seed: int = 0) -> T3:
    """A stock T3 of that size; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_t3(variant, tiny_t3_sizes(variant))


def tiny_s3gen(variant: Variant, seed: int = 0) -> S3Gen:
    """A stock S3Gen of that size; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_s3gen(tiny_s3gen_sizes(variant))

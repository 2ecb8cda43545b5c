"""T3 on the device: tokens a second at each batch, what each stage of optimisation brings, and the stock package."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from perf.gpu_telling import attempt, figure, forget_peak, name_of, peak_mib, row, shipped_dtype, text

if TYPE_CHECKING:
    from pipeline.engines.base import TokenModel

STOCK_STEPS = 60
TABLE = "T3, tokens a second"
STAGES = "T3 alone, one stream, stage by stage"


def t3(given: argparse.Namespace) -> None:
    """Tokens a second at each batch, and at batch 1 what each stage of optimisation brings."""
    from perf import chatterbox_models as models
    from pipeline.engines.chatterbox.build import Tuning

    variant = models.MODELS[given.model]
    voice = models.random_voice(variant)
    stock = models.random_t3(variant, given.size, given.device)
    shipped = shipped_dtype(given.device)

    def half(dtype: Any, batch: int, **tuning: Any) -> TokenModel:
        return models.tokens_half(
            variant, stock, voice, device=given.device, dtype=dtype, max_batch=batch, tuning=Tuning(**tuning)
        )

    forget_peak(given.device)
    began_s = time.perf_counter()
    tokens = half(shipped, max(given.batches))
    figure(f"t3_ready_s_{given.model}", round(time.perf_counter() - began_s, 1))
    for batch in given.batches:
        per_s, first_s = _rate(models, tokens, batch, given.steps)
        row(
            TABLE,
            model=given.model,
            streams=batch,
            tokens_per_s=round(per_s, 1),
            real_time_streams=round(per_s / 25, 1),
            ms_per_step=round(1000 * batch / per_s, 3),
            first_tokens_of_all_ms=round(1000 * first_s, 1),
        )
    figure(f"t3_peak_mib_{given.model}", peak_mib(given.device))
    tokens.close()
    _t3_stages(given, models, half, shipped)
    _stock_t3(given, variant, stock, voice)


def _t3_stages(given: argparse.Namespace, models: Any, half: Callable[..., TokenModel], shipped: Any) -> None:
    import torch

    eager = {"graphs": False, "steps_per_check": 1, "ahead": 0}
    stages: dict[str, tuple[Any, dict[str, Any]]] = {
        "ours, float32, looked at after every step": (torch.float32, eager),
        "… looked at every 4 steps, no waiting between": (torch.float32, eager | {"steps_per_check": 4, "ahead": 1}),
        f"… in {name_of(shipped)}": (shipped, {"graphs": False, "ahead": 1}),
        "… in CUDA graphs (as shipped)": (shipped, {}),
    }
    for stage, (dtype, tuning) in list(stages.items())[: None if given.device.startswith("cuda") else 2]:
        with attempt(f"T3: {stage}"):
            tokens = half(dtype, 1, **tuning)
            per_s, _ = _rate(models, tokens, 1, given.steps)
            tokens.close()
            row(
                STAGES,
                model=given.model,
                stage=stage,
                tokens_per_s=round(per_s, 1),
                ms_per_token=round(1000 / per_s, 3),
            )


def _stock_t3(given: argparse.Namespace, variant: Any, module: Any, voice: Any) -> None:
    """It does one text at a time; so many texts take so many times as long."""
    from perf import chatterbox_models as models
    from perf import chatterbox_stock as stock

    ids = models.Letters().encode(text(1), "en").ids
    with attempt("T3: the stock package"):
        stock.speak(variant, module, voice, ids, 8)
        per_s = stock.speak(variant, module, voice, ids, min(STOCK_STEPS, given.steps)).per_s
        row(
            STAGES,
            model=given.model,
            stage="the stock package, float32",
            tokens_per_s=round(per_s, 1),
            ms_per_token=round(1000 / per_s, 3),
        )


def _rate(models: Any, tokens: TokenModel, batch: int, steps: int) -> tuple[float, float]:
    from perf import chatterbox_ours as ours

    segments = [models.segment(text(seed), seed) for seed in range(batch)]
    ours.rate(tokens, segments, 8)
    return ours.rate(tokens, segments, steps, most_s=20)

"""Where the files of a model come from: the hub, downloaded once before any worker starts, or a local folder.

Workers never reach for the network: they read what is there. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.variants import Variant

HUB = "hub"
VOCABULARY = ("vocab.json", "merges.txt")
WHOLE_TOKENIZER = "tokenizer.json"


def needed(variant: Variant) -> tuple[str, ...]:
    """Files without which the model does not run."""
    return (variant.t3, variant.s3gen, variant.voice_encoder, variant.tokenizer, *_required_extras(variant))


def wanted(variant: Variant) -> tuple[str, ...]:
    """Every file that the model uses; what is not `needed` may be absent."""
    whole = (WHOLE_TOKENIZER,) if variant.turbo else ()
    return tuple(dict.fromkeys((*needed(variant), *variant.extra_files, *whole, variant.conditionals)))


def _required_extras(variant: Variant) -> tuple[str, ...]:
    """The vocabulary of Turbo's tokenizer; what only one language needs is missed when that language is asked for."""
    return tuple(name for name in variant.extra_files if name in VOCABULARY)


def _lacking(variant: Variant, folder: Path) -> list[str]:
    """Needed files that a folder does not have. A tokenizer in one file has its vocabulary in it."""
    whole = variant.turbo and (folder / WHOLE_TOKENIZER).is_file()
    names = [name for name in needed(variant) if not (whole and name in VOCABULARY)]
    return [name for name in names if not (folder / name).is_file()]


def absent(variant: Variant, weights: str) -> str:
    """Which needed files are not on this machine, and where they would have to be (empty: none)."""
    if weights != HUB:
        folder = Path(weights).expanduser()
        if not folder.is_dir():
            return f"model.weights: {folder} is no folder; it must hold {', '.join(needed(variant))}"
        lacking = _lacking(variant, folder)
        return f"model.weights: {folder} lacks {', '.join(lacking)} of {variant.name}" if lacking else ""
    cached = _cached(variant)
    lacking = list(needed(variant)) if cached is None else _lacking(variant, cached)
    return f"the weights are not downloaded ({', '.join(lacking)} of {variant.repo})" if lacking else ""


def folder_of(variant: Variant, weights: str) -> Path:
    """The folder with a model's files. Raises `EngineError` that names every file that is missing."""
    if fault := absent(variant, weights):
        raise EngineError(fault if weights != HUB else f"{fault}; {_by_hand(variant)}")
    if weights != HUB:
        return Path(weights).expanduser().absolute()
    cached = _cached(variant)
    assert cached is not None  # nothing is absent
    return cached


def download(variant: Variant) -> Path:
    """Fetch what is missing from the hub, with its progress bars; what was begun is gone on with.

    Returns the folder. Raises `EngineError` where the hub cannot be reached: which files, from where, and how else.
    """
    import huggingface_hub

    def fetch() -> str:
        return str(huggingface_hub.snapshot_download(variant.repo, allow_patterns=list(wanted(variant))))

    try:
        folder = _without_xet(fetch)
    except Exception as error:
        if (cached := _cached(variant)) is not None and not absent(variant, HUB):
            return cached
        said = str(error).strip().splitlines()
        reason = said[0] if said else type(error).__name__
        raise EngineError(
            f"model.weights: {', '.join(needed(variant))} could not be downloaded from {variant.repo} "
            f"({reason}); {_by_hand(variant)}"
        ) from error
    if lacking := _lacking(variant, Path(folder)):
        raise EngineError(f"model.weights: {variant.repo} has no {', '.join(lacking)} (any more); {_by_hand(variant)}")
    return Path(folder)


def _without_xet(fetch: Callable[[], str]) -> str:
    """Some versions of the hub's newer transport fail on these repositories: then once more by plain HTTP."""
    try:
        return fetch()
    except Exception as error:
        if "xet" not in str(error).lower() and "hex hash" not in str(error).lower():
            raise
        import huggingface_hub.constants

        huggingface_hub.constants.HF_HUB_DISABLE_XET = True
        return fetch()


def _by_hand(variant: Variant) -> str:
    """What to do without the hub."""
    return (
        f"get these files of https://huggingface.co/{variant.repo} on another machine, put them into one folder and "
        f"set model.weights to it: {', '.join(wanted(variant))}"
    )


def _cached(variant: Variant) -> Path | None:
    """The hub's snapshot on this machine, whole or not; None: there is none."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(variant.repo, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is one, and so is what stands for a broken cache
        return None

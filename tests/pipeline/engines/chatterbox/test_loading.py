"""From a checkpoint's files to the stock classes: all weights, none else, and what is said of files that do not fit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("chatterbox")

import torch
from safetensors.torch import load_file, save_file

from pipeline.engines.base import EngineError
from pipeline.engines.chatterbox.loading import identity, load_s3gen, load_t3, load_voice_encoder, read_state
from pipeline.engines.chatterbox.tiny import tiny_s3gen, tiny_t3
from pipeline.engines.chatterbox.variants import CHATTERBOX, MULTILINGUAL_V2, TURBO, Variant

pytestmark = pytest.mark.chatterbox

VARIANTS = (CHATTERBOX, MULTILINGUAL_V2, TURBO)
Checkpoint = Callable[[str], Path]
by_name = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)


def same(loaded: torch.nn.Module, made: torch.nn.Module) -> None:
    """Up to the half precision that small checkpoints are stored in."""
    there, here = loaded.state_dict(), made.state_dict()
    assert there.keys() <= here.keys()
    for name, tensor in there.items():
        assert torch.equal(tensor, here[name].half().float() if here[name].is_floating_point() else here[name]), name
        assert not tensor.is_floating_point() or tensor.dtype == torch.float32


@by_name
def test_every_weight_arrives(variant: Variant, checkpoint: Checkpoint) -> None:
    folder = checkpoint(variant.name)
    t3 = load_t3(variant, folder)
    same(t3, tiny_t3(variant))
    assert not t3.training
    s3gen = load_s3gen(variant, folder)
    same(s3gen, tiny_s3gen(variant, 1))
    assert not s3gen.training
    assert not hasattr(s3gen, "tokenizer"), "what only a recording needs stays on the disk"
    assert s3gen.meanflow == variant.meanflow
    assert not load_voice_encoder(variant, folder).training


@by_name
def test_buffers_that_no_file_holds_are_computed(variant: Variant, checkpoint: Checkpoint) -> None:
    folder = checkpoint(variant.name)
    t3, s3gen = load_t3(variant, folder), load_s3gen(variant, folder)
    for loaded, made in ((t3, tiny_t3(variant)), (s3gen, tiny_s3gen(variant))):
        expected = dict(made.named_buffers())
        for name, buffer in loaded.named_buffers():
            if name not in made.state_dict():
                assert torch.equal(buffer, expected[name]), name


def test_files_of_a_stock_package_load_alike_with_and_without_what_is_computed(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint("chatterbox")
    state = load_file(folder / CHATTERBOX.s3gen)
    assert "tokenizer._mel_filters" in state
    save_file({name: t for name, t in state.items() if name != "tokenizer._mel_filters"}, tmp_path / CHATTERBOX.s3gen)
    same(load_s3gen(CHATTERBOX, tmp_path), tiny_s3gen(CHATTERBOX, 1))


def test_missing_unknown_and_misshapen_weights_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    state = load_file(checkpoint("chatterbox") / CHATTERBOX.t3)
    state["surprise"] = torch.zeros(2)
    del state["speech_head.weight"]
    state["text_head.weight"] = torch.zeros(3, 3)
    save_file(state, tmp_path / CHATTERBOX.t3)
    with pytest.raises(EngineError) as raised:
        load_t3(CHATTERBOX, tmp_path)
    said = str(raised.value)
    assert "missing: speech_head.weight" in said
    assert "unknown: surprise" in said
    assert "of another shape: text_head.weight" in said


def test_another_models_file_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shutil.copy(checkpoint("chatterbox-turbo") / TURBO.t3, tmp_path / CHATTERBOX.t3)
    with pytest.raises(EngineError, match=CHATTERBOX.t3):
        load_t3(CHATTERBOX, tmp_path)
    shutil.copy(checkpoint("chatterbox") / CHATTERBOX.s3gen, tmp_path / TURBO.s3gen)
    with pytest.raises(EngineError, match="not a mean-flow model, unlike chatterbox-turbo"):
        load_s3gen(TURBO, tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for variant in VARIANTS:
        (tmp_path / variant.s3gen).write_bytes(b"this is no checkpoint")
        with pytest.raises(EngineError, match=f"{variant.s3gen} cannot be read"):
            load_s3gen(variant, tmp_path)
    with pytest.raises(EngineError, match="no such file"):
        read_state(tmp_path / "none.safetensors")


def test_weights_nested_as_the_package_nests_them_are_found(tmp_path: Path) -> None:
    torch.save({"model": [{"a": torch.ones(2)}]}, tmp_path / "nested.pt")
    assert torch.equal(read_state(tmp_path / "nested.pt")["a"], torch.ones(2))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (ran,)

    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(EngineError, match="cannot be read"):
        read_state(tmp_path / "evil.pt")
    assert not ran.exists()


def test_identity_tells_weights_apart(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "w").write_bytes(b"a" * 100_000)
    (other / "w").write_bytes(b"a" * 100_000)
    assert identity([one / "w"]) == identity([other / "w"])
    (other / "w").write_bytes(b"a" * 99_999 + b"b")
    assert identity([one / "w"]) != identity([other / "w"])


def test_the_same_seed_writes_the_same_checkpoint(checkpoint: Checkpoint, tmp_path: Path) -> None:
    from pipeline.engines.chatterbox.tiny_files import write_checkpoint

    write_checkpoint(CHATTERBOX, tmp_path)
    first = checkpoint("chatterbox")
    for path in tmp_path.iterdir():
        if path.suffix != ".pt":
            assert path.read_bytes() == (first / path.name).read_bytes(), path.name
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 100e6

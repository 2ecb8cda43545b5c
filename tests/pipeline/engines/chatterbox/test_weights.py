"""Where weights come from: a folder, the hub, and what is said when they are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.engines import chatterbox
from pipeline.engines.base import EngineConfig, EngineError
from pipeline.engines.chatterbox import device, weights
from pipeline.engines.chatterbox.device import Found
from pipeline.engines.chatterbox.variants import CHATTERBOX, MULTILINGUAL_V3, TURBO

pytestmark = pytest.mark.chatterbox
hub = pytest.importorskip("huggingface_hub")

pytest.importorskip("huggingface_hub")
pytest.importorskip("chatterbox")


def filled(folder: Path, names: tuple[str, ...]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "probe", lambda: Found("2.6.0", (), mps=False))


def test_every_missing_file_of_a_folder_is_named_at_once(tmp_path: Path) -> None:
    folder = filled(tmp_path, ("ve.safetensors", "tokenizer.json"))
    said = weights.absent(CHATTERBOX, str(folder))
    assert "t3_cfg.safetensors, s3gen.safetensors" in said
    assert "ve.safetensors" not in said
    with pytest.raises(EngineError, match="lacks t3_cfg"):
        weights.folder_of(CHATTERBOX, str(folder))
    assert "is no folder; it must hold t3_cfg" in weights.absent(CHATTERBOX, str(tmp_path / "none"))


def test_a_folder_without_the_models_own_voice_is_complete(tmp_path: Path) -> None:
    folder = filled(tmp_path, weights.needed(TURBO))
    assert weights.absent(TURBO, str(folder)) == ""
    assert weights.folder_of(TURBO, str(folder)) == folder
    assert set(weights.wanted(TURBO)) - set(weights.needed(TURBO)) >= {"conds.pt", "added_tokens.json"}


def test_only_the_models_own_files_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str] | None]] = []

    def snapshot(repo: str, allow_patterns: list[str] | None = None, local_files_only: bool = False) -> str:
        if local_files_only and not asked:
            raise FileNotFoundError(repo)
        if not local_files_only:
            asked.append((repo, allow_patterns))
            filled(tmp_path, weights.needed(MULTILINGUAL_V3))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    config = EngineConfig(options={"version": "v3"})
    assert "not downloaded" in chatterbox.MULTILINGUAL.unfit(config)
    assert chatterbox.MULTILINGUAL.missing(config) == "", "what can be downloaded is not missing"
    chatterbox.MULTILINGUAL.prepare(config)
    assert asked == [("ResembleAI/chatterbox", list(weights.wanted(MULTILINGUAL_V3)))]
    assert "t3_mtl23ls_v2.safetensors" not in weights.wanted(MULTILINGUAL_V3)
    chatterbox.MULTILINGUAL.prepare(config)
    assert len(asked) == 1, "what is there is not fetched again"
    assert weights.folder_of(MULTILINGUAL_V3, "hub") == tmp_path


def test_without_a_network_it_says_which_files_from_where_and_where_to_put_them(monkeypatch) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    with pytest.raises(EngineError) as raised:
        chatterbox.TURBO.prepare(EngineConfig())
    said = str(raised.value)
    for part in ("t3_turbo_v1.safetensors", "ResembleAI/chatterbox-turbo", "no route to host", "set model.weights"):
        assert part in said
    with pytest.raises(EngineError, match="not downloaded"):
        weights.folder_of(TURBO, "hub")


def test_a_transport_that_fails_is_tried_again_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[bool] = []

    def snapshot(repo: str, allow_patterns: list[str] | None = None, local_files_only: bool = False) -> str:
        if local_files_only:
            raise FileNotFoundError(repo)
        tries.append(bool(hub.constants.HF_HUB_DISABLE_XET))
        if len(tries) == 1:
            raise RuntimeError("Xet: unable to parse string as hex hash value")
        return str(filled(tmp_path, weights.needed(TURBO)))

    monkeypatch.setattr(hub.constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    assert weights.download(TURBO) == tmp_path
    assert tries == [False, True]


def test_devices_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(filled(tmp_path, weights.needed(TURBO)))
    assert chatterbox.TURBO.missing(EngineConfig(weights=folder, device="cpu")) == ""
    assert chatterbox.TURBO.missing(EngineConfig(weights=folder, device="auto")) == ""
    assert "sees no GPU" in chatterbox.TURBO.unfit(EngineConfig(weights=folder, device="auto"))
    refused = chatterbox.TURBO.missing(EngineConfig(weights=folder, device="cuda:1"))
    assert "cuda:1: torch 2.6.0 sees no such GPU; it sees none" in refused
    monkeypatch.setattr(device, "probe", lambda: Found("2.6.0", (("RTX 5090", "no kernel image"),), mps=False))
    assert "pip install --no-deps chatterbox-tts" in chatterbox.TURBO.missing(
        EngineConfig(weights=folder, device="cuda")
    )
    assert "RTX 5090" in chatterbox.TURBO.unfit(EngineConfig(weights=folder))
    monkeypatch.setattr(device, "probe", lambda: Found("2.6.0", (("H200", ""),), mps=False))
    assert chatterbox.TURBO.unfit(EngineConfig(weights=folder)) == ""


def test_the_device_is_resolved_where_it_is_used() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert device.resolve_device("cpu") == "cpu"
    assert device.resolve_device("auto") in ("cpu", "mps")
    with pytest.raises(EngineError, match=r"device cuda:0: torch .* sees no GPU"):
        device.resolve_device("cuda")


def test_a_package_that_is_missing_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(chatterbox.PACKAGES, "no_such_module", "no-such-package")
    assert chatterbox.CHATTERBOX.missing(EngineConfig()) == ("no-such-package is missing: pip install '.[chatterbox]'")


def test_wrong_options_are_told_before_anything_starts() -> None:
    assert "model.options.nano" in chatterbox.CHATTERBOX.missing(EngineConfig(options={"nano": True}))


def test_a_regional_language_is_taken_as_the_language() -> None:
    from ipc.messages import TokenFacts, Voice

    voices = (Voice("builtin", "", "en"), Voice("Ann", "", "en"))
    facts = TokenFacts("chatterbox-multilingual", voices, "builtin", ("en", "de"), (), 1, 1, 1.0, 1, 1.0, 0)
    assert chatterbox.resolve(facts, "Ann", "de-AT") == ("Ann", "de")
    assert chatterbox.resolve(facts, "", "") == ("builtin", "en")
    with pytest.raises(EngineError, match="language: 'tlh'"):
        chatterbox.resolve(facts, "", "tlh")

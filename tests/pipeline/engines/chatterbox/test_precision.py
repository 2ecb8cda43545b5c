"""Which numbers each half computes in, what that costs in quality, and what is not used because it costs too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("chatterbox")

import torch

from pipeline.engines.chatterbox import precision
from pipeline.engines.chatterbox.tiny import tiny_s3gen, tiny_t3
from pipeline.engines.chatterbox.variants import CHATTERBOX, TURBO

pytestmark = pytest.mark.chatterbox


def report(doing: str, deadline_s: float) -> None:
    assert doing
    assert deadline_s > 0


@pytest.fixture(scope="module")
def t3():
    return tiny_t3(CHATTERBOX)


@pytest.fixture(scope="module")
def s3gen():
    return tiny_s3gen(TURBO)


def test_a_cpu_computes_in_float32_by_itself(t3, s3gen) -> None:
    for chosen in (
        precision.for_t3("auto", "cpu", t3, report),
        precision.for_s3gen("auto", "cpu", s3gen, report),
    ):
        assert (chosen.name, chosen.dtype, chosen.convert) == ("float32", torch.float32, None)
        assert chosen.note == "computes in float32"


def test_who_has_a_large_model_on_a_cpu_is_told_of_int8(t3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LARGE", 1000)
    assert "int8 its steps take about half the time" in precision.for_t3("auto", "cpu", t3, report).note
    assert precision.for_t3("float32", "cpu", t3, report).note == "computes in float32"


@pytest.mark.parametrize("name", ["bfloat16", "float16", "int8"])
def test_what_is_asked_for_is_taken_where_it_works_and_is_good_enough(name: str, t3, s3gen) -> None:
    chosen = precision.for_t3(name, "cpu", t3, report)
    assert chosen.name == name
    assert (chosen.convert is None) == (name != "int8")
    expected = "float32" if name == "int8" else name
    assert precision.for_s3gen(name, "cpu", s3gen, report).name == expected


def test_quality_is_that_of_the_numbers(t3, s3gen) -> None:
    same = precision.t3_quality(t3, "float32", "cpu", 16)
    assert (same.agreement, same.kept, same.kl, same.degradation) == (1.0, 1.0, 0.0, 0.0)
    assert precision.s3gen_quality(s3gen, "float32", "cpu", 5).distance == 0.0
    coarse = precision.s3gen_quality(s3gen, "bfloat16", "cpu", 5)
    fine = precision.s3gen_quality(s3gen, "float16", "cpu", 5)
    assert 0 < fine.relative < coarse.relative < precision.MOST_DEGRADATION
    assert 0 < precision.t3_quality(t3, "bfloat16", "cpu", 16).kl < precision.MOST_DEGRADATION


def test_a_ruined_model_is_noticed(t3, monkeypatch: pytest.MonkeyPatch) -> None:
    def ruin(module: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            for weight in module.parameters():
                weight.copy_(torch.randn_like(weight))
        return module

    monkeypatch.setattr(precision, "quantised", ruin)
    chosen = precision.for_t3("int8", "cpu", t3, report)
    assert chosen.name == "float32"
    assert "as int8 changes the result by" in chosen.note


def test_each_step_down_is_told(t3, monkeypatch: pytest.MonkeyPatch) -> None:
    worse: dict[str, float] = {"float16": 0.4}
    degradation: Callable[..., float] = lambda name, *_: worse.get(name, 0.01)  # noqa: E731
    monkeypatch.setattr(precision, "_t3_degradation", degradation)
    chosen = precision.for_t3("float16", "cpu", t3, report)
    assert chosen.name == "bfloat16"
    assert chosen.note == "computes in bfloat16, as float16 changes the result by 40%, more than 5%"


def test_what_a_device_cannot_do_falls_back_and_says_so(t3, monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision.unsupported("int8", "cuda:0") == "int8 is for the CPU"
    monkeypatch.setattr(precision, "unsupported", lambda name, device: "no kernel image")
    chosen = precision.for_t3("bfloat16", "cpu", t3, report)
    assert (chosen.name, chosen.note) == (
        "float32",
        "computes in float32, as bfloat16 cannot be used on cpu (no kernel image)",
    )


def test_choosing_leaves_the_model_as_it_was(s3gen) -> None:
    before = {name: tensor.clone() for name, tensor in s3gen.state_dict().items()}
    precision.for_s3gen("bfloat16", "cpu", s3gen, report)
    after = s3gen.state_dict()
    assert all(
        torch.equal(tensor, after[name]) and tensor.dtype == after[name].dtype for name, tensor in before.items()
    )


def test_the_script_compares_every_kind_of_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from perf.precision import KINDS, main

    command = ["--device", "cpu", "--tokens", "8", "--json", str(tmp_path / "figures.json")]
    assert main([*command, "--png", str(tmp_path / "figures.png")]) == 0
    report = json.loads((tmp_path / "figures.json").read_text())
    (rows,) = report["rows"].values()
    halves = [(row["half"], row["kind"]) for row in rows]
    assert halves == [("t3", kind) for kind in KINDS] + [("s3gen", kind) for kind in KINDS[:3]]
    assert all(row["note"] or (row["work_s"] > 0 and row["worse_%"] < 5) for row in rows)
    assert report["figures"]["t3_int8_times_float32"] > 0
    assert "mel_distance" in capsys.readouterr().out
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")

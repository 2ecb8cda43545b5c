"""Names and places of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipc.endpoints import IPC_PATH_BYTES, Endpoints


def test_everything_of_a_run_lies_in_its_directory(tmp_path: Path) -> None:
    endpoints = Endpoints(tmp_path)
    places = [endpoints.work_path, endpoints.text, endpoints.journal, endpoints.config, endpoints.lock]
    assert {place.parent for place in places} == {tmp_path}
    assert len(set(places)) == len(places)
    assert endpoints.work == f"ipc://{endpoints.work_path}"
    assert endpoints.log(tmp_path / "state", "t3-0") == tmp_path / "state" / "t3-0.log"


def test_a_directory_too_long_for_a_socket_is_refused_with_the_fix() -> None:
    longest = Path("/" + "x" * (IPC_PATH_BYTES - len("/work.sock") - 1))
    assert Endpoints(longest).work.endswith("/work.sock")
    with pytest.raises(ValueError, match=r"set supervise\.run_dir to a shorter path"):
        Endpoints(Path(f"{longest}x"))


def test_the_length_is_counted_in_bytes() -> None:
    with pytest.raises(ValueError, match="too long"):
        Endpoints(Path("/" + "é" * 60))

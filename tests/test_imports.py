"""What must never be: imports against the one direction, zmq or torch where they do not belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USERS_OF_ZMQ = {"ipc/channels.py", "ipc/client.py"}
MEASURES_TORCH = {
    f"perf/{name}.py"
    for name in (
        "chatterbox_models", "chatterbox_stock", "gpu_parts", "gpu_profile", "gpu_s3gen", "gpu_t3", "gpu_telling",
        "stock",
    )
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def test_the_import_contract_holds():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_import_contract_notices_an_import_against_the_direction(tmp_path):
    for package in ("ipc", "pipeline", "workers", "launch", "perf"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        for path in sources(package):
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True, parents=True)
            target.write_bytes(path.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    (tmp_path / "ipc" / "messages.py").write_text("import launch\n")
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "imports go one way: launch → workers → pipeline → ipc BROKEN" in done.stdout


@pytest.mark.parametrize("path", sources("ipc", "pipeline", "workers", "launch", "perf"), ids=str)
def test_a_module_imports_only_what_it_may(path):
    where = path.relative_to(ROOT).as_posix()
    names = imported(path)
    if where not in USERS_OF_ZMQ:
        assert not {name for name in names if name.split(".")[0] == "zmq"}
    if not where.startswith("pipeline/engines/") and where not in MEASURES_TORCH:
        assert not {name for name in names if name.split(".")[0] in ("torch", "torchaudio")}
    if where.startswith("pipeline/"):
        ours = {name for name in names if name.split(".")[0] == "ipc"}
        assert all(name == "ipc" or name.startswith("ipc.messages") for name in ours), ours


def test_what_other_programs_import_is_clients_and_the_messages_alone():
    names = imported(ROOT / "chatterline.py")
    ours = {name for name in names if name.split(".")[0] in ("ipc", "pipeline", "workers", "launch", "perf")}
    assert ours
    clients = ("ipc.client", "ipc.chat", "ipc.provider")
    assert all(name.startswith((*clients, "ipc.messages")) for name in ours), ours

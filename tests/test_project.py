"""The project's own promises: what is packaged, what the README tells to type, what must not be committed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:root|work|Users/\w+|home/(?!you/)\w+)/",
    "a package registry": r"https?://[\w.-]*(?:pypi\.|pythonhosted|npmjs|artifactory|nexus)[\w.-]*/",
    "a pip index": r"--(?:extra-)?index-url|--find-?links",
    "a credential": r"(?i)\b(?:ghp_\w{20}|hf_[a-z0-9]{20}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY)",
}


def tracked() -> list[Path]:
    """The files that git tracks; what a user has lying about is no business of ours."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files are committed is not known")
    command = ["git", "ls-files", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


def test_every_test_that_a_page_names_exists():
    for page in ("docs/reliability.md", "README.md"):
        file = None
        for link, name in re.findall(r"\]\((?:\.\./)?(tests/[\w/]+\.py)\)|`(test_\w+)`", (ROOT / page).read_text()):
            file = ROOT / link if link else file
            assert file is not None, f"{page}: {name} is in no file"
            assert file.is_file(), link
            assert not name or f"def {name}(" in file.read_text(), f"{page}: {file.name} has no {name}"


# --------------------------------------------------------------------------- packaging


def test_every_package_is_listed_and_nothing_else():
    found = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in python_files()
             if path.name == "__init__.py"}  # fmt: skip
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_every_listed_module_entry_point_and_script_exists():
    for name in PROJECT["tool"]["setuptools"]["py-modules"]:
        assert (ROOT / f"{name}.py").is_file(), name
    targets = list(PROJECT["project"]["scripts"].values())
    for group in PROJECT["project"]["entry-points"].values():
        targets += group.values()
    for target in targets:
        module, _, attribute = target.partition(":")
        path = ROOT / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        for node in tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign):
                names = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {name.id for name in names if isinstance(name, ast.Name)}
        assert attribute in defined, target


def test_there_is_no_package_below_tests():
    assert not list((ROOT / "tests").rglob("__init__.py"))


@pytest.mark.slow
def test_every_module_says_what_it_is_for():
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in python_files()
        if (source := path.read_text(encoding="utf-8")).strip() and not ast.get_docstring(ast.parse(source))
    ]
    assert silent == []


def test_the_changelog_knows_the_version():
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licence_is_whole():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "GPL-3.0-or-later" in README


# --------------------------------------------------------------------------- what the documents promise


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[str]:
    """Lines of shell blocks, without comments, pipes taken apart."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines for part in line.split("|") if part.strip() and not line.startswith("#")]


@cache
def help_of(program: str) -> str:
    """What a program of ours prints under --help."""
    module, _, function = PROJECT["project"]["scripts"][program].partition(":")
    command = [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}(['--help']))"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def options_of(program: str) -> set[str]:
    """The options that a program of ours has."""
    return set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(program)))


@pytest.mark.slow
@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_commands_in_the_documents_exist(path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    for command in commands(path.read_text(encoding="utf-8")):
        program, *arguments = command.split()
        if program == "make":
            assert {word for word in arguments if "=" not in word and not word.startswith("-")} <= targets, command
        elif program in ("launch", "speak"):
            # A quoted text may hold anything; what is left of the line are options and values.
            bare = re.sub(r"\"[^\"]*\"|'[^']*'", "", command)
            asked = set(re.findall(r"(?<=\s)--[a-z][\w-]*", bare))
            assert asked <= options_of(program), f"{command}: {asked - options_of(program)}"


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_files_that_the_documents_link_to_exist(path):
    text = path.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (path.parent / link).exists()]
    assert missing == []


def test_the_exit_codes_in_the_readme_are_those_of_launch():
    help_text = help_of("launch")
    codes = set(re.findall(r"\b\d+\b", " ".join(re.findall(r"^ +([\d, ]+?)  .*$", help_text, flags=re.MULTILINE))))
    codes |= set(re.findall(r"; (\d+) by", help_text))
    listed = " ".join(re.findall(r"^\| ([\d, ]+) \|", README, flags=re.MULTILINE))
    assert set(re.findall(r"\d+", listed)) == codes


def test_the_makefile_lists_each_of_its_targets():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    listed = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    for target in ("setup", "demo", "run", "check", "quick", "test"):
        assert re.search(rf"^  make {target} +\S", listed, flags=re.MULTILINE), listed


# --------------------------------------------------------------------------- what must not be committed


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_committed_file_holds(what):
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match}" for match in re.findall(FORBIDDEN[what], text)]
    assert found == []


def test_no_committed_file_is_a_lock_file_or_sound():
    names = {path.name for path in tracked() if path != ROOT / "LICENSE"}
    assert not names & {"package-lock.json", "poetry.lock", "uv.lock", "Pipfile.lock", "yarn.lock"}
    assert not {name for name in names if name.endswith((".wav", ".flac", ".mp3", ".onnx", ".safetensors", ".pt"))}

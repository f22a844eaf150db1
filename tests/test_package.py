"""The project around the code: what the wheel carries, and which way data flows."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import recenv

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(package: str) -> set[str]:
    """The top-level names that a package's files import, anywhere."""
    names: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return names


def test_data_flows_one_way() -> None:
    assert not imports("recenv") & {"agents", "experiments", "conf", "stable_baselines3", "hydra"}
    assert "experiments" not in imports("agents")


def test_only_one_function_seeds_the_global_generators() -> None:
    found = [
        (path.relative_to(ROOT).as_posix(), call)
        for package in ("recenv", "agents", "experiments")
        for path in (ROOT / package).rglob("*.py")
        for call in ("np.random.seed", "random.seed(", "torch.manual_seed")
        if call in path.read_text()
    ]
    assert {path for path, _ in found} == {"agents/base.py"}


def test_nothing_unpickles() -> None:
    for package in ("recenv", "agents", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            text = path.read_text()
            for word in ("import pickle", "torch.load(", "allow_pickle=True", "cloudpickle"):
                assert word not in text, f"{path}: {word}"


def test_the_core_is_light() -> None:
    names = {requirement.split(">")[0] for requirement in PROJECT["project"]["dependencies"]}
    assert names == {"numpy", "gymnasium", "array-api-compat"}
    extras = PROJECT["project"]["optional-dependencies"]
    assert {"agents", "worlds", "dev"} <= set(extras)


def test_the_changelog_has_its_headings_and_the_version_is_one_place() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for heading in ("### Added", "### Changed", "### Fixed", "### Breaking"):
        assert heading in changelog
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert recenv.__version__.count(".") == 2


@pytest.mark.slow
def test_the_wheel_carries_recenv_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("recenv-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"recenv"}
    assert "recenv/py.typed" in names

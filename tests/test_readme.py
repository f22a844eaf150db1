"""The README's commands and examples work as they stand there."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for kind, block in BLOCKS
    if kind == "bash"
    for line in block.splitlines()
    if line.strip()
]
# what makes a command small enough for a test, and keeps its files apart
LOGS = {
    "experiments.collect": ("episodes=300", "env.num_items=20"),
    "experiments.preprocess": (),
    "experiments.fit": ("epochs=2", "eval.shoppers=1000"),
    "experiments.rank": (),
    "experiments.interest": ("training.epochs=1", "sessions=200"),
    "experiments.loop": (
        "rounds=2",
        "steps_per_round=2000",
        "epochs=1",
        "env.num_items=20",
        "eval.shoppers=1000",
        "eval.reference=index_policy",
    ),
}
OUTSIDE_RUNS = ("experiments.collect", "experiments.preprocess", "experiments.rank")
SMALL = ("experiment=quick", "progress=false", "eval.points=2", "total_timesteps=3000")


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    examples = [block for kind, block in BLOCKS if kind == "python"]
    assert len(examples) >= 2
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    assert len(names["items"]) == 5


@pytest.mark.parametrize("target", [c.split()[1] for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_experiment_commands_run_in_their_order(tmp_path: Path) -> None:
    """Smaller, in one directory of runs, so that later ones find what earlier ones made."""
    ran = 0
    for line in COMMANDS:
        words = shlex.split(line)
        if words[:2] != ["python", "-m"] or not words[2].startswith("experiments."):
            continue
        done = subprocess.run(
            [sys.executable, "-m", words[2], *_smaller(words[2], words[3:], tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
        ran += 1
    assert ran >= 6
    assert list(tmp_path.glob("**/learning_curves.png"))


def _smaller(module: str, words: list[str], runs_dir: Path) -> list[str]:
    if module == "experiments.run":
        keys = [word for word in words if not word.startswith(("total_timesteps", "env.num_items"))]
        items = [] if "env=complete_journey" in words else ["env.num_items=20"]
        resume = [] if "-m" in words else ["if_exists=overwrite"]
        return [*keys, *SMALL, *items, *resume, f"runs_dir={runs_dir}"]
    if module == "experiments.evaluate":
        found = next(runs_dir.glob("synthetic-full+num_items=20/ppo/seed=0"))
        return [f"run={found}", *words[1:]]
    if module == "experiments.tune":
        scale = ("trials=1", "steps=1000", "scenarios=static", "worlds=100")
        return [*words, *scale, f"out={runs_dir / 'tune.csv'}"]
    if module == "experiments.bench":
        return ["rows=memory", f"out={runs_dir / 'bench'}"]
    if module == "experiments.story":
        return ["--help"]
    if module in LOGS:
        return _of_logs(module, words, runs_dir)
    return [*words, f"runs_dir={runs_dir}"]


def test_the_leaderboard_is_the_one_that_was_drawn() -> None:
    """The table's rows are those of docs/leaderboard.md, in their order."""
    drawn = (ROOT / "docs" / "leaderboard.md").read_text()
    lines = itertools.dropwhile(lambda line: line[:1] != "|", drawn.splitlines())
    table = "\n".join(itertools.takewhile(lambda line: line[:1] == "|", lines))
    assert "`ppo`" in table
    assert table in README


def _of_logs(module: str, words: list[str], runs_dir: Path) -> list[str]:
    """The same with logs beside the runs."""
    kept = [word for word in words if not word.startswith(("episodes", "rounds"))]
    here = [word.replace("=logs/", f"={runs_dir}/logs/") for word in kept]
    runs = [] if module in OUTSIDE_RUNS else [f"runs_dir={runs_dir}"]
    progress = [] if module == "experiments.interest" else ["progress=false"]
    return [*here, *progress, *LOGS[module], *runs]

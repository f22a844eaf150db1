"""The page about large catalogues, made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import results, towers
from recenv.errors import UsageError


@pytest.fixture
def small(monkeypatch):
    """A shop of 40 items, and runs of a second."""
    for name, value in (
        ("ITEMS", 40), ("KNOWN", 36), ("STEPS", 640), ("JUDGED", 100), ("WARM_ITEMS", 30),
        ("WARM_STEPS", 1920), ("SCORER_STEPS", 640),
        ("PLAIN", [*towers.PLAIN, "eval.shoppers=50", "agent.num_envs=64"]),
    ):  # fmt: skip
        monkeypatch.setattr(towers, name, value)
    monkeypatch.setattr(towers, "SIGNALS", {"1": 1.0})
    monkeypatch.setattr(towers, "SCENARIOS", ("static",))


def page(tmp_path: Path, *words: str) -> str:
    where = [f"runs_dir={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]
    towers.main([*where, *words])
    return (tmp_path / "out" / "towers.md").read_text()


@pytest.mark.usefixtures("small")
def test_every_part_has_its_table_and_finished_runs_are_used(tmp_path: Path) -> None:
    empty = page(tmp_path, "draw=true")
    assert "| static |" not in empty
    drawn = page(tmp_path, "seeds=0,1")
    runs = list(results.find_runs(tmp_path / "runs"))
    assert len(runs) == 4 + 4 + 6  # heads, unseen, warm
    assert all(found.finished for found in runs)
    assert drawn.count("| static | flat | 2 |") == drawn.count("| static | two_tower | 2 |") == 1
    assert "| 1 | true | 2 |" in drawn
    assert "| 1 | false | 2 |" in drawn
    times = {found.path: (found.path / "summary.json").stat().st_mtime_ns for found in runs}
    assert page(tmp_path, "draw=true", "seeds=0,1") == drawn
    assert page(tmp_path, "seeds=0,1") == drawn
    assert {path: (path / "summary.json").stat().st_mtime_ns for path in times} == times


@pytest.mark.usefixtures("small")
def test_what_is_lost_among_new_items(tmp_path: Path) -> None:
    asked = towers.Asked({part: [0] for part in towers.PARTS}, False, tmp_path)
    list(towers.unseen(asked))
    path, found = towers.world_file(asked, 1.0), list(results.find_runs(tmp_path))
    assert len(found) == 2  # with embeddings of items and without
    for each in found:
        of = towers.lost(each, path)
        assert 0 < of.unseen < 1
        assert 0 < of.alike < 1
        # the best of many is better than that of few, and who has learned nothing loses
        assert of.known > of.alike
        assert of.random == pytest.approx(of.unseen, abs=0.3)


@pytest.mark.usefixtures("small")
def test_a_race_counts_the_scorers_steps(tmp_path: Path) -> None:
    asked = towers.Asked({part: [0] for part in towers.PARTS}, False, tmp_path)
    of = towers.race(asked, "static", 0)
    assert of is not None
    assert of.cold_steps > 0
    assert of.warm_steps >= 640
    assert np.isfinite(of.cold_last)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("parts=heads,tails", "unknown part 'tails'"),
        ("seeds=a", "seeds must be whole numbers"),
        ("draw=3", "draw must be true or false"),
        ("head=flat", "unknown argument 'head'"),
    ],
)
def test_a_mistake_is_one_line(word: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=part):
        page(tmp_path, word)

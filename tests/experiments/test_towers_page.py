"""The page about large catalogues, made small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import results, towers
from experiments.build import make_env
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
    with pytest.raises(UsageError, match="no run of heads is finished"):
        page(tmp_path, "draw=true")
    drawn = page(tmp_path, "seeds=0,1")
    runs = list(results.find_runs(tmp_path / "runs"))
    assert len(runs) == 4 + 2 + 6  # heads, unseen, warm
    assert all(found.finished for found in runs)
    assert drawn.count("| static | flat | 2 |") == drawn.count("| static | two_tower | 2 |") == 1
    assert "| 1 | 2 |" in drawn
    times = {found.path: (found.path / "summary.json").stat().st_mtime_ns for found in runs}
    assert page(tmp_path, "draw=true", "seeds=0,1") == drawn
    assert page(tmp_path, "seeds=0,1") == drawn
    with pytest.raises(UsageError, match="no run of warm is finished"):
        page(tmp_path, "parts=warm", "draw=true", "seeds=7")
    renewed = page(tmp_path, "parts=unseen", "draw=true", "seeds=0,2")  # one run alone has no row
    assert "| 1 | 2 |" not in renewed
    assert renewed.count("\n## ") == drawn.count("\n## ") == 3
    assert renewed.split("## Warm")[1] == drawn.split("## Warm")[1]
    assert {path: (path / "summary.json").stat().st_mtime_ns for path in times} == times


@pytest.mark.usefixtures("small")
def test_the_loss_of_a_group_is_that_of_who_missed_it_and_of_who_did_not(tmp_path: Path) -> None:
    asked = towers.Asked({part: [0, 1, 12] for part in towers.PARTS}, False, tmp_path)
    every = towers.crossed(asked, 1.0)
    runs = sorted(results.find_runs(tmp_path), key=lambda found: found.config()["seed"])
    lost_RG, random_G = towers.lost(runs, 1.0, [towers.group(number) for number in range(10)])
    assert len(set(lost_RG[:, :3].ravel())) == 9  # no two of them are alike
    for g, (one, others) in enumerate(zip(every, [[1, 2], [0, 2], [0, 1]], strict=True)):
        assert one.unseen == lost_RG[g, g]
        assert one.seen == pytest.approx(lost_RG[others, g].mean())
        assert one.random == random_G[g]
        assert 0 < one.unseen < 1
        assert one.random == pytest.approx(one.seen, abs=0.3)  # who has learned hardly anything
    # one group alone, or twice the same, tells nothing
    assert towers.crossed(replace(asked, seeds={"unseen": [1, 11]}), 1.0) == []


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("missing", [0, 4, 9])
def test_a_shop_misses_a_group_and_is_else_the_same(missing: int, tmp_path: Path) -> None:
    asked = towers.Asked({}, False, tmp_path)
    whole = make_env(towers.shop(None), 1).shop.catalogue
    world = str(towers.world_file(asked, None, missing))
    part = make_env({"world": world, "num_items": towers.KNOWN}, 1).shop.catalogue
    known = np.setdiff1d(np.arange(40), towers.group(missing))
    assert len(known) == 36
    # to the bit: that is how an agent knows an item again
    np.testing.assert_array_equal(part.features_IF, whole.features_IF[known])
    np.testing.assert_array_equal(part.embedding_ID, whole.embedding_ID[known])


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
        ("parts=", "parts= is empty"),
    ],
)
def test_a_mistake_is_one_line(word: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=part):
        page(tmp_path, word)


@pytest.mark.parametrize("made", [Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe\x00")])
def test_what_cannot_be_a_page_is_told_before_any_run(made, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    made(tmp_path / "out" / "towers.md")
    with pytest.raises(UsageError, match="cannot be a page"):
        page(tmp_path, "parts=heads")
    assert not (tmp_path / "runs").exists()

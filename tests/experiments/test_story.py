"""The claims of the scenarios: what holds, what does not, and what the page says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from experiments import story
from experiments.build import configuration
from experiments.results import versions
from experiments.story import Claim
from recenv.errors import UsageError

SMALL = (
    "env.num_items=12", "env.num_categories=3", "env.horizon=8", "eval.shoppers=200",
    "eval.reference=index_policy",
)  # fmt: skip
TRUE = Claim("static", "myopic_oracle", "low", 0.2, 100)
FALSE = Claim("static", "random", "myopic_oracle", -0.1, 100)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = story.config

    def config(*asked: Any) -> Any:
        whole = usual(*asked)
        words = [f"agent={asked[1]}", f"env.scenario={asked[0]}", f"env.world_seed={asked[2]}"]
        words += [f"seed={asked[3]}", f"total_timesteps={whole['total_timesteps']}", *SMALL]
        return configuration([*words, "progress=false"], asked[-1])

    monkeypatch.setattr(story, "config", config)
    monkeypatch.setattr(story, "CLAIMS", (TRUE, FALSE))


def test_claims_are_told_apart(small: None, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"runs_dir={tmp_path / 'runs'}", "worlds=0,1", "seeds=0,1"]
    with pytest.raises(SystemExit) as ended:
        story.main([*words, f"out={tmp_path / 'story.md'}"])
    assert ended.value.code == 1
    page = (tmp_path / "story.md").read_text()
    assert f"| {TRUE} | 4 of 4 | +" in page
    assert f"| {FALSE} | 0 of 4 | -" in page
    assert str(versions()["git"]) in page
    assert "1 of 2 claims do not hold" in capsys.readouterr().err
    # the one that holds, from the runs that are there
    story.main([*words, "claims=low"])
    assert (tmp_path / "runs" / "story.md").read_text().count("| static") == 1


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("worlds=x", "worlds must be whole numbers"),
        ("seeds=0,-1", "seeds must be whole numbers"),
        ("claims=moon", "no claim holds 'moon'"),
        ("world=0", "unknown argument"),
    ],
)
def test_mistakes_are_one_line(word: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)) as error:
        story.main([word, f"runs_dir={tmp_path}"])
    assert "\n" not in str(error.value)

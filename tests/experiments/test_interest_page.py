"""The front doors of interest models, and of PPO on them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.interest.model import InterestModel
from experiments import behaviour, interest, results
from experiments.behaviour import Variant
from recenv.errors import UsageError

SHOP = [f"env.{k}={v}" for k, v in {"num_items": 12, "num_categories": 3, "horizon": 10}.items()]
SMALL = [*SHOP, "steps=4000", "sessions=40", "training.epochs=2", "design.width=8"]


def test_models_are_trained_measured_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [*SMALL, f"runs_dir={tmp_path}", "encoder=mlp,gru", "histories=1,4"]
    interest.main(words)
    told = capsys.readouterr()
    assert "epoch 2" in told.err
    (place,) = tmp_path.glob("*/interest")
    page = (place / "interest.md").read_text()
    assert "runs_dir" not in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 4 + 1  # and the filter's
    assert all(line.count("|") == len(interest.HEAD) + 1 for line in lines)
    assert (place / "interest.png").stat().st_size > 10_000
    (path,) = place.glob("gru*history=4*/seed=0")
    assert f"agent.interest={path}" in told.out
    assert InterestModel.load(path).design.history == 4
    report = results.read_json(path / "report.json")
    assert report["steps_per_second"] > 0
    assert -1 < report["raw"]["r2"] < 1
    # again: nothing is trained, the table is the same
    interest.main([*words, f"out={tmp_path / 'page'}"])
    assert "epoch" not in capsys.readouterr().err
    assert (tmp_path / "page.md").read_text().replace("page.png", "interest.png") == page
    assert (tmp_path / "page.png").is_file()
    # another question
    interest.main([*SMALL, f"runs_dir={tmp_path}", "encoder=mlp", "seed=0", "training.patience=1"])
    assert "epoch" in capsys.readouterr().err
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("encoder=lstm", "unknown encoder"),
        ("encoders=gru", "unknown argument"),
        ("histories=0", "histories must be"),
        ("histories=a", "histories must be"),
        ("steps=few", "steps must be"),
        ("training.epoch=3", "did you mean 'epochs'"),
        ("training.epochs=0", "training.epochs"),
        ("design.width=x", "design.width"),
        ("env.num_item=3", "num_items"),
        ("device=gpu", "unknown device"),
        ("if_exists=maybe", "unknown if_exists"),
        ("log=nowhere", "there is no log nowhere"),
    ],
)
def test_mistakes_are_one_line(word: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)) as error:
        interest.main([word, f"runs_dir={tmp_path}"])
    assert "\n" not in str(error.value)


TINY = (
    "env.num_items=12", "env.num_categories=3", "env.horizon=8", "agent.num_envs=32",
    "eval.shoppers=20", "eval.points=2", "eval.first=100", "eval.reference=index_policy",
)  # fmt: skip


def test_ppo_on_interest_models_is_compared_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    usual = behaviour.variants

    def tiny(*asked: object) -> list[Variant]:
        return [replace(of, words=(*of.words, *TINY)) for of in usual(*asked)]

    monkeypatch.setattr(behaviour, "variants", tiny)
    words = [f"runs_dir={tmp_path / 'runs'}", f"out={tmp_path / 'page'}", "seeds=0,1"]
    words += ["steps=2000", "pretrain=600", "views=0,0.5"]
    behaviour.main(words)
    page = (tmp_path / "page.md").read_text()
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert page.count("| 2 |") == 6
    assert page.count("over the last interaction alone") == 2
    assert "**gru, pretrained, views 0.5**" in page
    assert "runs_dir" not in page
    runs = list(results.find_runs(tmp_path / "runs"))
    assert len(runs) == 12
    for run in runs:
        assert run.evaluations()["timesteps"][-1] >= 2000
    before = [run.path.stat().st_mtime for run in runs]
    capsys.readouterr()
    behaviour.main([*words, "draw=true"])
    assert (tmp_path / "page.md").read_text() == page
    assert [run.path.stat().st_mtime for run in runs] == before


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("encoders=lstm", "unknown encoder"),
        ("worlds=x", "worlds must be"),
        ("steps=0", "steps must"),
        ("views=often", "views must be"),
        ("views=-1", "views must lie"),
        ("draw=maybe", "draw must be"),
        ("draw=true", "no finished run"),
    ],
)
def test_mistakes_in_the_comparison_are_one_line(word: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(expected)) as error:
        behaviour.main([word, f"runs_dir={tmp_path}", f"out={tmp_path / 'page'}"])
    assert "\n" not in str(error.value)

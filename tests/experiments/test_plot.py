"""The picture of learning curves is drawn from files alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import plot, results
from experiments.results import RunDirectory
from recenv.errors import UsageError

LOW, HIGH = {"name": "random", "return": -30.0}, {"name": "index_policy", "return": 10.0}
MYOPIC = {"name": "myopic_oracle", "return": -10.0}


def made(
    runs_dir: Path, agent: str, seed: int, scores: list[float], high: dict | None = None,
    shop: str = "synthetic-full",
) -> RunDirectory:  # fmt: skip
    """A run with these scores at 1000, 2000, ... steps, or at 0 if there is one."""
    run = RunDirectory(runs_dir / shop / agent / f"seed={seed}")
    run.claim({"agent": {}, "env": {}, "seed": seed}, "error")
    steps = [0.0] if len(scores) == 1 else [1000.0 * (i + 1) for i in range(len(scores))]
    for step, score in zip(steps, scores, strict=True):
        row = {"timesteps": step, "normalised_score": score}
        run.append(row | {"normalised_low": score - 0.1, "normalised_high": score + 0.1})
    summary = {
        "normalised_score": scores[-1],
        "reference_low": LOW,
        "reference_high": high or HIGH,
        "reference_myopic": MYOPIC,
    }
    run.finish(summary, np.zeros(2), np.ones(4), np.zeros(4))
    return run


def test_one_seed_has_its_interval_over_shoppers(tmp_path: Path) -> None:
    curve = plot._panel("s", [made(tmp_path, "ppo", 0, [0.1, 0.5])]).curves[0]
    np.testing.assert_allclose(curve.low_E, [0.0, 0.4])
    assert curve.seeds == 1
    assert not curve.flat


def test_seeds_are_averaged_with_an_interval_over_them(tmp_path: Path) -> None:
    runs = [made(tmp_path, "ppo", seed, [0.0, score]) for seed, score in enumerate((0.4, 0.6, 0.8))]
    curve, again = (plot._panel("s", runs).curves[0] for _ in range(2))
    assert curve.score_E[-1] == pytest.approx(0.6)
    assert curve.low_E[-1] < 0.5 < 0.7 < curve.high_E[-1]
    np.testing.assert_array_equal(curve.low_E, again.low_E)
    assert curve.low_E[0] == pytest.approx(curve.high_E[0])  # the seeds agree there


def test_a_shorter_run_ends_the_mean_early_and_is_not_stretched(tmp_path: Path) -> None:
    runs = [made(tmp_path, "ppo", 0, [0.0, 0.5, 1.0]), made(tmp_path, "ppo", 1, [0.0, 0.7])]
    curve = plot._panel("s", runs).curves[0]
    assert curve.timesteps_E.tolist() == [1000.0, 2000.0]
    assert curve.score_E[-1] == pytest.approx(0.6)


def test_other_references_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = made(tmp_path, "dqn", 0, [0.0, 0.5])
    bad = made(tmp_path, "ppo", 0, [0.0, 0.9], high={"name": "planning_oracle", "return": 20.0})
    panel = plot._panel("s", [good, bad])
    assert [curve.label for curve in panel.curves] == ["dqn"]
    assert str(bad.path) in capsys.readouterr().err
    assert panel.myopic == pytest.approx(0.5)


def test_damaged_runs_are_named_and_the_rest_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, "dqn", 0, [0.0, 0.5])
    broken = made(tmp_path, "ppo", 0, [0.0, 0.9])
    (broken.path / results.EVALUATIONS).write_text("other,columns\n")
    assert plot.draw_all(tmp_path).stat().st_size > 10_000
    assert "left out" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_all_formats_many_panels_and_many_agents(tmp_path: Path, suffix: str) -> None:
    for shop in range(4):
        for agent in range(9):
            made(tmp_path, f"agent{agent}", 0, [0.1, 0.2 + agent / 10], shop=f"shop{shop}")
        made(tmp_path, "random", 0, [0.0], shop=f"shop{shop}")
    out = tmp_path / f"picture.{suffix}"
    assert plot.draw_all(tmp_path, out) == out
    assert out.stat().st_size > 10_000


def test_styles_tell_agents_apart_and_stay_with_them() -> None:
    few, many = plot.styles(["ppo", "scorer"]), plot.styles(["ppo", "scorer", "a", "b", "c"])
    assert few["ppo"] == many["ppo"]
    assert len({tuple(map(str, style.values())) for style in many.values()}) == 5


def test_drawing_does_not_change_the_runs(tmp_path: Path) -> None:
    run = made(tmp_path, "ppo", 0, [0.0, 0.5])
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    plot.draw_all(tmp_path)
    assert before == {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}


def test_nothing_to_draw_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train something first"):
        plot.draw_all(tmp_path)
    with pytest.raises(UsageError, match="there is no directory"):
        plot.draw_all(tmp_path / "nowhere")
    made(tmp_path, "ppo", 0, [0.0, 0.5])
    with pytest.raises(UsageError, match=r"\.png"):
        plot.draw_all(tmp_path, tmp_path / "curves.txt")


def test_an_interrupted_seed_does_not_cut_the_others_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = [made(tmp_path, "ppo", seed, [0.0, 0.5, 1.0]) for seed in (0, 1)]
    cut = made(tmp_path, "ppo", 2, [0.0])
    (cut.path / results.SUMMARY).unlink()
    curve = plot._panel("s", [*whole, cut]).curves[0]
    assert curve.score_E[-1] == pytest.approx(1.0)
    assert curve.seeds == 2
    assert "1 unfinished of ppo" in capsys.readouterr().err


def test_what_cannot_be_written_or_found_is_one_line(tmp_path: Path) -> None:
    made(tmp_path, "ppo", 0, [0.0, 0.5])
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        plot.draw_all(tmp_path, tmp_path / "file" / "a.png")
    with pytest.raises(UsageError, match="no run below"):
        plot.draw_all(tmp_path, agents=["nobody"])

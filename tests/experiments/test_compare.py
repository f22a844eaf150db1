"""Comparisons: figures by hand, what is refused and what is flagged, and the report's files."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_runs import made

from experiments import compare as command
from experiments import results
from experiments.comparison import measures, tables
from experiments.comparison.runs import Comparison, compare, once_a_step, read
from recenv.errors import MissingExtra, UsageError

ROOT = Path(__file__).parents[2]


def of(runs_dir: Path) -> Comparison:
    return compare(*read(runs_dir))


def noted(comparison: Comparison, *parts: str) -> None:
    """Assert that one note has all these parts."""
    assert any(all(p in note for p in parts) for note in comparison.notes), comparison.notes


def grid(runs_dir: Path, agents: dict[str, float], worlds: int = 2, seeds: int = 2) -> None:
    """Agents whose runs score about so much, in two shops, with what they do not learn."""
    for world in range(worlds):
        made(runs_dir, "random", 0, world, [0.0])
        made(runs_dir, "random", 0, world, [0.0], shop="synthetic-static")
        for agent, score in agents.items():
            for seed in range(seeds):
                own = score + 0.04 * world + 0.01 * seed
                for shop in ("synthetic-full", "synthetic-static"):
                    served = [-20.0, -20.0]
                    made(runs_dir, agent, seed, world, [0.1, own], shop=shop, served=served)


def test_a_cells_figures_by_hand(tmp_path: Path) -> None:
    for seed, score in enumerate((0.2, 0.4, 0.6, 1.8)):
        made(tmp_path, "ppo", seed, scores=[0.0, score])
        made(tmp_path, "scorer", seed, scores=[0.0, score - 0.1])
    comparison = of(tmp_path)
    assert comparison.notes == ()
    ppo, scorer = tables.rows(comparison, "scorer")
    assert ppo.score.value == pytest.approx(0.5)  # the outlier is no part of the middle half
    assert ppo.score.low < 0.4
    assert ppo.mean("return_mean") == pytest.approx(-30 + 40 * 0.75)
    # the same shoppers, every run a tenth of the scale apart: 4 points in each
    more = ppo.more_than_baseline
    assert more is not None
    assert (more.value, more.low, more.high) == pytest.approx((4.0, 4.0, 4.0))
    assert scorer.more_than_baseline is None
    # the interquartile curve goes from 0 to 0.5 between 1000 and 2000 steps
    assert ppo.steps_to_50 is not None
    assert ppo.steps_to_50.value == pytest.approx(2000)
    assert ppo.steps_to_90 is not None
    assert ppo.steps_to_90.value == np.inf
    line = next(line for line in tables.matrix(comparison) if "`ppo`" in line)
    assert "**0.50 [" in line


def test_one_run_has_its_interval_over_shoppers(tmp_path: Path) -> None:
    made(tmp_path, "ppo", scores=[0.0, 0.5])
    (group,) = of(tmp_path).groups.values()
    assert (group.score.low, group.score.high) == pytest.approx((0.45, 0.55))


def test_seeds_lie_within_worlds(tmp_path: Path) -> None:
    """Two worlds of two equal runs tell as much as two runs."""
    for world, score in ((0, 0.2), (1, 0.6)):
        for seed in (0, 1):
            made(tmp_path / "a", "ppo", seed, world, [0.0, score])
        made(tmp_path / "b", "ppo", 0, world, [0.0, score])
    (four,), (two,) = (of(tmp_path / part).groups.values() for part in ("a", "b"))
    assert four.world_R.tolist() == [0, 0, 1, 1]
    assert four.score.high - four.score.low > 0.9 * (two.score.high - two.score.low)


def test_regret_by_hand(tmp_path: Path) -> None:
    made(tmp_path, "ppo", scores=[0.0, 0.5], served=[-30.0, -10.0])
    (group,) = of(tmp_path).groups.values()
    np.testing.assert_allclose(measures.simple_regret(group)[1], [[40.0, 20.0]])
    # 1000 steps are 20 sessions of 50
    np.testing.assert_allclose(measures.cumulative_regret(group)[1], [[800.0, 1200.0]])
    made(tmp_path, "dqn", scores=[0.0, 0.5])
    assert measures.served_regret(of(tmp_path).groups["synthetic-full", "dqn"]) is None


def test_the_slope_of_regret_tells_who_goes_on_losing(tmp_path: Path) -> None:
    scores = np.linspace(0, 1, 20)
    made(tmp_path, "ppo", scores=scores, served=[-30.0] * 20)
    made(tmp_path, "linucb", scores=scores, served=[-30.0] * 2 + [10.0] * 18)
    groups = of(tmp_path).groups
    assert measures.regret_slope(groups["synthetic-full", "ppo"]) == pytest.approx(1.0)
    slope = measures.regret_slope(groups["synthetic-full", "linucb"])
    assert slope is not None
    assert slope < 0.05


def test_what_is_recommended_by_hand(tmp_path: Path) -> None:
    made(tmp_path, "ppo", 0, shown_I=[6, 2, 2, 0])  # categories 0: 8, 1: 2
    made(tmp_path, "ppo", 1, shown_I=[1, 6, 0, 3])  # categories 0: 1, 1: 9
    (group,) = of(tmp_path).groups.values()
    np.testing.assert_allclose(measures.category_shares(group), [0.85, 0.15])
    np.testing.assert_allclose(measures.effective_items(group), np.exp(2.0))


def test_improvement_is_over_shops_and_antisymmetric(tmp_path: Path) -> None:
    grid(tmp_path, {"ppo": 0.9, "scorer": 0.4})
    comparison = of(tmp_path)
    assert comparison.agents == ["ppo", "scorer", "random"]
    found = measures.improvement(comparison)
    np.testing.assert_array_equal(found.value_XY, [[0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]])
    score_RJ, world_R = comparison.everywhere["random"]  # one run of a world stands for all
    assert score_RJ.shape == (4, 2)
    assert world_R.tolist() == [0, 0, 1, 1]


def test_a_shop_of_one_world_joins_shops_of_many(tmp_path: Path) -> None:
    grid(tmp_path, {"ppo": 0.9}, worlds=2, seeds=2)
    for seed in range(4):
        made(tmp_path, "ppo", seed, scores=[0.0, 0.1 * seed], shop="complete_journey-satiation")
    comparison = of(tmp_path)
    assert comparison.cells[-1] == "complete_journey-satiation"
    score_RJ, _ = comparison.everywhere["ppo"]
    np.testing.assert_allclose(score_RJ[:, 2], [0.0, 0.1, 0.2, 0.3])
    assert "random" not in comparison.everywhere
    noted(comparison, "not in every shop", "random")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"budget": 9000}, ["total_timesteps", "2000", "9000", "pass total_timesteps=2000"]),
        ({"high": "planning_oracle"}, ["high reference", "index_policy", "planning_oracle"]),
        ({"fingerprint": "other"}, ["fingerprint", "other"]),
        ({"shoppers": 1500}, ["eval.seed", "1500"]),
    ],
)
def test_what_must_not_be_averaged_is_refused(
    tmp_path: Path, change: dict, parts: list[str]
) -> None:
    made(tmp_path, "dqn", 0)
    made(tmp_path, "dqn", 1)
    odd = made(tmp_path, "ppo", 0, **change)
    with pytest.raises(UsageError) as refused:
        of(tmp_path)
    for part in [*parts, "synthetic-full", str(odd.path)]:
        assert part in str(refused.value)


def test_a_budget_may_be_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "runs", "dqn", 0)
    made(tmp_path / "runs", "ppo", 0, budget=9000)
    words = [f"runs_dir={tmp_path / 'runs'}", f"out={tmp_path / 'report'}"]
    with pytest.raises(UsageError, match="mixed total_timesteps"):
        command.main(words)
    command.main([*words, "total_timesteps=9000"])
    text = (tmp_path / "report" / "report.md").read_text()
    assert "`ppo`" in text
    assert "`dqn`" not in text
    with pytest.raises(UsageError, match="no run has"):
        command.main([*words, "total_timesteps=7"])


def test_other_worlds_and_shops_may_have_other_references_and_budgets(tmp_path: Path) -> None:
    made(tmp_path, "ppo", 0, 0)
    made(tmp_path, "ppo", 0, 1, high="planning_oracle")
    made(tmp_path, "ppo", 0, 0, shop="synthetic-trust", budget=9000)
    comparison = of(tmp_path)
    noted(comparison, "full", "index_policy in world 0", "planning_oracle in world 1")
    noted(comparison, "budgets", "2000, 9000")


def test_missing_seeds_are_flagged_and_every_world_counts_alike(tmp_path: Path) -> None:
    grid(tmp_path, {"ppo": 0.9, "scorer": 0.4}, worlds=3)
    run = results.RunDirectory(tmp_path / "synthetic-full+world_seed=2" / "scorer" / "seed=1")
    (run.path / results.SUMMARY).unlink()
    comparison = of(tmp_path)
    noted(comparison, "not finished", str(run.path))
    noted(comparison, "full: no run of world 2 seed 1 from scorer")
    noted(comparison, "full: left out", "world 0 seed 1, world 1 seed 1 of scorer")
    group = comparison.groups["synthetic-full", "scorer"]
    assert group.world_R.tolist() == [0, 1, 2]
    assert not group.complete
    assert comparison.groups["synthetic-full", "ppo"].complete
    assert any("†" in line and "`scorer`" in line for line in tables.matrix(comparison))


def test_versions_and_collapse_are_flagged(tmp_path: Path) -> None:
    made(tmp_path, "ppo", 0)
    made(tmp_path, "ppo", 1, versions={"git": "def+", "numpy": "2.1", "machine": "n"})
    made(tmp_path, "dqn", 0, warnings=["the policy has collapsed: ..."], shoppers=2000)
    comparison = of(tmp_path)
    noted(comparison, "different commits", "abc (2 runs)", "def+ (1 runs)")
    noted(comparison, "versions of numpy", "2.1")
    noted(comparison, "not committed")
    noted(comparison, "dqn has collapsed", "full (1 of 1 runs)")
    assert not any("machine" in note for note in comparison.notes)


def test_damaged_runs_are_named_and_the_rest_is_compared(tmp_path: Path) -> None:
    made(tmp_path, "ppo", 0)
    half, odd, lost = (made(tmp_path, "dqn", seed) for seed in range(3))
    (half.path / results.EVALUATIONS).write_text("timesteps,other\n1,2\n")
    (odd.path / results.SUMMARY).write_text('{"normalised_score": 1')
    (lost.path / results.SHOWN).unlink()
    one, two = made(tmp_path / "x", "ppo", 5), made(tmp_path / "y", "ppo", 5)
    comparison = of(tmp_path)
    assert [run.agent for run in comparison.runs] == ["ppo"]
    for run in (half, odd, lost):
        noted(comparison, "left out", str(run.path))
    noted(comparison, "left out", str(one.path), str(two.path), "claim one seed")
    assert all("\n" not in note for note in comparison.notes)


def test_nothing_to_compare_is_one_line(tmp_path: Path) -> None:
    for words in (["runs_dir=none"], [f"runs_dir={tmp_path}"], ["rus_dir=x"]):
        done = subprocess.run(
            [sys.executable, "-m", "experiments.compare", *words],
            capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("error: ")


def test_the_report_has_all_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs_dir, out = tmp_path / "runs", tmp_path / "report"
    grid(runs_dir, {"ppo": 0.9, "scorer": 0.4, "linucb": 0.5})
    before = {path: path.stat().st_mtime_ns for path in runs_dir.rglob("*")}
    command.main([f"runs_dir={runs_dir}", f"out={out}"])
    assert {path: path.stat().st_mtime_ns for path in runs_dir.rglob("*")} == before
    said = capsys.readouterr().out.split()
    assert {Path(path) for path in said} == set(out.iterdir())
    pictures = [f"{name}.png" for name in ("standing", "regret", "profile", "improvement")]
    pictures += ["learning_curves.png", "cumulative_regret.png"]
    pictures += [f"recommendations_synthetic-{name}.png" for name in ("full", "static")]
    text = (out / "report.md").read_text()
    for picture in pictures:
        assert (out / picture).stat().st_size > 10_000, picture
        assert f"]({picture})" in text
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert len(rows) == 8
    best = rows[0]
    assert (best["cell"], best["agent"], best["runs"]) == ("synthetic-static", "ppo", "4")
    assert float(best["score"]) == pytest.approx(0.925)
    assert float(best["more_than_baseline"]) == pytest.approx(20.0)
    latex = (out / "table.tex").read_text()
    assert latex.count(r"\\") == 5
    assert "linucb & " in latex


def test_the_page_is_whole_without_network(tmp_path: Path) -> None:
    grid(tmp_path, {"ppo": 0.9, "my_<agent>": 0.4})
    comparison = of(tmp_path)
    from experiments.comparison.page import html

    text = html(comparison, tables.rows(comparison, "ppo"), "ppo")
    assert len(text) > 3_000_000  # plotly itself
    without = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", without)
    assert not re.findall(r"<(?:link|iframe|img|object|embed)\b", without)
    assert not re.findall(r"<script[^>]*\bsrc\b", text)
    assert "@import" not in without
    assert "my_&lt;agent&gt;" in without
    assert "my_<agent>" not in without
    assert text.count('class="plotly-graph-div"') == 7
    assert without.count("<tr data-agent=") == 6


def test_plotly_is_asked_for_by_the_name_of_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.comparison import page

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(page, "import_module", missing)
    with pytest.raises(MissingExtra, match=r'pip install "recenv\[report\]"'):
        command.main([f"runs_dir={tmp_path}"])


def test_many_agents_share_one_legend(tmp_path: Path) -> None:
    grid(tmp_path, {f"agent{i}": 0.1 * i for i in range(10)}, worlds=1, seeds=1)
    assert all(path.stat().st_size > 10_000 for path in command.draw(of(tmp_path), tmp_path))


def test_evaluations_of_one_step_are_one() -> None:
    found = once_a_step(
        {
            "timesteps": np.array([1.0, 2.0, 2.0]),
            "return_mean": np.array([5.0, 6.0, 7.0]),
            "training_return_mean": np.array([3.0, 4.0, np.nan]),
        }
    )
    assert found["timesteps"].tolist() == [1.0, 2.0]
    assert found["return_mean"].tolist() == [5.0, 7.0]
    assert found["training_return_mean"].tolist() == [3.0, 4.0]

"""What there is to win: the sentence's branches, and the command from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_run import command, one_line

from agents.planning import PlanningOracle
from experiments import evaluate, headroom
from experiments.headroom import Headroom, advise, purchases_over, said
from experiments.stats import Estimate

MUCH, LITTLE = Estimate(3.12, 2.7, 3.5), Estimate(0.2, 0.1, 0.3)
NONE, LOSS = Estimate(0.05, -0.2, 0.3), Estimate(-1.0, -1.4, -0.6)


def found(planning: Estimate, personal: Estimate, horizon: int = 50) -> Headroom:
    return Headroom(
        shop="shop",
        scenario="full",
        horizon=horizon,
        returns={"random": -30.0, "planning_oracle": 10.0},
        plan="value",
        fixed="rotation",
        planning=planning,
        greedy=personal,
        personal=personal,
        headroom=0.1,
    )


@pytest.mark.parametrize(
    ("planning", "personal", "said"),
    [
        (MUCH, MUCH, "Planning can win about 3.1 ± 0.4 purchases per 50 recommendations over "
         "greedy: worth trying PPO or DQN."),
        (MUCH, NONE, "Planning can win about 3.1 ± 0.4 purchases per 50 recommendations over "
         "greedy: worth trying PPO or DQN."),
        (LITTLE, MUCH, "Planning can win only 0.2 ± 0.1 purchases per 50 recommendations over "
         "greedy, personalising 3.1 ± 0.4 over rotation: ship the scorer."),
        (NONE, MUCH, "Planning has nothing to win over greedy (0.1 ± 0.2 purchases per 50 "
         "recommendations), personalising 3.1 ± 0.4 over rotation: ship the scorer."),
        (LOSS, MUCH, "Planning has nothing to win over greedy (-1.0 ± 0.4 purchases per 50 "
         "recommendations), personalising 3.1 ± 0.4 over rotation: ship the scorer."),
        (NONE, NONE, "Planning has nothing to win over greedy (0.1 ± 0.2 purchases per 50 "
         "recommendations), and personalising hardly more over rotation (0.1 ± 0.2): ship the "
         "best sellers."),
        (LITTLE, LITTLE, "Planning can win only 0.2 ± 0.1 purchases per 50 recommendations over "
         "greedy, and personalising hardly more over rotation (0.2 ± 0.1): ship the best "
         "sellers."),
    ],
)  # fmt: skip
def test_the_advice_is_one_sentence(planning: Estimate, personal: Estimate, said: str) -> None:
    assert advise(found(planning, personal)) == said


def test_what_is_worth_it_depends_on_the_session() -> None:
    assert "worth trying" in advise(found(LITTLE, MUCH, horizon=10))
    assert "ship the scorer" in advise(found(LITTLE, MUCH, horizon=30))


def test_figures_have_as_many_decimals_as_they_deserve() -> None:
    assert said(Estimate(0.0, 0.0, 0.0)) == "0.00 ± 0.00"
    assert said(Estimate(-0.0, -0.0, 0.0)) == "0.00 ± 0.00"
    assert said(Estimate(0.034, 0.024, 0.044)) == "0.03 ± 0.01"
    assert said(Estimate(12.346, 12.30, 12.39)) == "12.35 ± 0.04"


def test_two_of_a_return_are_one_purchase() -> None:
    rng = np.random.default_rng(0)
    shared_E = rng.normal(0.0, 20.0, size=2000)  # luck that both share does not count
    better_E = shared_E + rng.normal(3.0, 1.0, size=2000)
    gain = purchases_over(better_E, shared_E)
    assert gain.value == pytest.approx(1.5, abs=0.05)
    assert gain.high - gain.low == pytest.approx(2 * 1.96 * 0.5 / 2000**0.5, rel=0.15)
    assert purchases_over(shared_E, shared_E) == Estimate(0.0, 0.0, 0.0)


def test_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def little() -> PlanningOracle:
        return PlanningOracle(rounds=2, shoppers=64, epochs=1, hidden=8, tuning_shoppers=200)

    monkeypatch.setitem(evaluate.HIGH, "planning_oracle", little)
    words = ["env=recsys", "env.num_items=12", "eval.shoppers=300", "steps=20000"]
    headroom.main([*words, "scenarios=static,trust", f"runs_dir={tmp_path}"])
    printed = capsys.readouterr().out
    static, trust = (
        json.loads((tmp_path / f"synthetic-{name}+num_items=12" / "headroom.json").read_text())
        for name in ("static", "trust")
    )
    assert static["headroom"] == static["planning"]["value"] == 0.0
    assert static["plan"] == "myopic"
    assert trust["planning"]["low"] > 1.0
    assert trust["headroom"] > 0.1
    for one in (static, trust):
        returns = one["returns"]
        assert returns["random"] < returns["myopic_oracle"] <= returns["planning_oracle"]
        gain = returns["planning_oracle"] - returns["myopic_oracle"]
        assert one["planning"]["value"] == pytest.approx(gain / 2)
        assert one["personal"]["value"] == pytest.approx(
            (returns["planning_oracle"] - max(returns["popularity"], returns["rotation"])) / 2
        )
        assert one["advice"] in printed
        assert one["eval_shoppers"] == 300
    assert "ship the scorer" in static["advice"]
    assert "worth trying" in trust["advice"]


def test_a_users_mistake_is_one_line(tmp_path: Path) -> None:
    runs = f"runs_dir={tmp_path}"
    one_line(command("headroom", runs, "scenarios=trst"), "did you mean 'trust'")
    one_line(command("headroom", runs, "env=grocery"), "unknown env 'grocery'")
    one_line(command("headroom", runs, "env.scenario=trst"), "did you mean 'trust'")
    one_line(command("headroom", runs, "eval.points=3"), "unknown key of eval")
    one_line(command("headroom", runs, "steps=0"), "steps")
    one_line(command("headroom", runs, "eval.shoppers=1"), "eval.shoppers")

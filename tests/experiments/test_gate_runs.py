"""The gate through the front door: ``env=gate``."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.references import AlwaysRecommend, NeverRecommend
from experiments.build import configuration, group_defaults, make_env
from experiments.evaluate import Judge, summarise
from experiments.run import run
from recenv.errors import UsageError

GATE = {"id": "RecsysGate-v0", "num_items": 20, "scenario": "static"}
WORDS = ["experiment=quick", "progress=false", "env=gate", "env.num_items=20", "eval.shoppers=200"]


def test_a_gate_is_judged_from_silence_to_the_myopic_oracle() -> None:
    for reference, high in (("planning_oracle", "myopic_oracle"), ("index_policy",) * 2):
        judge = Judge(GATE, seed=0, shoppers=200, reference=reference)
        assert judge.references.low.name == "never_recommend"
        assert judge.references.low.value == 0
        assert judge.references.high.name == high
        assert judge.references.high.value > 1
    silent, everything = NeverRecommend(), AlwaysRecommend()
    for agent, share, warns in ((silent, 0.0, True), (everything, 1.0, False)):
        agent.bind(judge.env)
        row, _ = judge(agent)
        summary = summarise(judge, row)
        assert summary["recommended"] == share
        assert any("recommends nothing" in w for w in summary["warnings"]) == warns
        assert (summary["coverage"], summary["session_length"]) == (share, 50)
        assert (summary["normalised_score"] >= 0) == warns
    assert summary["conversion"] == pytest.approx((summary["return_mean"] / 50 + 1) / 2)


def test_ppo_runs_at_the_gate_from_the_front_door(tmp_path: Path) -> None:
    words = [*WORDS, "agent=ppo", "agent.num_envs=64", "total_timesteps=2000"]
    directory = run(configuration(words, tmp_path))
    assert directory.shop == "gate-synthetic-full+num_items=20"
    summary = directory.summary()
    assert summary["reference_low"]["name"] == "never_recommend"
    assert summary["reference_high"]["name"] == "index_policy"  # of experiment=quick
    assert directory.picture.is_file()
    words = [*WORDS, "agent=never_recommend", "env.candidates=uniform"]
    assert run(configuration(words, tmp_path)).shop == (
        "gate-synthetic-full+candidates=uniform+num_items=20"
    )


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown env\.id 'RecsysGate'.*did you mean") as error:
        make_env({"id": "RecsysGate"}, 1)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="linucb chooses among items"):
        run(configuration([*WORDS, "agent=linucb"], tmp_path))
    with pytest.raises(UsageError, match="always_recommend answers yes or no"):
        run(configuration(["experiment=quick", "agent=always_recommend"], tmp_path))


def test_its_yaml_holds_what_differs_from_the_shop() -> None:
    assert set(group_defaults("env", "gate")) == {"id", "candidates"}
    assert make_env(group_defaults("env", "recsys") | group_defaults("env", "gate"), 1).shop.gate

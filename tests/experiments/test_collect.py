"""Collecting a log: what is written is what happened, with its true propensities."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import polars as pl
import pytest
from test_run import ROOT, command, config, one_line

from agents.base import Agent
from agents.references import MyopicOracle, Random
from agents.rollout import play
from experiments import collect as front_door
from experiments import results
from experiments.logs.collect import Recipe, collect
from experiments.logs.schema import EVENTS, ITEMS, Log, read_log
from experiments.run import run
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.organic import Habits
from recenv.seeding import Role, derive_seed
from recenv.vector_env import RecsysVectorEnv

SHOP: dict[str, Any] = {"num_items": 20, "num_categories": 4, "interest_dim": 4, "horizon": 10}
RECOMMENDED = pl.col("policy") != "organic"


def make_log(
    out: Path, agent: Agent | None = None, num_envs: int = 64, shop: Any = (), **recipe: Any
) -> Log:
    """Collect a small log and read it."""
    agent = agent or MyopicOracle()
    env = RecsysVectorEnv(num_envs, **(SHOP | dict(shop)))
    collect(agent, env, out, Recipe(**{"episodes": 200} | recipe))
    return read_log(out)


def truth(log: Log) -> dict[str, np.ndarray]:
    with np.load(log.path / "truth.npz", allow_pickle=False) as file:
        return dict(file)


def shown(log: Log) -> pl.DataFrame:
    """The recommendations in order of session and step."""
    return log.events.filter(RECOMMENDED).sort("session", "step")


def refused(*words: str) -> str:
    with pytest.raises(UsageError) as caught:
        front_door.main([*words, "progress=false"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """200 sessions of 10 recommendations, with all that a log can hold."""
    return make_log(tmp_path_factory.mktemp("log") / "log", habits=Habits(1.0, 0.3))


def test_a_log_keeps_the_schema_and_tells_its_counts(log: Log) -> None:
    assert dict(log.events.schema) == EVENTS
    assert dict(log.items.schema) == ITEMS
    about, events = log.about, log.events
    assert about["rows"] == len(events) == sum(about["files"].values())
    assert (about["sessions"], about["steps"], about["shoppers"]) == (200, 2000, 200)
    assert about["policy"] == "myopic_oracle"
    assert events["policy"].unique().sort().to_list() == ["myopic_oracle", "organic"]
    for kind, which in {"recommended": RECOMMENDED, "organic": ~RECOMMENDED}.items():
        counts = dict(events.filter(which)["event"].value_counts().rows())
        assert {name: n for name, n in about["events"][kind].items() if n} == counts
    rate = (shown(log)["event"] == "purchase").mean()
    assert about["conversion"] == pytest.approx(rate)
    assert about["begin"] < about["end"]


def test_every_session_is_whole_and_in_order(log: Log) -> None:
    by_session = shown(log).group_by("session", maintain_order=True).agg("step", "timestamp")
    assert by_session["session"].to_list() == list(range(200))
    assert all(steps == list(range(10)) for steps in by_session["step"].to_list())
    assert all(times == sorted(set(times)) for times in by_session["timestamp"].to_list())
    # what she does by herself stands between the recommendation before and the one it precedes
    times = shown(log).select("session", "step", "timestamp")
    before = times.with_columns(pl.col("step") + 1).rename({"timestamp": "before"})
    organic = log.events.filter(~RECOMMENDED).join(times, on=["session", "step"], suffix="_after")
    assert len(organic) == log.events.filter(~RECOMMENDED).height > 2000
    assert (organic["timestamp"] < organic["timestamp_after"]).all()
    later = organic.join(before, on=["session", "step"])
    assert (later["timestamp"] >= later["before"]).all()


def test_organic_rows_and_the_catalogue(log: Log) -> None:
    organic = log.events.filter(~RECOMMENDED)
    assert set(organic["event"].unique()) == {"view", "search"}
    assert organic["propensity"].null_count() == len(organic)
    search, view = (organic.filter(pl.col("event") == event) for event in ("search", "view"))
    assert len(view) / 2000 == pytest.approx(1.0, abs=0.1)
    assert len(search) / 2000 == pytest.approx(0.3, abs=0.05)
    assert search["item"].null_count() == search["price"].null_count() == len(search)
    assert view["query"].null_count() == len(view)
    words = search["query"].explode()
    catalogue = RecsysVectorEnv(1, **SHOP).shop.catalogue
    assert words.is_between(0, catalogue.keywords_IW.shape[1] - 1).all()
    for row in log.items.rows(named=True):
        item = row["item"]
        counts_W = np.bincount(row["keywords"], minlength=catalogue.keywords_IW.shape[1])
        np.testing.assert_array_equal(counts_W, catalogue.keywords_IW[item])
        assert row["category"] == catalogue.category_I[item]
        assert row["price"] == pytest.approx(catalogue.price_I[item])
    facts = ["item", "category", "brand", "price"]
    told = log.events.drop_nulls("item").select(facts).unique().sort("item")
    assert told.equals(log.items.select(facts).filter(pl.col("item").is_in(told["item"].implode())))


def test_what_is_written_is_what_happened(log: Log) -> None:
    env = RecsysVectorEnv(64, **SHOP)
    env.reset(seed=derive_seed(Role.LOG, 0))
    first = shown(log).filter(pl.col("session") < 64).sort("step", "session")
    for step in range(10):
        rows = first.filter(pl.col("step") == step)
        _, _, _, _, info = env.step(rows["item"].to_numpy().astype(np.int64))
        event_N = info.get("final_info", info)["event"]
        assert rows["event"].to_list() == [Event(code).name.lower() for code in event_N]


def test_recommendations_do_not_depend_on_what_shoppers_do_by_themselves(tmp_path: Path) -> None:
    shop = {"scenario": "churn"}
    with_it = make_log(tmp_path / "with", shop=shop, habits=Habits(2.0, 1.0))
    without = make_log(tmp_path / "without", shop=shop, organic=False)
    assert without.events.filter(~RECOMMENDED).is_empty()
    assert with_it.events.filter(~RECOMMENDED).height > 2000
    assert shown(with_it).equals(shown(without))
    for name, array in truth(with_it).items():
        np.testing.assert_array_equal(array, truth(without)[name])
    again = make_log(tmp_path / "again", shop=shop, habits=Habits(2.0, 1.0))
    assert again.events.equals(with_it.events)
    other = make_log(tmp_path / "other", shop=shop, seed=1)
    assert not shown(other).equals(shown(without))


def test_truth_is_that_of_every_recommendation(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", Random(), episodes=1500, shop={"scenario": "full"})
    known, rows = truth(log), shown(log)
    np.testing.assert_array_equal(known["session"], rows["session"])
    np.testing.assert_array_equal(known["step"], rows["step"])
    np.testing.assert_allclose(np.linalg.norm(known["interest"], axis=1), 1.0, atol=1e-5)
    bought = (rows["event"] == "purchase").to_numpy().astype(float)
    p = known["purchase_probability"]
    for part in np.array_split(np.argsort(p), 5):  # calibrated, from the rare to the likely
        spread = np.sqrt((p[part] * (1 - p[part])).sum()) / len(part)
        assert abs(bought[part].mean() - p[part].mean()) < 4 * spread
    env = RecsysVectorEnv(64, **SHOP, scenario="full")
    env.reset(seed=derive_seed(Role.LOG, 0))
    start = known["interest"][(known["session"] < 64) & (known["step"] == 0)]
    np.testing.assert_array_equal(start, env.state.interest)
    assert not (make_log(tmp_path / "none", truth=False).path / "truth.npz").exists()


def test_short_sessions_are_not_overrepresented(tmp_path: Path) -> None:
    shop = {"scenario": "churn", "horizon": 40, "churn_base": -3.0}
    few = make_log(tmp_path / "few", Random(), num_envs=16, episodes=600, shop=shop)
    lengths = shown(few).group_by("session").len()["len"]
    assert len(lengths) == 600
    whole = play(Random(), RecsysVectorEnv(3000, **(SHOP | shop)), 5).length_E
    spread = np.hypot(lengths.std() / 600**0.5, whole.std() / 3000**0.5)
    assert abs(lengths.mean() - whole.mean()) < 4 * spread
    assert whole.mean() < 30  # many do leave


def test_a_regular_is_in_one_place_at_a_time(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", shop={"num_shoppers": 7})
    spans = (
        log.events.group_by("shopper", "session")
        .agg(pl.col("timestamp").min().alias("begin"), pl.col("timestamp").max().alias("end"))
        .sort("shopper", "begin")
    )
    assert spans["shopper"].n_unique() == 7
    assert len(spans) == 200
    gap = (pl.col("begin") - pl.col("end").shift(1)).over("shopper")
    assert spans.select(gap.drop_nulls().min().dt.total_minutes()).item() >= 30
    with pytest.raises(UsageError, match=r"larger env\.num_shoppers"):
        make_log(tmp_path / "crowd", shop={"num_shoppers": 1}, episodes=40_000, num_envs=40_000)


def test_exploring_pays_for_an_honest_estimate(tmp_path: Path) -> None:
    """Inverse propensities turn what a good policy logged into what a random one would earn."""
    shop = {"scenario": "static"}
    log = make_log(tmp_path / "log", episodes=3000, num_envs=1000, explore=0.3, shop=shop)
    rows = shown(log)
    bought = (rows["event"] == "purchase").to_numpy().astype(float)
    weight = 1.0 / SHOP["num_items"] / rows["propensity"].to_numpy()
    by_session = (bought * weight).reshape(-1, 10).mean(axis=1)
    estimate, spread = by_session.mean(), by_session.std() / len(by_session) ** 0.5
    random = play(Random(), RecsysVectorEnv(4000, **SHOP, **shop), 9)
    rate_E = random.purchases_E / random.length_E
    truth_spread = rate_E.std() / len(rate_E) ** 0.5
    assert abs(estimate - rate_E.mean()) < 1.96 * np.hypot(spread, truth_spread)
    assert spread < 0.01
    assert bought.mean() > rate_E.mean() + 0.2  # what a naive reader would take it for
    # the share of random items is the one that was asked for
    greedy = rows["propensity"].max()
    assert greedy == pytest.approx(0.7 + 0.3 / 20)
    assert (rows["propensity"] < greedy).mean() == pytest.approx(0.3 * 19 / 20, abs=0.01)


def test_a_log_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "deep" / "log"
    first = make_log(out)

    class Dies(Random):
        def serve(self, *arguments: Any, **options: Any) -> Any:
            if self.rng.random() < 0.05:
                raise RuntimeError("the machine was switched off")
            return super().serve(*arguments, **options)

    env = RecsysVectorEnv(64, **SHOP)
    with pytest.raises(UsageError, match="already holds a log: pass if_exists=overwrite"):
        collect(Random(), env, out, Recipe(episodes=100))
    with pytest.raises(RuntimeError):
        collect(Dies(), env, out, Recipe(episodes=2000), if_exists="overwrite")
    assert [path.name for path in out.parent.iterdir()] == ["log"]
    assert read_log(out).events.equals(first.events)
    (tmp_path / "deep" / ".log.part").mkdir()  # of a run that was killed
    collect(Random(), env, out, Recipe(episodes=100), if_exists="overwrite")
    assert read_log(out).about["policy"] == "random"
    assert [path.name for path in out.parent.iterdir()] == ["log"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="is no log"):
        collect(Random(), env, tmp_path / "mine", Recipe(episodes=9), if_exists="overwrite")
    with pytest.raises(UsageError, match="cannot write"):
        collect(Random(), env, tmp_path / "mine" / "thesis.txt" / "log", Recipe(episodes=9))


def test_files_that_the_log_names_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.logs.collect.ROWS_PER_FILE", 1000)
    log = make_log(tmp_path / "log")
    assert len(log.about["files"]) > 2
    assert len(log.events) == log.about["rows"]
    whole = make_log(tmp_path / "whole", organic=False)
    assert shown(log).equals(shown(whole))
    (log.path / "events-0001.parquet").unlink()
    with pytest.raises(UsageError, match=r"not whole: events-0001\.parquet is missing"):
        read_log(log.path)
    rest = read_log(log.path, on_bad="set_aside")
    assert len(rest.events) == log.about["rows"] - log.about["files"]["events-0001.parquet"]


def test_the_same_shop_can_be_made_again(log: Log) -> None:
    env = gym.make_vec("Recsys-v0", num_envs=1, **log.about["env"])
    assert results.fingerprint(env.shop) == log.about["fingerprint"]
    assert log.about["catalogue"]["words"] == env.shop.catalogue.keywords_IW.shape[1]


def test_minari_gives_back_the_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    shop = {"scenario": "churn", "churn_base": -2.0}
    log = make_log(tmp_path / "log", Random(), episodes=150, minari="recsys/test-v0", shop=shop)
    dataset = minari.load_dataset("recsys/test-v0")
    rows, latent = shown(log), truth(log)
    assert dataset.total_episodes == 150
    assert dataset.total_steps == len(rows)
    sessions = rows.partition_by("session", maintain_order=True)
    lengths = {len(session) for session in sessions}
    assert len(lengths) > 3  # some leave
    for number, (episode, session) in enumerate(zip(dataset, sessions, strict=True)):
        steps = len(session)
        assert episode.observations.shape == (steps + 1, dataset.observation_space.shape[0])
        np.testing.assert_array_equal(episode.actions, session["item"])
        np.testing.assert_array_equal(episode.infos["propensity"], session["propensity"])
        np.testing.assert_array_equal(episode.infos["event"], session["event"].to_physical())
        purchases = (session["event"] == "purchase").sum()
        assert episode.rewards.sum() == 2 * purchases - 10  # leaving is charged
        assert episode.terminations.tolist() == [False] * (steps - 1) + [True]
        assert not episode.truncations.any()
        # an observation begins with the interest, times the root of its size
        seen = latent["interest"][latent["session"] == number] * 2.0
        np.testing.assert_allclose(episode.observations[:-1, :4], seen, atol=1e-5)
    env = dataset.recover_environment()
    assert env.unwrapped.shop.scenario == "churn"
    with pytest.raises(UsageError, match="Minari dataset recsys/test-v0 already"):
        make_log(tmp_path / "other", minari="recsys/test-v0")
    assert not (tmp_path / "other").exists()
    for name in ("../../etc", "recsys/full"):
        with pytest.raises(UsageError, match="no id of a dataset"):
            make_log(tmp_path / "other", minari=name)


def test_minari_is_asked_for_by_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    make_log(tmp_path / "log")  # nobody asked
    with pytest.raises(UsageError, match=r'pip install "recenv\[logs\]"'):
        make_log(tmp_path / "other", minari="recsys/test-v0")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "log"
    words = ["agent=popularity", "env.num_items=20", "learn=500", "episodes=30", "seed=3"]
    front_door.main([*words, f"out={out}", "explore=0.5", "views=0", "progress=false"])
    printed = capsys.readouterr().out
    about = json.loads((out / "log.json").read_text())
    assert about["policy"] == "popularity"
    assert about["recipe"]["seed"] == 3
    assert about["learned_steps"] == 500
    assert about["events"]["organic"]["view"] == 0
    assert about["events"]["organic"]["search"] > 0
    assert f"{about['conversion']:.1%}" in printed
    assert "1,500" in printed
    assert str(out) in printed
    assert read_log(out).events["propensity"].max() == pytest.approx(0.5 + 0.5 / 20)


def test_a_trained_agent_serves_in_its_own_shop(tmp_path: Path) -> None:
    words = ("experiment=quick", "progress=false", "agent=linucb", "total_timesteps=20000")
    trained = run(config(*words, "env.num_items=20", "env.scenario=static", runs_dir=tmp_path))
    asked = [f"run={trained.path}", "episodes=200", "explore=0.0", "progress=false"]
    front_door.main([*asked, f"out={tmp_path / 'log'}"])
    log = read_log(tmp_path / "log")
    assert (log.about["policy"], log.about["scenario"]) == ("linucb", "static")
    assert log.about["run"] == str(trained.path)
    judged = trained.summary()["conversion"]
    assert log.about["conversion"] == pytest.approx(judged, abs=0.05)
    assert judged > 0.4  # or an untrained one would pass
    front_door.main([*asked, f"out={tmp_path / 'trust'}", "env.scenario=trust"])
    assert read_log(tmp_path / "trust").about["scenario"] == "trust"
    assert "brings its own" in refused(*asked, "agent=ppo")
    assert "leave out learn" in refused(*asked, "learn=100")


def test_an_interrupted_collection_leaves_nothing(tmp_path: Path) -> None:
    words = ["agent=random", "episodes=1000000", "num_envs=8", f"out={tmp_path / 'log'}"]
    asked = [sys.executable, "-m", "experiments.collect", *words, "progress=false"]
    process = subprocess.Popen(asked, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        for _ in range(600):
            if (tmp_path / ".log.part").exists():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert told.strip() == "interrupted"
    assert not list(tmp_path.iterdir())


def test_a_users_mistake_is_one_line(tmp_path: Path) -> None:
    out = f"out={tmp_path / 'log'}"
    assert "did you mean 'episodes'" in refused("episode=3", out)
    assert "Could not find 'agent/pop'" in refused("agent=pop", out)
    assert "explore must lie in" in refused("explore=2", out)
    assert "episodes" in refused("episodes=0", out)
    assert "organic must be true or false" in refused("organic=perhaps", out)
    assert "num_items" in refused("env.num_items=many", out)
    assert "no probabilities of its own" in refused("agent=random", "stochastic=true", out)
    assert "there are none of RecsysRetrieve-v0" in refused("agent=random", "env=retrieve", out)
    assert "unknown if_exists" in refused("agent=random", "if_exists=skip", out)
    assert "is no run directory" in refused(f"run={tmp_path}", out)
    assert "views" in refused("agent=random", "views=-1", out)
    assert not (tmp_path / "log").exists()
    one_line(command("collect", "agent=random", "if_exists=skip", out), "unknown if_exists")

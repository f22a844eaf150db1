"""Fitting the scorer: the rows that it learns from, and the command from end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_run import command, one_line

from agents.classification import auc
from agents.scorer import Scorer
from experiments import collect, fit, results
from experiments.build import load_agent, make_env
from experiments.fitting import data, figures
from experiments.fitting.figures import Done
from experiments.fitting.judge import Report
from recenv.errors import UsageError

SHOP = {"num_items": 12, "num_categories": 3, "interest_dim": 4, "horizon": 8}
WORDS = [f"env.{name}={value}" for name, value in SHOP.items()]
QUICK = ["eval.reference=index_policy", "eval.shoppers=300", "progress=false", "device=cpu"]
LITTLE = ["steps=30000", "test_steps=15000", "agent.learning_rate=3e-3", "agent.batch_size=512"]


# --- rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["static", "churn"])
def test_collects_random_recommendations_with_their_truth(scenario: str) -> None:
    env = make_env(SHOP | {"scenario": scenario}, 1)
    part = data.collect(env, 10_000, 3, np.random.default_rng(0), k=4)
    rows = part.rows
    assert len(part) == len(part.true_N) == len(part.oracle_Nk) == data.rounded(10_000) == 10_240
    assert np.bincount(rows.item_N, minlength=12).min() > 0.9 * 10_240 / 12
    assert rows.bought_N.mean() == pytest.approx(part.true_N.mean(), abs=0.015)
    # the oracle's first is the item that is likeliest to be bought
    first_N = rows.item_N == part.oracle_Nk[:, 0]
    last_N = ~(rows.item_N[:, None] == part.oracle_Nk).any(axis=1)
    assert part.true_N[first_N].mean() > 2 * part.true_N[last_N].mean()
    # sessions are whole: as many as their lengths say, and the remaining time falls in them
    remaining_N = env.shop.observer.unflatten(rows.observation)["remaining"][:, 0]
    for session in range(20):
        told = remaining_N[rows.session_N == session]
        np.testing.assert_allclose(told, 1 - np.arange(len(told)) / 8, atol=1e-6)


def test_few_steps_are_served_to_few() -> None:
    env = make_env(SHOP, 1)
    assert len(data.collect(env, 5, 0, np.random.default_rng(0))) == data.rounded(5) == 5


@pytest.mark.parametrize("scenario", ["full", "churn"])
def test_windows_are_what_the_environment_shows(
    scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    add = data._Sessions.add

    def watch(self: data._Sessions, observation: np.ndarray, *told: np.ndarray) -> None:
        seen.append(observation.copy())
        add(self, observation, *told)

    monkeypatch.setattr(data._Sessions, "add", watch)
    env = make_env(SHOP | {"scenario": scenario, "observation": "behaviour", "history": 3}, 1)
    part = data.collect(env, 4000, 3, np.random.default_rng(0))
    shown = np.concatenate(seen)
    np.testing.assert_allclose(part.rows.observation[np.arange(len(part))], shown, atol=1e-6)
    row_n = np.array([7, 2900, 300])
    np.testing.assert_allclose(part.rows.observation[row_n], shown[row_n], atol=1e-6)
    taken = part.rows.observation.take(row_n)
    np.testing.assert_allclose(taken[np.array([2, 0])], shown[row_n[[2, 0]]], atol=1e-6)


def test_a_clientele_is_told_apart() -> None:
    env = make_env(SHOP | {"num_shoppers": 9}, 1)
    assert set(data.collect(env, 3000, 0, np.random.default_rng(0)).rows.shopper_id_N) == set(
        range(9)
    )
    env = make_env(SHOP, 1)
    assert data.collect(env, 300, 0, np.random.default_rng(0)).rows.shopper_id_N is None


def test_parts_of_a_log_share_no_time() -> None:
    rng = np.random.default_rng(0)
    begin_S = np.sort(rng.integers(100_000, size=500))
    code_N = np.repeat(np.arange(500), 8)
    time_N = begin_S[code_N] + np.tile(np.arange(8) * 100, 500)
    part_N = data._by_time(code_N, time_N, 0.1, 0.2)
    for session in range(500):
        assert len(set(part_N[code_N == session])) == 1
    for earlier, later in ((0, 1), (1, 2)):
        assert time_N[part_N == earlier].max() < time_N[part_N == later].min()
    shares = [(part_N == number).mean() for number in (-1, 0, 1, 2)]
    np.testing.assert_allclose(shares, [0.014, 0.693, 0.093, 0.2], atol=0.02)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of random recommendations; shoppers browse and search between them."""
    out = tmp_path_factory.mktemp("logs") / "random"
    words = ["agent=random", "episodes=1500", f"out={out}", "progress=false", "env.scenario=static"]
    collect.main([*WORDS, *words, "env.satiation_gain=0.5"])
    return out


def test_rows_of_a_log_are_those_that_the_shop_showed(log: Path) -> None:
    env = data.log_shop(log, {"history": 4})
    assert env["satiation_gain"] == 0.5
    shop = make_env(env, 1)
    found = data.from_log(log, shop, 0.1, 0.2)
    learn, test = found.learn, found.test
    assert len(learn) + len(test) <= 1500 * 8
    assert len(test) == pytest.approx(0.2 * 1500 * 8, rel=0.05)
    assert not set(learn.rows.session_N) & set(test.rows.session_N)
    validation = set(learn.rows.session_N[found.validation_n])
    rest = np.setdiff1d(np.arange(len(learn)), found.validation_n)
    assert not validation & set(learn.rows.session_N[rest])
    for part in (learn, test):
        p_N, bought_N = part.true_N, part.rows.bought_N
        assert auc(p_N, bought_N) > 0.85  # each row has its own probability
        assert bought_N.mean() == pytest.approx(p_N.mean(), abs=0.03)
        # a window holds the rows before it: as many as there were, newest first
        seen = shop.shop.observer.unflatten(part.rows.observation[np.arange(20)])
        step_n = np.round(8 * (1 - seen["remaining"][:, 0]))
        np.testing.assert_array_equal(np.tile(np.arange(8), 3)[:20], step_n)
        np.testing.assert_array_equal(seen["counts"].sum(axis=1) * 8, step_n)
        features = shop.shop.catalogue.features_IF[part.rows.item_N[:19]]
        follows = step_n[1:] > 0
        np.testing.assert_array_equal(seen["items"][1:, 0][follows], features[follows])


def test_fits_a_log(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*QUICK, *LITTLE[2:], f"runs_dir={tmp_path}", "k=3", "env.history=4", "epochs=3"]
    fit.main([*words, f"log={log}"])
    assert "truth" in capsys.readouterr().out
    (directory,) = runs_in(tmp_path)
    assert directory.config()["env"]["observation"] == "behaviour"
    found = fit.read(directory)
    assert found.measures["truth"]["auc"] > found.measures["scorer"]["auc"] > 0.55
    assert "truth" not in found.ranking
    assert found.rows["learn"] > 5 * found.rows["validation"] > 0


def test_a_log_from_elsewhere_is_of_no_shop(log: Path, tmp_path: Path) -> None:
    shutil.copytree(log, tmp_path / "log")
    told = json.loads((log / "log.json").read_text())
    for change in ({"env": None}, {"fingerprint": "another"}):
        (tmp_path / "log" / "log.json").write_text(json.dumps(told | change))
        with pytest.raises(UsageError, match="log") as error:
            data.log_shop(tmp_path / "log", {"history": 4})
        assert "\n" not in str(error.value)
    (tmp_path / "log" / "truth.npz").write_bytes(b"PK")
    env = make_env(data.log_shop(log, {"history": 4}), 1)
    with pytest.raises(UsageError, match=r"truth\.npz is damaged"):
        data.from_log(tmp_path / "log", env, 0.1, 0.2)
    (tmp_path / "log" / "truth.npz").unlink()
    assert data.from_log(tmp_path / "log", env, 0.1, 0.2).test.true_N is None


# --- the command ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of two scenarios and two seeds."""
    runs = tmp_path_factory.mktemp("runs")
    words = [*WORDS, *QUICK, *LITTLE, f"runs_dir={runs}", "k=3", "seeds=0,1"]
    fit.main([*words, "scenarios=static,full"])
    return runs


def runs_in(path: Path) -> list[results.RunDirectory]:
    return list(results.find_runs(path))


def test_probabilities_come_near_the_truth(fitted: Path) -> None:
    assert len(runs_in(fitted)) == 4
    for directory in runs_in(fitted):
        found = fit.read(directory)
        scorer, truth = found.measures["scorer"], found.measures["truth"]
        assert truth["auc"] > 0.7
        assert figures.gap(found) < 0.03
        assert figures.gap(found) > -0.005  # nobody knows more than the truth
        assert scorer["ece"] < 0.03
        assert (
            truth["log_loss"] < scorer["log_loss"] < found.measures["constant"]["log_loss"] - 0.03
        )
        rank = found.ranking
        assert rank["truth"]["recall"] + 0.02 > rank["scorer"]["recall"]
        assert rank["scorer"]["recall"] > rank["chance"]["recall"] + 0.1
        assert rank["scorer"]["ndcg"] > rank["chance"]["ndcg"] + 0.05
        assert 0.5 < rank["scorer"]["coverage"] <= 1.0
        assert found.rows["test"] == data.rounded(15_000)
        assert found.rows["learn"] + found.rows["validation"] == data.rounded(30_000)


def test_a_fit_is_a_run_like_any_other(fitted: Path) -> None:
    directory = next(one for one in runs_in(fitted) if one.shop.startswith("synthetic-static"))
    assert directory.label.endswith("+fit=random")
    assert directory.finished
    assert directory.summary()["normalised_score"] > 0.6
    assert directory.summary()["total_timesteps"] == data.rounded(30_000)
    config = directory.config()
    env = make_env(config["env"], 64)
    agent = load_agent(config, directory.agent, env)
    assert isinstance(agent, Scorer)
    observation, _ = env.reset(seed=1)
    items, probabilities = agent.recommend(observation, 3, threshold=0.5)
    assert 0 < (items >= 0).mean() < 1
    assert (probabilities[items >= 0] > 0.5).all()
    for name in ("fit.json", "fit.png", "learning_curve.png"):
        assert (directory.path / name).stat().st_size > 0


def test_many_fits_are_one_table_and_one_picture(fitted: Path) -> None:
    assert (fitted / "scorer.png").read_bytes().startswith(b"\x89PNG")
    lines = (fitted / "scorer.md").read_text().splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| synthetic")]
    assert [row[1] for row in rows] == ["2", "2"]
    header = next(line for line in lines if line.startswith("| shop")).split(" | ")
    worst = rows[0][header.index("Bayes AUC - AUC")].rpartition("worst ")[2]
    static = [fit.read(one) for one in runs_in(fitted) if one.shop.startswith("synthetic-static")]
    assert float(worst) == pytest.approx(max(map(figures.gap, static)), abs=6e-4)


def test_a_finished_fit_is_left_and_another_question_refused(
    fitted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, *QUICK, *LITTLE, f"runs_dir={fitted}", "k=3", "env.scenario=static"]
    with pytest.raises(UsageError, match="already holds a run"):
        fit.main(words)
    fit.main([*words, "if_exists=resume"])
    told = capsys.readouterr()
    assert "left as it is" in told.err
    assert "AUC" in told.out
    with pytest.raises(UsageError, match="total_timesteps"):
        fit.main([*words, "if_exists=resume", "steps=2000"])


def test_learned_online_and_judged_alike(tmp_path: Path) -> None:
    words = [*WORDS, *QUICK, f"runs_dir={tmp_path}", "steps=40000", "test_steps=5000", "k=3"]
    fit.main([*words, "online=true", "env.scenario=static", "agent.num_envs=64"])
    (directory,) = runs_in(tmp_path)
    assert directory.label.endswith("fit=online")
    found = fit.read(directory)
    assert found.fitted is None
    assert set(found.online) == set(found.measures["scorer"])
    assert found.measures["scorer"]["auc"] > 0.7
    assert len(directory.evaluations()["timesteps"]) > 2  # a learning curve


def test_a_figure_of_one_run_has_no_interval() -> None:
    one = Done("shop", 0, 0, 0.5, "planning oracle", Report({}, {}, 3, {}, None, {}, {}, []))
    assert figures.said(figures.interval([one], [0.25])) == "0.250"
    assert "[" in figures.said(figures.interval([one, one], [0.25, 0.3]))


def test_a_users_mistake_is_one_line(tmp_path: Path) -> None:
    one_line(command("fit", f"runs_dir={tmp_path}", "stepz=3"), "stepz")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["steps=1"], "steps"),
        (["k=200"], "k must lie in 1..100"),
        (["epochs=0"], "epochs"),
        (["patience=half"], "patience"),
        (["validation=1"], "validation"),
        (["validation=0.5", "test=0.5"], "leave rows"),
        (["online=maybe"], "online"),
        (["online=true", "log=there"], "leave out log"),
        (["scenarios=trst"], "did you mean 'trust'"),
        (["seeds=a"], "seeds must be numbers"),
        (["seeds=-1"], "seed"),
        (["agent.shopper=encoder"], "env.observation=behaviour"),
        (["log=nowhere"], "nowhere"),
        (["agent=scorrer"], "scorrer"),
        (["agent=random"], "agent=scorer"),
        (["env.scenario=trst"], "trust"),
    ],
)
def test_mistakes(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said) as error:
        fit.main([f"runs_dir={tmp_path}", "steps=100", *words])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_damaged_report_is_one_line(fitted: Path) -> None:
    directory = runs_in(fitted)[0]
    path = directory.path / "fit.json"
    whole = path.read_text()
    for text in ("{", json.dumps({"k": 3})):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"fit\.json"):
            fit.read(directory)
    path.write_text(whole)

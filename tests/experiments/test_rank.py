"""Ranking recommenders on an event log, end to end."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from agents.references import Random
from experiments import rank
from experiments.logs.collect import Recipe, collect
from experiments.logs.held_out import answer, over_shoppers, read_questions
from experiments.logs.preprocess import Asked, preprocess
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv

SHOP = {"num_items": 40, "horizon": 20, "scenario": "static", "observation": "behaviour"}


def made_log(path: Path, episodes: int = 1200, **keywords) -> Path:
    """A log of random recommendations in a small shop."""
    env = RecsysVectorEnv(200, **(SHOP | keywords))
    agent = Random()
    agent.bind(env)
    recipe = Recipe(episodes=episodes, seed=0, explore=0.0, truth=False)
    collect(agent, env, path, recipe, progress=False)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    return made_log(tmp_path_factory.mktemp("logs") / "random")


def ask(log: Path, **changes):
    keywords = {"split": "time", "test": 0.2, "organic": False, "most": 5000} | changes
    return read_questions(log, **keywords, rng=np.random.default_rng(0))


def ranking(*words: object) -> dict[str, dict[str, str]]:
    """What the front door writes, by agent."""
    rank.main([*map(str, words), "progress=false"])
    log = next(Path(str(word)[4:]) for word in words if str(word).startswith("log="))
    with (log / "ranking.csv").open() as file:
        return {row["agent"]: row for row in csv.DictReader(file)}


def test_every_baseline_beats_random_on_what_was_held_out(log, capsys):
    table = ranking(f"log={log}")
    shown = capsys.readouterr().out
    assert list(table) == rank.RANKED
    luck = table["random"]
    assert float(luck["recall_low"]) < 10 / 40 < float(luck["recall_high"])
    for name in rank.RANKED[1:]:
        assert name in shown
        assert float(table[name]["recall_low"]) > float(luck["recall_high"]) + 0.03
        assert float(table[name]["ndcg_low"]) > float(luck["ndcg_high"])
        assert float(table[name]["recall_low"]) < float(table[name]["recall"])
    for name in ("user_cf", "item_content", "mf"):  # which look at her
        assert float(table[name]["recall"]) > float(table["popularity"]["recall"]) + 0.03
        assert float(table[name]["coverage"]) > float(table["popularity"]["coverage"])
    assert len({row["purchases"] for row in table.values()}) == 1


def test_one_seed_gives_one_table(log):
    def figures(*words):
        table = ranking(f"log={log}", "agents=[random,mf]", "most=500", *words)
        return [{k: v for k, v in row.items() if k != "seconds"} for row in table.values()]

    first = figures("seed=3")
    assert figures("seed=3") == first
    assert figures("seed=4") != first


def test_settings_reach_the_agents(log):
    plain = ranking(f"log={log}", "agents=user_cf", "most=500")["user_cf"]
    other = ranking(f"log={log}", "agents=user_cf", "most=500", "agent.neighbours=1")["user_cf"]
    assert other["recall"] != plain["recall"]
    longer = ranking(f"log={log}", "agents=user_cf", "most=500", "k=40")["user_cf"]
    assert float(longer["recall"]) == float(longer["coverage"]) == 1.0


# --- no peeking ----------------------------------------------------------------------


@pytest.mark.parametrize("split", ["time", "shopper"])
def test_nothing_of_the_answer_is_known(log, split):
    questions = ask(log, split=split)
    assert len(questions) > 300
    items_nT, events_nT, shopper_n = questions.before(slice(0, None))
    rows = np.arange(len(questions))
    assert (questions.target_n >= 0).all()
    sessions = questions.sessions
    events_n = sessions.events_ST[questions.session_n, questions.place_n]
    assert (events_n == Event.PURCHASE).all()
    np.testing.assert_array_equal(items_nT[rows, questions.place_n], -1)
    for n in (0, len(rows) // 2, len(rows) - 1):
        place, session = questions.place_n[n], questions.session_n[n]
        np.testing.assert_array_equal(items_nT[n, :place], sessions.items_ST[session, :place])
        assert (items_nT[n, place:] == -1).all()
        assert (events_nT[n, place:] == -1).all()
        assert shopper_n[n] == sessions.shopper_S[session]
    if split == "shopper":
        assert not set(questions.train.shopper_S) & set(shopper_n)


def test_what_happened_later_is_not_learned(log):
    """All that trains is earlier than all that is asked: as many events as there should be."""
    whole, questions = ask(log, test=0.001), ask(log, test=0.5)
    trained = [(one.train.items_ST >= 0).sum() for one in (whole, questions)]
    assert trained[1] == pytest.approx(0.5 * trained[0], rel=0.02)


def test_as_many_are_asked_as_wanted(log):
    assert len(ask(log, most=100)) == 100
    known = ask(log, organic=True)
    assert len(known) == len(ask(log))  # she buys nothing by herself
    assert known.sessions.items_ST.shape[1] > ask(log).sessions.items_ST.shape[1]


def test_one_who_peeks_finds_everything(log):
    questions = ask(log, most=600)
    asked = iter(questions.target_n)

    def peek(items_nT, events_nT, shopper_n):
        return np.stack([np.eye(40)[next(asked)] for _ in items_nT])

    assert answer(questions, peek, 1, np.random.default_rng(0)).recall == 1.0


def test_shoppers_count_alike():
    found = over_shoppers(
        np.array([1.0, 1.0, 1.0, 0.0]), np.array([7, 7, 7, 9]), np.random.default_rng(0)
    )
    assert found.value == 0.5
    assert found.low == 0.0


# --- logs of other kinds -------------------------------------------------------------


def test_regulars_are_known_from_earlier_sessions(tmp_path):
    log = made_log(tmp_path / "log", episodes=800, num_shoppers=80, observation="latent")
    table = ranking(f"log={log}", "most=3000")
    assert float(table["mf"]["recall"]) > float(table["popularity"]["recall"]) + 0.1
    assert float(table["user_cf"]["recall"]) > float(table["popularity"]["recall"]) + 0.1


def test_a_preprocessed_log_brings_its_split(log, tmp_path):
    preprocess(log, tmp_path / "clean", Asked(split="shopper", test=0.3, progress=False))
    table = ranking(f"log={tmp_path / 'clean'}", "agents=[random,mf]")
    assert float(table["mf"]["recall_low"]) > float(table["random"]["recall_high"])
    report = json.loads((tmp_path / "clean" / "report.json").read_text())
    assert int(table["mf"]["shoppers"]) <= round(0.3 * report["shoppers"])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "log is missing"),
        (["log=nowhere"], "there is no log nowhere"),
        (["log={}", "k=0"], "k must lie in|k must"),
        (["log={}", "k=41"], r"1\.\.40"),
        (["log={}", "agents=[ppo]"], "agent ppo does not rank a log"),
        (["log={}", "agents=[nobody]"], "no agent 'nobody'"),
        (["log={}", "agents=[]"], "agents must be names"),
        (["log={}", "agents=3"], "agents must be names"),
        (["log={}", "split=luck"], "unknown split"),
        (["log={}", "test=1"], "test must"),
        (["log={}", "organic=perhaps"], "true or false"),
        (["log={}", "agent.colour=red"], "unknown setting"),
        (["log={}", "agent.neighbours=0"], "agent.neighbours must"),
        (["log={}", "colour=red"], "unknown argument"),
        (["log={}", "out={}/items.parquet/table.csv"], "cannot write"),
    ],
)
def test_mistakes_are_told_in_one_line(log, words, why):
    words = [word.replace("{}", str(log)) for word in words]
    with pytest.raises(UsageError, match=why) as error:
        rank.main([*words, "most=50", "progress=false"])
    assert "\n" not in str(error.value)


def test_a_log_of_no_known_shop_is_refused(log, tmp_path):
    for file in log.iterdir():
        if file.suffix in (".parquet", ".json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    about = json.loads((tmp_path / "log.json").read_text())
    (tmp_path / "log.json").write_text(json.dumps({k: v for k, v in about.items() if k != "env"}))
    with pytest.raises(UsageError, match="which shop"):
        rank.main([f"log={tmp_path}", "progress=false"])

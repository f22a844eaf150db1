"""Interest models: what they are trained on, what they learn, and agents that read by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from agent_cases import SHOP, greet, make_agent, make_env, one_line

from agents.base import Agent
from agents.dqn import DQNAgent
from agents.encoders import ENCODERS
from agents.interest.histories import Histories, record
from agents.interest.model import Design, InterestModel, Training, fit, make_model, next_purchases
from agents.interest.probe import interests, probe, raw_sums, windows
from agents.interest.reading import Reader, since_reply
from agents.ppo import PPOAgent
from agents.references import Random
from agents.rollout import play
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv

BEHAVIOUR = {"observation": "behaviour", "history": 4, "scenario": "full"}
BROWSING = BEHAVIOUR | {"organic_views": 0.8, "organic_searches": 0.4}
every_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def recorded(env: RecsysVectorEnv, steps: int, seed: int = 0, truth: bool = False) -> Histories:
    return record(Random(), env, steps, seed, rng(seed), 1.0, truth=truth)


# --- histories -----------------------------------------------------------------------


class Follower(Agent):
    """Recommends by what it sees: the number of its observations so far."""

    name = "follower"

    def score(self, observation: np.ndarray) -> np.ndarray:
        remaining_N = np.rint(observation[:, 0] * SHOP["horizon"]).astype(int)
        return np.eye(self.num_items)[SHOP["horizon"] - remaining_N]


def test_sessions_are_recorded_as_they_went():
    env = make_env(5, **BEHAVIOUR)
    told = record(Follower(), env, 5 * 20, 3, rng(), truth=True)
    assert len(told) == 15
    assert told.interactions == 100
    assert sorted(told.length_S) == [4] * 5 + [8] * 10  # the last ones were under way
    for items, length in zip(told.items_ST, told.length_S, strict=True):
        assert items[:length].tolist() == list(range(length))
        assert (items[length:] == -1).all()
    assert ((told.events_ST >= 0) == (told.items_ST >= 0)).all()
    assert told.interest_STD.shape == (15, 8, 4)
    env.reset(seed=3)
    before = env.state.interest.copy()
    first = told.interest_STD[::3, 0]  # slot by slot
    np.testing.assert_allclose(first, before, atol=1e-6)
    *_, info = env.step(np.zeros(5, dtype=int))
    np.testing.assert_array_equal(told.events_ST[::3, 0], info["event"])
    np.testing.assert_allclose(told.interest_STD[::3, 1], env.state.interest, atol=1e-6)


def test_what_shoppers_do_by_themselves_is_recorded_in_its_place():
    plain, env = make_env(5, **BEHAVIOUR), make_env(5, **BROWSING | {"history": 60})
    shown, told = (recorded(shop, 5 * 24, seed=3, truth=True) for shop in (plain, env))
    reply_ST = told.replies_ST
    for name in ("items_ST", "events_ST"):
        both = [getattr(shown, name)[shown.replies_ST], getattr(told, name)[reply_ST]]
        np.testing.assert_array_equal(*both)
    truth = shown.interest_STD[shown.replies_ST], told.interest_STD[reply_ST]
    np.testing.assert_array_equal(*truth)
    assert (told.events_ST[(told.items_ST >= 0) & ~reply_ST] == Event.SEARCH).all()
    assert (told.items_ST >= 12).any()  # words
    # the same that the window shows at the end, newest first
    env.reset(seed=3)
    draw = rng(3)
    for _ in range(8):
        *_, info = env.step(draw.integers(12, size=5))
    for slot, final in enumerate(info["final_obs"]):
        session = told.take(np.array([slot * 3]))
        length = int(session.length_S[0])
        table = env.shop.lenses.features
        seen = env.shop.observer.unflatten(final)
        np.testing.assert_array_equal(
            seen["items"][:length][::-1], table[session.items_ST[0, :length]]
        )
        assert seen["events"][:length].argmax(1)[::-1].tolist() == (
            session.events_ST[0, :length].tolist()
        )
        assert not seen["events"][length:].any()


def test_recording_stops_when_it_is_told_to():
    seen = []
    told = record(Random(), make_env(4), 400, 0, rng(), callback=lambda n: seen.append(n) or n < 12)
    assert seen == [4, 8, 12]
    assert told.interactions == 12


def test_explores_as_often_as_it_is_told():
    told = record(Follower(), make_env(50, **BEHAVIOUR), 4000, 0, rng(), 0.25)
    expected = np.arange(8)
    off = (told.items_ST != expected)[told.items_ST >= 0].mean()
    assert off == pytest.approx(0.25 * 11 / 12, abs=0.03)


def test_parts_of_a_split_share_no_session():
    told = recorded(make_env(6), 6 * 24)
    learned, held = told.split(0.25, rng())
    assert (len(learned), len(held)) == (14, 4)
    both = learned + held
    np.testing.assert_array_equal(np.sort(both.items_ST, axis=0), np.sort(told.items_ST, axis=0))


def test_the_next_purchase_by_hand():
    buy, no = int(Event.PURCHASE), int(Event.IGNORE)
    items = torch.tensor([[3, 4, 5, 6, -1], [1, 2, 3, 4, 5]])
    events = torch.tensor([[no, buy, no, buy, -1], [buy, no, no, no, no]])
    expected = [[4, 4, 6, 6, -1], [1, -1, -1, -1, -1]]
    assert next_purchases(items, events).tolist() == expected


def test_windows_are_newest_first():
    told = recorded(make_env(2), 16)
    items, events = windows(told, 2, 3)
    np.testing.assert_array_equal(items[:, :2], told.items_ST[:, [1, 0]])
    assert (items[:, 2] == -1).all()
    assert (events[:, 2] == -1).all()
    np.testing.assert_array_equal(windows(told, 8, 3)[1], told.events_ST[:, [7, 6, 5]])


# --- the model -----------------------------------------------------------------------


def small_model(
    encoder: str = "gru", history: int = 4, seed: int = 0, words: int = 0
) -> InterestModel:
    features = make_env(1).shop.catalogue.features_IF
    return make_model(Design(encoder, history, 16, 8, 6, words), features, seed).eval()


def test_answers_have_the_likelihood_of_an_ordered_logit():
    model = small_model()
    with torch.no_grad():
        u = torch.zeros(1, 1, 6)
        utility = float(model.utility(u)[0, 0, 7])
        gaps = torch.nn.functional.softplus(model.easier).tolist()
        edges = [np.inf, sum(gaps), sum(gaps[1:]), gaps[2], 0.0, -np.inf]
        above = [1 / (1 + np.exp(-utility - edge)) for edge in edges]
        order = ("NOT_INTERESTED", "IGNORE", "VIEW", "CART", "PURCHASE")
        for rank, name in enumerate(order):
            rows = torch.tensor([[7]]), torch.tensor([[int(Event[name])]])
            expected = -np.log(above[rank] - above[rank + 1])
            assert float(model._answers(u, *rows)) == pytest.approx(expected, rel=1e-4)
        # nothing to answer: a search
        both = torch.tensor([[7, -1]]), torch.tensor([[4, int(Event.SEARCH)]])
        alone = torch.tensor([[7]]), torch.tensor([[4]])
        assert float(model._answers(torch.zeros(1, 2, 6), *both)) == pytest.approx(
            float(model._answers(u, *alone))
        )


@pytest.mark.parametrize("encoder", ["mlp", "cnn", "transformer"])
@torch.no_grad()
def test_before_it_learns_she_likes_what_is_like_what_she_liked(encoder):
    model = small_model(encoder)
    item = torch.arange(12)[:, None]
    nothing = torch.full((12, 3), -1)
    liked, disliked = (
        model.utility(
            model(torch.cat([item, nothing], 1), torch.cat([item * 0 + int(event), nothing], 1))
        ).diagonal()
        for event in (Event.PURCHASE, Event.NOT_INTERESTED)
    )
    assert (liked > disliked).float().mean() > 0.8


@every_encoder
@torch.no_grad()
def test_windows_are_what_is_read_of_each(encoder):
    model, told = small_model(encoder), recorded(make_env(4), 32)
    found = model.windows(torch.as_tensor(told.items_ST), torch.as_tensor(told.events_ST))
    steps = list(range(8))
    np.testing.assert_allclose(found.numpy(), interests(model, told, steps), atol=1e-5)


@every_encoder
def test_a_saved_model_is_the_same_after_loading(encoder, tmp_path):
    model, told = small_model(encoder), recorded(make_env(8), 64)
    fit(model, told, Training(epochs=1), rng())
    model.save(tmp_path / "u")
    other = InterestModel.load(tmp_path / "u")
    assert other.design == model.design
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    rows = [torch.as_tensor(part) for part in windows(told, 5, 4)]
    assert torch.equal(model(*rows), other(*rows))
    assert {file.name for file in (tmp_path / "u").iterdir()} == {
        "interest.json",
        "interest.safetensors",
    }


@pytest.mark.parametrize("damage", ["missing", "json", "tensors", "design"])
def test_a_damaged_model_is_one_line(damage, tmp_path):
    small_model().save(tmp_path)
    if damage == "missing":
        (tmp_path / "interest.json").unlink()
    elif damage == "json":
        (tmp_path / "interest.json").write_text("{")
    elif damage == "tensors":
        (tmp_path / "interest.safetensors").write_bytes(b"no tensors")
    else:
        text = (tmp_path / "interest.json").read_text()
        (tmp_path / "interest.json").write_text(text.replace('"width": 16', '"width": 20'))
    with pytest.raises(UsageError, match="interest model in") as error:
        InterestModel.load(tmp_path)
    one_line(error.value)


def test_training_twice_gives_the_same_model():
    told = recorded(make_env(8), 400)
    twice = []
    for _ in range(2):
        model = small_model()
        fit(model, told, Training(epochs=2), rng())
        twice.append(model.state_dict())
        torch.rand(3)
    for name, tensor in twice[0].items():
        assert torch.equal(tensor, twice[1][name]), name


def test_it_needs_two_sessions():
    told = recorded(make_env(1), 8)
    with pytest.raises(UsageError, match="2 sessions") as error:
        fit(small_model(), told, Training(), rng())
    one_line(error.value)


@every_encoder
def test_it_recovers_interest_from_answers_alone(encoder):
    """Better than counting by a margin, and the more it reads the better."""
    shop = {"num_items": 20, "num_categories": 4, "interest_dim": 3, "world_seed": 100}
    env = RecsysVectorEnv(500, **shop, scenario="drift", drift_scale=0.02, horizon=20)
    told, other = recorded(env, 40_000), recorded(env, 20_000, seed=1, truth=True)
    features, steps, found = env.shop.catalogue.features_IF, [5, 10, 19], {}
    training = Training(epochs=12, batch_size=128, learning_rate=1e-2)
    for history in (2, 20):
        model = make_model(Design(encoder, history, 32, 16, 8), features, 0)
        fit(model, told, training, rng())
        found[history] = probe(interests(model, other, steps), other, steps)
    raw = probe(raw_sums(other, features, 20, steps), other, steps)
    assert found[20].r2 > found[2].r2 + 0.1
    assert found[20].r2 > raw.r2 + 0.03


# --- agents that read by it ----------------------------------------------------------


def reading_agent(cls: type[Agent], encoder: str = "gru", **settings) -> Agent:
    env = make_env(**BEHAVIOUR | settings.pop("shop", {}))
    settings = {"encoder": encoder, "encoder_width": 8, "pretrain_steps": 512} | settings
    return make_agent(cls, env, **settings)


@every_encoder
def test_a_memory_that_is_carried_is_the_window(encoder):
    """While the window holds the session; one that only sees windows, for ever."""
    env = make_env(16, **BEHAVIOUR)
    reader = Reader(small_model(encoder), env.shop)
    observation, _ = env.reset(seed=1, options={"first_session_steps": rng().integers(1, 9, 16)})
    memory, since_N = None, np.zeros(16, dtype=int)
    for _ in range(20):
        told, memory = reader.follow(observation, memory)
        alone, _ = reader.follow(observation, None)
        same_N = since_N <= 4 if encoder == "gru" else since_N >= 0
        np.testing.assert_allclose(told[same_N], alone[same_N], atol=1e-5)
        assert np.isfinite(told).all()
        item_N = rng(5).integers(12, size=16)
        observation, _, terminated_N, truncated_N, _ = env.step(item_N)
        since_N = np.where(terminated_N | truncated_N, 0, since_N + 1)
    assert told.std(0).max() > 0.1


@every_encoder
def test_a_memory_takes_in_all_that_is_new(encoder):
    """Several interactions at once, and sessions that begin with browsing."""
    env = make_env(32, **BROWSING | {"history": 40})
    reader = Reader(small_model(encoder, 40, words=env.shop.view.words), env.shop)
    observation, _ = env.reset(seed=1, options={"first_session_steps": rng().integers(1, 9, 32)})
    memory, most = None, 0
    for _ in range(20):
        told, memory = reader.follow(observation, memory)
        alone, _ = reader.follow(observation, None)
        np.testing.assert_allclose(told, alone, atol=1e-5)
        events = torch.as_tensor(env.shop.observer.unflatten(observation)["events"])
        most = max(most, int(since_reply(events)[0].max()))
        observation, *_ = env.step(rng(5).integers(12, size=32))
    assert most > 3
    assert told.std(0).max() > 0.1


def test_what_is_new_since_the_last_answer_by_hand():
    browsed, bought, nothing = (
        torch.eye(6)[Event.SEARCH],
        torch.eye(6)[Event.PURCHASE],
        torch.zeros(6),
    )
    windows = [
        [bought, browsed, bought],
        [browsed, browsed, bought],
        [browsed, nothing, nothing],
        [nothing, nothing, nothing],
        [browsed, browsed, browsed],
    ]
    new_N, anew_N = since_reply(torch.stack([torch.stack(window) for window in windows]))
    assert new_N.tolist() == [1, 3, 0, 0, 0]
    assert anew_N.tolist() == [False, False, True, True, True]


def test_plain_facts_by_hand():
    env = make_env(1, **BEHAVIOUR, difficulty=-50.0)  # all is bought
    reader = Reader(small_model(), env.shop)
    env.reset(seed=0)
    category_I = env.shop.catalogue.category_I
    items = [3, 7, 3]
    for item in items:
        observation, *_ = env.step(np.array([item]))
    told, _ = reader.follow(observation, None)
    facts = told[0, 6:]
    assert facts[0] == pytest.approx(5 / 8)
    np.testing.assert_allclose(facts[1:7], np.eye(6)[Event.PURCHASE] * 3 / 8)
    sated = np.zeros(3)
    for age, item in enumerate(items[::-1]):
        sated[category_I[item]] += 0.9**age
    np.testing.assert_allclose(facts[7:10], sated, rtol=1e-5)
    assert facts[10:].tolist() == pytest.approx([0, 0, 0, 0, 0.1 * (1 + 0.9 + 0.81), 0])


@pytest.mark.parametrize("cls", [PPOAgent, DQNAgent], ids=lambda cls: cls.name)
@pytest.mark.parametrize(
    "settings",
    [{}, {"freeze_encoder": False, "encoder": "cnn"}, {"pretrain_steps": 0, "encoder": "mlp"}],
    ids=["frozen", "tuned", "end to end"],
)
def test_agents_read_learn_and_are_the_same_after_loading(cls, settings, tmp_path):
    agent = reading_agent(cls, **settings)
    told: list[int] = []
    agent.learn(2048, lambda steps: told.append(steps) or True)
    assert told[-1] == 2048  # what was played to learn to read counts
    assert told == sorted(set(told))
    before = play(agent, make_env(40, **BEHAVIOUR), 5)
    agent.save(tmp_path / "agent")
    loaded = cls.load(tmp_path / "agent", make_env(7, **BEHAVIOUR))
    after = play(loaded, make_env(40, **BEHAVIOUR), 5)
    np.testing.assert_array_equal(before.shown_I, after.shown_I)
    np.testing.assert_array_equal(before.return_E, after.return_E)
    (tmp_path / "elsewhere").mkdir()
    loaded.save(tmp_path / "again")
    for file in sorted((tmp_path / "agent").iterdir()):
        if file.suffix == ".safetensors":
            assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
    observation = greet(agent.env, steps=3)
    np.testing.assert_array_equal(agent.score(observation), loaded.score(observation))


def test_both_routes_recommend_alike():
    """Carried along from step to step, and read anew from a window that holds the session."""
    agent = reading_agent(PPOAgent, shop={"history": SHOP["horizon"]})
    agent.learn(1024)
    env = make_env(64, **BEHAVIOUR | {"history": SHOP["horizon"]})
    observation, _ = env.reset(seed=4)
    state, start_N = None, np.ones(64, dtype=bool)
    for _ in range(2 * SHOP["horizon"]):
        item_N, state = agent.predict(observation, state, start_N)
        alone_N, _ = agent.predict(observation)
        assert (item_N == alone_N).mean() > 0.98  # rounding may tip a near tie
        assert agent.predict(observation[0])[0] == alone_N[0]
        observation, _, terminated_N, truncated_N, _ = env.step(item_N)
        start_N = terminated_N | truncated_N
    # a new session is not read in the light of the old one
    fresh_N, _ = agent.predict(greet(env), state, np.ones(64, dtype=bool))
    np.testing.assert_array_equal(fresh_N, agent.predict(greet(env))[0])


def test_a_frozen_model_stays_and_a_tuned_one_learns_on():
    for frozen in (True, False):
        agent = reading_agent(PPOAgent, "mlp", freeze_encoder=frozen)
        agent.learn(512)  # to read, nothing more
        kept = {k: v.clone() for k, v in agent.model.policy.state_dict().items()}
        own = {k: v.clone() for k, v in agent._reader.model.state_dict().items()}
        agent.learn(2048)
        changed = [
            k for k, v in agent.model.policy.state_dict().items() if not torch.equal(v, kept[k])
        ]
        assert changed
        assert any("encoder" in name for name in changed) != frozen
        for name, tensor in agent._reader.model.state_dict().items():
            assert torch.equal(tensor, own[name])


def test_a_component_that_lies_elsewhere_is_taken_along(tmp_path):
    shop = make_env(1, **BEHAVIOUR).shop
    model = make_model(Design("cnn", 4, 8, 8, 6), shop.catalogue.features_IF, 0)
    model.save(tmp_path / "component")
    settings = {"interest": str(tmp_path / "component"), "encoder": None, "pretrain_steps": 0}
    agent = reading_agent(PPOAgent, **settings)
    agent.learn(1024)
    agent.save(tmp_path / "agent")
    (tmp_path / "component" / "interest.json").unlink()
    loaded = PPOAgent.load(tmp_path / "agent", make_env(**BEHAVIOUR))
    observation = greet(agent.env, steps=2)
    np.testing.assert_array_equal(agent.score(observation), loaded.score(observation))
    with pytest.raises(UsageError, match="no interest model") as error:
        reading_agent(PPOAgent, **settings)
    one_line(error.value)


def test_misfits_are_refused_in_one_line(tmp_path):
    small_model("gru").save(tmp_path)
    wrong = [
        ({"encoder": "lstm"}, {}, "unknown agent.encoder"),
        ({"encoder": "gru"}, {"observation": "latent"}, "observation=behaviour"),
        ({"encoder": "gru", "pretrain_steps": 100}, {"observation": "latent"}, "=behaviour"),
        ({"pretrain_steps": 100}, {}, "encoder=gru"),
        ({"encoder": "cnn", "interest": str(tmp_path)}, {}, "is a gru"),
        ({"interest": str(tmp_path)}, {"num_categories": 4}, "features"),
        ({"interest": str(tmp_path)}, {"organic_views": 1.0}, "trained without"),
        ({"encoder": "gru", "freeze_encoder": "no"}, {}, "freeze_encoder"),
        ({"encoder": "gru", "encoder_width": 0}, {}, "encoder_width"),
        ({"interest": 3}, {}, "agent.interest"),
        ({"encoder": "bayes", "pretrain_steps": 100}, {}, "learns nothing"),
        ({"encoder": "bayes", "interest": str(tmp_path)}, {}, "learns nothing"),
        ({"encoder": "bayes", "freeze_encoder": False}, {}, "learns nothing"),
        ({"encoder": "bayes"}, {"observation": "latent"}, "observation=behaviour"),
    ]
    for settings, shop, words in wrong:
        with pytest.raises(UsageError, match=words) as error:
            make_agent(PPOAgent, make_env(**BEHAVIOUR | shop), **settings)
        one_line(error.value)


def test_interest_is_never_learned_from(monkeypatch, tmp_path: Path):
    """Agents do not look at the state of the shoppers."""

    def secret(self: RecsysVectorEnv) -> None:
        raise AssertionError("the true state was read")

    agent = reading_agent(PPOAgent)
    monkeypatch.setattr(RecsysVectorEnv, "state", property(secret))
    agent.learn(1024)

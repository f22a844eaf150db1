"""PPO and DQN that begin with the towers of a scorer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent_cases import ON_SB3, greet, make_agent, make_env

from agents import checkpoint
from agents.dqn import DQNAgent
from agents.ppo import PPOAgent
from agents.qrdqn import QRDQNAgent
from agents.scorer import Scorer
from recenv.errors import UsageError

WARM = [cls for cls in ON_SB3 if cls is not QRDQNAgent]
both = pytest.mark.parametrize("cls", WARM, ids=lambda cls: cls.name)


def teach(path, **settings):
    """A scorer that has learned a little, saved as a run keeps it."""
    env = make_env(32, **settings.pop("shop", {}))
    scorer = make_agent(Scorer, env, gradient_steps=10, **settings)
    scorer.learn(1024)
    scorer.save(path / "agent")
    return scorer


def by_dot_product(scorer, observation):
    """The scorer's log odds without its dense layer."""
    network = scorer.network
    with torch.no_grad():
        shopper_NW = network.shoppers(
            torch.as_tensor(observation), torch.full((len(observation),), scorer._known)
        )
        item_IW = network.items(torch.arange(scorer.num_items))
        log_odds_NI = shopper_NW @ item_IW.T
        if network.item_bias is not None:
            log_odds_NI += network.item_bias.weight[:, 0]
    return log_odds_NI.numpy()


@both
@pytest.mark.parametrize("item", ["both", "id", "features"])
def test_begins_with_the_scorers_towers(cls, item, tmp_path):
    scorer = teach(tmp_path, item=item)
    agent = make_agent(cls, warm_start=str(tmp_path), tower_width=12)
    observation = greet(agent.env, steps=3)
    expected_NI = by_dot_product(scorer, observation)
    scale = 2.0 if issubclass(cls, PPOAgent) else 0.3 * 0.5
    if issubclass(cls, PPOAgent):
        found_NI = agent.score(observation)
    else:
        seen = torch.as_tensor(observation)
        network = agent.model.q_net
        with torch.no_grad():
            found_NI = (agent.model.q_net(seen) - network.value(network.body(seen))).numpy()
            np.testing.assert_array_equal(agent.model.q_net_target(seen), network(seen))
    np.testing.assert_allclose(found_NI, scale * expected_NI, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(
        agent.predict(observation)[0], agent.score(observation).argmax(axis=1)
    )


@both
def test_a_narrow_head_becomes_as_wide_as_the_scorer(cls, tmp_path):
    scorer = teach(tmp_path, shop={"num_shoppers": 20})  # with embeddings of regulars
    agent = make_agent(cls, warm_start=str(tmp_path / "agent"), tower_width=3)
    assert agent.tower_width == 8
    observation = greet(agent.env)
    best_N = by_dot_product(scorer, observation).argmax(axis=1)
    assert (agent.predict(observation)[0] == best_N).mean() > (
        0.99 if issubclass(cls, PPOAgent) else 0.9
    )


@both
def test_learns_on_and_comes_back_without_the_scorer(cls, tmp_path):
    teach(tmp_path / "scorer")
    settings = {"critic_first": 0} if issubclass(cls, PPOAgent) else {}
    agent = make_agent(cls, warm_start=str(tmp_path / "scorer"), **settings)
    observation = greet(agent.env)
    before_NI = agent.score(observation)
    agent.learn(1024)
    assert (agent.score(observation) != before_NI).any()
    agent.save(tmp_path / "agent")
    for file in (tmp_path / "scorer" / "agent").iterdir():
        file.unlink()
    loaded = cls.load(tmp_path / "agent", make_env(32), "cpu")
    np.testing.assert_array_equal(loaded.score(observation), agent.score(observation))
    assert loaded.settings() == agent.settings()


def test_the_actor_waits_for_the_critic(tmp_path):
    teach(tmp_path)
    agent = make_agent(PPOAgent, warm_start=str(tmp_path), critic_first=512)
    observation = greet(agent.env)
    before_NI = agent.score(observation)
    value = {name: w.clone() for name, w in agent.model.policy.value_net.state_dict().items()}
    scores: list[bool] = []

    def watch(timesteps):
        scores.append(bool((agent.score(observation) == before_NI).all()))
        return True

    agent.learn(1280, watch)
    # rollouts of 256 steps, 8 batches each; the actor learns from the third on
    assert scores == [True] * 24 + [False] * 16
    assert (agent.model.policy.value_net.weight != value["weight"]).any()


def test_explores_less_than_one_who_knows_nothing(tmp_path):
    teach(tmp_path)
    for settings, first in (({}, 1.0), ({"warm_start": str(tmp_path), "warm_epsilon": 0.3}, 0.3)):
        agent = make_agent(DQNAgent, **settings)
        assert agent.model.exploration_initial_eps == first


@both
def test_refuses_what_it_cannot_begin_with(cls, tmp_path):
    with pytest.raises(UsageError, match="there is no whole agent in"):
        make_agent(cls, warm_start=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"needs agent\.head=two_tower"):
        make_agent(cls, warm_start=str(tmp_path), head="flat")
    with pytest.raises(UsageError, match=r"agent\.warm_start must be a scorer's run"):
        make_agent(cls, warm_start=3)
    make_agent(cls).save(tmp_path / "other" / "agent")
    with pytest.raises(UsageError, match="not of an agent scorer"):
        make_agent(cls, warm_start=str(tmp_path / "other"))
    teach(tmp_path)
    with pytest.raises(UsageError, match="12 items"):
        make_agent(cls, make_env(num_items=20), warm_start=str(tmp_path))
    reader = {"observation": "behaviour", "history": 3}
    teach(tmp_path / "reader", shop=reader, shopper="encoder", encoder="mlp")
    with pytest.raises(UsageError, match=r"agent\.shopper=observation"):
        make_agent(cls, make_env(**reader), warm_start=str(tmp_path / "reader"))


@both
def test_goes_on_to_the_bit_from_a_checkpoint(cls, tmp_path):
    """Also where only the critic has learned so far."""
    teach(tmp_path)
    settings = {"critic_first": 512} if issubclass(cls, PPOAgent) else {}
    kept: list[dict] = []
    agent = make_agent(cls, warm_start=str(tmp_path), **settings)

    def keeper(timesteps):
        checkpoint.write(tmp_path / "kept.npz", agent.checkpoint())
        kept.append(checkpoint.read(tmp_path / "kept.npz", torch.device("cpu")))

    agent.keeper = keeper
    agent.learn(1280)
    observation = greet(make_env(32), steps=2)
    expected_NI = agent.score(observation)
    for part in (1, 3):
        agent = make_agent(cls, warm_start=str(tmp_path), **settings)
        agent.restore(kept[part])
        agent.learn(1280)
        np.testing.assert_array_equal(agent.score(observation), expected_NI)


def test_the_ranking_waits_for_the_values_of_states(tmp_path):
    teach(tmp_path)
    agent = make_agent(DQNAgent, warm_start=str(tmp_path), critic_first=640)
    observation = greet(agent.env)
    seen, network = torch.as_tensor(observation), agent.model.q_net

    def ranked() -> torch.Tensor:
        with torch.no_grad():
            return network.head(torch.cat([network.body(seen), seen], dim=1))

    before_NI, weight = ranked(), network.value.weight.clone()
    same: dict[int, bool] = {}
    agent.learn(
        1024,
        lambda timesteps: same.update({timesteps: bool((ranked() == before_NI).all())}) or True,
    )
    assert all(kept for timesteps, kept in same.items() if timesteps <= 640)
    assert not same[1024]
    assert (network.value.weight != weight).any()


def test_quantiles_have_no_warm_start(tmp_path):
    with pytest.raises(UsageError, match=r"agent\.warm_start is for ppo, maskable_ppo and dqn"):
        make_agent(QRDQNAgent, warm_start=str(tmp_path))

"""Two-tower heads: one tower for all items, and items that were never met."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_cases import ON_SB3, greet, make_agent, make_env

from agents.dqn import DQNAgent
from agents.features import features_as_in, item_layout
from agents.ppo import PPOAgent, ShortcutPolicy, TowerPolicy
from agents.qrdqn import QRDQNAgent
from agents.references import MyopicOracle, Random
from agents.rollout import play
from agents.towers import MANY_ITEMS, ItemTower, LeanCategorical, Shelf, entered, find, rows
from recenv import world as worlds
from recenv.errors import UsageError

both = pytest.mark.parametrize("cls", ON_SB3, ids=lambda cls: cls.name)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A world file of 40 items, of which shops may sell the first."""
    path = tmp_path_factory.mktemp("world") / "grown.npz"
    env = make_env(1, num_items=40)
    worlds.write(env.shop.world, path)
    return str(path)


def shop_of(world: str, num_items: int, num_envs: int = 32):
    return make_env(
        num_envs, world=world, num_items=num_items, num_categories=None, interest_dim=None
    )


@both
@pytest.mark.parametrize(
    ("head", "items", "two_tower"),
    [
        ("auto", 12, False),
        ("auto", MANY_ITEMS - 1, False),
        ("auto", MANY_ITEMS, True),
        ("flat", MANY_ITEMS, False),
        ("two_tower", 12, True),
    ],
)
def test_head_goes_by_the_size_of_the_catalogue(cls, head, items, two_tower):
    agent = make_agent(cls, make_env(num_items=items), head=head)
    towers = [m for m in agent.model.policy.modules() if isinstance(m, ItemTower)]
    assert bool(towers) == agent.two_tower == two_tower
    assert agent.score(greet(agent.env)).shape == (32, items)


@both
def test_in_a_small_shop_auto_is_the_flat_head_to_the_bit(cls):
    agents = [make_agent(cls, head=head) for head in ("auto", "flat")]
    for agent in agents:
        agent.learn(512)
    one, two = (agent.model.policy.state_dict() for agent in agents)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    if cls is PPOAgent:
        assert type(agents[0].model.policy) is ShortcutPolicy


@both
def test_refuses_heads_that_there_are_not(cls):
    with pytest.raises(UsageError, match=r"unknown agent\.head 'tower'"):
        make_agent(cls, head="tower")
    with pytest.raises(UsageError, match="tower_width"):
        make_agent(cls, tower_width=0)
    with pytest.raises(UsageError, match="tower_hidden"):
        make_agent(cls, tower_hidden=-1)
    with pytest.raises(UsageError, match="item_ids must be true or false"):
        make_agent(cls, item_ids=3)


@both
def test_learning_moves_both_towers(cls):
    agent = make_agent(cls, head="two_tower")
    before = {name: value.clone() for name, value in agent.model.policy.state_dict().items()}
    agent.learn(1024)
    after = agent.model.policy.state_dict()
    names = {PPOAgent: "action_net", DQNAgent: "q_net.head", QRDQNAgent: "quantile_net.head"}
    head = next(names[base] for base in cls.__mro__ if base in names)
    for name in ("query.weight", "items.feature.weight", "items.bend.2.weight", "items.own"):
        assert (before[f"{head}.{name}"] != after[f"{head}.{name}"]).any(), name


def test_scores_are_query_times_tower_plus_bias():
    agent = make_agent(PPOAgent, head="two_tower", tower_width=3)
    agent.learn(512)
    observation = greet(agent.env)
    policy, state = agent.model.policy, agent.model.policy.state_dict()
    assert type(policy) is TowerPolicy
    tower_IW = agent.catalogue.features_IF @ state["action_net.items.feature.weight"].numpy().T
    tower_IW += (state["action_net.items.feature.bias"] + state["action_net.items.own"]).numpy()
    with torch.no_grad():
        bent_IW = policy.action_net.items.bend(torch.as_tensor(agent.catalogue.features_IF))
        assert (bent_IW != 0).any()
        tower_IW += bent_IW.numpy()
        hidden = policy.mlp_extractor.forward_actor(torch.as_tensor(observation))
        query_NW = policy.action_net.query(hidden).numpy()
    expected_NI = query_NW @ tower_IW[:, :3].T + tower_IW[:, 3]
    np.testing.assert_allclose(agent.score(observation), expected_NI, rtol=1e-4, atol=1e-5)


@both
@pytest.mark.parametrize("item_ids", [True, False])
def test_comes_back_from_disk(cls, item_ids, tmp_path):
    agent = make_agent(cls, head="two_tower", tower_width=5, item_ids=item_ids)
    agent.learn(512)
    agent.save(tmp_path)
    loaded = cls.load(tmp_path, make_env(32), "cpu")
    assert loaded.settings() == agent.settings()
    observation = greet(agent.env, steps=3)
    np.testing.assert_array_equal(loaded.score(observation), agent.score(observation))


@both
def test_a_tower_of_an_older_version_is_refused(cls, tmp_path):
    """Before there was a hidden layer, nothing of it was saved."""
    make_agent(cls, head="two_tower", tower_hidden=0).save(tmp_path)
    settings = json.loads((tmp_path / "agent.json").read_text())
    del settings["tower_hidden"]
    (tmp_path / "agent.json").write_text(json.dumps(settings))
    with pytest.raises(UsageError, match=r"items\.bend\.0\.bias, so another version saved it"):
        cls.load(tmp_path, make_env(32), "cpu")


@pytest.mark.parametrize("backend", ["sb3", "device"])
def test_towers_tell_what_is_bought(backend):
    """Of all items to shoppers that it never met, though PPO looks for the best alone."""
    shop = {"num_items": 40, "scenario": "static"}
    settings = {"head": "two_tower", "num_envs": 128, "item_epochs": 5, "backend": backend}
    agent = make_agent(PPOAgent, make_env(128, **shop), **settings)
    agent.learn(8 * 1024)
    env = make_env(200, **shop)
    observation, oracle = greet(env), MyopicOracle()
    oracle.bind(env)
    every_I = torch.arange(40)
    with torch.no_grad():
        told = [
            agent.model.policy.log_odds(torch.as_tensor(seen_S).expand(40, -1), every_I)
            for seen_S in observation
        ]
    told_NI = torch.stack(told).numpy()
    assert np.corrcoef(told_NI.ravel(), oracle.score(observation).ravel())[0, 1] > 0.7


def test_without_looking_at_purchases_there_is_no_second_query():
    agent = make_agent(PPOAgent, head="two_tower", item_epochs=0)
    assert agent.model.policy.action_net.guess is None
    agent.learn(512)
    flat = make_agent(PPOAgent, head="flat", item_epochs=5)
    assert flat.model.item_epochs == 0


@both
def test_new_items_enter_a_trained_agents_catalogue(cls, grown, tmp_path):
    """What it knew it judges as before; what is new it judges by features alone."""
    agent = make_agent(cls, shop_of(grown, 30), head="two_tower")
    agent.learn(1024)
    agent.save(tmp_path)
    whole = shop_of(grown, 40)
    observation = greet(agent.env)
    before_NI = agent.score(observation)
    with agent.acting_in(whole):
        entered_NI = agent.score(observation)
        assert set(agent.predict(observation)[0]) <= set(range(40))
    assert entered_NI.shape == (32, 40)
    np.testing.assert_allclose(entered_NI[:, :30], before_NI, rtol=1e-4, atol=1e-5)
    assert entered_NI[:, 30:].std(axis=0).min() > 0  # they differ by shopper
    np.testing.assert_array_equal(agent.score(observation), before_NI)  # back in its own shop
    loaded = cls.load(tmp_path, whole, "cpu")
    np.testing.assert_allclose(loaded.score(observation), entered_NI, rtol=1e-4, atol=1e-5)
    shape = loaded.model.policy.state_dict()
    own = next(value for name, value in shape.items() if name.endswith("items.own"))
    features_IF = torch.as_tensor(whole.shop.catalogue.features_IF)
    row_I = torch.where(torch.arange(40) < 30, torch.arange(40), -1)
    torch.testing.assert_close(own, entered(own[:30], row_I, features_IF))
    assert (own[30:] != 0).any()
    loaded.learn(512)  # and it goes on learning there
    assert loaded.score(observation).shape == (32, 40)
    loaded.save(tmp_path / "again")
    again = cls.load(tmp_path / "again", whole, "cpu")
    np.testing.assert_array_equal(again.score(observation), loaded.score(observation))


@both
def test_a_catalogue_may_shrink(cls, grown):
    agent = make_agent(cls, shop_of(grown, 40), head="two_tower")
    agent.learn(1024)
    observation = greet(agent.env)
    before_NI = agent.score(observation)
    agent.bind(shop_of(grown, 25))
    np.testing.assert_allclose(agent.score(observation), before_NI[:, :25], rtol=1e-4, atol=1e-5)
    agent.learn(320, lambda timesteps: False)
    assert agent.score(observation).shape == (32, 25)


@both
def test_a_shop_of_other_categories_is_refused(cls, tmp_path):
    agent = make_agent(cls, make_env(observation="behaviour"), head="two_tower")
    with pytest.raises(UsageError, match=r"items described by \[categories 3, words 16\]"):
        agent.bind(make_env(observation="behaviour", num_categories=4))
    agent.save(tmp_path)
    assert json.loads((tmp_path / "agent.json").read_text())["head"] == "two_tower"


def test_features_are_told_in_another_catalogues_columns():
    catalogue = make_env(1, num_items=40).shop.catalogue
    layout = item_layout(catalogue)
    assert features_as_in(catalogue, layout) is catalogue.features_IF
    fewer = replace(catalogue, brand_I=catalogue.brand_I % 2, price_I=catalogue.price_I * 2)
    told_IF = features_as_in(fewer, layout)
    assert told_IF.shape == catalogue.features_IF.shape
    brands = slice(3, 3 + layout["brands"])
    np.testing.assert_array_equal(told_IF[:, brands].argmax(axis=1), fewer.brand_I)
    price, mean_and_scale = 3 + layout["brands"], catalogue.log_price_standard
    np.testing.assert_allclose(
        told_IF[:, price] - catalogue.features_IF[:, price],
        np.log(2) / mean_and_scale[1],
        rtol=1e-4,
    )
    unknown_IF = features_as_in(catalogue, item_layout(fewer))  # brands that it has no column for
    np.testing.assert_array_equal(unknown_IF[:, 3:5].sum(axis=1), catalogue.brand_I < 2)
    np.testing.assert_array_equal(unknown_IF[:, 6:], catalogue.features_IF[:, price + 1 :])


def test_items_are_found_by_what_they_are():
    catalogue = make_env(1, num_items=40).shop.catalogue
    key_I = torch.as_tensor(Shelf(catalogue.features_IF).key_I)
    assert len(set(key_I.tolist())) == 40
    shuffled_I = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    among = key_I[shuffled_I][:30]
    row_I = find(key_I, among)
    known = torch.isin(key_I, among)
    assert (row_I == -1).sum() == 10
    torch.testing.assert_close(among[row_I[known]], key_I[known])
    table = torch.arange(60.0).reshape(30, 2)
    assert (rows(table, row_I)[~known] == 0).all()
    torch.testing.assert_close(rows(table, row_I)[known], table[row_I[known]])


def test_a_hidden_layer_tells_what_features_say_only_together():
    """A word that means one thing in one category and its contrary in the other."""
    rng = torch.Generator().manual_seed(0)
    feature_IF = torch.randint(2, (400, 4), generator=rng).float()
    meaning_I = (2 * feature_IF[:, 0] - 1) * (2 * feature_IF[:, 1] - 1)
    error = {}
    for hidden in (0, 16):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tower = ItemTower(Shelf(feature_IF.numpy()), 2, ids=False, hidden=hidden)
            tower.start()
        linear_IW = tower.feature(feature_IF)
        torch.testing.assert_close(tower(), linear_IW)  # it begins as if there were none
        torch.testing.assert_close(tower(torch.tensor([3, 3, 0])), tower()[[3, 3, 0]])
        optimiser = torch.optim.Adam(tower.parameters(), lr=0.03)
        for _ in range(200):
            loss = (tower()[:, 0] - meaning_I).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        error[hidden] = loss.item()
    assert error[0] > 0.9
    assert error[16] < 0.05


def test_what_features_tell_of_embeddings_new_items_have_too():
    """Embeddings that are linear in features are found, and those that learned little ignored."""
    rng = torch.Generator().manual_seed(0)
    feature_IF = torch.randn(300, 5, generator=rng)
    true_IW = feature_IF @ torch.randn(5, 3, generator=rng) + 0.5
    own = torch.cat([true_IW[:200], 0.01 * torch.randn(50, 3, generator=rng)])
    row_I = torch.cat([torch.arange(250), torch.full((50,), -1)])
    found_IW = entered(own, row_I, feature_IF)
    assert torch.equal(found_IW[:250], own)
    torch.testing.assert_close(found_IW[250:], true_IW[250:], atol=0.1, rtol=0)
    nothing = entered(torch.zeros(250, 3), row_I, feature_IF)
    assert torch.equal(nothing, torch.zeros(300, 3))
    strangers = entered(own, torch.full((300,), -1), feature_IF)  # none of these was ever sold
    assert torch.equal(strangers, torch.zeros(300, 3))


def test_lean_softmax_is_the_librarys():
    logits = 3 * torch.randn(2000, 7, generator=torch.Generator().manual_seed(0))
    lean = LeanCategorical(7, lambda size: None).proba_distribution(logits)
    full = torch.distributions.Categorical(logits=logits)
    item = torch.arange(2000) % 7
    torch.testing.assert_close(lean.log_prob(item), full.log_prob(item))
    torch.testing.assert_close(lean.entropy(), full.entropy())
    torch.testing.assert_close(lean.mode(), full.probs.argmax(1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one = LeanCategorical(7, lambda size: None).proba_distribution(logits[:1].expand(20000, -1))
        found = torch.bincount(one.sample(), minlength=7) / 20000
    torch.testing.assert_close(found, full.probs[0], atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("cls", "steps", "settings"),
    [
        (PPOAgent, 30_720, {"num_envs": 256, "n_steps": 10, "n_epochs": 5, "minibatches": 4}),
        (DQNAgent, 8_192, {"learning_starts": 512, "batch_size": 256, "gradient_steps": 4}),
    ],
    ids=["ppo", "dqn"],
)
def test_learns_where_there_are_many_items(cls, steps, settings):
    """Half of the way from a random item to the best, with fewer than 62 looks at each item."""
    shop = {"num_items": 500, "num_categories": 5, "horizon": 20, "scenario": "static"}
    env = make_env(256, **shop)
    agent = make_agent(cls, env, head="two_tower", net_arch=[64, 64], **settings)
    agent.learn(steps)
    judged = make_env(500, **shop)
    earned, at_random = (play(who, judged, 1).return_E.mean() for who in (agent, Random()))
    assert earned > at_random + 10

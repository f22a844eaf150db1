"""RecsysGate-v0: the same shoppers, asked about one candidate at a time."""

from __future__ import annotations

import doctest
import inspect
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from array_api_compat import numpy as xp
from gymnasium.utils.env_checker import check_env

import recenv
from recenv import gate as gates
from recenv.dynamics import WITHHELD, Event, gate, rest, step
from recenv.env import RecsysEnv
from recenv.gate import CANDIDATES, GateSettings, GateShop, RecsysGateEnv, RecsysGateVectorEnv
from recenv.shop import OBSERVATIONS
from recenv.vector_env import RecsysVectorEnv

SMALL: dict[str, Any] = {"num_items": 12, "num_categories": 3, "interest_dim": 4, "horizon": 8}
# everything happens, and soon
EVERYTHING = SMALL | {
    "scenario": "full",
    "refusal_push": 0.1,
    "churn": True,
    "churn_base": -2.0,
}
everywhere = pytest.mark.parametrize("observation", OBSERVATIONS)
of_all_kinds = pytest.mark.parametrize("candidates", CANDIDATES)


def decisions(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(2, size=shape)


# ---- one step ----


def sessions(shop: GateShop, count: int = 64) -> Any:
    return shop.arrivals(count).take(np.random.default_rng(3), count)


def test_a_step_is_that_of_the_shop_or_a_rest() -> None:
    shop = GateShop(EVERYTHING)
    come = sessions(shop)
    luck = come.threshold[:, 0], come.drift_row[:, 0]
    recommended_N, candidate_N = decisions(0, 64) == 1, come.candidate[:, 0]
    about = (xp, shop.dynamics, shop.tables, come.state)
    done = gate(*about, come.traits, recommended_N, candidate_N, *luck)
    shown = step(*about, come.traits, candidate_N, *luck)
    rested = rest(*about, luck[1])
    for leaf, yes, no in zip(done.state, shown.state, rested, strict=True):
        np.testing.assert_array_equal(leaf[recommended_N], yes[recommended_N])
        np.testing.assert_array_equal(leaf[~recommended_N], no[~recommended_N])
        assert leaf.dtype == yes.dtype
    assert (done.event[recommended_N] == shown.event[recommended_N]).all()
    assert (done.event[~recommended_N] == WITHHELD).all()
    assert (done.purchase_reward[recommended_N] == shown.purchase_reward[recommended_N]).all()
    assert (done.purchase_reward[~recommended_N] == 0).all()
    assert (done.leaving_charge == 0).all()
    assert (done.terminated[recommended_N] == shown.terminated[recommended_N]).all()
    assert shown.terminated.any()
    assert not done.terminated[~recommended_N].any()


def test_a_rest_is_time_and_no_more() -> None:
    shop = GateShop(EVERYTHING | {"satiation_decay": 0.5, "trust_memory": 0.25, "drift_scale": 0})
    come = sessions(shop, 2)
    before = come.state._replace(
        satiation=np.float32([[2, 0, 1], [0, 4, 0]]),
        satisfaction=np.float32([1, -2]),
        refusals=np.float32([3, 0]),
    )
    after = rest(xp, shop.dynamics, shop.tables, before, come.drift_row[:, 0])
    np.testing.assert_array_equal(after.satiation, [[1, 0, 0.5], [0, 2, 0]])
    np.testing.assert_array_equal(after.satisfaction, [0.25, -0.5])
    for name in ("interest", "refusals", "patience"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.remaining, before.remaining - 1)


def test_interest_wanders_in_a_rest_as_it_does_in_a_step_without_pull() -> None:
    shop = GateShop(SMALL | {"scenario": "static", "drift_scale": 0.3})
    come = sessions(shop)
    luck = come.threshold[:, 0], come.drift_row[:, 0]
    about = (xp, shop.dynamics, shop.tables, come.state)
    rested = rest(*about, luck[1]).interest
    shown = step(*about, come.traits, come.candidate[:, 0], *luck).state.interest
    np.testing.assert_allclose(rested, shown, atol=1e-6)
    assert np.abs(rested - come.state.interest).max() > 0.1
    np.testing.assert_allclose(np.linalg.norm(rested, axis=1), 1, atol=1e-6)


# ---- the environments ----


@everywhere
@pytest.mark.parametrize("scenario", ["static", "full", "churn"])
def test_it_passes_both_checkers(scenario: str, observation: str) -> None:
    sb3 = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("RecsysGate-v0", scenario=scenario, observation=observation).unwrapped
        check_env(env, skip_render_check=True)
        sb3.check_env(env)


def test_its_frames_pass_the_checker_too() -> None:
    env = gym.make("RecsysGate-v0", render_mode="rgb_array", **SMALL).unwrapped
    check_env(env)


def test_a_frame_tells_what_was_not_shown_and_what_waits() -> None:
    env = RecsysGateEnv(render_mode="ansi", **SMALL)
    env.reset(seed=0)
    for t in range(SMALL["horizon"]):
        text = env.render()
        assert f"At the gate: item {int(env._session.candidate[t])} " in text
        assert text.count("not shown") == t // 2
        over = env.step((t + 1) % 2)[2]
    assert over
    text = env.render()
    assert "At the gate" not in text
    assert "of 4 recommended of 8" in text
    assert "8 candidates)" in text


@everywhere
@pytest.mark.parametrize("scenario", ["full", "churn"])
def test_recommending_everything_is_the_shop_with_the_candidates_as_actions(
    scenario: str, observation: str
) -> None:
    keywords = SMALL | {"scenario": scenario, "observation": observation, "churn_base": -1.0}
    n = 64
    gated, plain = RecsysGateVectorEnv(n, **keywords), RecsysVectorEnv(n, **keywords)
    seen_NS, _ = gated.reset(seed=5)
    plain_NS, _ = plain.reset(seed=5)
    candidate_NT = gated._session.candidate.copy()
    size, going_N = plain_NS.shape[1], np.ones(n, dtype=bool)
    for t in range(SMALL["horizon"]):
        np.testing.assert_array_equal(seen_NS[going_N, :size], plain_NS[going_N])
        seen_NS, reward_N, over_N, _, info = gated.step(np.ones(n, dtype=int))
        plain_NS, _, plain_over_N, _, plain_info = plain.step(candidate_NT[:, t])
        told, expected = (i.get("final_info", i) for i in (info, plain_info))
        assert (told["event"] == expected["event"])[going_N].all()
        assert (reward_N == expected["reward_terms"]["purchase"])[going_N].all()
        assert (over_N == plain_over_N)[going_N].all()
        going_N &= ~over_N
    assert not going_N.any()


def test_silence_is_worth_nothing_and_drives_nobody_away() -> None:
    # whoever is shown anything leaves almost at once
    env = RecsysGateVectorEnv(200, **SMALL, scenario="churn", churn_base=1.0)
    horizon = env.shop.horizon
    for quiet_from in (0, 1, 3):
        env.reset(seed=0)
        staying_N = np.ones(200, dtype=bool)
        for t in range(horizon):
            action_N = np.full(200, int(t < quiet_from))
            _, reward_N, over_N, _, info = env.step(action_N)
            terms = info.get("final_info", info)["reward_terms"]
            assert (terms["leaving"] == 0).all()
            if t >= quiet_from:
                assert (reward_N[staying_N] == 0).all()
                assert (over_N[staying_N] == (t == horizon - 1)).all()
            else:
                assert (np.abs(reward_N) == 1).all()
            staying_N &= ~over_N
            if 0 < quiet_from == t + 1:  # there are those who left, and those who may
                assert 0 < staying_N.sum() < 150


def test_leaving_ends_what_can_be_earned_and_costs_nothing_more() -> None:
    env = RecsysGateVectorEnv(200, **SMALL, scenario="churn", churn_base=0.0)
    env.reset(seed=0)
    bought_N, refused_N, return_N = np.zeros((3, 200))
    going_N, length_N = np.ones(200, dtype=bool), np.zeros(200)
    while going_N.any():
        _, reward_N, over_N, _, info = env.step(np.ones(200, dtype=int))
        event_N = info.get("final_info", info)["event"]
        bought_N += going_N * (event_N == Event.PURCHASE)
        refused_N += going_N * (event_N != Event.PURCHASE)
        return_N += going_N * reward_N
        length_N += going_N
        going_N &= ~over_N
    np.testing.assert_array_equal(return_N, bought_N - refused_N)
    assert (length_N < env.shop.horizon).mean() > 0.9


@of_all_kinds
def test_luck_and_candidates_do_not_depend_on_what_is_done(candidates: str) -> None:
    def arrived(action: int) -> list[Any]:
        env = RecsysGateVectorEnv(70, **SMALL, scenario="full", candidates=candidates)
        env.reset(seed=1)
        told = []
        for _ in range(3 * SMALL["horizon"]):
            told.append((env._candidate_N(), env.shopper_id_N.copy()))
            env.step(np.full(70, action))
        return told

    for one, other in zip(arrived(0), arrived(1), strict=True):
        np.testing.assert_array_equal(one, other)


@everywhere
@of_all_kinds
def test_one_gate_is_a_vector_of_one(candidates: str, observation: str) -> None:
    keywords = EVERYTHING | {"candidates": candidates, "observation": observation, "reveal": True}
    alone, vector = RecsysGateEnv(**keywords), RecsysGateVectorEnv(1, **keywords)
    seen, _ = alone.reset(seed=11)
    seen_NS, _ = vector.reset(seed=11)
    ended = 0
    for action in decisions(2, 200):
        np.testing.assert_array_equal(seen, seen_NS[0])
        seen, reward, over, _, info = alone.step(action)
        seen_NS, reward_N, over_N, _, infos = vector.step(np.array([action]))
        told = infos.get("final_info", infos)
        assert (reward, over) == (reward_N[0], over_N[0])
        for name in ("event", "shopper_id"):
            assert info[name] == told[name][0]
        for name in ("purchase_probability", "regret"):
            assert info[name] == pytest.approx(told[name][0], abs=1e-6)
        if over:
            np.testing.assert_array_equal(seen, infos["final_obs"][0])
            seen, _ = alone.reset()
            ended += 1
    assert ended > 20


@everywhere
def test_autoreset_modes_tell_the_same_sessions(observation: str) -> None:
    keywords = EVERYTHING | {"observation": observation}
    n, horizon = 1, SMALL["horizon"]
    same, following, manual = (
        RecsysGateVectorEnv(n, **keywords, autoreset_mode=mode)
        for mode in ("SameStep", "NextStep", "Disabled")
    )
    seen = [env.reset(seed=4)[0] for env in (same, following, manual)]
    for action in decisions(5, 12 * horizon):
        for other in seen[1:]:
            np.testing.assert_array_equal(seen[0], other)
        act = np.array([action])
        told = [env.step(act) for env in (same, following, manual)]
        over = bool(told[0][2][0])
        for other in told[1:]:
            assert other[1] == told[0][1]
            assert other[2] == told[0][2]
        seen = [t[0] for t in told]
        if over:
            for other in seen[1:]:
                np.testing.assert_array_equal(told[0][4]["final_obs"][0], other[0])
            seen[1], reward_N, over_N, _, _ = following.step(act)
            assert reward_N[0] == 0
            assert not over_N[0]
            seen[2], _ = manual.reset(options={"reset_mask": np.ones(n, dtype=bool)})


@everywhere
def test_a_restored_gate_goes_on_to_the_bit(observation: str, refuses: Any) -> None:
    keywords = EVERYTHING | {"observation": observation}
    env, again = RecsysGateVectorEnv(5, **keywords), RecsysGateVectorEnv(5, **keywords)
    env.reset(seed=2)
    for action_N in decisions(0, 7, 5):
        env.step(action_N)
    again.restore(env.checkpoint())
    for action_N in decisions(1, 200, 5):  # the queue of 64 is drawn anew meanwhile
        for one, other in zip(env.step(action_N)[:4], again.step(action_N)[:4], strict=True):
            np.testing.assert_array_equal(one, other)
    plain = RecsysVectorEnv(5, **keywords)
    with refuses("not of such an environment.*gate"):
        plain.restore(env.checkpoint())
    plain.reset(seed=0)
    with refuses("not of such an environment.*gate"):
        env.restore(plain.checkpoint())


@everywhere
def test_it_lives_the_same_sessions_on_torch(observation: str) -> None:
    torch = pytest.importorskip("torch")
    from recenv.torch_env import RecsysGateTorchEnv

    keywords = EVERYTHING | {"observation": observation, "reveal": True}
    n = 70
    numpy_env, torch_env = RecsysGateVectorEnv(n, **keywords), RecsysGateTorchEnv(n, **keywords)
    seen_NS, _ = numpy_env.reset(seed=9)
    tensor_NS, _ = torch_env.reset(seed=9)
    for action_N in decisions(6, 3 * SMALL["horizon"], n):
        np.testing.assert_allclose(seen_NS, tensor_NS.numpy(), atol=1e-4)
        seen_NS, reward_N, over_N, _, info = numpy_env.step(action_N)
        tensor_NS, tensor_N, ended_N, _, told = torch_env.step(torch.as_tensor(action_N))
        np.testing.assert_array_equal(reward_N, tensor_N.numpy())
        np.testing.assert_array_equal(over_N, ended_N.numpy())
        told_N = info.get("final_info", info)
        np.testing.assert_array_equal(told_N["event"], told["event"].numpy())
        np.testing.assert_allclose(told_N["regret"], told["regret"].numpy(), atol=1e-5)


# ---- what is seen ----


@everywhere
def test_the_observation_is_the_shoppers_and_the_candidates_features(observation: str) -> None:
    keywords = EVERYTHING | {"observation": observation, "history": 3}
    env, shop = RecsysGateVectorEnv(50, **keywords), recenv.Shop(keywords)
    seen_NS, _ = env.reset(seed=0)
    assert list(env.shop.observer.layout())[:-1] == list(shop.observer.layout())
    size = shop.observation_space.shape[0]
    for action_N in decisions(1, 20, 50):
        parts = env.shop.observer.unflatten(seen_NS)
        features_NF = shop.catalogue.features_IF[env._candidate_N()]
        np.testing.assert_array_equal(parts["candidate"], features_NF)
        np.testing.assert_array_equal(seen_NS[:, size:], features_NF)
        assert seen_NS in env.observation_space
        seen_NS, _, over_N, _, info = env.step(action_N)
        for slot in np.flatnonzero(over_N):
            final = env.shop.observer.unflatten(info["final_obs"][slot])
            assert (final["candidate"] == 0).all()  # nothing arrives any more
            assert info["final_obs"][slot] in env.single_observation_space


def test_a_cut_session_still_sees_its_candidate() -> None:
    env = RecsysGateVectorEnv(5, **SMALL, max_episode_steps=3)
    env.reset(seed=0)
    candidate_NT = env._session.candidate.copy()
    for _ in range(3):
        _, _, terminated_N, truncated_N, info = env.step(np.zeros(5, dtype=int))
    assert truncated_N.all()
    assert not terminated_N.any()
    final = env.shop.observer.unflatten(np.stack(info["final_obs"]))["candidate"]
    np.testing.assert_array_equal(final, env.shop.catalogue.features_IF[candidate_NT[:, 3]])


def test_what_is_not_shown_leaves_no_trace_in_behaviour() -> None:
    env = RecsysGateEnv(**SMALL, observation="behaviour", history=4)
    seen, _ = env.reset(seed=0)
    seen, *_ = env.step(1)
    once = env.shop.observer.unflatten(seen)
    seen, *_ = env.step(0)
    still = env.shop.observer.unflatten(seen)
    for name in ("counts", "items", "events"):
        np.testing.assert_array_equal(once[name], still[name])
    assert still["remaining"] < once["remaining"]
    assert once["events"].sum() == 1
    seen, *_ = env.step(1)
    assert env.shop.observer.unflatten(seen)["events"].sum() == 2


def test_regret_is_that_of_the_decision() -> None:
    env = RecsysGateVectorEnv(500, **SMALL, reveal=True)
    env.reset(seed=0)
    action_N = decisions(0, 500)
    told = env.step(action_N)[4]
    gain_N = 2 * told["purchase_probability"] - 1
    assert (gain_N > 0).any()
    assert (gain_N < 0).any()
    best_N = np.maximum(gain_N, 0)
    np.testing.assert_allclose(told["regret"], best_N - action_N * gain_N, atol=1e-6)
    # and the probability is the one with which she buys
    env = RecsysGateVectorEnv(20_000, **SMALL, reveal=True)
    env.reset(seed=1)
    told = env.step(np.ones(20_000, dtype=int))[4]
    share = (told["event"] == Event.PURCHASE).mean()
    assert share == pytest.approx(told["purchase_probability"].mean(), abs=0.01)


# ---- what arrives ----


def proposed(**keywords: Any) -> tuple[GateShop, Any, Any]:
    """A shop, the interests of 4,000 shoppers and their candidates."""
    shop = GateShop(SMALL | {"horizon": 50} | keywords)
    come = shop.arrivals(4_000).take(np.random.default_rng(0), 4_000)
    return shop, come.state.interest, come.candidate


def test_uniform_candidates_are_uniform() -> None:
    _, _, candidate_NT = proposed(candidates="uniform")
    share_I = np.bincount(candidate_NT.ravel(), minlength=12) / candidate_NT.size
    np.testing.assert_allclose(share_I, 1 / 12, atol=0.003)


def test_popular_candidates_come_as_often_as_newcomers_buy_them() -> None:
    _, _, candidate_NT = proposed(candidates="popularity")
    share_I = np.bincount(candidate_NT.ravel(), minlength=12) / candidate_NT.size
    env = RecsysVectorEnv(4_000, **(SMALL | {"scenario": "static"}))
    rate_I = np.zeros(12)
    for item in range(12):
        env.reset(seed=1)
        rate_I[item] = (env.step(np.full(4_000, item))[1] > 0).mean()
    np.testing.assert_allclose(share_I, rate_I / rate_I.sum(), atol=0.012)
    assert share_I.max() > 1.5 * share_I.min()


def test_candidates_by_interest_follow_the_softmax_of_affinity() -> None:
    shop, interest_ND, candidate_NT = proposed(candidates="interest", interest_weight=3.0)
    odds_NI = np.exp(3.0 * interest_ND @ shop.catalogue.embedding_ID.T)
    odds_NI /= odds_NI.sum(axis=1, keepdims=True)
    likelihood_NT = np.take_along_axis(odds_NI, candidate_NT, axis=1)
    assert likelihood_NT.mean() == pytest.approx((odds_NI**2).sum(axis=1).mean(), abs=0.003)
    share_I = np.bincount(candidate_NT.ravel(), minlength=12) / candidate_NT.size
    np.testing.assert_allclose(share_I, odds_NI.mean(axis=0), atol=0.004)


@of_all_kinds
def test_candidates_are_items_whatever_the_catalogue(candidates: str) -> None:
    for num_items in (1, 2, 5_000):
        shop = GateShop({"num_items": num_items, "candidates": candidates})
        candidate_NT = shop.arrivals(64).take(np.random.default_rng(0), 64).candidate
        assert candidate_NT.shape == (64, 50)
        assert candidate_NT.dtype == np.int64
        assert candidate_NT.min() >= 0
        assert candidate_NT.max() < num_items


def test_drawing_by_blocks_of_shoppers_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    keywords = SMALL | {"candidates": "interest"}
    rng = np.random.default_rng
    whole = GateShop(keywords).arrivals(100).take(rng(0), 100).candidate
    monkeypatch.setattr(gates, "TOGETHER", 12 * 7)  # seven shoppers at a time
    parts = GateShop(keywords).arrivals(100).take(rng(0), 100).candidate
    np.testing.assert_array_equal(whole, parts)


# ---- mistakes, and the page ----


def test_mistakes_are_one_line(refuses: Any) -> None:
    with refuses("unknown candidates 'popular': did you mean 'popularity'"):
        gym.make("RecsysGate-v0", candidates="popular")
    with refuses("unknown option of RecsysGate-v0 'candidate': did you mean 'candidates'"):
        gym.make_vec("RecsysGate-v0", candidate="uniform")
    with refuses("unknown option of Recsys-v0 'candidates'"):
        gym.make("Recsys-v0", candidates="uniform")
    with refuses("horizon must lie in"):
        gym.make("RecsysGate-v0", horizon=0)
    env = RecsysGateEnv(**SMALL)
    with refuses(r"reset\(\)"):
        env.step(1)
    env.reset(seed=0)
    for action in (2, -1, np.int64(7)):
        with refuses(f"action {action} is neither 0 .* nor 1"):
            env.step(action)
    for wrong in (True, 1.0, None, "1"):
        with refuses("an action is 0 .* or 1 .*, got"):
            env.step(wrong)  # type: ignore[arg-type]
    envs = RecsysGateVectorEnv(3, **SMALL)
    envs.reset(seed=0)
    for actions in ([0, 1, 2], [-1, 0, 0]):
        with refuses("an action is neither"):
            envs.step(np.array(actions))
    with refuses("3 whole numbers"):
        envs.step(np.array([0, 1]))
    with refuses("RecsysGate-v0 draws all slots from one generator"):
        envs.reset(seed=[1, 2, 3])
    with refuses(r'render gym.make\("RecsysGate-v0"\)'):
        gym.make_vec("RecsysGate-v0", render_mode="ansi")


def test_everything_is_always_allowed() -> None:
    assert RecsysGateEnv(**SMALL).action_masks().tolist() == [True, True]
    assert RecsysGateVectorEnv(3, **SMALL).action_masks().shape == (3, 2)
    assert RecsysGateVectorEnv(3, **SMALL).action_masks().all()


def test_its_spec_is_json_and_its_siblings_are_gates() -> None:
    env = gym.make("RecsysGate-v0", candidates="popularity", **SMALL)
    assert env.spec is not None
    again = gym.make(gym.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    assert again.unwrapped.shop.settings.candidates == "popularity"  # type: ignore[attr-defined]
    sibling = RecsysGateVectorEnv(2, **SMALL, candidates="uniform").sibling(5)
    assert isinstance(sibling, RecsysGateVectorEnv)
    assert sibling.shop.settings.candidates == "uniform"


PAGE = inspect.getdoc(RecsysGateEnv) or ""


def test_its_page_has_gymnasiums_headings_and_its_keyword() -> None:
    def headings(page: str) -> list[str]:
        return [line for line in page.splitlines() if line.startswith("## ")]

    assert headings(PAGE) == headings(inspect.getdoc(RecsysEnv) or "")
    assert f'| `candidates` | `"{GateSettings().candidates}"` |' in PAGE
    for kind in CANDIDATES:
        assert f'- `"{kind}"`:' in PAGE


def test_a_step_tells_what_the_page_tells() -> None:
    env = gym.make("RecsysGate-v0", reveal=True)
    env.reset(seed=0)
    section = PAGE.split("## Information\n")[1].split("\n## ")[0]
    for name, value in env.step(1)[4].items():
        assert f"`{name}`" in section
        for term in value if isinstance(value, dict) else ():
            assert f"`{term}`" in section


def test_the_pages_examples_run() -> None:
    test = doctest.DocTestParser().get_doctest(PAGE, {}, "page", None, None)
    assert len(test.examples) >= 4
    assert doctest.DocTestRunner().run(test).failed == 0

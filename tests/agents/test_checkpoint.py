"""An agent that was stopped on its way and goes on ends as one that never was, to the bit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from agent_cases import LEARNERS, make_agent, make_env
from torch import nn

from agents import checkpoint
from agents.bandits.linucb import LinUCB
from agents.bandits.neural_linear_ts import NeuralLinearTS
from agents.base import Agent
from agents.baselines.mf import MF
from agents.baselines.user_cf import UserCF
from agents.dqn import DQNAgent
from agents.maskable_ppo import MaskablePPOAgent
from agents.ppo import PPOAgent
from agents.qrdqn import QRDQNAgent
from agents.references import Rotation
from agents.scorer import Scorer
from recenv.errors import UsageError

STEPS = 2048  # of learning
CPU = torch.device("cpu")
REGULARS = {"num_shoppers": 20, "observation": "behaviour", "history": 3}
VARIANTS: list[tuple[type[Agent], dict[str, Any], dict[str, Any]]] = [
    *((cls, {}, {}) for cls in LEARNERS),
    *((cls, {}, REGULARS) for cls in (Scorer, PPOAgent, DQNAgent, NeuralLinearTS, UserCF, MF)),
    (LinUCB, {"delay": 3, "update_every": 2, "shopper_size": 4, "forgetting": 0.999}, {}),
    (LinUCB, {"disjoint": True}, {}),
    (PPOAgent, {"head": "two_tower"}, {}),
    (PPOAgent, {"backend": "device", "anneal": 0.1}, {}),
    (PPOAgent, {"head": "two_tower", "backend": "device"}, {}),
    (PPOAgent, {"anneal": 0.0}, {}),
    (DQNAgent, {"head": "two_tower"}, {}),
    (MaskablePPOAgent, {"head": "two_tower"}, {}),
    (QRDQNAgent, {"head": "two_tower"}, {}),
    (Scorer, {"shopper": "encoder", "encoder": "gru"}, REGULARS),
    (PPOAgent, {"encoder": "gru", "encoder_width": 8, "pretrain_steps": 512}, REGULARS),
    (PPOAgent, {"encoder": "bayes"}, REGULARS),
    (DQNAgent, {"encoder": "mlp", "pretrain_steps": 512, "freeze_encoder": False}, REGULARS),
    # rings that go round
    (Scorer, {"log_rows": 300}, {}),
    (DQNAgent, {"buffer_size": 600}, {}),
    (UserCF, {"log_sessions": 70}, {}),
]


def learner(cls: type[Agent], settings: dict[str, Any], shop: dict[str, Any]) -> Agent:
    """Such an agent, new."""
    return make_agent(cls, make_env(**shop), **settings)


def files(agent: Agent, path: Path) -> dict[str, bytes]:
    """What ``save`` writes."""
    agent.save(path)
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.mark.parametrize(("cls", "settings", "shop"), VARIANTS)
def test_an_agent_goes_on_to_the_bit(
    cls: type[Agent],
    settings: dict[str, Any],
    shop: dict[str, Any],
    tmp_path: Path,
    disturbed_globals: Callable[[], None],
) -> None:
    agent, kept, told = learner(cls, settings, shop), [], []

    def keeper(timesteps: int) -> None:
        kept.append(tmp_path / f"{timesteps}.npz")
        checkpoint.write(kept[-1], agent.checkpoint())

    def callback(timesteps: int) -> bool:
        told.append((timesteps, agent.meter.take() if agent.meter else None))
        return timesteps < STEPS

    agent.keeper = keeper
    agent.learn(STEPS, callback)
    expected, whole = files(agent, tmp_path / "whole"), list(told)
    assert len(kept) >= 4
    for part in (0, len(kept) // 3, len(kept) // 2, len(kept) - 1):
        disturbed_globals()
        told.clear()
        agent = learner(cls, settings, shop)
        agent.restore(checkpoint.read(kept[part], CPU))
        agent.learn(STEPS, callback)
        assert files(agent, tmp_path / str(part)) == expected, kept[part].name
        steps = int(kept[part].stem)
        rests_first = cls is Rotation  # and is called then
        assert told == [one for one in whole if one[0] >= steps + (not rests_first)]


def through_a_file(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    checkpoint.write(path / "tree.npz", tree)
    return checkpoint.read(path / "tree.npz", CPU)


def test_what_is_written_comes_back_as_it_lay_in_memory(tmp_path: Path) -> None:
    table = np.arange(24.0).reshape(2, 3, 4)
    things = [
        table,
        table.transpose(2, 0, 1),
        table[:, ::2],
        np.float16(3) * np.ones((2, 0)),
        np.array(7),
        np.array([True, False]),
        np.arange(3, dtype=np.uint32),
        np.broadcast_to(np.arange(3), (4, 3)),
    ]
    for array in [*things, *map(torch.as_tensor, map(np.copy, things))]:
        back = through_a_file({"it": array}, tmp_path)["it"]
        assert type(back) is type(array)
        assert back.dtype == array.dtype
        assert back.shape == array.shape
        assert (back == array).all()
    turned = torch.linalg.cholesky(torch.eye(3) + 1.0)
    back = through_a_file({"it": turned}, tmp_path)["it"]
    assert back.stride() == turned.stride() == (1, 3)


def test_plain_things_come_back(tmp_path: Path) -> None:
    plain = {"a": [1, None, True, 0.1, float("inf"), "x"], "b": {"c": 2**100}, "d": []}
    assert through_a_file(plain, tmp_path) == plain


def test_what_can_be_filled_is_filled(tmp_path: Path) -> None:
    def things(seed: int) -> dict[str, Any]:
        rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        net = nn.Linear(2, 1)
        optimiser = torch.optim.Adam(net.parameters(), fused=True)
        for _ in range(seed):
            net(torch.rand(4, 2, generator=generator)).sum().backward()
            optimiser.step()
        return {"rng": rng, "generator": generator, "net": net, "optimiser": optimiser}

    one, other = things(3), things(5)
    kept = through_a_file(checkpoint.freeze(one), tmp_path)
    for name, thing in other.items():
        assert checkpoint.thaw(kept[name], thing) is thing
    assert one["rng"].random() == other["rng"].random()
    for each in (one, other):
        each["net"].zero_grad()
        each["net"](torch.rand(4, 2, generator=each["generator"])).sum().backward()
        each["optimiser"].step()
    assert torch.equal(one["net"].weight, other["net"].weight)
    assert checkpoint.thaw([1, 2], deque()) == deque([1, 2])


@pytest.mark.parametrize("cls", LEARNERS)
def test_a_checkpoint_of_something_else_is_refused_in_one_line(
    cls: type[Agent], tmp_path: Path
) -> None:
    agent = learner(cls, {}, {})
    agent.learn(512)
    kept = through_a_file(agent.checkpoint(), tmp_path)
    larger = learner(cls, {}, {"num_items": 15, "num_categories": 4})
    for other, tree in (
        (agent, {**kept, "agent": "other"}),
        (agent, {name: value for name, value in kept.items() if name != "rng"}),
        (agent, {**kept, "colour": "red"}),
        (larger, kept),
    ):
        if other is larger and cls is Rotation:  # which remembers nothing of a shop's size
            continue
        with pytest.raises(UsageError, match="cannot go on from this") as refused:
            other.restore(tree)
        assert "\n" not in str(refused.value)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "whole", {"it": np.arange(100_000.0)})
    content = (tmp_path / "whole").read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (b"", b"{}", content[:middle], flipped):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(checkpoint.DAMAGED):
            checkpoint.read(tmp_path / "damaged", CPU)

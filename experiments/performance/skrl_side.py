"""skrl's PPO on our torch environment: what ``agent.backend=device`` is measured against."""

from __future__ import annotations

import importlib
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from agents.base import torch_seeded
from experiments.build import group_defaults
from experiments.performance.measure import Side, Sizes
from recenv.errors import MissingExtra
from recenv.torch_env import RecsysTorchEnv

MODULES = (
    "skrl.agents.torch.ppo",
    "skrl.envs.wrappers.torch",
    "skrl.memories.torch",
    "skrl.models.torch",
    "skrl.trainers.torch",
)


def skrl_side(sizes: Sizes) -> Side:
    """Training as by ``agent=ppo``, with skrl's rollouts, losses and trainer.

    Shoppers, networks, minibatches, epochs and rates are those of conf/agent/ppo.yaml; only the
    actor has no shortcut past its hidden layers, which makes it the quicker.

    Raises:
        MissingExtra: skrl is not installed.
    """
    skrl = _skrl()
    config = group_defaults("agent", "ppo") | sizes.agents.get("ppo", {})
    env = _wrapped(skrl, RecsysTorchEnv(config["num_envs"], scenario="full"))
    agent = skrl.PPO(
        models={
            "policy": _model(skrl, skrl.CategoricalMixin, env, config, env.action_space.n),
            "value": _model(skrl, skrl.DeterministicMixin, env, config, 1),
        },
        memory=skrl.RandomMemory(
            memory_size=config["n_steps"], num_envs=env.num_envs, device=env.device
        ),
        observation_space=env.observation_space,
        action_space=env.action_space,
        device=env.device,
        cfg=skrl.PPO_CFG(
            rollouts=config["n_steps"],
            learning_epochs=config["n_epochs"],
            mini_batches=config["minibatches"],
            discount_factor=config["gamma"],
            gae_lambda=config["gae_lambda"],
            learning_rate=config["learning_rate"],
            entropy_loss_scale=config["ent_coef"],
            ratio_clip=config["clip_range"],
            value_clip=0.0,
            value_loss_scale=0.5,
            experiment={"write_interval": 0, "checkpoint_interval": 0},
        ),
    )

    def learn(steps: int) -> int:
        calls = -(-steps // env.num_envs)
        settings = {
            "timesteps": calls,
            "disable_progressbar": True,
            "close_environment_at_exit": False,
        }
        skrl.SequentialTrainer(cfg=settings, env=env, agents=agent).train()
        return int(calls * env.num_envs)

    learn(sizes.warm_up)
    return lambda: learn(sizes.train_steps)


def _skrl() -> Any:
    """The parts of skrl by their names."""
    try:
        parts = [vars(importlib.import_module(name)) for name in MODULES]
    except ModuleNotFoundError:
        raise MissingExtra("the bench's row skrl", "skrl", "dev") from None
    return SimpleNamespace(**{name: part for of in parts for name, part in of.items()})


def _wrapped(skrl: Any, env: RecsysTorchEnv) -> Any:
    class Shop(skrl.Wrapper):  # type: ignore[misc] # skrl has no types
        """The environment as skrl's trainers call it: columns instead of vectors."""

        observation_space = env.single_observation_space
        action_space = env.single_action_space

        def reset(self) -> Any:
            return env.reset(seed=0)

        def step(self, actions: Tensor) -> Any:
            seen, *told, _ = env.step(actions[:, 0].long())
            return seen, *(part[:, None] for part in told), {}

        def state(self) -> None:
            return None

        def render(self, *_: Any, **__: Any) -> None:
            return None

        def close(self) -> None:
            return None

    return Shop(env)


def _model(skrl: Any, kind: Any, env: Any, config: dict[str, Any], outputs: int) -> Any:
    class Network(kind, skrl.Model):  # type: ignore[misc]
        """Dense layers as wide as those of agent=ppo."""

        def __init__(self) -> None:
            spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
            skrl.Model.__init__(self, **spaces, device=env.device)
            kind.__init__(self)
            widths = [env.observation_space.shape[0], *config["net_arch"]]
            layers: list[nn.Module] = []
            for size, width in pairwise(widths):
                layers += [nn.Linear(size, width), nn.ReLU()]
            self.net = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

        def compute(self, inputs: dict[str, Any], role: str) -> tuple[Tensor, dict[str, Any]]:
            return self.net(inputs["observations"]), {}

    with torch_seeded(0):
        return Network()

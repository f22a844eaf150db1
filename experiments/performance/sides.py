"""What takes turns: environments that are stepped, and agents that learn."""

from __future__ import annotations

import importlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from agents.bandits.exploration import UpperBound
from agents.bandits.posterior import BilinearRidge, Context, ItemRidge
from experiments.build import group_defaults, make_agent
from experiments.performance.floor import floor
from experiments.performance.measure import Side, Sizes, Timed
from recenv.errors import MissingExtra, UsageError
from recenv.torch_env import RecsysTorchEnv

CARTPOLE = "CartPole-v1"
WORKERS = 8  # DummyVecEnvs of stable-baselines3's own route
PEER = Path(__file__).with_name("peer.py")
PEERS_WANTED = "sardine-rec recsim-no-tf six pandas"
FEATURES = 16  # of the bandits' shoppers, and of the shared model's items


def vector_side(env_id: str, num_envs: int, steps: int, **keywords: Any) -> Side:
    """Random actions in a native vector env, restarted by itself."""
    return stepped(gym.make_vec(env_id, num_envs, "vector_entry_point", **keywords), steps)


def stepped(env: gym.vector.VectorEnv, steps: int) -> Side:
    """Random actions in a vector env."""
    num_envs = env.num_envs
    env.reset(seed=0)
    action_TN = _actions(env.single_action_space, (steps, num_envs))

    def advance() -> int:
        for action_N in action_TN:
            env.step(action_N)
        return int(action_TN.size)

    advance()
    return advance


def single_side(env_id: str, steps: int, **keywords: Any) -> Side:
    """Random actions in one env, reset where a session is over."""
    env = gym.make(env_id, **keywords)
    env.reset(seed=0)
    actions = _actions(env.action_space, (steps,)).tolist()

    def advance() -> int:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return len(actions)

    advance()
    return advance


def torch_side(num_envs: int, steps: int, device: torch.device, **keywords: Any) -> Side:
    """Random actions in the torch env."""
    env = RecsysTorchEnv(num_envs, device=device, **keywords)
    env.reset(seed=0)
    action_TN = torch.as_tensor(
        _actions(env.single_action_space, (steps, num_envs)), device=env.device
    )

    def advance() -> int:
        for action_N in action_TN:
            env.step(action_N)
        if env.device.type == "cuda":
            torch.cuda.synchronize(env.device)
        return action_TN.numel()

    advance()
    return advance


def floor_side(num_envs: int, steps: int, **keywords: Any) -> Side:
    """Random actions in the bare arithmetic of the same shop."""
    step = floor(num_envs, 0, **keywords)
    action_TN = np.random.default_rng(0).integers(keywords["num_items"], size=(steps, num_envs))

    def advance() -> int:
        for action_N in action_TN:
            step(action_N)
        return int(action_TN.size)

    advance()
    return advance


def agent_side(name: str, sizes: Sizes, env: dict[str, Any] | None = None, **changes: Any) -> Side:
    """Training by the configuration of agent=name, without evaluations.

    Args:
        env: where, if not in ``full`` with default keywords.
    """
    config = group_defaults("agent", name) | sizes.agents.get(name, {}) | changes
    agent = make_agent(config, env or {"scenario": "full"}, seed=0, device="cpu")
    learned = 0

    def count(timesteps: int) -> bool:
        nonlocal learned
        learned = timesteps
        return True

    def advance() -> int:
        agent.learn(sizes.train_steps, count)
        return learned

    agent.learn(sizes.warm_up, count)
    return advance


def own_route(sizes: Sizes, seed: int, **changes: Any) -> PPO:
    """PPO as stable-baselines3 does it by itself: its defaults, on DummyVecEnvs."""
    envs = make_vec_env("recenv:Recsys-v0", WORKERS, seed, env_kwargs={"scenario": "full"})
    return PPO("MlpPolicy", envs, device="cpu", seed=seed, **(sizes.sb3 | changes))


def sb3_side(sizes: Sizes) -> Side:
    """Training one rollout by stable-baselines3's own route."""
    model = own_route(sizes, 0)

    def advance() -> int:
        model.learn(1)  # it always finishes its rollout
        return model.num_timesteps

    # a short warm-up: a whole rollout takes seconds
    own_route(sizes, 0, n_steps=8, batch_size=64).learn(1)
    return advance


class Peer:
    """Another project's environment in a Python of its own; called, it takes a turn there.

    Raises:
        UsageError: it does not run there.
    """

    def __init__(self, python: Path, name: str, steps: int, clock: str):
        command = [str(python), str(PEER), name, str(steps), clock]
        pipe = subprocess.PIPE
        try:
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=pipe, text=True
            )
        except OSError as error:
            raise UsageError(f"peers={python} cannot be run: {error.strerror or error}") from None
        if self._read() != "ready":
            assert self.process.stderr is not None
            said = self.process.stderr.read().strip().splitlines() or ["it said nothing"]
            self.close()
            raise UsageError(
                f"peers={python} does not run {name}: {said[-1]}: install {PEERS_WANTED} there"
            )

    def __call__(self) -> Timed:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        steps, seconds = self._read().split()
        return Timed(int(steps), float(seconds))

    def close(self) -> None:
        """Let it end."""
        self.process.communicate()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@dataclass(frozen=True)
class BanditLog:
    """Shoppers of whom FEATURES numbers are known, and whether they buy, drawn beforehand.

    What a bandit chooses makes no difference: only how long it takes is of interest.
    """

    x_TNP: np.ndarray
    bought_TN: np.ndarray
    first_item_M: np.ndarray  # random items that are answered before, two answers each
    first_x_MP: np.ndarray
    first_bought_M: np.ndarray

    @classmethod
    def drawn(cls, sizes: Sizes, items: int) -> BanditLog:
        rng = np.random.default_rng(0)

        def answers(*shape: int) -> tuple[np.ndarray, np.ndarray]:
            x = rng.standard_normal((*shape, FEATURES)).astype(np.float32)
            return x, (rng.random(shape) < 0.3).astype(np.float32)

        x_TNP, bought_TN = answers(sizes.bandit_batches, sizes.bandit_batch)
        first_x_MP, first_bought_M = answers(2 * items)
        return cls(x_TNP, bought_TN, np.arange(2 * items) % items, first_x_MP, first_bought_M)


def bandit_side(sizes: Sizes, items: int, device: torch.device, shared: bool = False) -> Side:
    """LinUCB's decisions, and its learning from the answers, batch by batch.

    Args:
        shared: one model of shopper x item features, instead of one for every item.
    """
    log = BanditLog.drawn(sizes, items)
    posterior: BilinearRidge | ItemRidge
    if shared:
        feature_IG = np.random.default_rng(1).standard_normal((items, FEATURES))
        tensor = torch.as_tensor(feature_IG, dtype=torch.float32, device=device)
        posterior = BilinearRidge(tensor, FEATURES + 1)
    else:
        posterior = ItemRidge(items, FEATURES, device)
    explore, generator = UpperBound(1.0), torch.Generator(device)

    def learn(context: Context, item_N: torch.Tensor, bought_N: np.ndarray) -> None:
        answer_N = torch.as_tensor(bought_N, device=device)
        posterior.add(context.of(item_N), item_N, answer_N)
        posterior.solve()

    def context_of(x_NP: np.ndarray) -> Context:
        x = torch.as_tensor(x_NP, device=device)
        return Context(x, x.new_zeros(1, 1).expand(len(x), items))

    @torch.no_grad()
    def advance() -> int:
        for x_NP, bought_N in zip(log.x_TNP, log.bought_TN, strict=True):
            context = context_of(x_NP)
            item_N = explore(posterior, context, generator).argmax(1)
            item_N.cpu()
            learn(context, item_N, bought_N)
        return int(log.bought_TN.size)

    first_M = torch.as_tensor(log.first_item_M, device=device)
    for part in np.array_split(np.arange(len(first_M)), len(first_M) // 1024 + 1):
        learn(context_of(log.first_x_MP[part]), first_M[part], log.first_bought_M[part])
    advance()
    return advance


def mabwiser_side(sizes: Sizes, items: int) -> Side:
    """The same model and the same batches with mabwiser, one batch at a time."""
    mab_module = mabwiser()
    log = BanditLog.drawn(sizes, items)
    policy = mab_module.LearningPolicy.LinUCB(alpha=1.0, l2_lambda=1.0)
    mab = mab_module.MAB(list(range(items)), policy)
    mab.fit(log.first_item_M, log.first_bought_M, log.first_x_MP)
    turn = 0

    def advance() -> int:
        nonlocal turn
        x_NP, bought_N = log.x_TNP[turn], log.bought_TN[turn]
        turn = (turn + 1) % len(log.x_TNP)
        mab.partial_fit(mab.predict(x_NP), bought_N, x_NP)
        return len(bought_N)

    return advance


def mabwiser() -> Any:
    """The module of mabwiser's bandits.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("mabwiser.mab")
    except ModuleNotFoundError:
        raise MissingExtra("the bench's row bandit", "mabwiser", "dev") from None


def _actions(space: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(space.n, size=shape)

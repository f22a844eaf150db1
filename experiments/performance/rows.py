"""The rows of the page: which sides, under which words, and what is asked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch

from experiments.build import group_defaults, make_env
from experiments.performance.measure import Bench, Result, threads
from experiments.performance.score_time import GOAL, times
from experiments.performance.sides import (
    CARTPOLE,
    FEATURES,
    WORKERS,
    Peer,
    agent_side,
    bandit_side,
    floor_side,
    mabwiser_side,
    sb3_side,
    single_side,
    stepped,
    torch_side,
    vector_side,
)
from experiments.performance.skrl_side import skrl_side
from recenv.errors import UsageError
from recenv.population import Arrivals
from recenv.vector_env import RecsysVectorEnv

SHOP: dict[str, Any] = {
    "scenario": "full",
    "num_items": 1000,
    "num_categories": 20,
    "interest_dim": 16,
}
EVERYTHING_ON = SHOP | {"churn": True}
OWN_ROUTE = f"stable-baselines3's PPO by its defaults on {WORKERS} DummyVecEnvs"
LIGHT = 6000  # bytes that a shopper may cost
ROOM = 8e9  # bytes that training on candidates of many items may take
# agents and what is asked of them
LEARNERS: dict[str, tuple[str, dict[str, Any], float | None]] = {
    "ppo_sb3": ("ppo", {"backend": "sb3"}, 12.0),
    "ppo_device": ("ppo", {"backend": "device"}, None),
    # a turn begins anew: with the default a fifth of it would pass before anything is learned
    "dqn": ("dqn", {"learning_starts": 512}, None),
    "scorer": ("scorer", {}, None),
    "linucb": ("linucb", {}, None),
}
PEERS = {
    "sardine": "sardine-rec's SingleItem-BoredInf, I=1,000",
    "recsim": "recsim-no-tf's interest_evolution, 10 candidates, slates of 1",
}


def vector(bench: Bench) -> Iterator[Result]:
    """Everything on: what a step with newcomers at every step costs."""
    yield _against_cartpole(bench, "vector", "full, churn on", EVERYTHING_ON, floor=0.35)


def vector_no_churn(bench: Bench) -> Iterator[Result]:
    """The same shop, where everybody stays to the end."""
    yield _against_cartpole(bench, "vector_no_churn", "full", SHOP, floor=0.4)


def _against_cartpole(
    bench: Bench, row: str, scenario: str, keywords: dict[str, Any], floor: float
) -> Result:
    n, steps = bench.sizes.num_envs, bench.sizes.vector_steps
    return bench.compare(
        row,
        f"vector env of {n:,}: {scenario}, {_shape(keywords)}",
        f"{CARTPOLE} vector env of {n:,}",
        (vector_side("Recsys-v0", n, steps, **keywords), vector_side(CARTPOLE, n, steps)),
        bench.sizes.vector_rounds,
        floor=floor,
    )


def floor(bench: Bench) -> Iterator[Result]:
    """What the arithmetic costs by itself."""
    n, steps = bench.sizes.floor_envs, bench.sizes.floor_steps
    yield bench.compare(
        "floor",
        f"vector env of {n:,}: full, churn on, {_shape(EVERYTHING_ON)}",
        "bare numpy: the same arithmetic and draws, nothing checked or told",
        (
            vector_side("Recsys-v0", n, steps, **EVERYTHING_ON),
            floor_side(n, steps, **EVERYTHING_ON),
        ),
        bench.sizes.vector_rounds,
        floor=0.5,
    )


def sweep(bench: Bench) -> Iterator[Result]:
    """Over shoppers, and over items, against CartPole's of as many."""
    sizes, usual = bench.sizes, EVERYTHING_ON["num_items"]
    pairs = [(n, usual) for n in sizes.sweep_envs]
    pairs += [(sizes.num_envs, items) for items in sizes.sweep_items]
    for n, items in pairs:
        keywords = EVERYTHING_ON | {"num_items": items}
        steps = max(1, sizes.sweep_recommendations // n)
        yield bench.compare(
            f"sweep_{n}x{items}",
            f"vector env of {n:,}: full, churn on, {_shape(keywords)}",
            f"{CARTPOLE} vector env of {n:,}",
            (vector_side("Recsys-v0", n, steps, **keywords), vector_side(CARTPOLE, n, steps)),
            sizes.sweep_rounds,
        )


def single(bench: Bench) -> Iterator[Result]:
    """The same shop through gym.make."""
    what = f"single env: full, churn on, {_shape(EVERYTHING_ON)}"
    yield _single_against_cartpole(bench, "single", what, EVERYTHING_ON)


def single_default(bench: Bench) -> Iterator[Result]:
    """What gym.make gives by itself."""
    yield _single_against_cartpole(bench, "single_default", "single env: default keywords", {})


def _single_against_cartpole(bench: Bench, row: str, what: str, keywords: dict[str, Any]) -> Result:
    steps = bench.sizes.single_steps
    return bench.compare(
        row,
        what,
        f"{CARTPOLE} single env",
        (single_side("Recsys-v0", steps, **keywords), single_side(CARTPOLE, steps)),
        bench.sizes.single_rounds,
        floor=0.25,
    )


def catalogue(bench: Bench) -> Iterator[Result]:
    """Only the chosen item is scored, so a large catalogue should cost little."""
    n, steps = bench.sizes.num_envs, bench.sizes.vector_steps
    large = EVERYTHING_ON | {"num_items": bench.sizes.many_items}
    yield bench.compare(
        "catalogue",
        f"cost of a step of the vector env of {n:,} at I={bench.sizes.many_items:,}",
        f"at I={EVERYTHING_ON['num_items']:,}",
        (
            vector_side("Recsys-v0", n, steps, **large),
            vector_side("Recsys-v0", n, steps, **EVERYTHING_ON),
        ),
        bench.sizes.vector_rounds,
        ceiling=1.3,
    )


def retrieval(bench: Bench) -> Iterator[Result]:
    """Candidates of a large catalogue: what their search costs, and what it leaves of learning."""
    sizes = bench.sizes
    many, few = sizes.many_items, int(EVERYTHING_ON["num_items"])
    default = group_defaults("env", "retrieve")
    larger, smaller = (default | {"num_items": items} for items in (many, few))
    shape = f"env=retrieve, {default['candidates']} candidates"
    yield bench.compare(
        "retrieval_step",
        f"vector env of {sizes.num_envs:,}: {shape} of I={many:,}",
        f"of I={few:,}",
        (
            stepped(make_env(larger, sizes.num_envs), sizes.retrieve_steps),
            stepped(make_env(smaller, sizes.num_envs), sizes.retrieve_steps),
        ),
        sizes.train_rounds,
    )
    yield bench.compare(
        "retrieval_training",
        f"training of agent=ppo: {shape} of I={many:,}, cpu, one thread",
        f"of I={few:,}",
        (agent_side("ppo", sizes, larger), agent_side("ppo", sizes, smaller)),
        sizes.train_rounds,
        floor=0.5,
    )
    yield _below("retrieval_memory", "most memory of this process so far", _peak(), ROOM)


def _peak() -> float:
    """Bytes of the resident set of this process, at most so far."""
    try:
        import resource
    except ImportError:  # on Windows there is none
        raise UsageError(
            "rows=retrieval measures memory, which this system does not tell"
        ) from None
    unit = 1 if sys.platform == "darwin" else 1024
    return float(unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def training(bench: Bench) -> Iterator[Result]:
    """Learning alone: nothing is evaluated or written meanwhile."""
    sizes = bench.sizes
    sides = [agent_side(name, sizes, **changes) for name, changes, _ in LEARNERS.values()]
    rounds = bench.turns("training", [*sides, sb3_side(sizes)], sizes.train_rounds)
    for i, (row, (name, changes, asked)) in enumerate(LEARNERS.items()):
        words = " ".join([f"agent={name}", *(f"agent.{k}={v}" for k, v in changes.items())])
        yield bench.result(
            f"training_{row}",
            f"training of {words}: full, default keywords, cpu, one thread",
            OWN_ROUTE,
            [(speeds[i], speeds[-1]) for speeds in rounds],
            floor=asked,
        )


def skrl(bench: Bench) -> Iterator[Result]:
    """Why ``agent.backend=device`` has a loop of its own."""
    sizes = bench.sizes
    yield bench.compare(
        "skrl",
        "training of agent=ppo agent.backend=device: full, default keywords, cpu, one thread",
        "skrl's PPO on the same torch env, networks as wide, as many minibatches and epochs",
        (agent_side("ppo", sizes, backend="device"), skrl_side(sizes)),
        sizes.train_rounds,
    )


def time_to_score(bench: Bench) -> Iterator[Result]:
    """Seconds of learning until the score is there, by seeds."""
    found = times(bench.sizes, bench.out, bench.clock, bench.now)
    seeds = range(bench.sizes.score_seeds)
    pairs = [(found[f"ours {seed}"], found[f"sb3 {seed}"]) for seed in seeds]
    late = sum(not outcome["reached"] for outcome in found.values())
    most = f"{bench.sizes.score_steps:,} steps"
    fate = (
        f"{late} of the {len(found)} runs had not arrived after {most}: their time until then"
        if late
        else f"all {len(found)} runs arrived within {most}"
    )
    ratios = [other["seconds"] / ours["seconds"] for ours, other in pairs]
    yield Result(
        row="time_to_score",
        what=f"seconds of agent=ppo until {GOAL} of the planning oracle: full, default keywords",
        against=f"{OWN_ROUTE} ({fate})",
        unit="s",
        ours=median(ours["seconds"] for ours, _ in pairs),
        reference=median(other["seconds"] for _, other in pairs),
        ratio=median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        rounds=len(pairs),
        clock=bench.clock,
        floor=15.0,
    )


def peers(bench: Bench) -> Iterator[Result]:
    """Other projects' environments, in a Python that has them."""
    sizes = bench.sizes
    if bench.peers is None:
        raise UsageError("whose Python has the peers? pass peers=<python of a venv>")
    for name, against in PEERS.items():
        peer = Peer(bench.peers, name, sizes.peer_steps, bench.clock)
        sides = single_side("Recsys-v0", sizes.single_steps, **EVERYTHING_ON), peer
        what = f"single env: full, churn on, {_shape(EVERYTHING_ON)}"
        try:
            yield bench.compare(f"peer_{name}", what, against, sides, sizes.peer_rounds)
        finally:
            peer.close()


def bandit(bench: Bench) -> Iterator[Result]:
    """A decision and its learning, in time; and what a large catalogue costs."""
    sizes, cpu = bench.sizes, torch.device("cpu")
    batch = f"batches of {sizes.bandit_batch}"
    for items in sizes.bandit_items:
        yield bench.compare(
            f"bandit_{items}",
            f"cost of a decision of disjoint LinUCB, {FEATURES} features, {batch}, I={items:,}",
            "mabwiser's LinUCB, predict and partial_fit on the same batches",
            (bandit_side(sizes, items, cpu), mabwiser_side(sizes, items)),
            sizes.bandit_rounds,
            ceiling=0.1,
        )
    many, few = sizes.bandit_many_items, sizes.bandit_items[-1]
    yield bench.compare(
        "bandit_shared",
        f"cost of a decision of shared LinUCB, {FEATURES} x {FEATURES} features, {batch}, "
        f"I={many:,}",
        f"at I={few:,}",
        (bandit_side(sizes, many, cpu, shared=True), bandit_side(sizes, few, cpu, shared=True)),
        sizes.bandit_rounds,
        ceiling=many / few,
    )


def torch_env(bench: Bench) -> Iterator[Result]:
    """Compiled: on the cpu with all cores, and on the device that was asked for."""
    sizes, walls = bench.sizes, bench.by("wall")  # several threads: the cpu's seconds add up
    n, steps, cores = sizes.torch_envs, sizes.torch_steps, os.cpu_count() or 1
    for device in dict.fromkeys((torch.device("cpu"), bench.device)):
        with threads(cores):
            yield walls.compare(
                f"torch_{device.type}",
                f"compiled torch env of {n:,} on {device}, {cores} cores: full, churn on, "
                f"{_shape(EVERYTHING_ON)}",
                f"vector env of {n:,} on numpy",
                (
                    torch_side(n, steps, device, compile=True, **EVERYTHING_ON),
                    vector_side("Recsys-v0", n, steps, **EVERYTHING_ON),
                ),
                sizes.torch_rounds,
                floor=3.0,
            )


def memory(bench: Bench) -> Iterator[Result]:
    """What another shopper costs."""
    n = bench.sizes.num_envs
    env = RecsysVectorEnv(n, **EVERYTHING_ON)
    env.reset(seed=0)
    what = f"state, luck and waiting newcomers per shopper: T={env.shop.horizon}"
    yield _below("memory", f"{what}, {_shape(EVERYTHING_ON)}", state_bytes(env) / n, LIGHT)


def _below(row: str, what: str, cost: float, most: float) -> Result:
    """Bytes, of which at most so many may be."""
    ratio = cost / most
    return Result(
        row=row,
        what=what,
        against=f"{most:,.0f} bytes",
        unit="bytes",
        ours=cost,
        reference=most,
        ratio=ratio,
        ratio_min=ratio,
        ratio_max=ratio,
        ceiling=1.0,
    )


def state_bytes(env: RecsysVectorEnv) -> int:
    """Bytes of all arrays that grow with the shoppers of an env, those waiting included.

    What the spaces hold for their bounds is left out.
    """
    own = [value for name, value in vars(env).items() if not name.endswith("_space")]
    owners = {id(array): array for array in map(_owner, _arrays(own))}
    return sum(array.nbytes for array in owners.values())


def _arrays(value: Any) -> Iterator[np.ndarray]:
    """The arrays in nested tuples, lists and queues of arrivals."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _arrays(part)
    elif isinstance(value, Arrivals):
        yield from _arrays(list(vars(value).values()))


def _owner(array: np.ndarray) -> np.ndarray:
    """The array that holds the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _shape(keywords: dict[str, Any]) -> str:
    return (
        f"I={keywords['num_items']:,}, K={keywords['num_categories']}, D={keywords['interest_dim']}"
    )


ROWS: dict[str, Callable[[Bench], Iterator[Result]]] = {
    "vector": vector,
    "vector_no_churn": vector_no_churn,
    "floor": floor,
    "single": single,
    "single_default": single_default,
    "catalogue": catalogue,
    "sweep": sweep,
    "training": training,
    "skrl": skrl,
    "bandit": bandit,
    "torch": torch_env,
    "memory": memory,
    "retrieval": retrieval,
    "peers": peers,
    "time_to_score": time_to_score,
}
ASKED_FOR = ("retrieval", "peers", "time_to_score")  # rows that are measured only by name

"""Measure speed, as ratios within one run.

    python -m experiments.bench
    python -m experiments.bench quick=true rows=vector,single
    python -m experiments.bench strict=true out=/tmp/bench

Arguments:
    rows      which rows, by name (default: all)
                  vector            the vector env with everything on, against CartPole-v1's
                  vector_no_churn   the same with churn off
                  single            gym.make of the same shop, against CartPole-v1
                  single_default    gym.make with the default keywords, against CartPole-v1
                  catalogue         the cost of a large catalogue
                  ppo               agent=ppo, against stable-baselines3's own route
                  bandit            disjoint LinUCB against mabwiser's (extra dev), and the
                                    shared model at a large catalogue against a small one
                  torch             the torch env, against the vector env on numpy
                  memory            bytes per shopper
    device    auto | cpu | cuda | cuda:n; the torch env is measured on the cpu, and there
    out       where bench.json and bench.md go (default: runs/bench)
    quick     true: fewer steps and rounds, for a look
    strict    true: exit 1 when a row falls short of what is asked of it

Speeds differ between machines and from minute to minute; ratios hardly do. So the two
sides of a row take turns (A B A B ...), and its ratio is the median over the rounds of
each round's own ratio; the smallest and the largest are shown beside it. Actions are
drawn beforehand, both sides warm up, Python's garbage collector rests while the clock
runs, and torch uses one thread.
"""

from __future__ import annotations

import gc
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from tqdm import tqdm

from agents.bandits.exploration import UpperBound
from agents.bandits.posterior import BilinearRidge, Context, ItemRidge
from agents.base import resolve_device
from experiments.build import group_defaults, make_agent
from experiments.cli import arguments, entry
from experiments.results import versions, write_json, write_text
from recenv.errors import MissingExtra, UsageError, unknown
from recenv.population import Arrivals
from recenv.torch_env import RecsysTorchEnv
from recenv.vector_env import RecsysVectorEnv

# Does a fixed amount of work, and returns how many environment steps that was.
Side = Callable[[], int]

STEPS = "steps/s"
CARTPOLE = "CartPole-v1"
SHOP: dict[str, Any] = {
    "scenario": "full",
    "num_items": 1000,
    "num_categories": 20,
    "interest_dim": 16,
}
EVERYTHING_ON = SHOP | {"churn": True}
WORKERS = 8  # DummyVecEnvs of stable-baselines3's own route
FEATURES = 16  # of the bandits' shoppers, and of the shared model's items


@dataclass(frozen=True)
class Sizes:
    """How much is measured. Steps are calls of ``step``, rounds are turns of both sides."""

    num_envs: int = 1024
    vector_rounds: int = 50
    vector_steps: int = 500  # a multiple of the horizon: as many sessions in every round
    single_rounds: int = 40
    single_steps: int = 5000
    many_items: int = 100_000
    ppo_rounds: int = 5
    ppo_steps: int = 25_600  # two rollouts
    ppo: dict[str, Any] = field(default_factory=dict)  # over conf/agent/ppo.yaml
    sb3: dict[str, Any] = field(default_factory=dict)  # over stable-baselines3's defaults
    bandit_rounds: int = 5
    bandit_batch: int = 512  # decisions, and answers to learn from, at a time
    bandit_batches: int = 10  # of ours in a round; mabwiser gets one
    bandit_items: tuple[int, ...] = (100, 1000)
    bandit_many_items: int = 10_000


FULL = Sizes()
QUICK = Sizes(
    vector_rounds=15,
    vector_steps=200,
    single_rounds=10,
    single_steps=2000,
    ppo_rounds=1,
    bandit_rounds=1,
)


@dataclass(frozen=True)
class Result:
    """One row of the report.

    Attributes:
        row: its name.
        what, against: the two sides in words.
        unit: of ``ours`` and ``reference``.
        ours, reference: medians over the rounds.
        ratio, ratio_min, ratio_max: over the rounds; of speeds where a floor is asked or
            nothing is, of seconds per step where a ceiling is.
        rounds: how often the sides took turns.
        floor, ceiling: what is asked of the ratio.
    """

    row: str
    what: str
    unit: str
    ours: float
    against: str | None = None
    reference: float | None = None
    ratio: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    rounds: int = 1
    floor: float | None = None
    ceiling: float | None = None

    @property
    def verdict(self) -> str | None:
        """ "ok", "short", or None where nothing is asked."""
        if self.ratio is None or (self.floor is None and self.ceiling is None):
            return None
        reached = self.floor is None or self.ratio >= self.floor
        kept = self.ceiling is None or self.ratio <= self.ceiling
        return "ok" if reached and kept else "short"

    @property
    def asked(self) -> str:
        """What is asked of the ratio, in words."""
        if self.floor is not None:
            return f">= {self.floor:g}"
        return "" if self.ceiling is None else f"<= {self.ceiling:g}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


@dataclass(frozen=True)
class Bench:
    """What all rows share: how much to measure, on which device, by which clock."""

    sizes: Sizes
    device: torch.device
    clock: Callable[[], float] = time.perf_counter

    def compare(
        self,
        row: str,
        what: str,
        against: str,
        sides: tuple[Side, Side],
        rounds: int,
        *,
        floor: float | None = None,
        ceiling: float | None = None,
    ) -> Result:
        """Let both sides, ours first, take turns, and compare them round by round."""
        gc.collect()
        turns = tqdm(range(rounds), desc=row, file=sys.stderr, leave=False)
        speeds = [(self._speed(sides[0]), self._speed(sides[1])) for _ in turns]
        ratios = [ours / other if ceiling is None else other / ours for ours, other in speeds]
        return Result(
            row=row,
            what=what,
            against=against,
            unit=STEPS,
            ours=median(ours for ours, _ in speeds),
            reference=median(other for _, other in speeds),
            ratio=median(ratios),
            ratio_min=min(ratios),
            ratio_max=max(ratios),
            rounds=rounds,
            floor=floor,
            ceiling=ceiling,
        )

    def _speed(self, side: Side) -> float:
        """Environment steps per second of one turn."""
        with _no_garbage_collection():
            began = self.clock()
            steps = side()
            seconds = self.clock() - began
        return steps / seconds


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- the sides ---


def vector_side(env_id: str, num_envs: int, steps: int, **keywords: Any) -> Side:
    """Random actions in a native vector env, restarted by itself."""
    env = gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **keywords)
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


def ppo_side(sizes: Sizes) -> Side:
    """Training by the default configuration of agent=ppo, without evaluations."""
    config = group_defaults("agent", "ppo") | sizes.ppo
    agent = make_agent(config, {"scenario": "full"}, seed=0, device="cpu")
    learned = 0

    def count(timesteps: int) -> bool:
        nonlocal learned
        learned = timesteps
        return True

    def advance() -> int:
        agent.learn(sizes.ppo_steps, count)
        return learned

    agent.learn(1)
    return advance


def sb3_side(sizes: Sizes) -> Side:
    """Training one rollout as stable-baselines3 does it by itself, with its defaults."""
    envs = make_vec_env("recenv:Recsys-v0", n_envs=WORKERS, seed=0, env_kwargs={"scenario": "full"})

    def learner(**changes: Any) -> PPO:
        return PPO("MlpPolicy", envs, device="cpu", seed=0, **(sizes.sb3 | changes))

    model = learner()

    def advance() -> int:
        model.learn(1)  # it always finishes its rollout
        return model.num_timesteps

    learner(n_steps=8, batch_size=64).learn(1)  # a short warm-up: a whole rollout takes seconds
    return advance


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


# --- the rows ---


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


def ppo(bench: Bench) -> Iterator[Result]:
    """Learning alone: nothing is evaluated or written meanwhile."""
    yield bench.compare(
        "ppo",
        "training of agent=ppo: full, default keywords, cpu",
        f"stable-baselines3's PPO by its defaults on {WORKERS} DummyVecEnvs",
        (ppo_side(bench.sizes), sb3_side(bench.sizes)),
        bench.sizes.ppo_rounds,
        floor=12.0,
    )


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
    """On the cpu, and on the device that was asked for."""
    n, steps = bench.sizes.num_envs, bench.sizes.vector_steps
    for device in dict.fromkeys((torch.device("cpu"), bench.device)):
        yield bench.compare(
            f"torch_{device.type}",
            f"torch env of {n:,} on {device}: full, churn on, {_shape(EVERYTHING_ON)}",
            f"vector env of {n:,} on numpy",
            (
                torch_side(n, steps, device, **EVERYTHING_ON),
                vector_side("Recsys-v0", n, steps, **EVERYTHING_ON),
            ),
            bench.sizes.vector_rounds,
        )


def memory(bench: Bench) -> Iterator[Result]:
    """What another shopper costs."""
    n = bench.sizes.num_envs
    env = RecsysVectorEnv(n, **EVERYTHING_ON)
    env.reset(seed=0)
    yield Result(
        row="memory",
        what=f"state, luck and waiting newcomers per shopper: T={env.shop.horizon}, "
        f"{_shape(EVERYTHING_ON)}",
        unit="bytes",
        ours=state_bytes(env) / n,
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
    "single": single,
    "single_default": single_default,
    "catalogue": catalogue,
    "ppo": ppo,
    "bandit": bandit,
    "torch": torch_env,
    "memory": memory,
}


# --- the report ---


def machine() -> dict[str, Any]:
    """Where this was measured, and how busy it was at the time."""
    return {"cpu": _cpu(), "load_average": _load(), **versions()}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # no Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _load() -> float | None:
    """Processes that wanted a core, averaged over the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # no Unix
        return None


def measure(bench: Bench, names: list[str]) -> dict[str, Any]:
    """Measure the rows of those names.

    Returns:
        the report: ``rows`` (list of Result), ``machine`` and ``seconds``.
    """
    began, described = time.perf_counter(), machine()
    with _one_thread():
        rows = [result for name in names for result in ROWS[name](bench)]
    seconds = round(time.perf_counter() - began, 1)
    return {"rows": rows, "machine": described, "seconds": seconds}


HEADERS = (
    "row",
    "what",
    "against",
    "ours",
    "reference",
    "ratio",
    "min",
    "max",
    "asked",
    "verdict",
)
NUMBERS = ("ours", "reference", "ratio", "min", "max")


def cells(result: Result) -> tuple[str, ...]:
    """A row of the table as text, in the order of HEADERS."""
    return (
        result.row,
        result.what,
        result.against or "",
        _short(result.ours) if result.unit == STEPS else f"{result.ours:,.0f} {result.unit}",
        _short(result.reference),
        _figure(result.ratio),
        _figure(result.ratio_min),
        _figure(result.ratio_max),
        result.asked,
        result.verdict or "",
    )


def _short(value: float | None) -> str:
    """Steps per second in thousands or millions, short enough for a narrow terminal."""
    if value is None:
        return ""
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def _figure(ratio: float | None) -> str:
    """Three significant digits."""
    return "" if ratio is None else f"{ratio:#.3g}".rstrip(".")


def as_table(report: dict[str, Any]) -> Table:
    """The report for a terminal, which leaves no room for the sides in words."""
    title = "speed, as ratios within one run (ours and reference in steps/s)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    shown = [i for i, header in enumerate(HEADERS) if header not in ("what", "against")]
    for i in shown:
        justify: JustifyMethod = "right" if HEADERS[i] in NUMBERS else "left"
        table.add_column(HEADERS[i], justify=justify, overflow="fold")
    for result in report["rows"]:
        text = cells(result)
        style = "bold red" if result.verdict == "short" else None
        table.add_row(*(text[i] for i in shown), style=style)
    return table


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    marks = ["---:" if header in NUMBERS else "---" for header in HEADERS]
    rows = [HEADERS, marks, *map(cells, report["rows"])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    facts = "\n".join(f"- {name}: {value}" for name, value in report["machine"].items())
    return (
        "# Speed, as ratios within one run\n\n"
        f"{table}\n\n"
        "Ours and the reference are in steps/s unless said. "
        "The sides take turns; the ratio is the median over the rounds of each round's own "
        "ratio, with the smallest and the largest beside it. It is a ratio of speeds where "
        "at least something is asked or nothing is, of seconds per step where at most "
        f"something is. Measured in {report['seconds']:.0f} s.\n\n"
        f"{facts}\n"
    )


def publish(report: dict[str, Any], out: Path) -> None:
    """Print the report, and write it as JSON and Markdown."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(as_table(report))
    about = report["machine"]
    console.print(f"machine: {about['cpu']}, {about['cores']} cores, load {about['load_average']}")
    listed = report | {"rows": [result.as_json() for result in report["rows"]]}
    try:
        write_json(out / "bench.json", listed)
        write_text(out / "bench.md", as_markdown(report))
    except OSError as error:
        raise _not_writable(out, error) from None
    console.print(f"report: {out / 'bench.md'}, {out / 'bench.json'}")


def main(argv: list[str]) -> None:
    """Measure, print and write; with strict=true exit 1 when a row falls short."""
    defaults = {
        "rows": None,
        "device": "auto",
        "out": "runs/bench",
        "quick": False,
        "strict": False,
    }
    asked = arguments(argv, defaults)
    names, quick, strict = _names(asked["rows"]), _flag(asked, "quick"), _flag(asked, "strict")
    device = resolve_device(str(asked["device"]))
    if "bandit" in names:
        mabwiser()  # missed before anything is measured
    out = _directory(asked["out"])
    report = measure(Bench(QUICK if quick else FULL, device), names)
    publish(report | {"quick": quick, "device": str(device)}, out)
    short = [result.row for result in report["rows"] if result.verdict == "short"]
    if strict and short:
        print(f"short of what is asked: {', '.join(short)}", file=sys.stderr)
        sys.exit(1)


def _names(rows: Any) -> list[str]:
    """The names in ``rows=a,b``, each once; all where none is given."""
    if rows is None:
        return list(ROWS)
    words = rows if isinstance(rows, list) else str(rows).split(",")
    names = [str(word).strip() for word in words]
    for name in names:
        if name not in ROWS:
            raise unknown("row", name, ROWS)
    return list(dict.fromkeys(names))


def _flag(asked: dict[str, Any], name: str) -> bool:
    value = asked[name]
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, got {value!r}")
    return value


def _directory(out: Any) -> Path:
    """The directory ``out``, made before anything is measured."""
    if not isinstance(out, (str, int, float)) or not str(out):
        raise UsageError(f"out must name a directory, got {out!r}")
    path = Path(str(out))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(path, error) from None
    return path


def _not_writable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write to {path}: {error.strerror or error}: choose another out")


if __name__ == "__main__":
    entry(main, __doc__)

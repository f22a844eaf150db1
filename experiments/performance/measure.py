"""Two sides take turns, and their speeds are compared round by round."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from tqdm import tqdm


class Timed(NamedTuple):
    """A turn that another process timed."""

    steps: int
    seconds: float


# Does a fixed amount of work, and returns how many environment steps that was.
Side = Callable[[], int | Timed]
# Seconds on the wall, or of the CPU: what other processes do meanwhile does not count.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

STEPS = "steps/s"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. Steps are calls of ``step``, rounds are turns of both sides."""

    num_envs: int = 1024
    vector_rounds: int = 50
    vector_steps: int = 500  # a multiple of the horizon: as many sessions in every round
    floor_envs: int = 4096
    floor_steps: int = 100
    torch_envs: int = 8192
    torch_rounds: int = 100  # many: for seconds at a time two threads can be slower, and one not
    torch_steps: int = 100
    sweep_envs: tuple[int, ...] = (64, 1024, 8192)
    sweep_items: tuple[int, ...] = (100, 10_000, 1_000_000)
    sweep_rounds: int = 15
    sweep_recommendations: int = 200_000  # in a turn
    single_rounds: int = 40
    single_steps: int = 5000
    many_items: int = 1_000_000
    retrieve_steps: int = 50
    train_rounds: int = 3
    train_steps: int = 25_600  # five rollouts of PPO
    warm_up: int = 6000  # past the steps in which DQN only collects
    agents: dict[str, Any] = field(default_factory=dict)  # over conf/agent/<name>.yaml
    sb3: dict[str, Any] = field(default_factory=dict)  # over stable-baselines3's defaults
    score_seeds: int = 3
    score_every: int = 10_000  # steps between two looks
    score_steps: int = 3_000_000  # after which a route has not arrived
    score_shoppers: int = 2000
    score_reference: str = "planning_oracle"
    peer_rounds: int = 10
    peer_steps: int = 2000
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
    floor_steps=50,
    torch_rounds=5,
    torch_steps=50,
    sweep_rounds=5,
    sweep_recommendations=50_000,
    train_rounds=1,
    score_steps=1_000_000,
    peer_rounds=3,
    peer_steps=500,
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
        clock: by which they were timed, see ``CLOCKS``.
        floor, ceiling: what is asked of the ratio.
        commit, cpu: the code that was measured, and where, if the row is older than the report.
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
    clock: str = "wall"
    floor: float | None = None
    ceiling: float | None = None
    commit: str | None = None
    cpu: str | None = None

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
    """What all rows share.

    Attributes:
        sizes: how much to measure.
        device: where the torch env is measured beside the cpu.
        clock: the name of a clock, see ``CLOCKS``.
        now: reads it.
        out: where the report goes, and what long rows keep of themselves.
        peers: a Python that has the peers installed.
    """

    sizes: Sizes
    device: torch.device
    clock: str = "wall"
    now: Callable[[], float] = time.perf_counter
    out: Path = Path("runs/bench")
    peers: Path | None = None

    def by(self, clock: str) -> Bench:
        """The same by another clock."""
        return replace(self, clock=clock, now=CLOCKS[clock])

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
        pairs = [(ours, other) for ours, other in self.turns(row, sides, rounds)]
        return self.result(row, what, against, pairs, floor=floor, ceiling=ceiling)

    def turns(self, row: str, sides: Sequence[Side], rounds: int) -> list[tuple[float, ...]]:
        """The speeds of all sides, round by round."""
        gc.collect()
        turns = tqdm(range(rounds), desc=row, file=sys.stderr, leave=False)
        return [tuple(self._speed(side) for side in sides) for _ in turns]

    def result(
        self,
        row: str,
        what: str,
        against: str,
        speeds: list[tuple[float, float]],
        *,
        floor: float | None = None,
        ceiling: float | None = None,
    ) -> Result:
        """A row from speeds, ours and the other's, round by round."""
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
            rounds=len(speeds),
            clock=self.clock,
            floor=floor,
            ceiling=ceiling,
        )

    def _speed(self, side: Side) -> float:
        """Environment steps per second of one turn."""
        with _no_garbage_collection():
            began = self.now()
            turn = side()
            seconds = self.now() - began
        return turn.steps / turn.seconds if isinstance(turn, Timed) else turn / seconds


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
def threads(count: int) -> Iterator[None]:
    """Let torch use so many."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""A peer's environment, stepped in a Python of its own: reads nothing of this project.

    <python of a venv> peer.py sardine|recsim <steps> wall|cpu

prints "ready", then for every line on its standard input the steps and seconds of a turn.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable


def single_item(steps: int) -> Callable[[], None]:
    import gymnasium
    import numpy
    import sardine  # noqa: F401 (registers)

    env = gymnasium.make("sardine/SingleItem-BoredInf-v0")
    env.reset(seed=0)
    actions = numpy.random.default_rng(0).integers(1000, size=(steps, 1))

    def advance() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return advance


def evolution(steps: int) -> Callable[[], None]:
    from recsim.environments import interest_evolution

    config = {"num_candidates": 10, "slate_size": 1, "resample_documents": True, "seed": 0}
    env = interest_evolution.create_environment(config)
    env.reset()
    rng = random.Random(0)
    actions = [[rng.randrange(10)] for _ in range(steps)]

    def advance() -> None:
        for action in actions:
            if env.step(action)[2]:
                env.reset()

    return advance


def main() -> None:
    name, steps, clock = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    now = time.process_time if clock == "cpu" else time.perf_counter
    advance = {"sardine": single_item, "recsim": evolution}[name](steps)
    advance()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = now()
        advance()
        print(steps, now() - began, flush=True)


if __name__ == "__main__":
    main()

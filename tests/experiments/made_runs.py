"""Run directories with made-up figures, written as real ones are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.results import VERSIONS, RunDirectory, write_json

LOW, MYOPIC, HIGH = -30.0, -10.0, 10.0  # so that the myopic oracle scores 0.5


def made(
    runs_dir: Path,
    agent: str = "ppo",
    seed: int = 0,
    world: int = 0,
    scores: Sequence[float] = (0.0, 0.5),
    shop: str = "synthetic-full",
    budget: int = 2000,
    high: str = "index_policy",
    finished: bool = True,
    versions: dict[str, Any] | None = None,
    served: Sequence[float | None] | None = None,
    **other: Any,
) -> RunDirectory:
    """A run with these scores at 1000, 2000, ... steps; at 0 if there is only one.

    ``other`` may set horizon, fingerprint, shoppers, shown_I and warnings.
    """
    name = shop + (f"+world_seed={world}" if world else "")
    run = RunDirectory(runs_dir / name / agent / f"seed={seed}")
    env = {"world_seed": world, "horizon": other.get("horizon", 50)}
    run.claim(
        {
            "agent": {"name": agent}, "env": env, "seed": seed, "total_timesteps": budget,
            "eval": {"seed": 0}, "fingerprint": other.get("fingerprint", name),
        },
        "error",
    )  # fmt: skip
    made_with = {"git": "abc", "numpy": "2.0", "machine": "m", "cores": 2} | (versions or {})
    write_json(run.path / VERSIONS, made_with)
    row: dict[str, float | None] = {}
    for place, score in enumerate(scores):
        value = LOW + score * (HIGH - LOW)
        row = {
            "timesteps": 0 if len(scores) == 1 else 1000 * (place + 1),
            "train_seconds": 1.0, "return_mean": value, "return_low": value - 2,
            "return_high": value + 2, "normalised_score": score, "normalised_low": score - 0.05,
            "normalised_high": score + 0.05, "conversion": (value + 50) / 100,
            "session_length": 50, "coverage": 0.5, "gini": 0.25, "entropy": 2.0,
            "top_item_share": 0.1, "training_return_mean": served[place] if served else None,
        }  # fmt: skip
        run.append(row)
    if finished:
        shown_I = np.asarray(other.get("shown_I", [6, 2, 2, 0]))
        summary = row | {
            "reference_low": {"name": "random", "return": LOW},
            "reference_myopic": {"name": "myopic_oracle", "return": MYOPIC},
            "reference_high": {"name": high, "return": HIGH},
            "eval_seed": 0,
            "eval_shoppers": other.get("shoppers", 2000),
            "warnings": other.get("warnings", []),
        }
        spread = np.array([-1.0, 1.0, -2.0, 2.0])
        return_E = float(row["return_mean"] or 0.0) + spread
        run.finish(summary, return_E, shown_I, np.array([0, 1, 0, 1]))
    return run

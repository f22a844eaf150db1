"""A few figures of every run of the leaderboard, in files small enough to commit.

runs.csv    one row per run and evaluation, appended as runs finish
about.json  what was asked of all runs, the references of every shop, and the versions
            that runs were made with, by the number that stands in runs.csv
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments import results
from experiments.comparison.runs import Run
from recenv.errors import UsageError

KEY = ("cell", "agent", "world", "seed", "versions", "horizon", "collapsed")
FIGURES = (
    "timesteps",
    "train_seconds",
    "return_mean",
    "return_low",
    "return_high",
    "training_return_mean",
    "conversion",
    "session_length",
    "coverage",
    "gini",
    "entropy",
    "top_item_share",
)
COLUMNS = (*KEY, *FIGURES)
ROLES = ("low", "high", "myopic")
BUDGET = 600_000  # environment steps of a run, where nothing else is asked for


class Ledger:
    """The kept figures of runs that answer one question.

    Args:
        directory: where the files are, or will be.
        question: what all runs have in common, JSON-able.

    Raises:
        UsageError: the files answer another question, or are damaged.
    """

    def __init__(self, directory: Path, question: dict[str, Any]):
        self.path = directory / "runs.csv"
        self._about = directory / "about.json"
        self.about: dict[str, Any] = {"question": question, "versions": [], "references": {}}
        self._rows: dict[tuple[str, str, int, int], list[list[str]]] = defaultdict(list)
        if self._about.is_file():
            self.about = results.read_json(self._about)
            if self.about["question"] != question:
                raise UsageError(
                    f"{directory} answers {self.about['question']}, asked for {question}: "
                    "pass the same, or another data directory"
                )
        if self.path.is_file():
            self._read()

    @property
    def done(self) -> set[tuple[str, str, int, int]]:
        """The (cell, agent, world, seed) that are in it."""
        return set(self._rows)

    def append(self, run: Run) -> None:
        """Keep the figures of a run; they are on disk when this returns.

        Raises:
            UsageError: runs in the same shop were judged in another way.
        """
        key = (run.cell, run.agent, run.world, run.seed)
        if key in self._rows:
            return
        shop, judged = f"{run.cell} world {run.world}", _judgement(run)
        known = self.about["references"].setdefault(shop, judged)
        if known != judged:
            raise UsageError(
                f"{run.where} was judged in another way than the kept runs of {shop}: "
                f"{judged} instead of {known}; do it again, or begin another data directory"
            )
        if run.versions not in self.about["versions"]:
            self.about["versions"].append(run.versions)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            results.write_json(self._about, self.about)
            rows = _rows(run, self.about["versions"].index(run.versions))
            new = not self.path.is_file()
            with self.path.open("a", newline="") as file:
                file.write(_lines([list(COLUMNS), *rows] if new else rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(f"cannot write to {self.path}: {error.strerror or error}") from None
        self._rows[key] = rows

    def runs(self) -> list[Run]:
        """All runs in it.

        Raises:
            UsageError: there are none, or the files do not fit together.
        """
        if not self._rows:
            raise UsageError(f"there is no run in {self.path}: run something first")
        try:
            return [self._run(rows) for rows in self._rows.values()]
        except (KeyError, IndexError, ValueError) as error:
            raise UsageError(f"{self.path} and {self._about.name} do not fit: {error!r}") from None

    def _read(self) -> None:
        with self.path.open(newline="") as file:
            rows = list(csv.reader(file))
        if not rows or tuple(rows[0]) != COLUMNS:
            raise UsageError(f"{self.path} does not have the columns of this version")
        cut = set()
        for row in rows[1:]:
            try:
                key = (row[0], row[1], int(row[2]), int(row[3]))
            except (IndexError, ValueError):
                raise UsageError(f"{self.path} is damaged: {','.join(row)}") from None
            self._rows[key].append(row)
            if len(row) != len(COLUMNS):
                cut.add(key)
        if cut:  # an interruption left half a line: that run is to be kept anew
            for key in cut:
                del self._rows[key]
            kept = [list(COLUMNS), *(row for run in self._rows.values() for row in run)]
            results.write_text(self.path, _lines(kept))

    def _run(self, rows: list[list[str]]) -> Run:
        cell, agent, world, seed, versions, horizon, collapsed = rows[0][: len(KEY)]
        cells = [[float(c) if c else np.nan for c in row[len(KEY) :]] for row in rows]
        evaluations = dict(zip(FIGURES, np.array(cells).T, strict=True))
        judged = self.about["references"][f"{cell} world {world}"]
        references = {role: judged[role] for role in ROLES}
        low, high = (references[role]["return"] for role in ("low", "high"))
        for end, name in (("mean", "score"), ("low", "low"), ("high", "high")):
            scaled = (evaluations[f"return_{end}"] - low) / max(high - low, 1e-9)
            evaluations[f"normalised_{name}"] = scaled
        return Run(
            where=f"{self.path}: {cell} {agent} world {world} seed {seed}",
            cell=cell,
            agent=agent,
            world=int(world),
            seed=int(seed),
            budget=int(self.about["question"]["total_timesteps"]),
            evaluations=evaluations,
            references=references,
            judged=tuple(judged["judged"]),
            horizon=int(horizon),
            fingerprint=judged["fingerprint"],
            versions=self.about["versions"][int(versions)],
            warnings=("the policy has collapsed",) if int(collapsed) else (),
        )


def _judgement(run: Run) -> dict[str, Any]:
    """What is common to all runs in a shop."""
    references = {role: run.references[role] for role in ROLES}
    return {**references, "judged": list(run.judged), "fingerprint": run.fingerprint}


def _rows(run: Run, versions: int) -> list[list[str]]:
    collapsed = int(any("collapsed" in warning for warning in run.warnings))
    key = [run.cell, run.agent, run.world, run.seed, versions, run.horizon, collapsed]
    table = np.stack([run.evaluations[name] for name in FIGURES], axis=1)
    return [[*map(str, key), *(_short(value) for value in row)] for row in table.tolist()]


def _short(value: float) -> str:
    """Five digits tell more than the shoppers' luck leaves certain; whole numbers stay whole."""
    if np.isnan(value):
        return ""
    return str(int(value)) if value == int(value) else f"{value:.5g}"


def _lines(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()

"""The runs of a comparison: which belong together, and which must not be averaged.

A cell is a shop without its world seed (synthetic-full, complete_journey-satiation); an
agent's figure in a cell is over its runs there, training seeds within world seeds. What
cannot be averaged is refused in one line; what can be, but should be known, is a note that
stands at the top of the report.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments import results
from experiments.stats import Estimate, bootstrap, interquartile_mean
from recenv.errors import UsageError
from recenv.scenarios import SCENARIOS
from recenv.seeding import Role, generator

AGAIN = "do the older ones again with if_exists=overwrite, or compare them apart"


@dataclass(frozen=True, eq=False)
class Run:
    """What a comparison knows of a finished run.

    Attributes:
        where: its directory or other name, for messages.
        cell: the shop without its world seed.
        agent: the agent's label, with what is not default about it.
        world, seed: the seeds of the shop and of training.
        budget: environment steps that learning was granted.
        evaluations: a column each, see ``results.COLUMNS``.
        references: name and return of "low", "high" and "myopic".
        judged: by which shoppers (eval.seed, eval.shoppers).
        horizon: recommendations in a session.
        fingerprint: of the shop.
        versions: see ``results.versions``.
        return_N: of every shopper in the last evaluation, if known.
        shown: how often each item was recommended in it and the item's category, if known.
        warnings: what the evaluation warned of.
    """

    where: str
    cell: str
    agent: str
    world: int
    seed: int
    budget: int
    evaluations: dict[str, np.ndarray]
    references: dict[str, dict[str, Any]]
    judged: tuple[int, int]
    horizon: int
    fingerprint: str
    versions: dict[str, Any]
    return_N: np.ndarray | None = None
    shown: tuple[np.ndarray, np.ndarray] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def learns(self) -> bool:
        return bool(self.evaluations["timesteps"][-1] > 0)

    @property
    def shop(self) -> tuple[str, int]:
        return self.cell, self.world

    def last(self, column: str) -> float:
        """An entry of the last evaluation."""
        return float(self.evaluations[column][-1])

    def reference(self, role: str) -> float:
        return float(self.references[role]["return"])

    @property
    def myopic_score(self) -> float:
        """The myopic oracle on the normalised scale."""
        low, high = self.reference("low"), self.reference("high")
        return (self.reference("myopic") - low) / max(high - low, 1e-9)


@dataclass(frozen=True, eq=False)
class Group:
    """The runs of one agent in one cell, as many in every world, ordered by world and seed."""

    cell: str
    agent: str
    runs: tuple[Run, ...]
    complete: bool  # whether it has every run that others have

    @property
    def learns(self) -> bool:
        return self.runs[0].learns

    @property
    def world_R(self) -> np.ndarray:
        return np.array([run.world for run in self.runs])

    @property
    def score_R(self) -> np.ndarray:
        return self.last_R("normalised_score")

    def last_R(self, column: str) -> np.ndarray:
        """An entry of every run's last evaluation."""
        return np.array([run.last(column) for run in self.runs])

    def mean(self, column: str) -> float:
        return float(self.last_R(column).mean())

    @cached_property
    def score(self) -> Estimate:
        """Interquartile mean of the last scores; its interval over runs, of one over shoppers."""
        if len(self.runs) == 1:
            (run,) = self.runs
            names = ("normalised_score", "normalised_low", "normalised_high")
            return Estimate(*(run.last(name) for name in names))
        rng = generator(Role.STATISTICS, 0)
        return bootstrap(self.score_R[:, None], interquartile_mean, rng, world_R=self.world_R)

    @cached_property
    def curve_RE(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps (E,) of the run that was evaluated least far, and scores (R, E) there."""
        return self.over_steps("normalised_score")

    def over_steps(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of every run's evaluations (R, E), at steps that all have."""
        shortest = min(self.runs, key=lambda run: run.evaluations["timesteps"][-1])
        steps_E = shortest.evaluations["timesteps"]
        value_RE = [
            np.interp(steps_E, run.evaluations["timesteps"], run.evaluations[column])
            for run in self.runs
        ]
        return steps_E, np.array(value_RE)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs that may be averaged, in their groups, and what a reader should know first."""

    runs: tuple[Run, ...]
    notes: tuple[str, ...]
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)

    @cached_property
    def cells(self) -> list[str]:
        """In the order of the scenarios, generated shops first."""
        known = list(SCENARIOS)

        def place(cell: str) -> tuple[bool, int, str]:
            scenario = re.split(r"[-+]", title(cell))[0]
            place = known.index(scenario) if scenario in known else len(known)
            return not cell.startswith("synthetic-"), place, cell

        return sorted({cell for cell, _ in self.groups}, key=place)

    @cached_property
    def agents(self) -> list[str]:
        """Best first, by the mean of their scores over cells."""
        score = defaultdict(list)
        for (_, agent), group in self.groups.items():
            score[agent].append(group.score.value)
        return sorted(score, key=lambda agent: (-float(np.mean(score[agent])), agent))

    def in_cell(self, cell: str) -> list[Group]:
        """The groups of a cell, best first."""
        found = [self.groups[cell, a] for a in self.agents if (cell, a) in self.groups]
        return sorted(found, key=lambda group: -group.score.value)

    def high_names(self, cell: str) -> list[str]:
        runs = [run for run in self.runs if run.cell == cell]
        return sorted({str(run.references["high"]["name"]) for run in runs})

    def myopic_score(self, cell: str) -> float:
        """The myopic oracle on the normalised scale, mean over the cell's worlds."""
        by_world = {run.world: run.myopic_score for run in self.runs if run.cell == cell}
        return float(np.mean(list(by_world.values())))

    @cached_property
    def everywhere(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Scores (R, J) of agents that have runs in all J cells, and the worlds (R,)."""
        found = {}
        most = max((len(group.runs) for group in self.groups.values()), default=0)
        for agent in self.agents:
            groups = [
                self.groups[cell, agent] for cell in self.cells if (cell, agent) in self.groups
            ]
            if len(groups) == len(self.cells):
                grid = _grid(groups, most)
                if grid is not None:
                    found[agent] = grid
        return found


def title(cell: str) -> str:
    """A cell's name in pictures and tables."""
    return cell.removeprefix("synthetic-")


def read(
    runs_dir: Path, shops: str = "*", agents: Iterable[str] = ("*",)
) -> tuple[list[Run], list[str]]:
    """The finished runs below a directory, and a note on each that cannot be used.

    Raises:
        UsageError: there is none.
    """
    wanted = list(agents)
    found, notes = [], []
    for directory in results.find_runs(runs_dir):
        cell = _cell(directory)
        if not any(fnmatch(cell, shop) for shop in shops.split(",")):
            continue
        if not any(fnmatch(directory.label, pattern) for pattern in wanted):
            continue
        if not directory.finished:
            notes.append(f"left out: {directory.path} is not finished")
            continue
        try:
            found.append(read_run(directory))
        except UsageError as error:
            notes.append(f"left out: {error}")
    if not found:
        which = "" if shops == "*" and wanted == ["*"] else f" of shops={shops} agents={wanted}"
        why = f" ({notes[0]})" if notes else ""
        raise UsageError(f"there is no finished run{which} below {runs_dir}{why}")
    return found, notes


def read_run(directory: results.RunDirectory) -> Run:
    """One finished run.

    Raises:
        UsageError: a file is missing or damaged.
    """
    config, summary = directory.config(), directory.summary()
    evaluations = once_a_step(directory.evaluations())
    if not len(evaluations["timesteps"]):
        raise UsageError(f"{directory.path / results.EVALUATIONS} holds no evaluation")
    try:
        return Run(
            where=str(directory.path),
            cell=_cell(directory),
            agent=directory.label,
            world=int(config["env"].get("world_seed") or 0),
            seed=int(config["seed"]),
            budget=int(config["total_timesteps"]),
            evaluations=evaluations,
            references={r: summary[f"reference_{r}"] for r in ("low", "high", "myopic")},
            judged=(int(summary["eval_seed"]), int(summary["eval_shoppers"])),
            horizon=int(config["env"].get("horizon") or 50),
            fingerprint=str(config["fingerprint"]),
            versions=directory.versions(),
            return_N=directory.returns(),
            shown=directory.shown(),
            warnings=tuple(summary["warnings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        told = f"{type(error).__name__}: {error}"
        raise UsageError(f"{directory.path} is damaged or of another version ({told})") from None


def once_a_step(evaluations: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without evaluations that another one followed before any step was taken."""
    steps_E = evaluations["timesteps"]
    last_E = np.append(np.diff(steps_E) > 0, True)[: len(steps_E)]
    kept = {name: value_E[last_E] for name, value_E in evaluations.items()}
    # what was served belongs to the first of them: between them nothing was
    first_E = np.append(True, np.diff(steps_E) > 0)[: len(steps_E)]
    kept["training_return_mean"] = evaluations["training_return_mean"][first_E]
    return kept


def compare(found: Sequence[Run], notes: Sequence[str] = ()) -> Comparison:
    """Put runs that may be averaged into groups.

    Raises:
        UsageError: some must not be averaged; says which, and what to do.
    """
    runs, said = _unique(found)
    refuse(runs)
    said = [*notes, *said, *_flags(runs)]
    groups: dict[tuple[str, str], Group] = {}
    missing = _missing(runs)
    alike: dict[str, list[str]] = defaultdict(list)  # what is to be said, of which agents
    for cell, agent in sorted({(run.cell, run.agent) for run in runs}):
        own = [run for run in runs if (run.cell, run.agent) == (cell, agent)]
        kept, left = balanced(own)
        lacking = missing.get((cell, agent), [])
        if lacking:
            alike[f"{title(cell)}: no run of {_seeds(lacking)} from"].append(agent)
        if left:
            seeds = _seeds([(run.world, run.seed) for run in left])
            words = f"{title(cell)}: left out, so that every world counts alike, {seeds} of"
            alike[words].append(agent)
        groups[cell, agent] = Group(cell, agent, tuple(kept), not lacking and not left)
    said += [f"{words} {_listed(agents)}" for words, agents in alike.items()]
    comparison = Comparison(tuple(runs), tuple(said), groups)
    partly = [a for a in comparison.agents if a not in comparison.everywhere]
    if partly and len(comparison.cells) > 1:
        words = f"not in every shop, and so in no figure over all shops: {', '.join(partly)}"
        comparison = Comparison(tuple(runs), (*said, words), groups)
    return comparison


def refuse(runs: Sequence[Run]) -> None:
    """Refuse runs that no average may hold together.

    Raises:
        UsageError: budgets differ in a cell, or what judged the runs differs in a shop.
    """
    learning = [run for run in runs if run.learns]
    _one(learning, lambda r: r.cell, lambda r: r.budget, "total_timesteps", "{key}: pass {words}")
    for what, value in (
        ("fingerprint of the shop", lambda r: r.fingerprint),
        ("eval.seed and eval.shoppers", lambda r: r.judged),
        ("high reference", lambda r: (r.references["high"]["name"], r.reference("high"))),
        ("other references", lambda r: (r.reference("low"), r.reference("myopic"))),
    ):
        _one(runs, lambda r: r.shop, value, what, f"{{key}}: {AGAIN}")


def _one(
    runs: Sequence[Run],
    key: Callable[[Run], Hashable],
    value: Callable[[Run], Hashable],
    what: str,
    advice: str,
) -> None:
    """Refuse two values of ``what`` under one key."""
    known: dict[Hashable, dict[Hashable, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        known[key(run)][value(run)].append(run)
    for place, by_value in known.items():
        if len(by_value) > 1:
            (first, some), (second, others) = sorted(by_value.items(), key=lambda p: -len(p[1]))[:2]
            cell, *world = place if isinstance(place, tuple) else (place,)
            where = f"{cell} world {world[0]}" if world else str(cell)
            raise UsageError(
                f"mixed {what} in {where}: {_plain(first)} ({len(some)} runs, {some[0].where}) and "
                f"{_plain(second)} ({len(others)} runs, {others[0].where}); "
                + advice.format(key="these are never averaged", words=f"{what}={first}")
            )


def _flags(runs: Sequence[Run]) -> list[str]:
    """What is worth knowing, and no reason to refuse."""
    said = []
    budgets = sorted({run.budget for run in runs if run.learns})
    if len(budgets) > 1:
        said.append(f"shops differ in their budgets of environment steps: {_listed(budgets)}")
    for name in sorted({name for run in runs for name in run.versions} - {"machine", "cores"}):
        count = Counter(str(run.versions.get(name)) for run in runs)
        if len(count) > 1:
            parts = [f"{value[:13]} ({n} runs)" for value, n in count.most_common(4)]
            more = f" and {len(count) - 4} more" if len(count) > 4 else ""
            what = "commits" if name == "git" else f"versions of {name}"
            said.append(f"runs are of different {what}: {', '.join(parts)}{more}")
    if any(str(run.versions.get("git")).endswith("+") for run in runs):
        said.append("some runs are of code that was not committed (their commit ends in +)")
    for cell in sorted({run.cell for run in runs}):
        by_name = defaultdict(set)
        for run in runs:
            if run.cell == cell:
                high = run.references["high"]
                plan = f" ({high['plan']})" if high.get("plan") else ""
                by_name[f"{high['name']}{plan}"].add(run.world)
        if len(by_name) > 1:
            parts = [f"{n} in world {_listed(sorted(w))}" for n, w in sorted(by_name.items())]
            said.append(f"{title(cell)}: the high reference is {', '.join(parts)}")
    few = sorted({run.judged[1] for run in runs if run.judged[1] < 1000})
    if few:
        said.append(f"judged by {_listed(few)} shoppers: too few for a figure")
    return said + _collapsed(runs)


def _collapsed(runs: Sequence[Run]) -> list[str]:
    """Who recommends a handful of items, and where."""
    said = []
    for agent in sorted({run.agent for run in runs}):
        parts = []
        for cell in sorted({run.cell for run in runs}):
            own = [run for run in runs if (run.cell, run.agent) == (cell, agent)]
            count = sum(any("collapsed" in warning for warning in run.warnings) for run in own)
            parts += [f"{title(cell)} ({count} of {len(own)} runs)"] if count else []
        if parts:
            said.append(f"{agent} has collapsed on a handful of items in {', '.join(parts)}")
    return said


def _unique(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Without the runs that claim one seed, and a note on them."""
    claims: dict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        claims[run.cell, run.agent, run.world, run.seed].append(run)
    said = [
        f"left out: {' and '.join(run.where for run in claim)} claim one seed"
        for claim in claims.values()
        if len(claim) > 1
    ]
    kept = [claim[0] for claim in claims.values() if len(claim) == 1]
    if not kept:
        raise UsageError(f"nothing is left to compare: {said[0] if said else 'there are no runs'}")
    return kept, said


def _missing(runs: Sequence[Run]) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """The (world, seed) that an agent of a cell lacks and a learning agent there has.

    Agents that do not learn need one run in a world.
    """
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for cell in {run.cell for run in runs}:
        here = [run for run in runs if run.cell == cell]
        all_runs = {(run.world, run.seed) for run in here if run.learns}
        worlds = {run.world for run in here}
        for agent in {run.agent for run in here}:
            own = [run for run in here if run.agent == agent]
            if own[0].learns:
                lacking = all_runs - {(run.world, run.seed) for run in own}
            else:
                lacking = {(world, 0) for world in worlds - {run.world for run in own}}
            if lacking:
                found[cell, agent] = sorted(lacking)
    return found


def balanced(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """The runs with the lowest seeds, as many in every world, and those left over."""
    by_world = defaultdict(list)
    for run in sorted(runs, key=lambda run: (run.world, run.seed)):
        by_world[run.world].append(run)
    each = min(len(own) for own in by_world.values())
    kept = [run for own in by_world.values() for run in own[:each]]
    left = [run for own in by_world.values() for run in own[each:]]
    return kept, left


def _grid(groups: Sequence[Group], most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores (R, J) over cells with rows that agree on the world, and the worlds (R,).

    An agent that does not learn plays alike for every training seed, and its run in a world
    stands for all of them. A cell of one world gives its runs in order of their seeds:
    they are independent, whatever world the other cells have in that row. None if a cell has
    too few.
    """
    many = [group for group in groups if len(set(group.world_R)) > 1]
    worlds = sorted(
        set.intersection(*(set(group.world_R.tolist()) for group in many or groups[:1]))
    )
    if not worlds:
        return None
    counts = [min(int(np.sum(g.world_R == w)) for w in worlds) for g in many]
    if not groups[0].learns:
        each = max(most // len(worlds), 1)
    else:
        each = min([*counts, *(len(g.runs) // len(worlds) for g in groups if g not in many)])
    if each == 0:
        return None
    columns = []
    for group in groups:
        if group in many:
            rows = [np.resize(group.score_R[group.world_R == w], each) for w in worlds]
            columns.append(np.concatenate(rows))
        else:
            columns.append(np.resize(group.score_R, each * len(worlds)))
    return np.stack(columns, axis=1), np.repeat(worlds, each)


def _cell(directory: results.RunDirectory) -> str:
    return re.sub(r"\+world_seed=\d+(?=\+|$)", "", directory.shop)


def _seeds(pairs: Iterable[tuple[int, int]]) -> str:
    """(world, seed) pairs in words."""
    by_world = defaultdict(list)
    for world, seed in pairs:
        by_world[world].append(seed)
    parts = [f"world {world} seed {_listed(seeds)}" for world, seeds in by_world.items()]
    return ", ".join(parts[:5]) + (f" and {len(parts) - 5} more worlds" if len(parts) > 5 else "")


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _plain(value: Any) -> str:
    parts = value if isinstance(value, tuple) else (value,)
    return " ".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in parts)

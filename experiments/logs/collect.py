"""Collect an event log: an agent serves shoppers, and what happens is written down.

Beside the log (see schema.py) lies ``truth.npz``, what only a simulator knows: ``session`` and
``step`` of every recommendation in ascending order, ``interest`` (.., D) before it, and the
``purchase_probability`` of the item that was shown.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import polars as pl
from array_api_compat import numpy as xp
from tqdm import tqdm

from agents.base import Agent
from experiments import results
from experiments.logs.schema import (
    EVENT,
    EVENTS,
    ITEMS,
    ITEMS_FILE,
    LOG_FILE,
    ORGANIC,
    TRUTH_FILE,
)
from recenv import dynamics as physics
from recenv.catalogue import Catalogue
from recenv.dynamics import Event, State, Traits
from recenv.errors import UsageError, unknown
from recenv.organic import Browsing, Habits, Organic
from recenv.seeding import Role, derive_seed, generator
from recenv.shop import Shop
from recenv.vector_env import RecsysVectorEnv

FORMAT = 1  # of the log
IF_EXISTS = ("error", "overwrite")
ROWS_PER_FILE = 1_000_000
SECOND = 1_000_000  # microseconds
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
SPAN = timedelta(days=28)  # in which all sessions begin
PAUSE = (5 * SECOND, 60 * SECOND)  # before a recommendation
RETURN_AFTER = 1800 * SECOND  # the same shopper does not come back sooner


@dataclass(frozen=True)
class Recipe:
    """What is collected, and how.

    Attributes:
        episodes: sessions.
        seed: of the shoppers, their luck and what they do by themselves.
        explore: share of the recommendations that are random items.
        stochastic: the agent draws from its own probabilities.
        organic: shoppers browse and search by themselves; where agents see what they do
            (env.organic_views, env.organic_searches), that is written instead.
        habits: how often they do.
        truth: write what only the simulator knows.
        minari: the id of a Minari dataset of the same sessions; None for none.
    """

    episodes: int
    seed: int = 0
    explore: float = 0.1
    stochastic: bool = False
    organic: bool = True
    habits: Habits = field(default_factory=Habits)
    truth: bool = True
    minari: str | None = None


def collect(
    agent: Agent,
    env: RecsysVectorEnv,
    out: Path,
    recipe: Recipe,
    *,
    about: dict[str, Any] | None = None,
    if_exists: str = "error",
    progress: bool = False,
) -> dict[str, Any]:
    """Let ``agent`` serve ``recipe.episodes`` sessions in ``env``, and write the log.

    The log appears whole or not at all: it is written beside its place and then moved there.

    Args:
        env: it has to reset itself (autoreset_mode="SameStep").
        out: the log's directory.
        about: what else log.json should say.
        if_exists: "error" refuses to write over a log, "overwrite" does.
        progress: show a bar.

    Returns:
        what log.json says.

    Raises:
        UsageError: ``out`` is taken or cannot be written.
    """
    if env.shop.settings.autoreset_mode != "SameStep":
        raise UsageError('a log is collected only where env.autoreset_mode="SameStep"')
    if recipe.episodes < 1:
        raise UsageError(f"episodes must be at least 1, got {recipe.episodes}")
    exporters: list[Writer] = []
    if recipe.minari is not None:
        from experiments.logs.export import Exporter  # minari is imported where it is asked for

        overwrite = if_exists == "overwrite"
        exporters = [Exporter(recipe.minari, keywords(env.shop), agent.name, overwrite)]
    told = {"recipe": asdict(recipe)} | (about or {})
    with writing_log(
        out, agent, env, truth=recipe.truth, also=exporters, about=told, if_exists=if_exists
    ) as book:
        bar = tqdm(total=recipe.episodes, desc="sessions", disable=not progress, mininterval=0.5)
        with bar, agent.acting_in(env), results.writing(out):
            if not agent.learns:
                agent.learn(0)  # oracles plan and tune here
            for step in serve(agent, env, recipe):
                book.add(step)
                bar.update(int(step.over_n.sum()))
    return book.told


class Writer(Protocol):
    """Notes steps as they come."""

    def add(self, step: Step) -> None: ...

    def finish(self) -> None: ...


@dataclass
class Book:
    """A log that is being written.

    Attributes:
        writers: to whom each step is told.
        told: what log.json says, once it is written.
    """

    writers: list[Writer]
    told: dict[str, Any] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        for writer in self.writers:
            writer.add(step)


@contextmanager
def writing_log(
    out: Path,
    agent: Agent,
    env: RecsysVectorEnv,
    *,
    truth: bool = True,
    also: Iterable[Writer] = (),
    about: dict[str, Any] | None = None,
    if_exists: str = "error",
) -> Iterator[Book]:
    """What is added to the book in here becomes the log in ``out``, or nothing does.

    Args:
        agent: who serves.
        also: other writers, told the same.
        truth, about, if_exists: as for ``collect``.

    Raises:
        UsageError: ``out`` is taken or cannot be written.
    """
    with _place(out, if_exists) as part:
        log = LogWriter(part, env.shop.catalogue, agent.name)
        book = Book([log, *([TruthWriter(part / TRUTH_FILE)] if truth else []), *also])
        yield book
        with results.writing(out):
            for writer in book.writers:
                writer.finish()
        book.told = log.told() | _describe(agent, env) | (about or {})
        results.write_json(part / LOG_FILE, book.told)


@contextmanager
def _place(out: Path, if_exists: str) -> Iterator[Path]:
    """A directory beside ``out`` that takes its place in the end, or goes away."""
    if if_exists not in IF_EXISTS:
        raise unknown("if_exists", if_exists, IF_EXISTS)
    if out.is_file() or out.is_symlink() or (out.is_dir() and any(out.iterdir())):
        if not (out / LOG_FILE).is_file():
            raise UsageError(f"{out} is there already, and is no log: choose another out")
        if if_exists == "error":
            raise UsageError(f"{out} already holds a log: pass if_exists=overwrite or another out")
    part = out.with_name(f".{out.name}.part")
    with results.writing(out):
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        part.mkdir(parents=True)
    try:
        yield part
        with results.writing(out):
            if out.exists():
                shutil.rmtree(out)
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _describe(agent: Agent, env: RecsysVectorEnv) -> dict[str, Any]:
    """What log.json says beside the counts."""
    shop = env.shop
    catalogue = shop.catalogue
    return {
        "format": FORMAT,
        "policy": agent.name,
        "agent": agent.settings(),
        "env": keywords(shop),
        "world": shop.world.name,
        "scenario": shop.scenario,
        "fingerprint": results.fingerprint(shop),
        "catalogue": {
            "items": catalogue.num_items,
            "categories": catalogue.num_categories,
            "brands": int(catalogue.brand_I.max()) + 1,
            "words": int(catalogue.keywords_IW.shape[1]),
        },
        "horizon": shop.horizon,
        "num_envs": env.num_envs,
        "versions": results.versions(),
    }


def keywords(shop: Shop) -> dict[str, Any]:
    """Those that make the same shop again: ``gym.make("Recsys-v0", **keywords)``."""
    return asdict(shop.settings) | asdict(shop.dynamics)


@dataclass(frozen=True)
class Step:
    """One recommendation to each of n shoppers whose sessions are written.

    Attributes:
        session_n, step_n: number of the session, and of the recommendation in it, from 0.
        shopper_n: who.
        time_n: microseconds since 1970.
        item_n, propensity_n: what was shown, and with which probability (NaN: nobody knows).
        event_n: what she did with it.
        observation_nS: what the agent saw before.
        interest_nD, probability_n: her true interest before it, the probability of a purchase.
        reward_n, terminated_n, truncated_n: the environment's answer.
        final_n: the observation (S,) at the end of her session, None before it.
        browsing: what they did by themselves before it, told by places in these arrays.
        viewed_at_B, searched_at_Q: when, microseconds since 1970.
    """

    session_n: np.ndarray
    step_n: np.ndarray
    shopper_n: np.ndarray
    time_n: np.ndarray
    item_n: np.ndarray
    propensity_n: np.ndarray
    event_n: np.ndarray
    observation_nS: np.ndarray
    interest_nD: np.ndarray
    probability_n: np.ndarray
    reward_n: np.ndarray
    terminated_n: np.ndarray
    truncated_n: np.ndarray
    final_n: np.ndarray
    browsing: Browsing | None
    viewed_at_B: np.ndarray
    searched_at_Q: np.ndarray

    @property
    def over_n(self) -> np.ndarray:
        """Whose sessions ended with it."""
        over_n: np.ndarray = self.terminated_n | self.truncated_n
        return over_n


def serve(agent: Agent, env: RecsysVectorEnv, recipe: Recipe) -> Iterator[Step]:
    """Play ``recipe.episodes`` whole sessions, step by step; the agent acts in ``env``.

    The sessions are those that begin first, so that short ones are not overrepresented.
    """
    n, shop = env.num_envs, env.shop
    calendar = Calendar(env, recipe.episodes, generator(Role.LOG, recipe.seed))
    habits = recipe.habits if recipe.organic else None
    browse = Browse(shop, habits, generator(Role.ORGANIC, recipe.seed))
    observation_NS, _ = env.reset(seed=derive_seed(Role.LOG, recipe.seed))
    slot = np.arange(min(n, recipe.episodes))  # whose sessions are written
    begun = len(slot)
    session_N, step_N, time_N = np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64)
    time_N[slot] = calendar.begin(slot, env.shopper_id_N[slot])
    while len(slot):
        before = Before.of(env, slot, observation_NS)
        item_N, propensity_N = agent.serve(
            observation_NS, recipe.explore, stochastic=recipe.stochastic
        )
        before_n = time_N[slot]
        time_N[slot] += calendar.pause(len(slot))
        answer = env.step(item_N)
        step = before.answered(
            answer,
            session_N[slot],
            step_N[slot],
            time_N[slot],
            item_N[slot],
            propensity_N[slot],
            browse(before, before_n, time_N[slot]),
        )
        yield step
        observation_NS = answer[0]
        step_N[slot] += 1
        over = slot[step.over_n]
        fresh = over[: recipe.episodes - begun]
        session_N[fresh], step_N[fresh] = np.arange(begun, begun + len(fresh)), 0
        time_N[fresh] = calendar.begin(session_N[fresh], env.shopper_id_N[fresh])
        begun += len(fresh)
        slot = np.setdiff1d(slot, over[len(fresh) :], assume_unique=True)


Browsed = tuple[Browsing | None, np.ndarray, np.ndarray]  # what they did, and when
Answer = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]  # of a step


class Before(NamedTuple):
    """Some slots of a shop before a recommendation.

    Attributes:
        shop: theirs.
        slot: their numbers (n,).
        shopper_n: who is there.
        state, traits: of these shoppers; copies, which later steps leave alone.
        observation_nS: what the agent sees.
        browsing: what it sees of what they have just done by themselves; None: nothing.
    """

    shop: Shop
    slot: np.ndarray
    shopper_n: np.ndarray
    state: State
    traits: Traits
    observation_nS: np.ndarray
    browsing: Browsing | None

    @classmethod
    def of(cls, env: RecsysVectorEnv, slot: np.ndarray, observation_NS: np.ndarray) -> Before:
        state, traits = _rows(env.state, slot), _rows(env.traits, slot)
        who_n = env.shopper_id_N[slot]
        seen = None if env.browsing is None else env.browsing.of(slot, env.num_envs)
        return cls(env.shop, slot, who_n, state, traits, observation_NS[slot], seen)

    def answered(
        self,
        answer: Answer,
        session_n: np.ndarray,
        step_n: np.ndarray,
        time_n: np.ndarray,
        item_n: np.ndarray,
        propensity_n: np.ndarray,
        browsed: Browsed,
    ) -> Step:
        """The step that this became; the arguments are those of ``Step``."""
        _, reward_N, terminated_N, truncated_N, info = answer
        final_N = info.get("final_obs", np.full(len(reward_N), None))
        told, shop = info.get("final_info", info), self.shop
        items = physics.items_at(xp, shop.tables, item_n)
        where = self.state, self.traits, items
        utility_n = physics.respond(xp, shop.dynamics, *where, np.float32(0.0))
        return Step(
            session_n=session_n,
            step_n=step_n,
            shopper_n=self.shopper_n,
            time_n=time_n,
            item_n=item_n,
            propensity_n=propensity_n,
            event_n=told["event"][self.slot],
            observation_nS=self.observation_nS,
            interest_nD=self.state.interest,
            probability_n=physics.sigmoid(xp, utility_n),
            reward_n=reward_N[self.slot],
            terminated_n=terminated_N[self.slot],
            truncated_n=truncated_N[self.slot],
            final_n=final_N[self.slot],
            browsing=browsed[0],
            viewed_at_B=browsed[1],
            searched_at_Q=browsed[2],
        )


def _rows(tuple_N: Any, index: np.ndarray) -> Any:
    """Some rows of a named tuple of arrays."""
    return type(tuple_N)(*(leaf[index] for leaf in tuple_N))


class Browse:
    """What shoppers do by themselves, and when.

    Args:
        habits: where agents see nothing of it, how often they do; None: never.
        rng: of that, and of the times.
    """

    def __init__(self, shop: Shop, habits: Habits | None, rng: np.random.Generator):
        hidden = habits is not None and not shop.settings.organic
        self._organic = Organic(shop, habits) if hidden else None
        self._rng = rng

    def __call__(self, before: Before, begin_n: np.ndarray, end_n: np.ndarray) -> Browsed:
        """What they do between two times, and when they view and search."""
        found = before.browsing
        if self._organic is not None:
            found = self._organic(self._rng, before.state, before.traits)
        if found is None:
            return None, begin_n[:0], begin_n[:0]

        def when(who: np.ndarray) -> np.ndarray:
            span = (end_n - begin_n)[who]
            time_n: np.ndarray = begin_n[who] + (self._rng.random(len(who)) * span).astype(np.int64)
            return time_n

        return found, when(found.viewer_B), when(found.searcher_Q)


class Calendar:
    """When things happen. Sessions begin one after the other, spread over ``SPAN``.

    A regular shopper who would begin a session during another of hers comes later. Times
    come from a generator of their own.
    """

    def __init__(self, env: RecsysVectorEnv, episodes: int, rng: np.random.Generator):
        self._rng = rng
        self._width = int(SPAN.total_seconds()) * SECOND / episodes
        self._begin = int(BEGIN.timestamp()) * SECOND
        self._longest = env.shop.horizon * PAUSE[1] + RETURN_AFTER
        clientele = env.shop.clientele
        self._free = None if clientele is None else np.zeros(len(clientele.interest), np.int64)
        self._now = int(datetime.now(UTC).timestamp()) * SECOND

    def begin(self, session_n: np.ndarray, shopper_n: np.ndarray) -> np.ndarray:
        """When new sessions begin, (n,)."""
        share_n = session_n + self._rng.random(len(session_n))
        time_n: np.ndarray = self._begin + (share_n * self._width).astype(np.int64)
        if self._free is None:
            return time_n
        time_n = np.maximum(time_n, self._free[shopper_n])
        time_n += _repetition(shopper_n) * self._longest
        np.maximum.at(self._free, shopper_n, time_n + self._longest)
        if len(time_n) and time_n.max() + self._longest > self._now:
            raise UsageError(
                f"{len(self._free)} shoppers cannot have had so many sessions since {BEGIN:%Y}: "
                "set fewer episodes, or a larger env.num_shoppers"
            )
        return time_n

    def pause(self, count: int) -> np.ndarray:
        """How long shoppers take before their next recommendations, (count,)."""
        return self._rng.integers(*PAUSE, size=count)


def _repetition(value_n: np.ndarray) -> np.ndarray:
    """How often each value stands before it in the array."""
    order = np.argsort(value_n, kind="stable")
    ordered = value_n[order]
    first = np.searchsorted(ordered, ordered)
    repetition = np.empty(len(value_n), np.int64)
    repetition[order] = np.arange(len(value_n)) - first
    return repetition


class LogWriter:
    """Writes events-*.parquet and items.parquet, and counts.

    Args:
        directory: where to.
        catalogue: what is sold.
        policy: what the recommender is called in the log.
    """

    def __init__(self, directory: Path, catalogue: Catalogue, policy: str):
        self._directory = directory
        self._policy = policy
        self._items = items_table(catalogue)
        self._shown: list[tuple[np.ndarray, ...]] = []
        self._viewed: list[tuple[np.ndarray, ...]] = []
        self._searched: list[tuple[np.ndarray, ...]] = []
        self._rows = 0
        self._files: dict[str, int] = {}
        self._counts: list[pl.DataFrame] = []
        self._shoppers = np.zeros(0, np.int64)
        self._sessions = 0
        self._span = [2**62, 0]

    def add(self, step: Step) -> None:
        """Note a step; a file is written whenever there is enough for one."""
        who_n = (step.shopper_n, step.session_n, step.step_n)
        shown = (step.time_n, step.event_n, step.item_n, step.propensity_n)
        self._shown.append((*who_n, *shown))
        self._rows += len(step.item_n)
        self._sessions += int((step.step_n == 0).sum())
        if step.browsing is not None:
            viewer, viewed, searcher, words_QW = step.browsing
            self._viewed.append((*(of[viewer] for of in who_n), step.viewed_at_B, viewed))
            self._searched.append((*(of[searcher] for of in who_n), step.searched_at_Q, words_QW))
            self._rows += len(viewer) + len(searcher)
        if self._rows >= ROWS_PER_FILE:
            self._write()

    def finish(self) -> None:
        """Write what is left, and the catalogue."""
        if self._rows:
            self._write()
        self._items.write_parquet(self._directory / f"{ITEMS_FILE}.parquet")

    def told(self) -> dict[str, Any]:
        """The counts that log.json shows."""
        total = pl.concat(self._counts).group_by("organic", "event").agg(pl.col("len").sum())
        by_event = {
            name: dict.fromkeys(EVENT.categories.to_list(), 0)
            for name in ("recommended", "organic")
        }
        for organic, event, count in total.rows():
            by_event["organic" if organic else "recommended"][event] += count
        shown = sum(by_event["recommended"].values())
        begin, end = (datetime.fromtimestamp(at / SECOND, UTC).isoformat() for at in self._span)
        return {
            "files": self._files,
            "rows": sum(self._files.values()),
            "sessions": self._sessions,
            "steps": shown,
            "shoppers": len(self._shoppers),
            "events": by_event,
            "conversion": by_event["recommended"]["purchase"] / max(shown, 1),
            "begin": begin,
            "end": end,
        }

    def _write(self) -> None:
        """One file of what was noted since the last."""
        shown = _table(self._shown, ("timestamp", "event", "item", "propensity"))
        none = pl.DataFrame(schema=EVENTS)  # so that all columns are there
        parts = [none, shown.with_columns(pl.lit(self._policy).alias("policy"))]
        if self._viewed:
            viewed = _table(self._viewed, ("timestamp", "item"))
            parts.append(viewed.with_columns(_word(Event.VIEW), ORGANIC_POLICY))
            searched = _table(self._searched, ("timestamp", "query"))
            parts.append(searched.with_columns(_word(Event.SEARCH), ORGANIC_POLICY))
        events = pl.concat(parts, how="diagonal").drop("category", "brand", "price")
        facts = self._items.select("item", "category", "brand", "price")
        events = events.join(facts, on="item", how="left").select(list(EVENTS)).sort("timestamp")
        name = f"events-{len(self._files):04}.parquet"
        events.write_parquet(self._directory / name)
        self._files[name] = len(events)
        organic = (pl.col("policy") == ORGANIC).alias("organic")
        self._counts.append(events.group_by(organic, "event").len())
        self._shoppers = np.union1d(self._shoppers, events["shopper"].unique().to_numpy())
        time = events["timestamp"].to_physical()
        self._span = [min(self._span[0], time[0]), max(self._span[1], time[-1])]
        self._shown, self._viewed, self._searched, self._rows = [], [], [], 0


CODES = pl.Series(EVENT.categories.to_list(), dtype=EVENT)  # by code
ORGANIC_POLICY = pl.lit(ORGANIC).alias("policy")


def _word(event: Event) -> pl.Expr:
    return pl.lit(CODES[int(event)], dtype=EVENT).alias("event")


def _table(noted: list[tuple[np.ndarray, ...]], names: tuple[str, ...]) -> pl.DataFrame:
    """Columns of EVENTS from what was noted, chunk by chunk."""
    columns = (np.concatenate(chunks) for chunks in zip(*noted, strict=True))
    named = zip(("shopper", "session", "step", *names), columns, strict=True)
    return pl.DataFrame([_column(name, values) for name, values in named])


def _column(name: str, values: np.ndarray) -> pl.Series:
    """One column of EVENTS from numbers."""
    if name == "event":
        return CODES.gather(values.astype(np.int64)).alias(name)
    if name == "query":
        words = pl.Series(name, values.astype(np.int32)).arr.to_list()
        return words.list.filter(pl.element() >= 0)
    if name == "propensity":
        return pl.Series(name, values).cast(EVENTS[name]).fill_nan(None)
    return pl.Series(name, values).cast(EVENTS[name])


def items_table(catalogue: Catalogue) -> pl.DataFrame:
    """The public catalogue, columns of ITEMS."""
    item, word = np.nonzero(catalogue.keywords_IW)
    times = catalogue.keywords_IW[item, word].astype(np.int64)
    stands = pl.DataFrame({"item": item.repeat(times), "keywords": word.repeat(times)})
    words = stands.group_by("item", maintain_order=True).agg("keywords")
    number = range(catalogue.num_items)
    items = pl.DataFrame(
        {
            "item": number,
            "category": catalogue.category_I,
            "brand": catalogue.brand_I,
            "price": catalogue.price_I,
            "name": [catalogue.item_name(item) for item in number],
        }
    )
    none = pl.lit([], dtype=ITEMS["keywords"])
    joined = items.join(words, on="item", how="left", maintain_order="left")
    typed = joined.select(pl.col(name).cast(dtype) for name, dtype in ITEMS.items())
    return typed.with_columns(pl.col("keywords").fill_null(none))


class TruthWriter:
    """Writes what only the simulator knows of every recommendation."""

    def __init__(self, path: Path):
        self._path = path
        self._noted: list[tuple[np.ndarray, ...]] = []

    def add(self, step: Step) -> None:
        """Note a step."""
        known = (step.interest_nD, step.probability_n)
        self._noted.append((step.session_n, step.step_n.astype(np.int32), *known))

    def finish(self) -> None:
        """Write all in order of session and step."""
        columns = [np.concatenate(chunks) for chunks in zip(*self._noted, strict=True)]
        order = np.lexsort((columns[1], columns[0]))
        names = ("session", "step", "interest", "purchase_probability")
        ordered = (column[order] for column in columns)
        named: dict[str, Any] = dict(zip(names, ordered, strict=True))
        np.savez(self._path, **named)

"""Train interest models, and say how much of the true interest they recover.

    python -m experiments.interest encoder=gru
    python -m experiments.interest encoder=all histories=1,5,20,50 env.scenario=drift
    python -m experiments.interest encoder=cnn log=logs/shop

Arguments:
    encoder    mlp | cnn | gru | transformer, several separated by commas, or all (gru)
    histories  H, the interactions that a model reads, separated by commas (20)
    env.*      keywords of the environment
    steps      environment steps with random items that the models learn from (300000)
    log        learn from this log (experiments.collect) instead
    sessions   held-out sessions that judge (2000)
    design.*   width, token and size of the models
    training.* epochs, patience, batch_size, learning_rate, ...
    seed       of the sessions and of the weights (0)
    device     auto | cpu | cuda | cuda:n
    runs_dir   where models and results go (runs)
    out        the page and its picture, without ending (<runs_dir>/<environment>/interest/interest)
    if_exists  resume | overwrite: what to do about models that are there (resume)

Prints one row per model: the held-out loss of the next purchase (popularity beside it), R2 and
cosine of the true interest from u by a held-out linear probe, the same from raw counts and
sums of features over the same window, and how many rows a second the encoder reads; and what a
Bayes filter recovers that knows the shop's true model: more cannot be known.
Writes a component for each model to <runs_dir>/<environment>/interest/ (agent.interest=<it>), and
the table and the picture as <out>.md and <out>.png.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from agents.base import resolve_device
from agents.encoders import ENCODERS
from agents.interest.filter import filtered
from agents.interest.histories import Histories, record
from agents.interest.model import (
    Design,
    InterestModel,
    Training,
    fit,
    held_out,
    make_model,
    popularity_loss,
)
from agents.interest.probe import Recovery, interests, probe, raw_sums, windows
from agents.interest.reading import behaviour_of
from agents.references import Random
from experiments import plot, results
from experiments.build import group_defaults, make_env
from experiments.cli import arguments, command_of, entry, numbers
from recenv.errors import MissingExtra, unknown
from recenv.observation import with_words
from recenv.seeding import Role, derive_seed, generator
from recenv.shop import Shop, as_number
from recenv.vector_env import RecsysVectorEnv

SLOTS = 512  # shoppers at once
REPORT, FILTER = "report.json", "filter.json"
PARTICLES = 1024  # of the Bayes filter
LEARNING, JUDGING = 0, 1  # what recorded sessions are for
TIMED = 0.3  # seconds for which a speed is measured


@dataclass(frozen=True)
class Question:
    """What is asked; models of the same question are not trained again.

    Attributes:
        env: keywords of the environment.
        steps: see above; 0: learned from ``log``.
    """

    env: dict[str, Any]
    steps: int
    log: str | None
    sessions: int
    training: Training
    seed: int


@dataclass(frozen=True)
class Told:
    """What is known of one trained model.

    Attributes:
        next_purchase, answer: held-out losses in nats, see ``model.Losses``.
        popularity: loss of the next purchase of a guess by popularity alone.
        u, raw: what a probe recovers from u, and from counts and sums of features.
        steps_per_second: interactions that the encoder reads one by one, its memory carried.
        windows_per_second: windows of H that it reads anew.
        fit_seconds: what the training took.
    """

    design: Design
    next_purchase: float
    answer: float
    popularity: float
    u: Recovery
    raw: Recovery
    steps_per_second: float
    windows_per_second: float
    fit_seconds: float
    path: str


def measure(question: Question, design: Design, data: Data, place: Path, fresh: bool) -> Told:
    """The model of a design and what is known of it; trained unless it lies there already."""
    shape = results.suffix(asdict(design), asdict(Design(design.encoder)))
    path = place / f"{design.encoder}{shape}" / f"seed={question.seed}"
    asked = asdict(question) | {"design": asdict(design)}
    if not fresh and (path / REPORT).is_file():
        kept = results.read_json(path / REPORT)
        if kept.pop("asked", None) == asked:
            return _told(kept, str(path))
    model = make_model(design, data.feature_IF, question.seed).to(data.device)
    began = time.perf_counter()
    rng = generator(Role.AGENT, question.seed)

    def progress(epoch: int, learned: float, held: float) -> bool:
        line = f"{design.encoder} H={design.history}: epoch {epoch}, held-out loss {held:.4f}"
        print(line, file=sys.stderr)
        return True

    fit(model, data.learned, question.training, rng, progress)
    seconds = time.perf_counter() - began
    model.save(path)
    losses = held_out(model, data.judged)
    steps = data.probed
    seen_IF = with_words(data.feature_IF, design.words)
    sums = raw_sums(data.judged, seen_IF, design.history, steps)
    told = Told(
        design,
        losses.next_purchase,
        losses.answer,
        popularity_loss(data.learned, data.judged, model.num_items),
        probe(interests(model, data.judged, steps), data.judged, steps),
        probe(sums, data.judged, steps),
        *speeds(model, data.judged),
        seconds,
        str(path),
    )
    results.write_json(path / REPORT, asdict(told) | {"asked": asked})
    return told


def bound(question: Question, data: Data, shop: Shop, place: Path, fresh: bool) -> Recovery:
    """What a Bayes filter that knows the shop recovers, of a whole session."""
    asked = asdict(question) | {"particles": PARTICLES}
    if not fresh and (place / FILTER).is_file():
        kept = results.read_json(place / FILTER)
        if kept.pop("asked", None) == asked:
            return Recovery(**kept)
    rng = generator(Role.STATISTICS, question.seed)
    told = filtered(data.judged, shop, data.probed, rng, PARTICLES)
    found = probe(told.astype(np.float32), data.judged, data.probed)
    results.write_json(place / FILTER, asdict(found) | {"asked": asked})
    return found


@dataclass(frozen=True)
class Data:
    """Sessions to learn from and others to judge by."""

    learned: Histories
    judged: Histories
    feature_IF: np.ndarray
    device: torch.device

    @property
    def probed(self) -> list[int]:
        """The steps of a session before which the interest is probed."""
        t = self.judged.items_ST.shape[1]
        return sorted({*range(min(5, t - 1), t, 5), t - 1})


def data_of(question: Question, device: torch.device) -> Data:
    """Play, or read, what a question learns from; what judges is always played."""
    env = make_env(question.env, SLOTS)
    steps = question.sessions * env.shop.horizon
    judged = record(
        Random(),
        _enough(env, steps),
        steps,
        _seed(question.seed, JUDGING),
        generator(Role.STATISTICS, question.seed),
        1.0,
        truth=True,
    )
    learned = from_log(question.log, env) if question.log else played(question, env)
    return Data(learned, judged, env.shop.catalogue.features_IF, device)


def played(question: Question, env: RecsysVectorEnv) -> Histories:
    """Sessions of random recommendations."""
    seed, rng = _seed(question.seed, LEARNING), generator(Role.AGENT, question.seed)
    return record(Random(), _enough(env, question.steps), question.steps, seed, rng, 1.0)


def _enough(env: RecsysVectorEnv, steps: int) -> RecsysVectorEnv:
    """With so few slots that most sessions of so many steps are whole."""
    return env.sibling(min(max(steps // (2 * env.shop.horizon), 1), SLOTS))


def from_log(log: str, env: RecsysVectorEnv) -> Histories:
    """The sessions of a log, as this environment shows them."""
    try:
        from experiments.logs.features import seen_histories
        from experiments.logs.schema import read_log
    except ImportError as error:
        raise MissingExtra("reading a log", error.name or "polars", "logs") from None
    told: Histories = seen_histories(read_log(Path(log)).events, env.shop)
    return told


def _seed(seed: int, purpose: int) -> int:
    return derive_seed(Role.TUNING, 2 * seed + purpose)


@torch.no_grad()
def speeds(model: InterestModel, histories: Histories) -> tuple[float, float]:
    """Interactions a second with the memory carried along, and windows a second."""
    n, history = min(SLOTS, len(histories)), model.design.history
    t = int(histories.items_ST.shape[1])
    rows = [
        torch.as_tensor(part[:n], device=model.feature_IF.device)
        for part in windows(histories, t - 1, history)
    ]
    memory = model.encoder.begin(n)
    seen = [part[:, 0] for part in model.interactions(*rows)]
    return (
        _rate(n, lambda: model.encoder.read(model.encoder.advance(memory, *seen))),
        _rate(n, lambda: model(*rows)),
    )


def _rate(rows: int, work: Any) -> float:
    """Rows a second of the processor's time, which other work on the machine does not change."""
    work()
    began, count = time.process_time(), 0
    while time.process_time() - began < TIMED:
        work()
        count += 1
    return rows * count / (time.process_time() - began)


def _told(kept: dict[str, Any], path: str) -> Told:
    recoveries = {name: Recovery(**kept[name]) for name in ("u", "raw")}
    return Told(**kept | {"design": Design(**kept["design"]), "path": path} | recoveries)


HEAD = (
    "encoder", "H", "next purchase", "popularity", "R2 of u", "R2 of sums", "cosine of u",
    "cosine of sums", "steps/s", "windows/s",
)  # fmt: skip


def rows(found: list[Told], most: Recovery) -> list[list[str]]:
    """The cells of the table, under ``HEAD``; the last row is that of the filter."""
    known = ["Bayes filter", "all", "", "", f"{most.r2:.3f}", "", f"{most.cosine:.3f}", "", "", ""]
    return [
        [
            told.design.encoder,
            str(told.design.history),
            f"{told.next_purchase:.3f}",
            f"{told.popularity:.3f}",
            *(f"{of.r2:.3f}" for of in (told.u, told.raw)),
            *(f"{of.cosine:.3f}" for of in (told.u, told.raw)),
            f"{told.steps_per_second:,.0f}",
            f"{told.windows_per_second:,.0f}",
        ]
        for told in found
    ] + [known]


def markdown(found: list[Told], most: Recovery, command: str, picture: str) -> str:
    """The page."""
    lines = [HEAD, ["---"] * 2 + ["---:"] * (len(HEAD) - 2), *rows(found, most)]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return (
        f"# How much of the true interest is recovered from behaviour\n\n"
        f"`{command}`: by a linear probe of u, on sessions of random recommendations that nobody "
        "learned from. Raw: by the same probe of the counts of her answers and of sums of the "
        "features of what they befell, over the same H. The Bayes filter knows the shop's true "
        "law.\n\n"
        "Rows a second of one core's time: interactions read one by one (steps/s), and windows of "
        f"H read anew.\n\n{table}\n![R2 and cosine by H]({picture})\n"
    )


def print_all(found: list[Told], most: Recovery, shop: str) -> None:
    table = Table(title=f"interest models on {shop}", title_justify="left")
    for place, name in enumerate(HEAD):
        table.add_column(name, justify="left" if place < 1 else "right")
    for cells in rows(found, most):
        table.add_row(*cells)
    console = Console(soft_wrap=True, highlight=False)
    console.width = max(console.width, 140)  # a wide table is better cut off than squeezed
    console.print(table)
    for told in found:
        console.print(f"agent.interest={told.path}")


def draw(found: list[Told], most: Recovery, shop: str, out: Path) -> Path:
    """R2 and cosine over H, a line per encoder, and that of raw sums."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, measured in zip(figure.subplots(1, 2), ("r2", "cosine"), strict=True):
        draw_recovery(axis, found, measured)
        axis.axhline(getattr(most, measured), color="0.35", linewidth=1.0, linestyle=":")
        words = "Bayes filter of the true model, whole session"
        place = (0.02, getattr(most, measured))
        axis.annotate(
            words, place, xycoords=axis.get_yaxis_transform(), xytext=(0, 3),
            textcoords="offset points", fontsize=8, color="0.35",
        )  # fmt: skip
        axis.set_ylim(bottom=0.0)
    figure.suptitle(f"how much of the true interest is recovered, {shop}")
    return plot.save(figure, out)


def draw_recovery(axis: Any, found: list[Told], measured: str) -> None:
    """One panel of it."""
    lines: dict[str, dict[int, float]] = {}
    for told in found:
        lines.setdefault(told.design.encoder, {})[told.design.history] = getattr(told.u, measured)
        lines.setdefault("raw sums", {})[told.design.history] = getattr(told.raw, measured)
    looks = zip(plot.COLOURS, plot.MARKERS, strict=False)
    look = dict(zip((*ENCODERS, "raw sums"), looks, strict=False))
    for name in sorted(lines, key=lambda name: (name == "raw sums", name)):
        history, value = zip(*sorted(lines[name].items()), strict=True)
        colour, marker = look[name]
        style = "--" if name == "raw sums" else "-"
        axis.plot(history, value, style, color=colour, marker=marker, label=name)
    axis.set_xscale("log")
    axis.set_xticks(sorted({told.design.history for told in found}))
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.minorticks_off()
    axis.set_xlabel("interactions that are read, H")
    axis.set_ylabel("held-out R2" if measured == "r2" else "mean cosine")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(0.0, 0.95))


DEFAULTS: dict[str, Any] = {
    "encoder": "gru",
    "histories": "20",
    "env": {},
    "steps": 300_000,
    "log": None,
    "sessions": 2_000,
    "design": {},
    "training": {},
    "seed": 0,
    "device": "auto",
    "runs_dir": "runs",
    "out": None,
    "if_exists": "resume",
}


def main(argv: list[str]) -> None:
    """Train, measure, print and draw."""
    asked = arguments(argv, DEFAULTS)
    encoders = _encoders(asked["encoder"])
    histories = numbers("histories", asked["histories"], 1)
    if asked["if_exists"] not in ("resume", "overwrite"):
        raise unknown("if_exists", str(asked["if_exists"]), ("resume", "overwrite"))
    log = asked["log"]
    if log is not None and "env" in (about := _about(str(log))):
        asked["env"] = about["env"] | asked["env"]
    env = group_defaults("env", "recsys") | asked["env"] | {"observation": "behaviour"}
    question = Question(
        env,
        0 if log else as_number("steps", asked["steps"], 2 * SLOTS, 10**9),
        None if log is None else str(log),
        as_number("sessions", asked["sessions"], 8, 10**7),
        _settings("training", Training, asked["training"]),
        as_number("seed", asked["seed"], 0, 2**31 - 1),
    )
    torch.set_num_threads(1)  # more are slower for networks this small
    shop = make_env(env, 1).shop
    name = results.shop_name(shop, env, group_defaults("env", "recsys"))
    place = Path(str(asked["runs_dir"])) / name / "interest"
    data = data_of(question, resolve_device(asked["device"]))
    found = []
    for encoder in encoders:
        for history in histories:
            parts = asked["design"] | {"encoder": encoder, "history": history}
            design = replace(_settings("design", Design, parts), words=behaviour_of(shop).words)
            fresh = asked["if_exists"] == "overwrite"
            found.append(measure(question, design, data, place, fresh))
    most = bound(question, data, shop, place, asked["if_exists"] == "overwrite")
    print_all(found, most, name)
    out = Path(str(asked["out"] or place / "interest"))
    picture = draw(found, most, name, Path(f"{out}.png"))
    page = markdown(found, most, command_of("interest", argv), picture.name)
    results.write_text(Path(f"{out}.md"), page)
    print(f"picture: {picture}")


def _about(log: str) -> dict[str, Any]:
    """What a log says of itself."""
    try:
        from experiments.logs.schema import read_about
    except ImportError as error:
        raise MissingExtra("reading a log", error.name or "polars", "logs") from None
    return read_about(Path(log))


def _settings(group: str, cls: Any, given: dict[str, Any]) -> Any:
    """A dataclass of plain settings, each of the type of its default."""
    known = {field.name: field.default for field in fields(cls)}
    for name, value in given.items():
        if name not in known:
            raise unknown(f"key of {group}", name, known)
        if isinstance(known[name], int | float):
            whole = isinstance(known[name], int)
            as_number(f"{group}.{name}", value, 1 if whole else 0.0, 10**6 if whole else 1e6)
    return cls(**given)


def _encoders(asked: Any) -> list[str]:
    names = list(ENCODERS) if asked == "all" else str(asked).split(",")
    for name in names:
        if name not in ENCODERS:
            raise unknown("encoder", name, ENCODERS)
    return names


if __name__ == "__main__":
    entry(main, __doc__)

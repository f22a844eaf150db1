"""PPO on what people did: on a pretrained interest model, on the last interaction, on the state.

    python -m experiments.behaviour
    python -m experiments.behaviour encoders=gru,mlp,cnn,transformer seeds=0
    python -m experiments.behaviour draw=true

Arguments:
    runs_dir   where the runs go (runs/behaviour); finished ones are used, the others are done
    encoders   of the interest models, separated by commas (gru)
    worlds     world seeds, separated by commas (0)
    seeds      training seeds (0,1,2)
    steps      environment steps of every run, those of the pretraining counted (1200000)
    pretrain   of these, steps with random items that the interest model learns from (300000)
    bayes      also PPO on a Bayes filter that knows the shop's true law: a bound (true)
    flat       also PPO on the flat 20 interactions, and end to end through each encoder (false)
    draw       only draw what is there (false)
    out        the page and its picture, without ending (docs/behaviour)

All in scenario full with env.history=20. Writes <out>.md and <out>.png: the final scores, the
claims (at least 0.05 above the last interaction alone, at least 0.75 of the latent state) and
the learning curves.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from agents.encoders import ENCODERS
from experiments import plot, results
from experiments.build import configuration
from experiments.cli import arguments, command_of, entry, numbers
from experiments.run import run, run_directory
from experiments.stats import curve_interval, interquartile_mean
from recenv.errors import UsageError, unknown
from recenv.seeding import Role, generator
from recenv.shop import as_number

HISTORY = 20
LATENT, LAST = "latent state", "last interaction alone"
BAYES = "Bayes filter that knows the shop"
ABOVE_LAST, OF_LATENT = 0.05, 0.75  # what is claimed


@dataclass(frozen=True)
class Variant:
    """A way of seeing, by the words that ask for it."""

    label: str
    words: tuple[str, ...]


def variants(encoders: list[str], pretrain: int, bayes: bool, flat: bool) -> list[Variant]:
    """What is compared."""
    seen = "env.observation=behaviour"
    behaviour = (seen, f"env.history={HISTORY}")
    found = [Variant(LATENT, ()), Variant(LAST, (seen, "env.history=1"))]
    for encoder in encoders:
        words = (*behaviour, f"encoder={encoder}", f"agent.pretrain_steps={pretrain}")
        found.append(Variant(f"{encoder}, pretrained", words))
    if bayes:
        found.append(Variant(BAYES, (*behaviour, "encoder=bayes")))
    if flat:
        found.append(Variant(f"{HISTORY} interactions, flat", behaviour))
        found += [
            Variant(f"{encoder}, end to end", (*behaviour, f"encoder={encoder}"))
            for encoder in encoders
        ]
    return found


def config(variant: Variant, world: int, seed: int, steps: int, runs_dir: Path) -> Any:
    """The configuration of one run."""
    words = ["agent=ppo", "env.scenario=full", f"env.world_seed={world}", f"seed={seed}"]
    words += [f"total_timesteps={steps}", "progress=false", *variant.words]
    return configuration(words, runs_dir)


def do(asked: dict[str, Any], runs_dir: Path) -> results.RunDirectory:
    """Do one run; plans are of the shop, whatever agents see of it, and are shared."""
    own = run_directory(asked).path.parent.parent / "plans"
    for plan in runs_dir.glob("*/plans/*"):
        if not (own / plan.name).exists():
            shutil.copytree(plan, own / plan.name)
    return run(asked, "resume")


@dataclass(frozen=True)
class Curves:
    """The runs of one variant: scores (R, E) at the steps (E,) of the shortest, and speeds."""

    label: str
    timesteps_E: np.ndarray
    score_RE: np.ndarray
    steps_per_second: float

    @property
    def final(self) -> float:
        return float(interquartile_mean(self.score_RE[:, -1:]))


def read(variant: Variant, runs: list[results.RunDirectory]) -> Curves | None:
    """The finished runs of a variant; None where there is none."""
    done = [run for run in runs if run.finished]
    if not done:
        return None
    told = [run.evaluations() for run in done]
    steps_E = min((of["timesteps"] for of in told), key=lambda steps: steps[-1])
    score_RE = np.array(
        [np.interp(steps_E, of["timesteps"], of["normalised_score"]) for of in told]
    )
    rates = [run.summary()["steps_per_second"] for run in done]
    return Curves(variant.label, steps_E, score_RE, float(np.median(rates)))


def page(found: list[Curves], steps: int, command: str, picture: str) -> str:
    """The page in Markdown."""
    lines = [
        "# PPO on what people did",
        "",
        f"`{command}`: scenario `full`, H = {HISTORY}, {steps:,} environment steps each, those of "
        "the pretraining counted. 0: random items; 1: the planning oracle.",
        "",
        "| what PPO sees | score | runs | lowest, highest | steps/s |",
        "|---|---:|---:|---|---:|",
    ]
    for of in found:
        last_R = of.score_RE[:, -1]
        lines.append(
            f"| {of.label} | {of.final:.3f} | {len(last_R)} | {last_R.min():.3f}, "
            f"{last_R.max():.3f} | {of.steps_per_second:,.0f} |"
        )
    lines += ["", f"![Learning curves]({picture})", "", *claims(found), ""]
    return "\n".join(lines)


def claims(found: list[Curves]) -> list[str]:
    """What is claimed of the pretrained ones, and whether it holds."""
    by_label = {of.label: of.final for of in found}
    if LATENT not in by_label or LAST not in by_label:
        return []
    last, latent = by_label[LAST], by_label[LATENT]
    bound = ""
    if BAYES in by_label:
        bound = f"; with everything known but the shopper: {by_label[BAYES] / latent:.2f}"
    return [
        f"- **{label}**: {score - last:+.3f} over the {LAST} "
        f"({_holds(score - last >= ABOVE_LAST)}: at least {ABOVE_LAST:+.2f}), "
        f"{score / latent:.2f} of the {LATENT} "
        f"({_holds(score / latent >= OF_LATENT)}: at least {OF_LATENT:.2f}{bound})"
        for label, score in by_label.items()
        if label.endswith("pretrained")
    ]


def _holds(true: bool) -> str:
    return "holds" if true else "does not hold"


def draw(found: list[Curves], pretrain: int, out: Path) -> Path:
    """Learning curves, a line per variant."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.axhline(1.0, color="0.35", linewidth=1.0, linestyle=":")
    axis.axhline(0.0, color="0.35", linewidth=1.0, linestyle=":")
    looks = zip(plot.COLOURS, plot.MARKERS, strict=True)
    for of, (colour, marker) in zip(found, looks, strict=False):
        mean_E, low_E, high_E = of.score_RE.mean(0), of.score_RE.min(0), of.score_RE.max(0)
        if len(of.score_RE) > 1:
            mean_E, low_E, high_E = curve_interval(of.score_RE, generator(Role.STATISTICS, 0))
        label = f"{of.label} ({of.final:.2f})"
        axis.plot(of.timesteps_E, mean_E, color=colour, marker=marker, label=label, markersize=4)
        axis.fill_between(of.timesteps_E, low_E, high_E, color=colour, alpha=0.15, linewidth=0)
    axis.axvline(pretrain, color="0.6", linewidth=0.8)
    axis.annotate(
        "the pretrained\nbegin to learn", (pretrain, 0.02), xycoords=axis.get_xaxis_transform(),
        xytext=(4, 0), textcoords="offset points", fontsize=8, color="0.4",
    )  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlabel("environment steps")
    axis.set_ylabel("normalised score (planning oracle = 1)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return plot.save(figure, out)


DEFAULTS: dict[str, Any] = {
    "runs_dir": "runs/behaviour",
    "encoders": "gru",
    "worlds": "0",
    "seeds": "0,1,2",
    "steps": 1_200_000,
    "pretrain": 300_000,
    "bayes": True,
    "flat": False,
    "draw": False,
    "out": "docs/behaviour",
}


def main(argv: list[str]) -> None:
    """Do what is missing, and draw."""
    asked = arguments(argv, DEFAULTS)
    encoders = str(asked["encoders"]).split(",")
    for name in encoders:
        if name not in ENCODERS:
            raise unknown("encoder", name, ENCODERS)
    for name in ("bayes", "flat", "draw"):
        if not isinstance(asked[name], bool):
            raise UsageError(f"{name} must be true or false, got {asked[name]!r}")
    steps = as_number("steps", asked["steps"], 1, 10**9)
    pretrain = as_number("pretrain", asked["pretrain"], 1, steps)
    runs_dir, out = Path(str(asked["runs_dir"])), str(asked["out"])
    worlds, seeds = (numbers(name, asked[name]) for name in ("worlds", "seeds"))
    found = []
    for variant in variants(encoders, pretrain, asked["bayes"], asked["flat"]):
        configs = [config(variant, w, s, steps, runs_dir) for w in worlds for s in seeds]
        if asked["draw"]:
            runs = [run_directory(each) for each in configs]
        else:
            runs = [do(each, runs_dir) for each in configs]
        curves = read(variant, runs)
        if curves is not None:
            found.append(curves)
    if not found:
        raise UsageError(f"no finished run in {runs_dir}: leave out draw=true")
    picture = draw(found, pretrain, Path(f"{out}.png"))
    text = page(found, steps, command_of("behaviour", argv), picture.name)
    results.write_text(Path(f"{out}.md"), text)
    print(text)


if __name__ == "__main__":
    entry(main, __doc__)

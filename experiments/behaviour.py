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
    views      items that shoppers look at by themselves before each recommendation, on average,
               where that is seen too, and a sixth as many queries (0,0.3,1); 0: it is not seen
    bayes      also PPO on a Bayes filter that knows the shop's true law: a bound, of the first
               of these rates (true)
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
from recenv.shop import BOUNDS, as_number

HISTORY = 20
LATENT, LAST = "latent state", "last interaction alone"
BAYES = "Bayes filter that knows the shop"
STYLES = ("-", "--", ":", "-.")  # by how much is seen of browsing
ABOVE_LAST, OF_LATENT = 0.05, 0.75  # what is claimed


@dataclass(frozen=True)
class Variant:
    """A way of seeing, by the words that ask for it."""

    label: str
    words: tuple[str, ...]
    views: float = 0.0  # that are seen besides

    @property
    def title(self) -> str:
        """The label, and what is seen besides."""
        return f"{self.label}, views {self.views:g}" if self.views else self.label


def variants(
    encoders: list[str], views: list[float], pretrain: int, bayes: bool, flat: bool
) -> list[Variant]:
    """What is compared."""
    found = [Variant(LATENT, ())]
    for rate in views:
        seen: tuple[str, ...] = ("env.observation=behaviour",)
        if rate:
            seen += (f"env.organic_views={rate:g}", f"env.organic_searches={rate / 6:g}")
        behaviour = (*seen, f"env.history={HISTORY}")
        found.append(Variant(LAST, (*seen, "env.history=1"), rate))
        for encoder in encoders:
            words = (*behaviour, f"encoder={encoder}", f"agent.pretrain_steps={pretrain}")
            found.append(Variant(f"{encoder}, pretrained", words, rate))
        if bayes and rate == views[0]:
            found.append(Variant(BAYES, (*behaviour, "encoder=bayes"), rate))
        if flat:
            found.append(Variant(f"{HISTORY} interactions, flat", behaviour, rate))
            found += [
                Variant(f"{encoder}, end to end", (*behaviour, f"encoder={encoder}"), rate)
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

    of: Variant
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
    return Curves(variant, steps_E, score_RE, float(np.median(rates)))


def page(found: list[Curves], steps: int, command: str, picture: str) -> str:
    """The page in Markdown."""
    lines = [
        "# PPO on what people did",
        "",
        f"`{command}`: scenario `full`, H = {HISTORY}, {steps:,} environment steps each, those of "
        "the pretraining counted. 0: random items; 1: the planning oracle. Views: what shoppers "
        "do by themselves is seen too, so many views before each recommendation and a sixth as "
        "many queries.",
        "",
        "| what PPO sees | score | runs | lowest, highest | steps/s |",
        "|---|---:|---:|---|---:|",
    ]
    for of in found:
        last_R = of.score_RE[:, -1]
        lines.append(
            f"| {of.of.title} | {of.final:.3f} | {len(last_R)} | {last_R.min():.3f}, "
            f"{last_R.max():.3f} | {of.steps_per_second:,.0f} |"
        )
    lines += ["", f"![Learning curves]({picture})", "", *claims(found), ""]
    return "\n".join(lines)


def claims(found: list[Curves]) -> list[str]:
    """What is claimed of the pretrained ones, and whether it holds."""
    score = {(of.of.label, of.of.views): of.final for of in found}
    latent, lines = score.get((LATENT, 0.0)), []
    for of in found:
        last = score.get((LAST, of.of.views))
        if latent is None or last is None or not of.of.label.endswith("pretrained"):
            continue
        bound = score.get((BAYES, of.of.views))
        most = f"; with everything known but the shopper: {bound / latent:.2f}" if bound else ""
        above, share = of.final - last, of.final / latent
        lines.append(
            f"- **{of.of.title}**: {above:+.3f} over the {LAST} "
            f"({_holds(above >= ABOVE_LAST)}: at least {ABOVE_LAST:+.2f}), "
            f"{share:.2f} of the {LATENT} "
            f"({_holds(share >= OF_LATENT)}: at least {OF_LATENT:.2f}{most})"
        )
    return lines


def _holds(true: bool) -> str:
    return "holds" if true else "does not hold"


def draw(found: list[Curves], pretrain: int, out: Path) -> Path:
    """Learning curves: a colour for every way of seeing, a line style for what is seen besides."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.axhline(1.0, color="0.35", linewidth=1.0, linestyle=":")
    axis.axhline(0.0, color="0.35", linewidth=1.0, linestyle=":")
    labels = list(dict.fromkeys(of.of.label for of in found))
    rates = sorted({of.of.views for of in found})
    for of in found:
        look = labels.index(of.of.label) % len(plot.COLOURS)
        style = STYLES[rates.index(of.of.views) % len(STYLES)]
        mean_E, low_E, high_E = of.score_RE.mean(0), of.score_RE.min(0), of.score_RE.max(0)
        if len(of.score_RE) > 1:
            mean_E, low_E, high_E = curve_interval(of.score_RE, generator(Role.STATISTICS, 0))
        label = f"{of.of.title} ({of.final:.2f})"
        colour, marker = plot.COLOURS[look], plot.MARKERS[look]
        axis.plot(
            of.timesteps_E, mean_E, style, color=colour, marker=marker, label=label, markersize=4
        )
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


def _rate(word: str) -> float:
    try:
        rate = float(word)
    except ValueError:
        raise UsageError(f"views must be numbers separated by commas, got {word!r}") from None
    return float(as_number("views", rate, *BOUNDS["organic_views"]))


DEFAULTS: dict[str, Any] = {
    "runs_dir": "runs/behaviour",
    "encoders": "gru",
    "worlds": "0",
    "seeds": "0,1,2",
    "steps": 1_200_000,
    "pretrain": 300_000,
    "views": "0,0.3,1",
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
    views = [_rate(word) for word in str(asked["views"]).split(",")]
    found = []
    for variant in variants(encoders, views, pretrain, asked["bayes"], asked["flat"]):
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

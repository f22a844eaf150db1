"""Tables and pictures of fits, from their reports alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from agents.classification import MEASURES
from experiments import results
from experiments.fitting.judge import Report
from experiments.plot import COLOURS
from experiments.stats import Estimate, bootstrap, mean
from recenv.seeding import Role, generator

NAMES = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "auc": "AUC",
    "log_loss": "log loss",
    "ece": "calibration error",
}
SCORER, TRUTH = COLOURS[0], COLOURS[6]


@dataclass(frozen=True)
class Done:
    """One fit of several: where, and what came of it.

    Attributes:
        shop: the environment without its world seed.
        score: normalised score in the environment, and
        reference: what 1 stands for on its scale.
    """

    shop: str
    world: int
    seed: int
    score: float
    reference: str
    report: Report


def print_report(title: str, report: Report) -> None:
    """A table of the measures, with those of the truth and of a constant beside them."""
    table = Table(title=title, title_justify="left")
    table.add_column(f"held out: {report.rows['test']:,} rows")
    for who in report.measures:
        table.add_column(who, justify="right")
    for name in MEASURES:
        cells = [f"{of[name]:.3f}" for of in report.measures.values()]
        table.add_row(NAMES[name], *cells)
    table.add_section()
    for name, label in ranked(report.k):
        found = [report.ranking.get(who) for who in ("scorer", "truth", "chance")]
        cells = ["" if of is None else f"{of[name]:.3f}" for of in found]
        table.add_row(label, *(cells if "truth" in report.measures else cells[::2]))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    if report.fitted is not None:
        epochs, best = len(report.fitted["train_loss"]), report.fitted["best"] + 1
        console.print(f"{epochs} epochs, the network of number {best} is kept")


def ranked(k: int) -> list[tuple[str, str]]:
    """Figures of a ranking, and what to call them."""
    return [("recall", f"recall@{k}"), ("ndcg", f"NDCG@{k}"), ("coverage", "coverage of lists")]


def markdown(done: list[Done], command: str, picture: str) -> str:
    """A table of many fits: the mean over runs with its interval, and the worst run."""
    references = " or ".join(sorted({one.reference for one in done}))
    shops = list(dict.fromkeys(one.shop for one in done))
    k = done[0].report.k
    header = ["shop", "runs", "AUC", "Bayes AUC", "Bayes AUC - AUC", "calibration error"]
    header += ["log loss", "Bayes log loss", "accuracy", "precision", "recall"]
    header += [*(label for _, label in ranked(k)), "normalised score"]
    table = [header, ["---"] * len(header)]
    table += [_cells([one for one in done if one.shop == shop]) for shop in shops]
    lines = ["| " + " | ".join(cells) + " |" for cells in table]
    rows = done[0].report.rows
    return "\n".join(
        [
            "# The scorer, held out",
            "",
            "How well its purchase probabilities fit shoppers that it never saw, beside the true "
            "probabilities (Bayes) on the same rows. Mean over runs with its 95% interval; worst: "
            f"of all runs. {rows['learn'] + rows['validation']:,} rows to learn from and to "
            f"validate, {rows['test']:,} to test. Calibration error: 15 bins of equal mass. "
            f"Normalised score: 0 is random, 1 the {references}.",
            "",
            "```bash",
            command,
            "```",
            "",
            *lines,
            "",
            f"![ROC curves, reliability, losses]({picture})",
            "",
        ]
    )


def _cells(runs: list[Done]) -> list[str]:
    def over(value: Callable[[Report], float]) -> str:
        return said(interval(runs, [value(one.report) for one in runs]))

    def told(who: str, name: str) -> str:
        known = all(who in one.report.measures for one in runs)
        return over(lambda of: of.measures[who][name]) if known else ""

    gaps = [gap(one.report) for one in runs]
    eces = [one.report.measures["scorer"]["ece"] for one in runs]
    known = [value for value in gaps if value is not None]
    cells = [runs[0].shop, str(len(runs)), told("scorer", "auc"), told("truth", "auc")]
    cells.append(_worst(interval(runs, known), known) if len(known) == len(runs) else "")
    cells += [_worst(interval(runs, eces), eces), told("scorer", "log_loss")]
    cells += [told("truth", "log_loss"), *(told("scorer", n) for n in MEASURES[:3])]
    cells += [over(lambda of, n=name: of.ranking["scorer"][n]) for name, _ in ranked(1)]  # type: ignore[misc]
    return [*cells, said(interval(runs, [one.score for one in runs]))]


def gap(report: Report) -> float | None:
    """How far the AUC is below that of the true probabilities, where they are known."""
    if "truth" not in report.measures:
        return None
    return report.measures["truth"]["auc"] - report.measures["scorer"]["auc"]


def interval(runs: list[Done], value_R: list[float]) -> Estimate:
    """The mean over runs; worlds are resampled whole where there are several."""
    if len(runs) == 1:
        return Estimate(value_R[0], float("nan"), float("nan"))
    world_R = np.array([one.world for one in runs])
    worlds = world_R if len(set(world_R.tolist())) > 1 else None
    score_RJ = np.array(value_R)[:, None]
    return bootstrap(score_RJ, mean, generator(Role.STATISTICS, 0), world_R=worlds)


def said(estimate: Estimate) -> str:
    if np.isnan(estimate.low):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _worst(estimate: Estimate, value_R: list[float]) -> str:
    return f"{said(estimate)}, worst {max(value_R):.3f}"


def draw(done: list[Done], path: Path) -> Path:
    """ROC curve, reliability diagram and losses by epoch: a row per shop, a line per run."""
    shops = list(dict.fromkeys(one.shop for one in done))
    figure = Figure(figsize=(12, 3.8 * len(shops)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(shops), 3, squeeze=False)
    for row, shop in zip(axes, shops, strict=True):
        reports = [one.report for one in done if one.shop == shop]
        _roc(row[0], reports, shop)
        _reliability(row[1], reports)
        _losses(row[2], reports)
    with results.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    return path


def _roc(axis: Axes, reports: list[Report], shop: str) -> None:
    for who, colour, style in (("scorer", SCORER, "-"), ("truth", TRUTH, "--")):
        of = [report for report in reports if who in report.roc]
        for number, report in enumerate(of):
            auc = np.mean([one.measures[who]["auc"] for one in of])
            label = f"{who}: AUC {auc:.3f}" if number == 0 else None
            axis.plot(*report.roc[who], style, color=colour, lw=1, label=label)
    axis.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    axis.set(title=shop, xlabel="share of refusals", ylabel="share of purchases")
    axis.legend(loc="lower right", frameon=False)


def _reliability(axis: Axes, reports: list[Report]) -> None:
    for report in reports:
        told_B, happened_B, _ = report.reliability
        axis.plot(told_B, happened_B, "o-", color=SCORER, lw=1, ms=3)
    ece = np.mean([report.measures["scorer"]["ece"] for report in reports])
    axis.plot([0, 1], [0, 1], ":", color="grey", lw=1)
    title = f"reliability: calibration error {ece:.3f}"
    axis.set(
        title=title, xlabel="probability told", ylabel="share bought", xlim=(0, 1), ylim=(0, 1)
    )


def _losses(axis: Axes, reports: list[Report]) -> None:
    fits = [report.fitted for report in reports if report.fitted is not None]
    for number, fit in enumerate(fits):
        epochs = np.arange(1, len(fit["train_loss"]) + 1)
        for name, style in (("train_loss", "--"), ("validation_loss", "-")):
            label = name.replace("_", " ") if number == 0 else None
            axis.plot(epochs, fit[name], style, color=SCORER, lw=1, label=label)
        best = fit["best"]
        axis.plot(best + 1, fit["validation_loss"][best], "o", color=COLOURS[1], ms=5)
    known = [report.measures["truth"]["log_loss"] for report in reports if "truth" in report.roc]
    if known:
        label = "truth, held out"
        axis.axhline(float(np.mean(known)), color=TRUTH, ls="--", lw=1, label=label)
    axis.set(title="log loss (dot: the epoch that is kept)", xlabel="epoch", ylabel="log loss")
    if fits or known:
        axis.legend(frameon=False)

"""What a scorer is worth on rows that it never saw, beside those who know everything or nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents import classification
from agents.ranking import Ranking, judge_lists
from agents.scorer import Scorer
from agents.supervised import Fitted
from experiments.fitting.data import Part

POINTS = 200  # of a ROC curve that is kept
LISTS_AT_ONCE = 4096  # shoppers whose items are ranked at a time


@dataclass(frozen=True)
class Report:
    """Measures of one fit; all of it JSON-able.

    Attributes:
        measures: of ``agents.classification``, by who told the probabilities: "scorer",
            "truth" (the simulator's own: no model can be expected to do better) and
            "constant" (the share bought, the same for every row).
        ranking: recall@k, NDCG@k and coverage of lists of k, a case per purchase: "scorer",
            "truth" (the highest true probabilities) and "chance".
        k: length of the lists.
        rows: how many there were to learn from, to validate and to test.
        fitted: losses by epoch, and which epoch was kept; None: it learned online.
        online: measures of what it served itself in the end, where it learned online.
        roc: false and true positive rates, of scorer and truth.
        reliability: of the scorer, by bin: mean probability told, share bought, rows.
    """

    measures: dict[str, dict[str, float]]
    ranking: dict[str, dict[str, float]]
    k: int
    rows: dict[str, int]
    fitted: dict[str, Any] | None
    online: dict[str, float]
    roc: dict[str, list[list[float]]]
    reliability: list[list[float]]


def report(
    scorer: Scorer, test: Part, k: int, rows: dict[str, int], fitted: Fitted | None
) -> Report:
    """Judge a scorer on a test part."""
    bought_N = test.rows.bought_N
    told = {"scorer": scorer.calibrated(scorer.log_odds(test.rows))}
    if test.true_N is not None:
        told["truth"] = np.asarray(test.true_N, dtype=np.float64)
    constant_N = np.full(len(bought_N), bought_N.mean())
    return Report(
        measures={
            who: classification.measures(of, bought_N)
            for who, of in (told | {"constant": constant_N}).items()
        },
        ranking=_ranking(scorer, test, k),
        k=k,
        rows=rows | {"test": len(test)},
        fitted=None if fitted is None else asdict(fitted),
        online=scorer.online,
        roc={who: _thinned(*classification.roc(of, bought_N)) for who, of in told.items()},
        reliability=[of.tolist() for of in classification.reliability(told["scorer"], bought_N)],
    )


def _ranking(scorer: Scorer, test: Part, k: int) -> dict[str, dict[str, float]]:
    """Lists at every purchase of the test part: is what she bought on them?"""
    case_n = np.flatnonzero(test.rows.bought_N)
    target_n, items = test.rows.item_N[case_n], scorer.num_items
    parts = np.array_split(case_n, max(-(-len(case_n) // LISTS_AT_ONCE), 1))
    lists = [scorer.rank(test.rows, row, k) for row in parts]
    found = {"scorer": _told(judge_lists(np.concatenate(lists), target_n, items))}
    if test.oracle_Nk is not None:
        found["truth"] = _told(judge_lists(test.oracle_Nk[case_n], target_n, items))
    places_k = np.arange(1, k + 1)
    gain = float((1 / np.log2(1 + places_k)).sum())
    return found | {"chance": {"recall": k / items, "ndcg": gain / items, "coverage": 1.0}}


def _told(ranking: Ranking) -> dict[str, float]:
    return {"recall": ranking.recall, "ndcg": ranking.ndcg, "coverage": ranking.coverage}


def _thinned(false: np.ndarray, true: np.ndarray) -> list[list[float]]:
    """A ROC curve at so few points that it can be kept."""
    at = np.unique(np.linspace(0, len(false) - 1, POINTS).astype(int))
    return [np.round(false[at], 5).tolist(), np.round(true[at], 5).tolist()]

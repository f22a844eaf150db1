"""How much of the true interest a representation recovers: a figure for simulators alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from agents.encoders import NUM_EVENTS
from agents.interest.histories import NOTHING, Histories
from agents.interest.model import InterestModel
from recenv.errors import UsageError
from recenv.observation import with_nothing

PENALTIES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)  # of the ridge; chosen on sessions of its own
ROWS = 8192  # windows that are encoded at once


@dataclass(frozen=True)
class Recovery:
    """What a linear probe recovers on held-out sessions.

    Attributes:
        r2: share of the variance of the interest that it explains, all dimensions together.
        cosine: mean cosine of the predicted and the true interest.
    """

    r2: float
    cosine: float


def windows(histories: Histories, t: int, history: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and events (S, H) of the last ``history`` of the first ``t`` steps, newest first."""
    first = max(t - history, 0)
    room = ((0, 0), (0, history - (t - first)))
    items, events = (
        np.pad(part[:, first:t][:, ::-1], room, constant_values=NOTHING)
        for part in (histories.items_ST, histories.events_ST)
    )
    return items, events


@torch.no_grad()
def interests(model: InterestModel, histories: Histories, steps: list[int]) -> np.ndarray:
    """u (S, t, U) before each of these steps, from the windows that the model was made for."""
    model.eval()
    device, history = model.feature_IF.device, model.design.history
    told = []
    for t in steps:
        items, events = (
            torch.as_tensor(part, device=device) for part in windows(histories, t, history)
        )
        parts = zip(items.split(ROWS), events.split(ROWS), strict=True)
        told.append(torch.cat([model(*part) for part in parts]).cpu().numpy())
    return np.stack(told, axis=1)


def raw_sums(
    histories: Histories, feature_IF: np.ndarray, history: int, steps: list[int]
) -> np.ndarray:
    """What counting gives, (S, t, 6 + 6 F): how often each event, and the features of the
    items that it befell, summed over the same windows.

    Args:
        feature_IF: of items, and behind them of words where there are any.
    """
    table = with_nothing(feature_IF)
    eye = np.concatenate([np.eye(NUM_EVENTS), np.zeros((1, NUM_EVENTS))])
    told = []
    for t in steps:
        items, events = windows(histories, t, history)
        event_SHE = eye[events]
        sums = np.einsum("she,shf->sef", event_SHE, table[items], optimize=True)
        told.append(np.concatenate([event_SHE.sum(1), sums.reshape(len(items), -1)], axis=1))
    return np.stack(told, axis=1).astype(np.float32)


def probe(told_StP: np.ndarray, histories: Histories, steps: list[int]) -> Recovery:
    """Fit a ridge from a representation to the true interest, and judge it on other sessions.

    Half of the sessions fit it, a quarter chooses its penalty, a quarter judges.
    """
    truth_STD = histories.interest_STD
    if truth_STD is None:
        raise UsageError("a probe needs the true interests: record them with truth=True")
    there_St = histories.events_ST[:, [max(t - 1, 0) for t in steps]] != NOTHING
    there_St &= histories.events_ST[:, steps] != NOTHING
    cuts = [len(histories) // 2, 3 * len(histories) // 4]
    parts = []
    for rows in np.split(np.arange(len(histories)), cuts):
        there = there_St[rows]
        parts.append((told_StP[rows][there], truth_STD[:, steps][rows][there]))
    (x, y), validation, test = parts
    mean, scale = x.mean(0), np.maximum(x.std(0), 1e-6)
    centre = y.mean(0)
    x = ((x - mean) / scale).astype(np.float64)
    gram, moment = x.T @ x, x.T @ (y - centre)

    def judged(penalty: float, part: tuple[np.ndarray, np.ndarray]) -> Recovery:
        weight = np.linalg.solve(gram + penalty * np.eye(len(gram)), moment)
        return _recovery(((part[0] - mean) / scale) @ weight + centre, part[1])

    best = max(PENALTIES, key=lambda penalty: judged(penalty, validation).r2)
    return judged(best, test)


def _recovery(guess_ND: np.ndarray, truth_ND: np.ndarray) -> Recovery:
    left = ((truth_ND - guess_ND) ** 2).sum()
    spread = ((truth_ND - truth_ND.mean(0)) ** 2).sum()
    length_N = np.linalg.norm(guess_ND, axis=1) * np.linalg.norm(truth_ND, axis=1)
    cosine_N = (guess_ND * truth_ND).sum(1) / np.maximum(length_N, 1e-9)
    return Recovery(float(1 - left / spread), float(cosine_N.mean()))

"""Retrieval by the towers of a trained scorer: inner products of shopper and item towers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from agents.warm_start import read_scorer
from recenv.retrieve import Retriever
from recenv.vector_env import RecsysVectorEnv


def by_towers(directory: Path, env: RecsysVectorEnv) -> Retriever:
    """The retriever that a scorer's run makes, for the items of a shop.

    The dense layer on both towers is left out, as in a warm start: inner products are what an
    index can search.

    Args:
        directory: of the run, or of the agent in it.
        env: of the shop without retrieval.

    Raises:
        UsageError: there is no scorer, or it was made for other items or observations.
    """
    return _read(directory.resolve(), env.shop.catalogue, env)


@lru_cache(maxsize=4)
def _kept(directory: Path, catalogue: object) -> list[Retriever]:
    return []


def _read(directory: Path, catalogue: object, env: RecsysVectorEnv) -> Retriever:
    kept = _kept(directory, catalogue)  # every environment of a run asks for the same
    if not kept:
        kept.append(_make(directory, env))
    return kept[0]


def _make(directory: Path, env: RecsysVectorEnv) -> Retriever:
    scorer = read_scorer(directory, env)
    network = scorer.network
    with torch.no_grad():
        item_IW = network.items(torch.arange(env.shop.num_items))
        bias_I1 = torch.zeros(len(item_IW), 1)
        if network.item_bias is not None:
            bias_I1 = network.item_bias.weight[:, :1]
        item_Id = torch.cat([item_IW, bias_I1], dim=1).numpy()
    stranger = scorer._known

    def query(seen_nS: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            who_n = torch.full((len(seen_nS),), stranger)
            shopper_nW = network.shoppers(torch.as_tensor(seen_nS), who_n)
            return torch.cat([shopper_nW, torch.ones(len(seen_nS), 1)], dim=1).numpy()

    parts = [part for part in directory.parts if part != "agent"]
    return Retriever("-".join(parts[-2:]), item_Id.astype(np.float32), query)

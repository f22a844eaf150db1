"""Begin where a scorer ended: PPO and DQN with the towers of a trained one.

What is taken over is the shopper tower (as hidden layer and query), the item tower and the item
biases; not the dense layer on both towers, which would have to be gone through for every pair
of a shopper and an item, and without which a scorer ranks as well (``docs/towers.md``).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from agents.base import SETTINGS_FILE
from agents.scorer import Scorer
from agents.towers import TwoTowerHead
from recenv.errors import UsageError
from recenv.vector_env import RecsysVectorEnv


def read_scorer(directory: Path, env: RecsysVectorEnv) -> Scorer:
    """The scorer of a run, or of the directory ``agent`` in it.

    Raises:
        UsageError: there is none, or it has no towers that a policy could begin with.
    """
    inside = directory / "agent"
    scorer = Scorer.load(inside if (inside / SETTINGS_FILE).is_file() else directory, env, "cpu")
    assert isinstance(scorer, Scorer)
    if not isinstance(scorer.network.shopper, nn.Sequential):
        raise UsageError(
            f"the scorer in {directory} does not read observations by plain layers: train one "
            "with agent.shopper=observation"
        )
    return scorer


@torch.no_grad()
def take_over(scorer: Scorer, hidden: nn.Linear, head: TwoTowerHead, scale: float) -> None:
    """Let a head score items by ``scale`` times the scorer's log odds.

    Args:
        hidden: the only hidden layer between the observation and the head, as wide as the
            scorer's; the head's query sees its output first and then other things.
        head: of at least the scorer's width; the columns beyond it wait to be used.
        scale: 1 / temperature of the softmax over the items, or what log odds are worth.
    """
    network = scorer.network
    assert isinstance(network.shopper, nn.Sequential)
    first, last = network.shopper[0], network.shopper[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    hidden.load_state_dict(first.state_dict())
    width, bias_W = last.out_features, last.bias.data
    if network.shopper_id is not None:  # to a policy everybody is a stranger
        bias_W = bias_W + network.shopper_id.weight[-1]
    for query, worth in ((head.query, scale), (head.guess, 1.0)):
        if query is not None:
            query.weight.zero_()
            query.weight[:width, : first.out_features] = worth * last.weight
            query.bias.zero_()
            query.bias[:width] = worth * bias_W
    if head.guess is not None:
        head.guess.bias[head.query.out_features] = 1.0 / scale  # items' biases are scaled below
    feature, own = head.items.feature, head.items.own
    feature.weight[:width], feature.bias[:width] = 0.0, 0.0
    if network.item_feature is not None:
        feature.weight[:width] = network.item_feature.weight
        feature.bias[:width] = network.item_feature.bias
    if own is not None and network.item_id is not None:
        own[:, :width] = network.item_id.weight
    if own is not None and network.item_bias is not None:
        own[:, -1] = scale * network.item_bias.weight[:, 0]

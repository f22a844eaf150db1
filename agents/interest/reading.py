"""Interest models in the place of the latent state: what an agent on stable-baselines3 sees.

A ``Reader`` turns observations of behaviour into u and a few plain facts. With frozen
weights it stands before the policy, in the bridge, and carries its memory from step to step
instead of reading the last H interactions again; fine-tuned, or learned from nothing, an
encoder is the policy's features extractor and reads the window each time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional

from agents.encoders import NUM_EVENTS, make_encoder
from agents.interest.model import InterestModel
from agents.towers import Shelf, find
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.observation import Behaviour
from recenv.shop import Shop

FADE = 0.9  # share of a plain fact that survives a step


class Reader(nn.Module):
    """Observations of behaviour (N, S) -> (N, G): u, and what needs no learning.

    u with entries of order one | remaining / T | share of each event so far (6) | purchases
    of each category (K) and events (6) in the window, fading with age.

    Args:
        model: who knows u.
        shop: whose observations are read.

    Raises:
        UsageError: the shop shows no behaviour, or other item features than the model knows.
    """

    key_I: Tensor

    def __init__(self, model: InterestModel, shop: Shop):
        super().__init__()
        self.shop, self.observer = shop, behaviour_of(shop)
        known, shown = model.feature_IF.shape[1], self.observer.features_IF.shape[1]
        if known != shown:
            raise UsageError(
                f"the interest model knows items of {known} features, this shop's have {shown}: "
                "train one for this shop with python -m experiments.interest"
            )
        self.model = model
        self.num_categories = shop.catalogue.num_categories
        if model.design.words != self.observer.words:
            there, here = ("without", "with") if self.observer.words else ("with", "without")
            raise UsageError(
                f"the interest model was trained {there} what shoppers do by themselves, and this "
                f"shop is seen {here} it: train one for this shop with python -m "
                "experiments.interest"
            )
        known_IF = torch.cat([model.feature_IF, model.word_WF])
        self.register_buffer("key_I", keys(known_IF), persistent=False)

    @property
    def size(self) -> int:
        """G."""
        return self.model.design.size + 1 + 2 * NUM_EVENTS + self.num_categories

    @property
    def space(self) -> spaces.Box:
        """What a policy behind it sees."""
        return spaces.Box(-np.inf, np.inf, (self.size,), dtype=np.float32)

    def forward(self, observation: Tensor) -> Tensor:
        """What a policy sees, from the windows alone."""
        return self._told(self.recall(observation), observation)

    def recall(self, observation: Tensor) -> Tensor:
        """The encoder's memory (N, ...) of what the observations (N, S) show."""
        parts = self.observer.unflatten(observation)
        keep = self.model.design.history
        seen = self._interactions(parts["items"][:, :keep], parts["events"][:, :keep])
        return self.model.encoder.recall(*seen)

    def carry(
        self, observation: Tensor, memory: Tensor | None, start_N: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What a policy sees (N, G), and the memory to pass with the next observations.

        Args:
            memory: of the observations before; None: there are none, or they are unknown.
            start_N: whose sessions have begun just now.
        """
        if memory is None or len(memory) != len(observation):
            memory = self.recall(observation)
            return self._told(memory, observation), memory
        parts = self.observer.unflatten(observation)
        items, events = parts["items"], parts["events"]
        new_N, anew_N = since_reply(events)
        if start_N is not None:
            anew_N = anew_N | start_N
        memory = memory.clone()
        for age in reversed(range(int(new_N.max()))):
            row = torch.nonzero(new_N > age)[:, 0]
            seen = self._interactions(items[row, age], events[row, age])
            memory[row] = self.model.encoder.advance(memory[row], *seen)
        row = torch.nonzero(anew_N)[:, 0]
        if len(row):
            memory[row] = self.recall(observation[row])
        return self._told(memory, observation), memory

    def save(self, directory: Path) -> None:
        """Write the model of u as a component."""
        self.model.save(directory)

    @torch.no_grad()
    def follow(
        self, observation: np.ndarray, memory: Tensor | None, start_N: np.ndarray | None = None
    ) -> tuple[np.ndarray, Tensor]:
        """``carry`` for arrays."""
        device = self.key_I.device
        start = None if start_N is None else torch.as_tensor(start_N, device=device)
        seen = torch.as_tensor(observation, device=device)
        told, memory = self.carry(seen, memory, start)
        return told.cpu().numpy(), memory

    def _interactions(self, features: Tensor, events: Tensor) -> tuple[Tensor, Tensor]:
        """Item features (..., F) and events (..., 6) as the encoder reads them."""
        happened = events.sum(-1) > 0
        item = find(keys(features).reshape(-1), self.key_I).reshape(happened.shape)
        code = torch.where(happened, events.argmax(-1), -1)
        return self.model.interactions(torch.where(happened, item, -1), code)

    def _told(self, memory: Tensor, observation: Tensor) -> Tensor:
        model, parts = self.model, self.observer.unflatten(observation)
        u = model.standard(model.of(model.encoder.read(memory)))
        events = parts["events"]
        reply_NH = events.sum(2) - events[..., Event.SEARCH]
        fade_NH = FADE ** (reply_NH.cumsum(1) - reply_NH)  # by the recommendations since then
        bought = events[..., Event.PURCHASE] * fade_NH
        category = parts["items"][..., : self.num_categories]
        sated = torch.einsum("nh,nhk->nk", bought, category)
        recent = (1 - FADE) * torch.einsum("nh,nhe->ne", fade_NH, events)
        return torch.cat([u, parts["remaining"], parts["counts"], sated, recent], dim=1)


class ReaderExtractor(BaseFeaturesExtractor):
    """A ``Reader`` inside a policy, which goes on learning with it."""

    def __init__(self, observation_space: spaces.Box, reader: Reader):
        super().__init__(observation_space, reader.size)
        # a policy may have several, which learn apart
        model = InterestModel(reader.model.design, reader.model.feature_IF)
        model.load_state_dict(reader.model.state_dict())
        self.reader = Reader(model, reader.shop)

    def forward(self, observation: Tensor) -> Tensor:
        told: Tensor = self.reader(observation)
        return told


class EncoderExtractor(BaseFeaturesExtractor):
    """An encoder that knows nothing yet inside a policy: it learns from the rewards alone.

    Args:
        observer: whose observations it reads.
        encoder: its name in ``agents.encoders``.
        width: of its vector.
    """

    def __init__(
        self, observation_space: spaces.Box, observer: Behaviour, encoder: str, width: int
    ):
        super().__init__(observation_space, width + 1 + NUM_EVENTS)
        self.observer = observer
        features = int(observer.features_IF.shape[1])
        self.encoder = make_encoder(encoder, features, observer.history, width=width)

    def forward(self, observation: Tensor) -> Tensor:
        parts = self.observer.unflatten(observation)
        told = self.encoder(parts["items"], parts["events"])
        return torch.cat([told, parts["remaining"], parts["counts"]], dim=1)


def behaviour_of(shop: Shop) -> Behaviour:
    """How a shop shows behaviour.

    Raises:
        UsageError: it shows the latent state.
    """
    if shop.gate or not isinstance(shop.observer, Behaviour):
        raise UsageError("encoders read behaviour in Recsys-v0: set env.observation=behaviour")
    return shop.observer


def since_reply(events: Tensor) -> tuple[Tensor, Tensor]:
    """How many interactions (N,) are new since the last observation: her answer, and what she did
    by herself after it; and where (N,) that cannot be told, as her session has just begun or the
    window (N, H, 6) is too short. There none counts as new."""
    alone_NH = (events[..., Event.SEARCH] > 0).long()
    run_N = alone_NH.cumprod(1).sum(1)
    # where the window ends before her answer, the place behind it is as empty as a beginning
    happened_NH = functional.pad(events.sum(2), (0, 1))
    anew_N = happened_NH.gather(1, run_N[:, None])[:, 0] == 0
    return torch.where(anew_N, 0, run_N + 1), anew_N


def keys(feature_IF: Tensor) -> Tensor:
    """A hash of the features of each item (...,), the same as ``towers.Shelf.key_I``."""
    lead = feature_IF.shape[:-1]
    flat = feature_IF.detach().reshape(-1, feature_IF.shape[-1]).cpu().numpy()
    return torch.as_tensor(Shelf(flat).key_I, device=feature_IF.device).reshape(lead)

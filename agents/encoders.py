"""Encoders of behaviour: from what a shopper did with what she was shown to a vector.

Every encoder reads the same as ``recenv.observation.Behaviour`` shows: the features of the
last H items (N, H, F) and her answers (N, H, 6) one-hot, newest first, rows of zeros where
there was nothing yet. It can read in three ways that agree:

- ``forward``: windows, (N, H, F) -> (N, width);
- ``prefixes``: whole sessions in one causal pass, to learn from every step of them at once;
- ``begin`` (or ``recall``), ``advance``, ``read``: one interaction at a time, its memory kept
  between steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from recenv.dynamics import Event
from recenv.errors import UsageError, unknown

NUM_EVENTS = len(Event)
RATES = (1.0, 0.9, 0.7, 0.0)  # shares of a sum that survive a step


class Tokens(nn.Module):
    """An interaction as one vector: the item, weighed by what she did with it, and the event.

    A purchase says the opposite of a refusal of the same item; a product says so at once,
    where a network on both side by side would have to find out. Zero stays zero.
    """

    def __init__(self, num_features: int, width: int):
        super().__init__()
        self.item = nn.Linear(num_features, width)
        self.weight = nn.Linear(NUM_EVENTS, width, bias=False)
        nn.init.normal_(self.weight.weight)
        self.width = width + NUM_EVENTS

    def forward(self, items: Tensor, events: Tensor) -> Tensor:
        """(..., F) and (..., 6) -> (..., P)."""
        return torch.cat([self.item(items) * self.weight(events), events], dim=-1)


class Encoder(nn.Module, ABC):
    """Behaviour so far -> a vector.

    Args:
        num_features: F, of an item.
        history: H, the interactions that a window holds.
        width: of the vector.
        token: width of the item's part of an interaction.
    """

    def __init__(self, num_features: int, history: int, width: int = 64, token: int = 32):
        super().__init__()
        for name, value in (("history", history), ("width", width), ("token", token)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UsageError(f"encoder.{name} must be a whole number above 0, got {value!r}")
        self.history, self.width = history, width
        self.tokens = Tokens(num_features, token)

    def forward(self, items: Tensor, events: Tensor) -> Tensor:
        """Windows, newest first: (N, H, F) and (N, H, 6) -> (N, width)."""
        return self.encode(self.tokens(items, events))

    def prefixes(self, items: Tensor, events: Tensor) -> Tensor:
        """Sessions, oldest first: (S, T, F) and (S, T, 6) -> (S, T + 1, width).

        Row t is what ``forward`` makes of the last H of the first t interactions.
        """
        return self.encode_prefixes(self.tokens(items, events))

    def windows(self, items: Tensor, events: Tensor) -> Tensor:
        """As ``prefixes``, but exactly what ``forward`` makes of each window."""
        return self.prefixes(items, events)

    def lessons(self, items: Tensor, events: Tensor, first: int) -> Tensor:
        """As ``prefixes``, to learn from: what would remember more than H interactions begins
        anew after the first few, fewer than H, and then after every H."""
        return self.prefixes(items, events)

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """(N, H, P), newest first -> (N, width)."""

    @abstractmethod
    def encode_prefixes(self, tokens: Tensor) -> Tensor:
        """(S, T, P), oldest first -> (S, T + 1, width)."""

    def begin(self, num_envs: int) -> Tensor:
        """The memory of N shoppers who have done nothing yet."""
        weight = self.tokens.weight.weight
        return weight.new_zeros(num_envs, self.history, self.tokens.width)

    def recall(self, items: Tensor, events: Tensor) -> Tensor:
        """The memory of windows, newest first: (N, H, F) and (N, H, 6) -> (N, ...)."""
        tokens = self.tokens(items, events)
        return functional.pad(tokens, (0, 0, 0, self.history - tokens.shape[1]))

    def advance(self, memory: Tensor, items: Tensor, events: Tensor) -> Tensor:
        """The memory (N, ...) after one more interaction, (N, F) and (N, 6)."""
        token = self.tokens(items, events)
        return torch.cat([token[:, None], memory[:, :-1]], dim=1)

    def read(self, memory: Tensor) -> Tensor:
        """The vector (N, width) of a memory."""
        return self.encode(memory)


class Sums(nn.Module):
    """Sums of the interactions in a window that fade at several rates.

    A sum of many is scaled down, so that all are of order one.
    """

    decay_RH: Tensor

    def __init__(self, history: int):
        super().__init__()
        age_H = torch.arange(history)
        decay_RH = torch.stack([torch.tensor(rate) ** age_H for rate in RATES])
        decay_RH = decay_RH / decay_RH.square().sum(1, keepdim=True).sqrt()
        self.register_buffer("decay_RH", decay_RH, persistent=False)

    def window(self, tokens: Tensor) -> Tensor:
        """(N, H, P), newest first -> (N, R P)."""
        return torch.matmul(self.decay_RH, tokens).flatten(1)

    def session(self, tokens: Tensor) -> Tensor:
        """(S, T, P), oldest first -> (S, T + 1, R P)."""
        steps, history = tokens.shape[1], self.decay_RH.shape[1]
        before = torch.arange(steps + 1)[:, None] - 1 - torch.arange(steps)  # age of each
        seen = ((before >= 0) & (before < history)).to(tokens.device)
        age = before.clamp(0, history - 1).to(tokens.device)
        weight_RtT = self.decay_RH[:, age] * seen
        return torch.einsum("rtu,sup->strp", weight_RtT, tokens).flatten(2)


class Adding(Encoder):
    """What a network makes of a window, added to plain sums of it.

    Counting is hard to beat where little is known: it is where learning begins, and the
    network learns what counting misses.
    """

    def __init__(self, num_features: int, history: int, width: int = 64, token: int = 32):
        super().__init__(num_features, history, width, token)
        self.sums = Sums(history)
        self.plain = nn.Linear(len(RATES) * self.tokens.width, width)

    def encode(self, tokens: Tensor) -> Tensor:
        sums = self.sums.window(tokens)
        encoded: Tensor = self.plain(sums) + self.window(tokens, sums)
        return encoded

    def encode_prefixes(self, tokens: Tensor) -> Tensor:
        sums = self.sums.session(tokens)
        encoded: Tensor = self.plain(sums) + self.session(tokens, sums)
        return encoded

    @abstractmethod
    def window(self, tokens: Tensor, sums: Tensor) -> Tensor:
        """What sums miss, as ``encode``."""

    @abstractmethod
    def session(self, tokens: Tensor, sums: Tensor) -> Tensor:
        """What sums miss, as ``encode_prefixes``."""


class MLP(Adding):
    """Two dense layers on the sums."""

    def __init__(self, num_features: int, history: int, width: int = 64, token: int = 32):
        super().__init__(num_features, history, width, token)
        self.dense = nn.Sequential(
            nn.Linear(self.plain.in_features, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def window(self, tokens: Tensor, sums: Tensor) -> Tensor:
        missed: Tensor = self.dense(sums)
        return missed

    session = window


class CNN(Adding):
    """Convolutions over neighbouring interactions, then a weight for each age and channel.

    No convolution reaches beyond the window, so that sliding over a session gives exactly
    what each window by itself would.
    """

    def __init__(self, num_features: int, history: int, width: int = 64, token: int = 32):
        super().__init__(num_features, history, width, token)
        first = min(3, history)
        second = min(3, history - first + 1)
        rest = history - first - second + 2
        self.layers = nn.Sequential(
            nn.Conv1d(self.tokens.width, width, first),
            nn.ReLU(),
            nn.Conv1d(width, width, second),
            nn.ReLU(),
        )
        self.ages = nn.Conv1d(width, 2 * width, rest, groups=width)
        self.dense = nn.Sequential(nn.ReLU(), nn.Linear(2 * width, width))

    def window(self, tokens: Tensor, sums: Tensor) -> Tensor:
        return self._slide(tokens.flip(1))[:, -1]

    def session(self, tokens: Tensor, sums: Tensor) -> Tensor:
        return self._slide(functional.pad(tokens, (0, 0, self.history, 0)))

    def _slide(self, tokens: Tensor) -> Tensor:
        """(S, T, P), oldest first -> (S, T - H + 1, width)."""
        rows = self.ages(self.layers(tokens.transpose(1, 2))).transpose(1, 2)
        encoded: Tensor = self.dense(rows)
        return encoded


class GRU(Encoder):
    """A gated recurrent unit (Cho et al. 2014).

    ``prefixes`` and a memory that is carried along remember the whole session, not its last
    H interactions alone; up to H of them they agree with ``forward``.
    """

    def __init__(self, num_features: int, history: int, width: int = 64, token: int = 32):
        super().__init__(num_features, history, width, token)
        self.layer = nn.GRU(self.tokens.width, width, batch_first=True)

    def encode(self, tokens: Tensor) -> Tensor:
        # what is there comes first, oldest first: nothing is read before it
        length_N = (tokens != 0).any(dim=-1).sum(dim=1)
        place_H = torch.arange(tokens.shape[1], device=tokens.device)
        source_NH = (length_N[:, None] - 1 - place_H).clamp(min=0)
        index = source_NH[..., None].expand(-1, -1, tokens.shape[2])
        return _row(self.encode_prefixes(tokens.gather(1, index)), length_N)

    def encode_prefixes(self, tokens: Tensor) -> Tensor:
        return self._states([tokens])

    def windows(self, items: Tensor, events: Tensor) -> Tensor:
        tokens = self.tokens(items, events)
        if tokens.shape[1] <= self.history:
            return self.encode_prefixes(tokens)
        padded = functional.pad(tokens, (0, 0, self.history, 0)).unfold(1, self.history, 1)
        newest_first = padded.transpose(2, 3).flip(2)
        told = self.encode(newest_first.flatten(0, 1))
        return told.unflatten(0, newest_first.shape[:2])  # type: ignore[no-any-return]

    def lessons(self, items: Tensor, events: Tensor, first: int) -> Tensor:
        tokens = self.tokens(items, events)
        pieces = [tokens[:, :first], *tokens[:, first:].split(self.history, dim=1)]
        return self._states([piece for piece in pieces if piece.shape[1]])

    def _states(self, pieces: list[Tensor]) -> Tensor:
        """Of pieces (S, t, P) that follow one another, each begun anew -> (S, T + 1, width)."""
        states = torch.cat([self.layer(piece)[0] for piece in pieces], dim=1)
        return functional.pad(states, (0, 0, 1, 0))

    def begin(self, num_envs: int) -> Tensor:
        return self.tokens.weight.weight.new_zeros(num_envs, self.width)

    def recall(self, items: Tensor, events: Tensor) -> Tensor:
        return self.encode(self.tokens(items, events))

    def advance(self, memory: Tensor, items: Tensor, events: Tensor) -> Tensor:
        token = self.tokens(items, events)
        _, state = self.layer(token[:, None], memory[None].contiguous())
        carried: Tensor = state[0]
        return carried

    def read(self, memory: Tensor) -> Tensor:
        return memory


class Transformer(Adding):
    """One block of causal self-attention (Vaswani et al. 2017), with a bias for each age.

    The newest interaction asks, the window and a row that is always there answer. One
    block, so that a causal pass over a session sees exactly what each window would.
    """

    HEADS = 4

    def __init__(self, num_features: int, history: int, width: int = 64, token: int = 32):
        super().__init__(num_features, history, width, token)
        if width % self.HEADS:
            raise UsageError(f"encoder.width must be a multiple of {self.HEADS}, got {width}")
        self.embed = nn.Sequential(
            nn.Linear(self.tokens.width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.start = nn.Parameter(torch.randn(width) * 0.1)
        self.ask = nn.Linear(width, width)
        self.answer = nn.Linear(width, 2 * width)
        # older ones weigh less to begin with, each head at a pace of its own
        pace = torch.tensor([0.0, 0.05, 0.15, 0.4])[:, None]
        self.age_bias = nn.Parameter(-pace * torch.arange(history))
        self.normal = nn.LayerNorm(width)
        self.dense = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def window(self, tokens: Tensor, sums: Tensor) -> Tensor:
        length_N = (tokens != 0).any(dim=-1).sum(dim=1)
        rows = self._rows(tokens)  # newest first, the start last
        real = torch.arange(self.history, device=tokens.device) < length_N[:, None]
        hidden = real.new_zeros(len(tokens), 1) | True
        visible = torch.cat([real, hidden], dim=1)[:, None, None]
        bias = torch.cat([self.age_bias, self.age_bias.new_zeros(self.HEADS, 1)], dim=1)
        mask = bias[None, :, None].masked_fill(~visible, float("-inf"))
        newest = torch.where(length_N[:, None] > 0, rows[:, 0], self.start)
        return self._block(newest[:, None], rows, mask)[:, 0]

    def session(self, tokens: Tensor, sums: Tensor) -> Tensor:
        steps = tokens.shape[1]
        rows = self._rows(tokens).roll(1, dims=1)  # the start first, then oldest first
        age = torch.arange(steps + 1)[:, None] - torch.arange(steps + 1)
        seen = (age >= 0) & (age < self.history)
        age, seen = age.to(tokens.device), seen.to(tokens.device)
        bias = self.age_bias[:, age.clamp(0, self.history - 1)].masked_fill(~seen, float("-inf"))
        start = bias.new_zeros(self.HEADS, steps + 1, 1)
        mask = torch.cat([start, bias[:, :, 1:]], dim=2)[None]
        return self._block(rows, rows, mask)

    def _rows(self, tokens: Tensor) -> Tensor:
        """(N, H, P) -> (N, H + 1, width), the start in the last row."""
        start = self.start.expand(len(tokens), 1, -1)
        return torch.cat([self.embed(tokens), start], dim=1)

    def _block(self, asking: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
        """(N, Q, width) ask (N, R, width) -> (N, Q, width)."""
        heads = (self.HEADS, self.width // self.HEADS)
        query = self.ask(self.normal(asking)).unflatten(2, heads).transpose(1, 2)
        key, value = (
            part.unflatten(2, heads).transpose(1, 2)
            for part in self.answer(self.normal(rows)).chunk(2, dim=2)
        )
        told = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed = asking + told.transpose(1, 2).flatten(2)
        encoded: Tensor = mixed + self.dense(mixed)
        return encoded


ENCODERS: dict[str, type[Encoder]] = {
    "mlp": MLP,
    "cnn": CNN,
    "gru": GRU,
    "transformer": Transformer,
}


def make_encoder(name: str, num_features: int, history: int, **settings: Any) -> Encoder:
    """The encoder called ``name``: mlp, cnn, gru or transformer.

    Its weights are drawn from torch's global generator: call it in ``torch_seeded``.

    Raises:
        UsageError: there is none of that name, or a setting is wrong.
    """
    if name not in ENCODERS:
        raise unknown("encoder", str(name), ENCODERS)
    for key in settings:
        if key not in ("width", "token"):
            raise unknown("setting of the encoder", key, ("width", "token"))
    return ENCODERS[name](num_features, history, **settings)


def _row(rows: Tensor, index_N: Tensor) -> Tensor:
    """One row of each, (N, T, P) -> (N, P)."""
    return rows[torch.arange(len(rows), device=rows.device), index_N]

"""Interest models u = f(behaviour so far), trained on what was shown and what was bought.

The model knows nothing of the simulator. It learns from two questions that any log answers:
what did she do with what was shown next, and what did she buy next. Utility is u . item +
bias of the item; answers are ordered (she likes what she puts in the cart better than what
she only looks at), so that each is one inequality on the utility and not only a yes or no.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from agents.base import torch_seeded
from agents.encoders import NUM_EVENTS, Adding, make_encoder
from agents.files import fitting, read_tensors, write_tensors
from agents.interest.histories import Histories
from agents.supervised import Progress, early_stopping
from recenv.dynamics import Event
from recenv.errors import UsageError
from recenv.observation import with_words

SETTINGS, TENSORS = "interest.json", "interest.safetensors"
CANDIDATES = 1024  # items that "what did she buy next" chooses from
LATER = 0.9  # weight of each answer beside the one before it
SURE = 40.0  # log odds of what cannot fail
ROWS = 512  # sessions that are encoded at once where nothing is learned
# The answers to a recommendation from worst to best; a search is none.
ORDER = (Event.NOT_INTERESTED, Event.IGNORE, Event.VIEW, Event.CART, Event.PURCHASE)
# What each event says of the item, before anything is learned
SAYS = {
    Event.NOT_INTERESTED: -1.0,
    Event.IGNORE: -0.2,
    Event.VIEW: 0.3,
    Event.CART: 0.7,
    Event.PURCHASE: 1.0,
    Event.SEARCH: 1.0,
}


@dataclass(frozen=True)
class Design:
    """What an interest model is made of.

    Attributes:
        encoder: mlp, cnn, gru or transformer.
        history: H, the interactions that it reads.
        width: of the encoder's vector.
        token: width of an item's part of an interaction.
        size: of u.
        words: W, where shoppers search by themselves: the last W features of items are words,
            and item number I + w is the word w alone. 0: they do not.
    """

    encoder: str = "gru"
    history: int = 20
    width: int = 64
    token: int = 32
    size: int = 32
    words: int = 0


@dataclass(frozen=True)
class Training:
    """How an interest model is trained.

    Attributes:
        epochs: at most so many passes over the sessions.
        patience: passes without a better held-out loss before it stops.
        held_out: share of the sessions that decide when to stop.
        batch_size: sessions in a batch.
        next_purchase: weight of "what did she buy next" beside "what did she do with it".
    """

    epochs: int = 24
    patience: int = 4
    held_out: float = 0.1
    batch_size: int = 64
    learning_rate: float = 1e-2
    weight_decay: float = 1e-5
    next_purchase: float = 0.3


@dataclass(frozen=True)
class Losses:
    """Mean losses in nats: of the answer to what was shown, and of the next purchase."""

    answer: float
    next_purchase: float

    def total(self, weight: float) -> float:
        return self.answer + weight * self.next_purchase


class InterestModel(nn.Module):
    """u from behaviour, and the utility of every item.

    Args:
        design: what it is made of.
        feature_IF: public features of the items that it knows by number.
    """

    feature_IF: Tensor
    word_WF: Tensor
    shown_I: Tensor
    mean_U: Tensor
    scale_U: Tensor

    def __init__(self, design: Design, feature_IF: Tensor):
        super().__init__()
        self.design = design
        items, features = feature_IF.shape
        size = design.size
        self.register_buffer("feature_IF", feature_IF.float())
        word_WF = with_words(np.zeros((0, features), np.float32), design.words)
        self.register_buffer("word_WF", torch.as_tensor(word_WF), persistent=False)
        # how often each item was shown while it learned (log share)
        self.register_buffer("shown_I", torch.zeros(items))
        self.register_buffer("mean_U", torch.zeros(size))
        self.register_buffer("scale_U", torch.ones(size))
        self.encoder = make_encoder(
            design.encoder,
            size + 1,
            design.history,
            width=design.width,
            token=design.token,
        )
        self.interest = nn.Linear(design.width, size)
        self.item_feature = nn.Linear(features, size + 1)
        self.item_id = nn.Embedding(items, size + 1)
        nn.init.normal_(self.item_id.weight, std=0.1)
        # log odds by which each answer is easier than the next better one
        self.easier = nn.Parameter(torch.ones(len(ORDER) - 2))
        if isinstance(self.encoder, Adding):
            self._guess(self.encoder)

    @torch.no_grad()
    def _guess(self, encoder: Adding) -> None:
        """Begin with the guess that she likes what is like the items that she liked.

        What is bilinear begins at a saddle, and from a bad start an encoder may not leave it.
        """
        tokens, plain = encoder.tokens, encoder.plain
        nn.init.eye_(tokens.item.weight)
        nn.init.zeros_(tokens.item.bias)
        tokens.weight.weight.mul_(0.1).add_(torch.tensor([SAYS[event] for event in Event]))
        nn.init.normal_(plain.weight, std=0.01)
        nn.init.eye_(plain.weight[: self.design.size, : tokens.item.out_features])
        nn.init.eye_(self.interest.weight)

    @property
    def num_items(self) -> int:
        return len(self.feature_IF)

    def items(self) -> tuple[Tensor, Tensor]:
        """What utility needs of every item: vectors (I, U) and biases (I,)."""
        both = self.item_feature(self.feature_IF) + self.item_id.weight
        return both[:, :-1], both[:, -1]

    def interactions(self, items: Tensor, events: Tensor) -> tuple[Tensor, Tensor]:
        """Item numbers and event codes (...), -1 for none, as encoders read them.

        An item is what utility makes of it, so that what is learned of it as an answer also
        helps to read it as a question; a word is what its feature makes of any item.
        """
        none = items < 0
        known = items.clamp(min=0)
        item_IU, bias_I = self.items()
        table = torch.cat([item_IU, bias_I[:, None]], dim=1)
        if self.design.words:
            table = torch.cat([table, self.item_feature(self.word_WF)])
        told = table[known]
        told = told.masked_fill(none[..., None], 0.0)
        one_hot = functional.one_hot(events.clamp(min=0), NUM_EVENTS).to(told.dtype)
        return told, one_hot * (events >= 0)[..., None]

    def forward(self, items: Tensor, events: Tensor) -> Tensor:
        """u (N, U) from windows of item numbers and event codes (N, H), newest first."""
        return self.of(self.encoder(*self.interactions(items, events)))

    def prefixes(self, items: Tensor, events: Tensor) -> Tensor:
        """u (S, T + 1, U) before each step of sessions (S, T), oldest first, and after."""
        return self.of(self.encoder.prefixes(*self.interactions(items, events)))

    def of(self, encoded: Tensor) -> Tensor:
        """u from the encoder's vector."""
        u: Tensor = self.interest(encoded)
        return u

    def standard(self, u: Tensor) -> Tensor:
        """u with entries of order one, for networks that read it."""
        return (u - self.mean_U) / self.scale_U

    def utility(self, u: Tensor) -> Tensor:
        """Log odds (..., I) of a purchase of each item."""
        item_IU, bias_I = self.items()
        return u @ item_IU.T + bias_I

    def lessons(self, items: Tensor, events: Tensor, draw: torch.Generator) -> Tensor:
        """u (S, T, U) before each step of sessions (S, T), as a model learns from them: what
        would remember more than H interactions begins anew now and then."""
        first = int(torch.randint(self.design.history, (), generator=draw))
        return self.of(self.encoder.lessons(*self.interactions(items, events), first))[:, :-1]

    def windows(self, items: Tensor, events: Tensor) -> Tensor:
        """u (S, T, U) before each step of sessions (S, T), from the last H interactions."""
        return self.of(self.encoder.windows(*self.interactions(items, events)))[:, :-1]

    def losses(
        self, u: Tensor, items: Tensor, events: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """u (S, T, U) before each step of sessions (S, T) -> the mean losses of ``Losses``."""
        return self._answers(u, items, events), self._next_purchase(u, items, events, draw)

    def _answers(self, u: Tensor, items: Tensor, events: Tensor) -> Tensor:
        """The ordered logit of what she did with what was shown, now and later on.

        A later answer tells of what she likes now too, if less: while the model learns it
        counts less the later it comes. Where nothing is learned only the next one counts.
        """
        rank_ST = _ranks(events).masked_fill(items < 0, -1)
        item_IU, bias_I = self.items()
        shown_ST = items.masked_fill(rank_ST < 0, 0)  # a word is no item
        utility = torch.einsum("stu,sru->str", u, item_IU[shown_ST]) + bias_I[shown_ST][:, None]
        loss = self._ordered(utility, rank_ST.clamp(min=0)[:, None])
        step = torch.arange(items.shape[1], device=u.device)
        later = step - step[:, None]
        pace = LATER if self.training else 0.0
        weight = torch.where(later >= 0, pace ** later.clamp(min=0), 0.0)
        weight = weight * (rank_ST >= 0)[:, None]
        return (loss * weight).sum() / weight.sum()

    def _ordered(self, utility: Tensor, rank: Tensor) -> Tensor:
        """Minus the log probability of answers (...) of these ranks."""
        # log odds of each answer or a better one lie above those of a purchase by these
        easier = functional.softplus(self.easier).flip(0).cumsum(0).flip(0)
        above = torch.cat([easier.new_tensor([SURE]), easier, easier.new_tensor([0.0, -SURE])])
        low, high = utility + above[rank + 1], utility + above[rank]
        # log (sigmoid(high) - sigmoid(low))
        gap = torch.log1p(-torch.exp((low - high).clamp(max=-1e-6)))
        return -(functional.logsigmoid(high) + functional.logsigmoid(-low) + gap)

    def _next_purchase(
        self, u: Tensor, items: Tensor, events: Tensor, draw: torch.Generator
    ) -> Tensor:
        """Which item she buys next, of those that were shown as often as they were."""
        target = next_purchases(items, events)
        asked = target >= 0
        target, asking = target[asked], u[asked]
        item_IU, bias_I = self.items()
        weight_I = self.shown_I
        if self.num_items > CANDIDATES:
            drawn = torch.randint(self.num_items, (CANDIDATES,), generator=draw).to(u.device)
            chosen, target = torch.unique(torch.cat([target, drawn]), return_inverse=True)
            target = target[: len(asking)]
            item_IU, bias_I, weight_I = item_IU[chosen], bias_I[chosen], weight_I[chosen]
        log_odds = functional.logsigmoid(asking @ item_IU.T + bias_I) + weight_I
        return functional.cross_entropy(log_odds, target)

    def save(self, directory: Path) -> None:
        """Write the component: its design as JSON, what it learned as safetensors.

        Raises:
            UsageError: the directory cannot be written to.
        """
        told = {"design": asdict(self.design), "items": list(self.feature_IF.shape)}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_tensors(directory / TENSORS, self.state_dict())
            (directory / SETTINGS).write_text(json.dumps(told, indent=2) + "\n")
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot save the interest model in {directory}: {why}") from None

    @classmethod
    def load(cls, directory: Path, device: torch.device | str = "cpu") -> InterestModel:
        """Read what ``save`` wrote.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        try:
            told = json.loads((directory / SETTINGS).read_text())
            state = read_tensors(directory / TENSORS, torch.device(device))
            with torch_seeded(0):
                model = cls(Design(**told["design"]), torch.zeros(*told["items"])).to(device)
            model.load_state_dict(fitting(state, model.state_dict()))
        except UsageError as error:
            raise UsageError(f"the interest model in {directory} is damaged: {error}") from None
        except FileNotFoundError as error:
            raise UsageError(
                f"there is no interest model in {directory}: {Path(error.filename).name} is "
                "missing; make one with python -m experiments.interest"
            ) from None
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"the interest model in {directory} is damaged ({why})") from None
        return model.eval()


def make_model(design: Design, feature_IF: np.ndarray, seed: int) -> InterestModel:
    """A model that has learned nothing."""
    with torch_seeded(seed):
        return InterestModel(design, torch.as_tensor(feature_IF))


def fit(
    model: InterestModel,
    histories: Histories,
    training: Training,
    rng: np.random.Generator,
    progress: Progress | None = None,
) -> Losses:
    """Train until held-out sessions are told no better; the model keeps its best weights.

    Args:
        model: it is trained on the device where it is.
        progress: told of each epoch; stops the training by returning False.

    Returns:
        the held-out losses of the best epoch.
    """
    if len(histories) < 2:
        raise UsageError(f"an interest model needs at least 2 sessions, got {len(histories)}")
    learned, held = histories.split(training.held_out, rng)
    draw = torch.Generator().manual_seed(int(rng.integers(2**62)))
    _count_shown(model, learned)
    optimiser = torch.optim.Adam(
        model.parameters(),
        lr=training.learning_rate,
        weight_decay=training.weight_decay,
        fused=True,
    )
    anneal = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.1 ** (1 / training.epochs))

    def learn() -> float:
        model.train()
        losses = []
        for items, events in _batches(model, learned, training.batch_size, rng):
            u = model.lessons(items, events, draw)
            answer, following = model.losses(u, items, events, draw)
            loss = answer + training.next_purchase * following
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.detach())
        anneal.step()
        return float(torch.stack(losses).mean())

    def validate() -> float:
        return held_out(model, held, anew=True).total(training.next_purchase)

    early_stopping(model, learn, validate, training.epochs, training.patience, progress)
    _standardise(model, learned)
    return held_out(model.eval(), held)


def next_purchases(items: Tensor, events: Tensor) -> Tensor:
    """The item bought next at or after each step of sessions (S, T); -1 where none is."""
    t = items.shape[1]
    step = torch.arange(t, device=items.device)
    bought = (events == Event.PURCHASE) & (items >= 0)
    when = torch.where(bought, step, t)
    following = when.flip(1).cummin(dim=1).values.flip(1)
    item = items.gather(1, following.clamp(max=t - 1))
    return torch.where(following < t, item, -1)


def _ranks(events: Tensor) -> Tensor:
    """The place of each answer in ``ORDER``, -1 where it is none."""
    place = [-1] * (NUM_EVENTS + 1)  # the last for "nothing"
    for rank, event in enumerate(ORDER):
        place[event] = rank
    return torch.tensor(place, device=events.device)[events]


def _batches(
    model: InterestModel, histories: Histories, size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Sessions in random order."""
    order = rng.permutation(len(histories))
    size = size * max(round(histories.items_ST.size / max(histories.interactions, 1)), 1)
    for first in range(0, len(order), size):
        yield _tensors(model, histories.take(order[first : first + size]))


def _tensors(model: InterestModel, histories: Histories) -> tuple[Tensor, Tensor]:
    device = model.feature_IF.device
    items, events = (
        torch.as_tensor(part, device=device) for part in (histories.items_ST, histories.events_ST)
    )
    return items, events


@torch.no_grad()
def held_out(model: InterestModel, histories: Histories, *, anew: bool = False) -> Losses:
    """What the model loses on sessions that it has not seen.

    Args:
        anew: by what it reads while it learns, which is quicker for a GRU; else by windows.
    """
    model.eval()
    draw = torch.Generator().manual_seed(0)
    # of even parts, as their losses count alike
    rows, parts = np.arange(len(histories)), math.ceil(len(histories) / ROWS)
    sums = np.zeros(2)
    for row in np.array_split(rows, parts):
        part = histories.take(row)
        seen = _tensors(model, part)
        u = model.lessons(*seen, draw) if anew else model.windows(*seen)
        sums += [float(loss) for loss in model.losses(u, *seen, draw)]
    return Losses(*(sums / parts))


def popularity_loss(learned: Histories, judged: Histories, num_items: int) -> float:
    """The loss of the next purchase, in nats, where it is told by how often items were bought."""
    parts = [
        next_purchases(torch.as_tensor(of.items_ST), torch.as_tensor(of.events_ST)).numpy()
        for of in (learned, judged)
    ]
    count_I = np.bincount(parts[0][parts[0] >= 0], minlength=num_items) + 1.0
    target = parts[1][parts[1] >= 0]
    return float(-np.log(count_I / count_I.sum())[target].mean())


def _count_shown(model: InterestModel, histories: Histories) -> None:
    shown = histories.items_ST[histories.replies_ST]
    count_I = np.bincount(shown, minlength=model.num_items) + 1.0
    model.shown_I.copy_(torch.as_tensor(np.log(count_I / count_I.sum())))


@torch.no_grad()
def _standardise(model: InterestModel, histories: Histories) -> None:
    """Measure mean and spread of u."""
    some = histories.take(np.arange(min(len(histories), ROWS)))
    u = model.prefixes(*_tensors(model, some))[:, :-1][torch.as_tensor(some.events_ST >= 0)]
    model.mean_U.copy_(u.mean(0))
    model.scale_U.copy_(u.std(0).clamp(min=1e-3))

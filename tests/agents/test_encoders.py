"""Encoders: shapes, no look ahead, nothing is nothing, and three ways of reading that agree."""

from __future__ import annotations

import pytest
import torch

from agents.base import torch_seeded
from agents.encoders import ENCODERS, NUM_EVENTS, Encoder, make_encoder
from recenv.errors import UsageError

F, H, T, S = 7, 5, 9, 6
every_encoder = pytest.mark.parametrize("name", ENCODERS)


def encoder(name: str, history: int = H, **settings: int) -> Encoder:
    with torch_seeded(0):
        return make_encoder(name, F, history, **settings).eval()


def sessions() -> tuple[torch.Tensor, torch.Tensor]:
    """(S, T, F) and (S, T, 6), oldest first."""
    draw = torch.Generator().manual_seed(1)
    event = torch.randint(NUM_EVENTS - 1, (S, T), generator=draw)
    return torch.randn(S, T, F, generator=draw), torch.eye(NUM_EVENTS)[event]


def window(rows: torch.Tensor, t: int, history: int) -> torch.Tensor:
    """The last ``history`` of the first ``t`` rows, newest first, then zeros."""
    past = rows[:, max(t - history, 0) : t].flip(1)
    return torch.nn.functional.pad(past, (0, 0, 0, history - past.shape[1]))


@every_encoder
@pytest.mark.parametrize("history", [1, 2, 3, 20])
def test_shapes(name, history):
    items, events = sessions()
    made = encoder(name, history, width=12, token=4)
    assert made(window(items, T, history), window(events, T, history)).shape == (S, 12)
    assert made.prefixes(items, events).shape == (S, T + 1, 12)
    assert made.read(made.begin(3)).shape == (3, 12)


@every_encoder
@torch.no_grad()
def test_a_session_at_once_is_every_window_of_it(name):
    items, events = sessions()
    made = encoder(name)
    found = made.prefixes(items, events)
    # a GRU that is carried along forgets nothing
    for t in range((H if name == "gru" else T) + 1):
        expected = made(window(items, t, H), window(events, t, H))
        torch.testing.assert_close(found[:, t], expected, atol=1e-5, rtol=1e-4)
    assert (found.std(0) > 1e-3).any(1)[1:].all()


@every_encoder
@torch.no_grad()
def test_step_by_step_is_the_session_at_once(name):
    items, events = sessions()
    made = encoder(name)
    found = made.prefixes(items, events)
    memory = made.begin(S)
    for t in range(T):
        torch.testing.assert_close(made.read(memory), found[:, t], atol=1e-5, rtol=1e-4)
        memory = made.advance(memory, items[:, t], events[:, t])
    torch.testing.assert_close(made.read(memory), found[:, T], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("first", [0, 2, T + 1])
@torch.no_grad()
def test_a_gru_learns_to_begin_in_the_middle(first):
    items, events = sessions()
    made = encoder("gru", history=3)
    found = made.lessons(items, events, first)
    for t in range(1, T + 1):
        begun = max(range(first, t, 3), default=0)
        expected = made.prefixes(items[:, begun:t], events[:, begun:t])[:, -1]
        torch.testing.assert_close(found[:, t], expected, atol=1e-5, rtol=1e-4)


@every_encoder
@torch.no_grad()
def test_what_comes_later_changes_nothing_before(name):
    items, events = sessions()
    made = encoder(name)
    before = made.prefixes(items, events)
    items[:, 4], events[:, 4] = -items[:, 4], events[:, 4].roll(1, dims=1)
    after = made.prefixes(items, events)
    torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=0)
    assert ((before - after)[:, 5].abs().amax(1) > 1e-3).all()


@every_encoder
@torch.no_grad()
def test_only_the_window_counts(name):
    items, events = sessions()
    made = encoder(name)
    before = made(window(items, T, H), window(events, T, H))
    items[:, 0], items[:, T - H] = 9.0, -items[:, T - H]
    after = made(window(items, T, H), window(events, T, H))
    assert ((before - after).abs().amax(1) > 1e-4).all()
    items[:, T - H] = -items[:, T - H]
    torch.testing.assert_close(made(window(items, T, H), window(events, T, H)), before)


@every_encoder
@torch.no_grad()
def test_rows_of_zeros_are_nothing(name):
    """A batch with longer histories beside it, and a longer padding, change nothing."""
    items, events = sessions()
    made = encoder(name)
    length = torch.tensor([0, 1, 2, 3, 4, 5])
    here = torch.arange(H) < length[:, None]
    some = window(items, T, H) * here[..., None], window(events, T, H) * here[..., None]
    together = made(*some)
    for n in range(S):
        alone = made(some[0][n : n + 1], some[1][n : n + 1])
        torch.testing.assert_close(together[n], alone[0], atol=1e-6, rtol=1e-5)
    if name == "gru":  # the others have a weight for every age
        longer = made(*(torch.nn.functional.pad(part, (0, 0, 0, 3)) for part in some))
        torch.testing.assert_close(longer, together, atol=1e-6, rtol=1e-5)
    # whatever stands where nothing happened is not read
    noise = some[0] + ~here[..., None] * 5.0
    torch.testing.assert_close(made(noise, some[1]), together)


@every_encoder
def test_everything_learns(name):
    items, events = sessions()
    made = encoder(name)
    made(window(items, T, H), window(events, T, H)).square().sum().backward()
    for told, parameter in made.named_parameters():
        assert parameter.grad is not None, told
        if "start" not in told:
            assert parameter.grad.abs().sum() > 0, told


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("lstm", {}, "unknown encoder"),
        (None, {}, "unknown encoder"),
        ("gru", {"depth": 2}, "unknown setting of the encoder"),
        ("mlp", {"width": 0}, "encoder.width"),
        ("cnn", {"token": 2.5}, "encoder.token"),
        ("transformer", {"width": 6}, "multiple of 4"),
    ],
)
def test_nonsense_is_refused_in_one_line(name, settings, words):
    with pytest.raises(UsageError, match=words) as error:
        make_encoder(name, F, H, **settings)
    assert "\n" not in str(error.value)

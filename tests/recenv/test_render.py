"""Frames tell and show what happened, in any shop and at any moment of a session."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import recenv
from recenv import render
from recenv.dynamics import Event, State, Traits
from recenv.env import RecsysEnv
from recenv.errors import MissingExtra
from recenv.render import Diary, draw, tell
from recenv.scenarios import SCENARIOS

WORDS = {
    Event.IGNORE: "ignored",
    Event.NOT_INTERESTED: "not interested",
    Event.VIEW: "looked",
    Event.CART: "put it in the cart",
    Event.PURCHASE: "bought",
}


def played(steps: int, seed: int = 0, **keywords: Any) -> tuple[RecsysEnv, list[Any]]:
    """An environment after random recommendations, and (item, event, reward) of each."""
    env = RecsysEnv(**({"render_mode": "rgb_array"} | keywords))
    env.reset(seed=seed)
    rng, past = np.random.default_rng(seed), []
    for _ in range(steps):
        item = int(rng.integers(env.shop.num_items))
        _, reward, over, _, info = env.step(item)
        past.append((item, Event(info["event"]), reward))
        if over:
            break
    return env, past


def some_traits(base_rate: float, price_sensitivity: float, tolerance: float = 6.0) -> Traits:
    return Traits(*map(np.float32, (base_rate, price_sensitivity, tolerance)))


def a_diary(traits: Traits | None = None, **keywords: Any) -> Diary:
    """A diary opened on a shopper who likes what item 0 is."""
    diary = Diary(recenv.Shop(keywords))
    diary.open(7, a_state(diary), traits or some_traits(0.0, 0.5))
    return diary


def a_state(diary: Diary, satisfaction: float = 0.0, satiation: Any = 0.0, left: int = 50) -> State:
    catalogue = diary.shop.catalogue
    satiation_K = np.zeros(catalogue.num_categories, dtype=np.float32) + satiation
    number = np.float32
    interest = catalogue.embedding_ID[0].astype(np.float32)
    return State(interest, satiation_K, number(satisfaction), number(0), number(1), number(left))


def long_named(**keywords: Any) -> RecsysEnv:
    """100 categories with names that are long, ugly, and markup to a careless typesetter."""
    env = RecsysEnv(num_items=300, num_categories=100, render_mode="rgb_array", **keywords)
    catalogue = replace(
        env.shop.catalogue,
        item_names=tuple(f"$5 WIDE\nMOUTHED _MUG_ ${i} " + 9 * "WITH MILK " for i in range(300)),
        category_names=tuple(rf"$\frac$ kitchen {k}" + "\n" + 20 * "mugs " for k in range(100)),
    )
    env.shop.world = replace(env.shop.world, catalogue=catalogue)
    return env


# ---- in words ----


def test_every_recommendation_has_its_line() -> None:
    env, past = played(50, render_mode="ansi", scenario="static")
    catalogue, lines = env.shop.catalogue, env.render().splitlines()
    for step, (item, event, _) in enumerate(past, start=1):
        (line,) = [line for line in lines if line.startswith(f"{step:>4}  ")]
        assert f"item {item} (category {catalogue.category_I[item]})" in line
        assert f" {catalogue.price_I[item]:.2f} " in line
        assert line.endswith(f"  {WORDS[event]}")


def test_every_event_has_its_words() -> None:
    diary = a_diary()
    for event in WORDS:
        diary.write(4, event, -1.0, a_state(diary), False)
    lines = tell(diary).splitlines()[3:8]
    assert [line.split(f"{diary.shop.catalogue.price_I[4]:.2f}")[1].strip() for line in lines] == [
        *WORDS.values()
    ]


def test_the_portrait_names_what_she_likes_most() -> None:
    env, _ = played(0, seed=3, render_mode="ansi")
    catalogue, interest = env.shop.catalogue, env.state.interest
    affinity = [
        np.mean(catalogue.embedding_ID[catalogue.category_I == k] @ interest)
        for k in range(catalogue.num_categories)
    ]
    first, second, third = np.argsort(affinity)[::-1][:3]
    assert f"She likes category {first}, category {second} and category {third};" in env.render()


def test_a_category_without_items_is_not_liked() -> None:
    env, _ = played(0, num_items=6, num_categories=3, render_mode="ansi")
    catalogue = replace(env.shop.catalogue, category_I=np.array([0, 0, 0, 2, 2, 2]))
    diary = Diary(env.shop)
    env.shop.world = replace(env.shop.world, catalogue=catalogue)
    diary.open(0, env.state, env.traits)
    assert "category 1" not in tell(diary)
    assert "category 2" in tell(diary)
    assert draw(diary).shape == (640, 960, 3)


@pytest.mark.parametrize(
    ("price", "rate", "words"),
    [
        (0.8, 0.3, "is sensitive to prices (0.80); buys readily (base rate +0.30)"),
        (0.2, -0.3, "cares little about prices (0.20); is hard to sell to (base rate -0.30)"),
        (0.5, 0.0, "minds prices (0.50); buys as readily as most (base rate 0.00)"),
        (-0.1, 0.0, "does not mind prices (-0.10); buys as readily as most (base rate 0.00)"),
    ],
)
def test_traits_are_told_against_the_average(price: float, rate: float, words: str) -> None:
    text = tell(a_diary(some_traits(rate, price), price_sensitivity=0.5))
    assert f"{words}." in text
    assert text.startswith("Shopper 7 (synthetic, full: 100 items, 50 recommendations)\n")


def test_tolerance_is_told_where_shoppers_leave() -> None:
    traits = some_traits(0.0, 0.5, 8.2)
    assert "bears about 8 refusals in a row" in tell(a_diary(traits, scenario="churn"))
    assert "refusals" not in tell(a_diary(traits))


def test_trust_is_noted_when_it_changes_noticeably() -> None:
    diary = a_diary(trust_slope=1.0)
    for trust in (-0.05, -0.21, -0.25, 0.1):
        diary.write(0, Event.IGNORE, -1.0, a_state(diary, satisfaction=np.arctanh(trust)), False)
    notes = [line.partition("ignored")[2].strip() for line in tell(diary).splitlines()[3:7]]
    assert notes == ["", "trust falls to -0.21", "", "trust rises to +0.10"]


def test_trust_is_not_noted_where_it_does_nothing() -> None:
    for scenario, matters in {"static": False, "trust": True, "churn": True}.items():
        diary = a_diary(scenario=scenario)
        diary.write(0, Event.PURCHASE, 1.0, a_state(diary, satisfaction=-1.0), False)
        assert ("trust falls" in tell(diary)) is matters


def test_satiation_is_noted_when_she_tires_of_a_category() -> None:
    diary = a_diary()
    category = diary.shop.catalogue.category_I[0]
    for satiation in (0.9, 1.7, 1.8, 2.4, 0.2, 1.1):
        diary.write(0, Event.IGNORE, -1.0, a_state(diary, satiation=satiation), False)
    diary.write(0, Event.IGNORE, -1.0, a_state(diary), False)
    notes = [line.partition("ignored")[2].strip() for line in tell(diary).splitlines()[3:10]]
    tired = f"tired of category {category} (satiation "
    # each is about the moment before the recommendation
    assert notes == ["", "", f"{tired}1.7)", "", f"{tired}2.4)", "", f"{tired}1.1)"]


def test_before_the_first_step_nothing_has_happened() -> None:
    text = tell(a_diary())
    assert text.endswith("\n\nSo far: 0 bought of 0, return 0; 50 to come.\n")
    assert not any(f"  {words}" in text for words in WORDS.values())


def test_a_session_that_goes_on_is_summed_up() -> None:
    diary = a_diary()
    for event, reward in ((Event.PURCHASE, 1.0), (Event.CART, -1.0), (Event.VIEW, -1.0)):
        diary.write(3, event, reward, a_state(diary), False)
    assert "So far: 1 bought of 3, return -1; 47 to come." in tell(diary)


def test_a_shopper_who_stays() -> None:
    env, past = played(50, render_mode="ansi")
    bought = sum(event is Event.PURCHASE for _, event, _ in past)
    words = f"She stayed to the end: {bought} bought of 50, return {2 * bought - 50:+d}."
    assert env.render().splitlines()[-1] == words


def test_a_shopper_who_leaves() -> None:
    env, past = played(50, render_mode="ansi", scenario="churn", churn_base=-2.0)
    seen, bought = len(past), sum(event is Event.PURCHASE for _, event, _ in past)
    assert seen < 50
    assert env.render().splitlines()[-1] == (
        f"She left after step {seen} of 50 ({50 - seen} recommendations unseen, "
        f"charged {seen - 50}): {bought} bought of 50, return {2 * bought - 50:+d}."
    )


def test_a_new_shopper_begins_a_new_page() -> None:
    env, _ = played(5, render_mode="ansi")
    env.reset()
    assert env.render().startswith("Shopper 1 ")
    assert "So far: 0 bought of 0" in env.render()


def test_a_long_session_is_summed_up_in_the_middle() -> None:
    env, past = played(300, render_mode="ansi", horizon=300)
    lines = env.render().splitlines()
    assert len(lines) == 2 + 1 + 10 + 1 + 50 + 2
    assert [int(line.split()[0]) for line in (*lines[3:13], *lines[14:64])] == [
        *range(1, 11),
        *range(251, 301),
    ]
    between = [event for _, event, _ in past[10:250]]
    assert lines[13].startswith("  ... steps 11 to 250: ")
    for event, words in WORDS.items():
        assert f"{between.count(event)} {words}" in lines[13]


def test_long_names_stay_on_their_lines() -> None:
    env = long_named()
    env.render_mode = "ansi"
    env.reset(seed=0)
    for item in range(20):
        env.step(item)
    lines = env.render().splitlines()
    assert len(lines) == 2 + 1 + 20 + 2
    for item, line in enumerate(lines[3:23]):
        assert f"$5 WIDE MOUTHED _MUG_ ${item}" in line
        assert len(line) < 160


# ---- in a picture ----


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("observation", ["latent", "behaviour"])
def test_a_frame_at_every_stage(scenario: str, observation: str) -> None:
    keywords = {"scenario": scenario, "observation": observation}
    frames = [played(steps, **keywords)[0].render() for steps in (0, 1, 50)]
    for frame in frames:
        assert frame.shape == (640, 960, 3)
        assert frame.dtype == np.uint8
        assert frame.flags.owndata
    assert len({frame.tobytes() for frame in frames}) == 3


def test_frames_are_fresh_and_repeatable() -> None:
    env, _ = played(9)
    first, second = env.render(), env.render()
    np.testing.assert_array_equal(first, second)
    first[:] = 0
    assert second.any()
    np.testing.assert_array_equal(played(9)[0].render(), second)


def test_rendering_changes_nothing() -> None:
    drawn, _ = played(9)
    drawn.render()
    other, _ = played(9)
    np.testing.assert_array_equal(drawn.step(3)[0], other.step(3)[0])


def is_colour(frame: Any, colour: str) -> Any:
    return (frame == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1)


def pixels_of(frame: Any, colour: str) -> int:
    """How much of the timeline of events has a colour."""
    return int(is_colour(frame, colour)[384:469, 168:880].sum())


def lengths(frame: Any, colour: str, left: int, right: int) -> list[int]:
    """Pixels of a colour in the middle of each row of the tables."""
    middle = [render.TABLE + int(render.PITCH * (row + 0.5)) for row in range(render.ROWS)]
    return [int(is_colour(frame[y, left:right], colour).sum()) for y in middle]


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    diary = a_diary()
    satiation_K = np.arange(10, dtype=np.float32) / 4
    diary.open(0, a_state(diary, satiation=satiation_K), diary.traits)
    frame, affinity_K = draw(diary), diary.affinity_K
    shown = np.argsort(-(affinity_K + satiation_K))[:8]
    shown = shown[np.argsort(-affinity_K[shown])]
    # a pixel of each end may be blended or lie under the zero line
    near = {"atol": 3}
    interest = lengths(frame, render.BLUE, 180, 370)
    np.testing.assert_allclose(interest, 85 * np.abs(affinity_K[shown]), **near)
    satiation = lengths(frame, render.PURPLE, 370, 470)
    np.testing.assert_allclose(satiation, 70 / 3 * satiation_K[shown], **near)
    chances = [chance for _, _, chance in render._shelf(diary, None)]
    bars = lengths(frame, render.GREEN, render.BAR_LEFT, 900)
    np.testing.assert_allclose(bars, render.BAR * np.array(chances), **near)


def test_a_tick_shows_the_chance_at_the_time() -> None:
    """She was offered item 0 in full trust, and then lost it."""
    diary = a_diary(trust_weight=4.0, num_items=1)
    diary.open(0, a_state(diary, satisfaction=9.0), diary.traits)
    before = render._shelf(diary, None)[0][2]
    diary.write(0, Event.IGNORE, -1.0, a_state(diary, satisfaction=-9.0), False)
    after = render._shelf(diary, None)[0][2]
    assert before - after > 0.2
    (x,) = np.flatnonzero(is_colour(draw(diary)[render.TABLE + 4, 790:900], render.INK))[[0]]
    assert 790 + x == pytest.approx(render.BAR_LEFT + render.BAR * before, abs=3)


@pytest.mark.parametrize("event", WORDS)
def test_a_step_marks_its_event_and_no_other(event: Event) -> None:
    diary = a_diary()
    diary.write(0, event, -1.0, a_state(diary, left=49), False)
    frame = draw(diary)
    for other, colour in render.COLOURS.items():
        assert (pixels_of(frame, colour) > 0) is (other is event)


def height_of(frame: Any, top: int, bottom: int) -> float:
    """Where the line of a series is, on average, from 0 (bottom) to 1 (top)."""
    y = np.flatnonzero(is_colour(frame[top:bottom, 250:400], render.BLUE).any(axis=1))
    return float(1 - y.mean() / (bottom - top))


def test_the_return_is_drawn() -> None:
    heights = []
    for reward in (1.0, -1.0):
        diary = a_diary()
        for _ in range(20):
            diary.write(0, Event.VIEW, reward, a_state(diary), False)
        heights.append(height_of(draw(diary), 484, 546))
    assert heights[0] > 0.5 > heights[1]


def test_trust_is_drawn() -> None:
    for trust in (-0.8, 0.0, 0.8):
        diary = a_diary(trust_slope=1.0)
        state = a_state(diary, satisfaction=np.arctanh(trust))
        for _ in range(20):
            diary.write(0, Event.VIEW, -1.0, state, False)
        assert height_of(draw(diary), 564, 606) == pytest.approx((1 + trust) / 2, abs=0.05)


def test_what_she_does_not_see_is_shaded() -> None:
    diary = a_diary(scenario="churn")
    diary.write(0, Event.IGNORE, -50.0, a_state(diary, left=49), True)
    left = draw(diary)
    diary.over = False
    differs = (left != draw(diary)).any(axis=-1)[386:604]
    assert differs[:, 190:878].all()
    assert not differs[:, :180].any()


def test_the_shelf_shows_the_likeliest_items() -> None:
    env, _ = played(4)
    items = env.shop.items(np, env.shop.tables)
    utility_I = recenv.dynamics.utilities(np, env.shop.dynamics, env.state, env.traits, items)
    shelf = render._shelf(env._diary, None)
    assert [item for _, item, _ in shelf] == np.argsort(-utility_I)[:8].tolist()
    assert [rank for rank, _, _ in shelf] == list(range(1, 9))
    for _, item, chance in shelf:
        assert chance == pytest.approx(1 / (1 + np.exp(-utility_I[item])), rel=1e-5)


def test_the_shelf_always_shows_what_was_recommended() -> None:
    env, _ = played(4)
    items = env.shop.items(np, env.shop.tables)
    utility_I = recenv.dynamics.utilities(np, env.shop.dynamics, env.state, env.traits, items)
    order = np.argsort(-utility_I)
    shelf = render._shelf(env._diary, int(order[40]))
    assert shelf[-1][:2] == (41, order[40])
    assert [item for _, item, _ in shelf[:-1]] == order[:7].tolist()
    assert render._shelf(env._diary, int(order[5])) == render._shelf(env._diary, None)


def extents(env: RecsysEnv, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every text of a frame and the box that it fills."""
    seen: list[tuple[str, Any]] = []

    def spy(canvas: Any) -> Any:
        renderer = canvas._agg.get_renderer()
        texts = [text for text in canvas._figure.texts if text.get_text()]
        seen.extend((text.get_text(), text.get_window_extent(renderer)) for text in texts)
        return original(canvas)

    original = render._Canvas.pixels
    monkeypatch.setattr(render._Canvas, "pixels", spy)
    env.render()
    return seen


def a_long_named_session(**keywords: Any) -> RecsysEnv:
    env = long_named(**keywords)
    env.reset(seed=0)
    for item in range(40):
        if env.step(item)[2]:
            break
    return env


LEAVING = {"scenario": "churn", "churn_base": -2.0}
CROWDED = {
    "default": lambda: played(23)[0],
    "static": lambda: played(50, scenario="static")[0],
    "left": lambda: played(50, **LEAVING)[0],
    "5 items": lambda: played(30, num_items=5)[0],
    "1 item": lambda: played(1, num_items=1, horizon=1)[0],
    "long names": a_long_named_session,
    "long names, long session, left": lambda: a_long_named_session(horizon=100_000, **LEAVING),
}


@pytest.mark.parametrize("shop", CROWDED)
def test_labels_neither_overlap_nor_leave_the_sheet(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = extents(CROWDED[shop](), monkeypatch)
    assert len(texts) > 20
    for i, (text, box) in enumerate(texts):
        assert 0 <= box.x0 < box.x1 <= render.WIDTH, text
        assert 0 <= box.y0 < box.y1 <= render.HEIGHT, text
        for other, other_box in texts[i + 1 :]:
            assert not box.overlaps(other_box), (text, other)


def test_a_frame_does_not_depend_on_pyplot_or_its_style(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    env, _ = played(9)
    plain = env.render()
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    style = {
        "figure.facecolor": "black",
        "text.color": "white",
        "font.size": 20,
        "font.family": "monospace",
        "lines.linewidth": 5,
        "lines.linestyle": ":",
        "lines.marker": "o",
        "savefig.dpi": 10,
        "figure.dpi": 10,
    }
    with matplotlib.rc_context(style):
        np.testing.assert_array_equal(env.render(), plain)


def test_a_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    env, _ = played(2)
    for name in ["matplotlib", *(name for name in sys.modules if name.startswith("matplotlib."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"matplotlib.*recenv\[agents\]"):
        env.render()
    env.render_mode = "ansi"
    assert "So far" in env.render()


def test_matplotlib_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, recenv.env; env = recenv.env.RecsysEnv(render_mode='ansi');"
        "env.reset(seed=0); env.render(); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_gymnasium_accepts_the_frames(mode: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("Recsys-v0", render_mode=mode)
        check_env(env.unwrapped)
        env.reset(seed=0)
        env.step(0)
        frame = env.render()
    assert isinstance(frame, str if mode == "ansi" else np.ndarray)

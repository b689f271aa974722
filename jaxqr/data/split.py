"""Splits of queries where a data set has none of its own."""

from collections.abc import Iterable

import numpy as np


def random_split(queries: Iterable[str], seed: int) -> dict[str, str]:
    """A tenth each of the distinct queries is "test" and "validation", drawn by seed.

    >>> split = random_split([f"query {i}" for i in range(20)], seed=0)
    >>> list(split.values()).count("test")
    2
    """
    names = list(dict.fromkeys(queries))
    split = dict.fromkeys(names, "train")
    order = np.random.default_rng(seed).permutation(len(names))
    tenth = round(len(names) / 10)
    split |= {names[i]: "test" for i in order[:tenth]}
    split |= {names[i]: "validation" for i in order[tenth : 2 * tenth]}
    return split

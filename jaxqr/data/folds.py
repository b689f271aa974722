"""Cross-validation over queries: each fold is measured by models that never saw it."""

from collections.abc import Collection as Some
from collections.abc import Sequence

import numpy as np

from jaxqr.data.q2q import folded
from jaxqr.records import Collection, Judgements


def deal(queries: Sequence[str], folds: int, seed: int = 0) -> dict[str, int]:
    """Deals queries out to folds of sizes that differ by one at most, at random.

    Queries that are equal when `jaxqr.data.q2q.folded` count once and share a fold.

    Raises:
        ValueError: fewer than two folds, or fewer queries than folds.
    """
    forms = sorted({folded(query) for query in queries})
    if not 2 <= folds <= len(forms):
        raise ValueError(
            f"{folds} folds of {len(forms)} queries: expected two folds or more, and "
            "a query for each"
        )
    order = np.random.default_rng(seed).permutation(len(forms)).tolist()
    of = {forms[i]: place % folds for place, i in enumerate(order)}
    return {query: of[folded(query)] for query in queries}


def without(collection: Collection, queries: Some[str]) -> Collection:
    """The collection without these queries' judgements, in whatever form typed.

    The queries stay in its split.
    """
    forms = {folded(query) for query in queries}
    judged = collection.judgements
    kept = np.array([folded(query) not in forms for query in judged.query], np.bool_)
    weight = None if judged.weight is None else judged.weight[kept]
    left = Judgements(*(column[kept] for column in judged[:3]))
    return collection._replace(judgements=left._replace(weight=weight))

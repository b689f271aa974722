"""What travels between the host's modules: products, judgements, lists, rewards.

One home for each, in numpy. Letters of shapes: `Q` queries (or rows, one per rewrite),
`M` products per query, `R` judgements.

Failure is per row and never a number: where a row's `valid` is False nothing is known
about it, whatever stands in the other fields.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, Shaped


class Product(NamedTuple):
    """One product. Texts may be empty; `price` is None where it is not known."""

    id: str
    title: str
    description: str = ""
    bullets: str = ""
    brand: str = ""
    color: str = ""
    category: str = ""
    price: float | None = None


class Labels(NamedTuple):
    """The relevance labels of a collection, the best first; by default ESCI's.

    ESCI has Exact, Substitute, Complement and Irrelevant with the gains of Reddy et al.
    2022, section 4. Other collections have two or three labels.

    >>> Labels().gain("S"), Labels().num_classes
    (0.1, 4)
    """

    names: tuple[str, ...] = ("E", "S", "C", "I")
    gains: tuple[float, ...] = (1.0, 0.1, 0.01, 0.0)
    """Graded relevance of each label, in [0, 1]."""
    relevant: tuple[str, ...] = ("E", "S")
    """Labels whose products count as relevant, for query pairs and for recall."""

    @property
    def num_classes(self) -> int:
        """How many labels there are."""
        return len(self.names)

    def gain(self, name: str) -> float:
        """The gain of one label.

        Raises:
            ValueError: there is no such label.
        """
        if name not in self.names:
            raise ValueError(
                f"no such label as {name!r}: expected one of {', '.join(self.names)}"
            )
        return self.gains[self.names.index(name)]


EXACT_PARTIAL_IRRELEVANT = Labels(
    ("Exact", "Partial", "Irrelevant"), (1.0, 0.5, 0.0), ("Exact",)
)
"""The labels of WANDS and of Home Depot, with the weights 2, 1 and 0 of judged-only
nDCG scaled to [0, 1]."""


class Judgements(NamedTuple):
    """Relevance judgements as columns of equal length, one row per (query, product)."""

    query: np.ndarray  # [R] of str
    product_id: np.ndarray  # [R] of str
    label: np.ndarray  # [R] of str, one of the collection's `labels.names`
    weight: np.ndarray | None = None
    """[R] of float64 above 0: how much a row counts, such as its number of
    interactions; None: all rows count the same."""


class Collection(NamedTuple):
    """Products, queries and judgements: what search is trained and measured on.

    `split` maps every query to "train", "validation" or "test". A judgement's product
    may lack text, and so be missing from `products`; its query is always in `split`.
    """

    products: dict[str, Product]
    split: dict[str, str]
    judgements: Judgements
    labels: Labels = Labels()
    fully_judged: frozenset[str] | None = None
    """Queries whose whole list of products was judged; None: every query's was.
    Ranking metrics over judged products mean something on these alone."""


class Hits(NamedTuple):
    """Ranked lists of products, the best first.

    Rows shorter than `M` are padded on the right with the id "" and the score 0. Where
    `valid` is False the search failed: an empty list there says nothing.
    """

    ids: Shaped[np.ndarray, "Q M"]
    scores: Float32[np.ndarray, "Q M"]
    valid: Bool[np.ndarray, " Q"]

    @classmethod
    def failed(cls, rows: int, width: int) -> "Hits":
        """The lists [rows, width] of searches that all failed."""
        return cls(
            np.full((rows, width), ""),
            np.zeros((rows, width), np.float32),
            np.zeros(rows, np.bool_),
        )

    def take(self, rows: np.ndarray) -> "Hits":
        """The lists of some rows, in that order."""
        return Hits(self.ids[rows], self.scores[rows], self.valid[rows])

    def first(self, k: int) -> "Hits":
        """The first `k` products of every list."""
        return Hits(self.ids[:, :k], self.scores[:, :k], self.valid)


class Interactions(NamedTuple):
    """Expected interactions per listed product, in [0, 1]; not `valid` is a failure."""

    click: Float32[np.ndarray, " Q"]
    add_to_cart: Float32[np.ndarray, " Q"]
    purchase: Float32[np.ndarray, " Q"]
    valid: Bool[np.ndarray, " Q"]


class Impressions(NamedTuple):
    """What shoppers were shown and did, as columns: a row for each product of a list.

    A list is shown to one shopper once; its rows are neighbors.
    """

    list_id: Shaped[np.ndarray, " R"]
    """Of str; such as UBI's query id."""
    query: Shaped[np.ndarray, " R"]
    product_id: Shaped[np.ndarray, " R"]
    rank: Int[np.ndarray, " R"]
    """The product's place in the list, from 1 on."""
    click: Bool[np.ndarray, " R"]
    add_to_cart: Bool[np.ndarray, " R"]
    purchase: Bool[np.ndarray, " R"]


class Reward(NamedTuple):
    """Rewards of Q rewrites.

    `total` is the weighted mean of `parts`. Where `valid` is False nothing is known:
    numbers there are 0 and must not be trained on, averaged or compared. `flags` says
    what is noteworthy about each row: `empty` has no text, `no_results` found nothing
    (empty ones included), `copy` is the query again, `search_failed` and `judge_failed`
    are why a row is not valid.
    """

    total: Float32[np.ndarray, " Q"]
    parts: Mapping[str, Float32[np.ndarray, " Q"]]
    valid: Bool[np.ndarray, " Q"]
    flags: Mapping[str, Bool[np.ndarray, " Q"]] = MappingProxyType({})
    hits: Hits | None = None
    """What the rewrites found, so that other metrics need not search again."""

    @classmethod
    def unknown(cls, rows: int) -> "Reward":
        """The reward of rows that could not be scored."""
        return cls(np.zeros(rows, np.float32), {}, np.zeros(rows, np.bool_))

    @classmethod
    def concatenate(cls, rewards: Sequence["Reward"]) -> "Reward":
        """The rows of several rewards, one after the other.

        Parts, flags and lists that some of them lack are 0, False and failed searches
        there: these rows are not valid.
        """
        rows = [len(reward.valid) for reward in rewards]

        def columns(field: str, dtype: type) -> dict[str, np.ndarray]:
            known = [getattr(reward, field) for reward in rewards]
            names = dict.fromkeys(name for columns in known for name in columns)
            return {
                name: np.concatenate(
                    [
                        columns.get(name, np.zeros(count, dtype))
                        for columns, count in zip(known, rows, strict=True)
                    ]
                )
                for name in names
            }

        width = max((r.hits.ids.shape[1] for r in rewards if r.hits), default=0)
        hits = [
            reward.hits or Hits.failed(count, width)
            for reward, count in zip(rewards, rows, strict=True)
        ]
        return cls(
            np.concatenate([reward.total for reward in rewards]),
            columns("parts", np.float32),
            np.concatenate([reward.valid for reward in rewards]),
            columns("flags", np.bool_),
            Hits(*(np.concatenate(column) for column in zip(*hits, strict=True))),
        )

    def part(self, name: str) -> np.ndarray:
        """One part, or "total", as float64 [Q]; NaN where it is not known."""
        values = self.total if name == "total" else self.parts.get(name)
        if values is None:
            return np.full(len(self.valid), np.nan)
        return np.where(self.valid, values.astype(np.float64), np.nan)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, from which `from_json` restores every bit."""
        return {
            "total": self.total.tolist(),
            "parts": {name: part.tolist() for name, part in self.parts.items()},
            "valid": self.valid.tolist(),
            "flags": {name: flag.tolist() for name, flag in self.flags.items()},
            "hits": None
            if self.hits is None
            else {
                "ids": self.hits.ids.tolist(),
                "scores": self.hits.scores.tolist(),
                "valid": self.hits.valid.tolist(),
            },
        }

    @classmethod
    def from_json(cls, value: Any) -> "Reward":
        """The inverse of `to_json`.

        Raises:
            ValueError: a field is missing or of another kind, or the columns differ in
                length.
        """
        try:
            hits = value["hits"]
            reward = cls(
                _column(value["total"], np.float32),
                {k: _column(x, np.float32) for k, x in value["parts"].items()},
                _column(value["valid"], np.bool_),
                {k: _column(x, np.bool_) for k, x in value["flags"].items()},
                None
                if hits is None
                else Hits(
                    _column(hits["ids"], np.str_, ndim=2),
                    _column(hits["scores"], np.float32, ndim=2),
                    _column(hits["valid"], np.bool_),
                ),
            )
        except KeyError as error:
            raise ValueError(f"a reward without the field {error}") from None
        except (TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"not a reward ({error}): expected what Reward.to_json gives"
            ) from None
        rows = len(reward.total)
        columns = [reward.valid, *reward.parts.values(), *reward.flags.values()]
        if reward.hits is not None:
            columns += [*reward.hits]
        if any(len(column) != rows for column in columns):
            lengths = [len(column) for column in columns]
            raise ValueError(f"a reward of {rows} rows with columns of {lengths} rows")
        if (
            reward.hits is not None
            and reward.hits.ids.shape != reward.hits.scores.shape
        ):
            raise ValueError(
                f"lists of {reward.hits.ids.shape[1]} ids and of "
                f"{reward.hits.scores.shape[1]} scores: expected a score for each"
            )
        return reward


_KINDS = {
    np.float32: ("numbers", "fiu"),
    np.bool_: ("booleans", "b"),
    np.str_: ("texts", "U"),
}
"""What a JSON column of each dtype holds, and the kinds of arrays that it makes."""


def _column(values: Any, dtype: type, *, ndim: int = 1) -> np.ndarray:
    """A JSON list, or list of lists, as an array.

    Raises:
        ValueError: it is none, the lists in it differ in length, or something in it is
            of another kind.
    """
    array = np.array(values)
    if not array.size and isinstance(values, list):
        return array.reshape((len(values), 0)[:ndim]).astype(dtype)
    name, kinds = _KINDS[dtype]
    if array.ndim != ndim or array.dtype.kind not in kinds:
        raise ValueError(
            f"{str(values)[:60]} is no list{' of lists' * (ndim - 1)} of {name}"
        )
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return array.astype(dtype)

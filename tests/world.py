"""A hand-made world: 3 queries, 5 products, and every number of every table.

The engine is a dictionary, the writers have fixed answers, M1 has fixed gains, the
judge is one line. The numbers below follow from them by the arithmetic that stands
next to them, without any code of the library.
"""

import math
from types import SimpleNamespace

import numpy as np

from jaxqr.data.tokenize import Tokenizer
from jaxqr.lm import LM, Rewrite, TokenStats
from jaxqr.records import Hits, Interactions, Judgements, Labels, Product
from jaxqr.rewards import Profile
from jaxqr.rewards.classifier import Classifier

NAN = math.nan
K = 3
SHOE, SOFA, LAMP = QUERIES = ["red shoe", "blue sofa", "desk lamp"]
PRODUCTS = {id: Product(id, f"title of {id}") for id in "ABCDE"}
LABELS = Labels()

# The engine

LISTS = {
    "red shoe": "ABC",
    "blue sofa": "D",
    "desk lamp": "",
    "crimson shoe": "AD",
    "red trainer": "BEA",
    "navy couch": "CD",
    "table light": "EBAC",  # C is beyond the K that count
}


class Engine:
    """Searches the dictionary; texts that are not in it are a KeyError.

    Attributes:
        asked: every text that was searched, in order.
        failing: texts whose search fails.
        down: whether every search raises.
    """

    def __init__(self, *failing: str):
        self.asked: list[str] = []
        self.failing = set(failing)
        self.down = False

    def search(self, queries, k):
        self.asked += queries
        if self.down:
            raise ConnectionError("the engine is down")
        rows = [list("" if q in self.failing else LISTS[q])[:k] for q in queries]
        ids = np.array([row + [""] * (k - len(row)) for row in rows], np.str_)
        scores = [[10.0 - i for i in range(len(row))] + [0.0] * k for row in rows]
        return Hits(
            ids.reshape(len(rows), k),
            np.array([row[:k] for row in scores], np.float32).reshape(len(rows), k),
            np.array([q not in self.failing for q in queries], np.bool_),
        )


# M1, the shoppers, the judgements and the truth

GAINS = {
    SHOE: {"A": 1.0, "B": 0.5, "C": 0.25, "D": 0.0, "E": 0.75},
    SOFA: {"A": 0.0, "B": 0.0, "C": 0.5, "D": 1.0, "E": 0.25},
    LAMP: {"A": 0.25, "B": 0.5, "C": 0.75, "D": 0.0, "E": 1.0},
}
"""M1's."""


class FixedClassifier(Classifier):
    """Has its probabilities by (query, product id), whatever the text is called."""

    def __new__(cls, table, classes):
        model = SimpleNamespace(config=SimpleNamespace(num_labels=classes))
        self = super().__new__(cls, model, {}, None)
        self.table = table
        return self

    def probabilities(self, first, second, *, batch_size=128):
        ids = [text.removeprefix("title of ") for text in second]
        rows = [self.table[q][i] for q, i in zip(first, ids, strict=True)]
        shape = (len(rows), self.model.config.num_labels)
        return np.array(rows, np.float32).reshape(shape)


def m1_classifier():
    """Exact or irrelevant: the expected gain is the probability of the first."""
    table = {
        q: {i: (g, 0.0, 0.0, 1 - g) for i, g in row.items()} for q, row in GAINS.items()
    }
    return FixedClassifier(table, 4)


POOL = [Profile("", 30, "", 50_000, 0.8, (), "", "")]
GUARD = [Profile("", 30, "", 50_000, 0.4, (), "", "")]


class Judge:
    """Clicks are the shopper's price sensitivity times the share of the list in use.

    Half of what is clicked goes to the cart, half of that is bought. It fails for
    queries in `failing`.
    """

    def __init__(self, *failing: str):
        self.failing = set(failing)

    def __call__(self, queries, hits, gains, profiles):
        keen = np.array([profile.price_sensitivity for profile in profiles])
        click = (keen * (hits.ids != "").mean(axis=1)).astype(np.float32)
        valid = np.array([query not in self.failing for query in queries], np.bool_)
        return Interactions(click, click / 2, click / 4, valid)


JUDGED = [
    (SHOE, "A", "E"),
    (SHOE, "B", "S"),
    (SHOE, "D", "I"),
    (SHOE, "X", "E"),  # the catalogue has no text of X
    (SOFA, "C", "E"),
    (SOFA, "D", "S"),
    (LAMP, "E", "E"),
    (LAMP, "B", "I"),
]
JUDGEMENTS = Judgements(
    *(np.array(column, object) for column in zip(*JUDGED, strict=True))
)
FULLY_JUDGED = frozenset({SHOE, SOFA})
JUDGED_GAINS = {SHOE: {"A": 1.0, "B": 0.1, "D": 0.0}, SOFA: {"C": 1.0, "D": 0.1}}
"""Of the fully judged queries' products that have text."""

TRUTH = {
    SHOE: {"A": 1.0, "B": 1.0, "C": 0.0, "D": 0.0, "E": 0.1},
    SOFA: {"A": 0.0, "B": 0.0, "C": 0.1, "D": 1.0, "E": 0.0},
    LAMP: {"A": 0.0, "B": 1.0, "C": 0.0, "D": 0.0, "E": 0.01},
}


def true_gain(query: str, product: str) -> float:
    return TRUTH[query][product]


# Writers

LENGTHS = SimpleNamespace(source=16, target=8, corpus=16)


class Words(Tokenizer):
    """A text has a token for each letter."""

    def __init__(self):
        self.eos = self.bos = 0

    def encode(self, texts):
        return [[1] * len(text.replace(" ", "")) for text in texts]

    def check_same(self, other, mine="teacher", others="student"):
        pass


class Writer(LM):
    """A language model with fixed answers.

    Args:
        greedy: by query.
        samples: by query.
        stats: (tokens, nll, entropy, KL to the teacher) by (query, target).
        teacher: the only model that it is measured to.
    """

    def __new__(cls, greedy, samples, stats, teacher=None):
        self = super().__new__(cls, None, {}, Words())
        self.greedy, self.samples, self.stats = greedy, samples, stats
        self.teacher = teacher
        return self

    def rewrite(self, queries, *, n=1, sampling=None, key=None, batch_size=64):
        assert sampling is not None
        assert sampling[:2] == (LENGTHS.source, LENGTHS.target)
        assert len(set(queries)) == len(queries)
        if sampling.temperature == 0:
            assert (n, sampling.top_p) == (1, 1.0)
            texts = [[self.greedy[query]] for query in queries]
        else:
            assert sampling.temperature == 1
            texts = [self.samples[query][:n] for query in queries]
        assert all(len(row) == n for row in texts)
        return [[Rewrite(text, -1.0, True) for text in row] for row in texts]

    def token_stats(
        self, pairs, *, teacher=None, max_source=0, max_target=0, batch_size=64
    ):
        assert (max_source, max_target) == (LENGTHS.source, LENGTHS.target)
        assert teacher is None or teacher is self.teacher
        rows = np.array([self.stats[pair] for pair in pairs], np.float32)
        if teacher is None:
            rows[:, 3] = 0
        return TokenStats(*rows.T)


# Offline: Table 2

PAIRS = [
    (SHOE, "red trainer"),
    (SHOE, "crimson red shoe"),
    (SOFA, "sofa in blue"),
    (LAMP, "Desk  LAMP"),
]
TARGET_TOKENS = 2, 4, 4, 2  # 12 in all


def _stats(nll, kl):
    rows = zip(TARGET_TOKENS, nll, (0,) * 4, kl, strict=True)
    return dict(zip(PAIRS, rows, strict=True))


TEACHER = Writer(
    {SHOE: "crimson red shoe", SOFA: "sofa in blue", LAMP: "desk lamp"},
    {
        SHOE: ["crimson red shoe"] * 5,
        SOFA: ["sofa in blue"] * 5,
        LAMP: ["desk lamp"] * 5,
    },
    _stats((1, 1, 1, 1), (NAN,) * 4),
)
STUDENT = Writer(
    {SHOE: "red trainer", SOFA: "sofa", LAMP: ""},
    {
        SHOE: ["red trainer", "shoe"] * 2 + ["red trainer"],
        SOFA: ["blue sofa", "sofa"] * 2 + ["blue sofa"],
        LAMP: ["desk", "lamp desk"] * 2 + ["desk"],
    },
    _stats((4, 6, 10, 4), (1, 1, 2, 2)),
    TEACHER,
)
DISTILLED = Writer(
    {SHOE: "crimson shoe", SOFA: "sofa in blue", LAMP: "desk light"},
    {
        SHOE: ["red shoe"] * 5,
        SOFA: ["sofa in blue", "x"] * 2 + ["sofa in blue"],
        LAMP: ["desk lamp"] * 5,
    },
    _stats((2, 6, 6, 4), (0.5, 1, 1, 0.5)),
    TEACHER,
)

OFFLINE = {
    # ROUGE-L is 2 LCS / (words of both). Its pairs: 2/4, 4/5, 2/5 and 4/4.
    "copy the query": {
        "exact_match": 25.0,  # of "Desk  LAMP", up to case and whitespace
        "rouge_l": 100 * (0.5 + 0.8 + 0.4 + 1) / 4,
        "rouge_l_sampled": 100 * (0.5 + 0.8 + 0.4 + 1) / 4,
        "nll_per_token": NAN,
        "nll_per_sequence": NAN,
        "reverse_kl": NAN,
        "tokens": (7 + 7 + 8 + 8) / 4,
        "words": 2.0,
    },
    # 4/4, 2/5, 2/4 and nothing; of its samples three of five are the first, two the
    # second: (4/4, 0), (2/5, 2/4), (2/5, 2/4), (2/3, 2/4).
    "SFT student": {
        "exact_match": 25.0,
        "rouge_l": 100 * (1 + 0.4 + 0.5 + 0) / 4,
        "rouge_l_sampled": 100 * (0.6 + 0.44 + 0.44 + 0.6) / 4,
        "nll_per_token": (4 + 6 + 10 + 4) / 12,
        "nll_per_sequence": (4 + 6 + 10 + 4) / 4,
        "reverse_kl": (1 + 1 + 2 + 2) / 12,
        "tokens": (10 + 10 + 4 + 0) / 4,
        "words": (2 + 2 + 1 + 0) / 4,
    },
    # Nothing, 4/5, 6/6, 2/4; samples: 2/4, 4/5, (6/6, 0), 4/4.
    "distilled student": {
        "exact_match": 25.0,
        "rouge_l": 100 * (0 + 0.8 + 1 + 0.5) / 4,
        "rouge_l_sampled": 100 * (0.5 + 0.8 + 0.6 + 1) / 4,
        "nll_per_token": (2 + 6 + 6 + 4) / 12,
        "nll_per_sequence": (2 + 6 + 6 + 4) / 4,
        "reverse_kl": (0.5 + 1 + 1 + 0.5) / 12,
        "tokens": (11 + 11 + 10 + 9) / 4,
        "words": (2 + 2 + 3 + 2) / 4,
    },
    # 2/5, 6/6, 6/6, 4/4, in greedy rewrites and samples.
    "SFT teacher": {
        "exact_match": 75.0,
        "rouge_l": 100 * (0.4 + 1 + 1 + 1) / 4,
        "rouge_l_sampled": 100 * (0.4 + 1 + 1 + 1) / 4,
        "nll_per_token": 4 / 12,
        "nll_per_sequence": 1.0,
        "reverse_kl": NAN,
        "tokens": (14 + 14 + 10 + 8) / 4,
        "words": (3 + 3 + 3 + 2) / 4,
    },
}

OFFLINE_DIFFERENCES = {
    # By query, distilled minus SFT; a query's pairs are averaged first.
    "rouge_l": (40 - 70, 100 - 50, 50 - 0),
    "rouge_l_sampled": (65 - 52, 60 - 44, 100 - 60),
    "nll_per_token": (1.25 - 1.75, 1.5 - 2.5, 2 - 2),
    "reverse_kl": (0.25 - 0.375, 0.25 - 0.5, 0.25 - 1),
}

# Online: Table 3

SAMPLED = {SHOE: ["red shoe"], SOFA: ["sofa"], LAMP: [""]}
BEFORE = Writer({SHOE: "crimson shoe", SOFA: "", LAMP: "desk lamp"}, {}, {})
AFTER = Writer(
    {SHOE: "red trainer", SOFA: "navy couch", LAMP: "table light"},
    SAMPLED,
    {
        (SHOE, "red shoe"): (2, 9, 1.0, 0.5),
        (SOFA, "sofa"): (3, 9, 2.0, 1.0),
        (LAMP, ""): (1, 9, 0.6, 0.0),
    },
    BEFORE,
)
DRIFT = {"kl": 1.5 / 6, "entropy": 3.6 / 6, "tokens": 2.0}
"""Of AFTER's samples from BEFORE: sums of the above over 6 tokens."""

_BEST = 1 + 0.1 / math.log2(3)
"""DCG of an exact product before a substitute."""
_WORST = 0.1 + 1 / math.log2(3)

# By query. Interactions of lists of 3, 2, 1 and 0 products are 0.8, 1.6 / 3, 0.8 / 3
# and 0 clicks, half and a quarter of that; the guards' are half of the pool's.
ONLINE = {
    "copy the query": {  # ABC, D and nothing
        "total": ((7 / 12 + 0 + 1.4) / 5, (1 + 0 + 1.4 / 3) / 5, 0),
        "relevance": ((1 + 0.5 + 0.25) / 3, 1, 0),
        "diversity": (0, 0, 0),
        "click": (0.8, 0.8 / 3, 0),
        "add_to_cart": (0.4, 0.4 / 3, 0),
        "purchase": (0.2, 0.2 / 3, 0),
        "guard_click": (0.4, 0.4 / 3, 0),
        "guard_add_to_cart": (0.2, 0.2 / 3, 0),
        "guard_purchase": (0.1, 0.1 / 3, 0),
        "ndcg": (1, 0.1 / _BEST, NAN),
        "true_gain": ((1 + 1 + 0) / 3, 1, 0),
    },
    "before": {  # AD, an empty text, and the query again, which finds nothing
        "total": ((0.5 + 0.5 + 2.8 / 3) / 5, 0, 0),
        "relevance": ((1 + 0) / 2, 0, 0),
        "diversity": (1 / 2, 0, 0),
        "click": (1.6 / 3, 0, 0),
        "add_to_cart": (0.8 / 3, 0, 0),
        "purchase": (0.4 / 3, 0, 0),
        "guard_click": (0.8 / 3, 0, 0),
        "guard_add_to_cart": (0.4 / 3, 0, 0),
        "guard_purchase": (0.2 / 3, 0, 0),
        "ndcg": (1 / _BEST, 0, NAN),
        "true_gain": ((1 + 0) / 2, 0, 0),
    },
    "after": {  # BEA, CD and EBA; of BEA, E has no judgement and is skipped
        "total": (
            (0.75 + 1 / 3 + 1.4) / 5,
            (0.75 + 1 / 2 + 2.8 / 3) / 5,
            (7 / 12 + 1 + 1.4) / 5,
        ),
        "relevance": ((0.5 + 0.75 + 1) / 3, (0.5 + 1) / 2, (1 + 0.5 + 0.25) / 3),
        "diversity": (1 / 3, 1 / 2, 1),
        "click": (0.8, 1.6 / 3, 0.8),
        "add_to_cart": (0.4, 0.8 / 3, 0.4),
        "purchase": (0.2, 0.4 / 3, 0.2),
        "guard_click": (0.4, 0.8 / 3, 0.4),
        "guard_add_to_cart": (0.2, 0.4 / 3, 0.2),
        "guard_purchase": (0.1, 0.2 / 3, 0.1),
        "ndcg": (_WORST / _BEST, 1, NAN),
        "true_gain": ((1 + 0.1 + 1) / 3, (0.1 + 1) / 2, (0.01 + 1 + 0) / 3),
    },
}
SHARES = {
    "copy the query": {"copy": (1, 1, 1), "no_results": (0, 0, 1), "empty": (0, 0, 0)},
    "before": {"copy": (0, 0, 1), "no_results": (0, 1, 1), "empty": (0, 1, 0)},
    "after": {"copy": (0, 0, 0), "no_results": (0, 0, 0), "empty": (0, 0, 0)},
}
LETTERS = {
    "copy the query": (7 + 8 + 8) / 3,
    "before": (11 + 0 + 8) / 3,
    "after": (10 + 9 + 10) / 3,
}
"""Mean length of the rewrites."""


def known(values):
    return [value for value in values if not math.isnan(value)]


def mean(values) -> float:
    """Of what is known."""
    values = known(values)
    return sum(values) / len(values) if values else NAN


def interval(differences) -> dict[str, float]:
    """Mean and bootstrap interval of two or three differences.

    All draws are the smallest one with a chance of 1 in 4 or in 27, more than the
    2.5 % that the interval leaves out: it reaches from the smallest to the largest.
    """
    values = known(differences)
    if not values:
        return {"difference": NAN, "low": NAN, "high": NAN}
    return {"difference": mean(values), "low": min(values), "high": max(values)}


def check(found, expected, where="") -> None:
    """Both are the same; numbers up to the rounding of float32, NaN included."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), f"{where}: {set(found) ^ set(expected)}"
        for name, value in expected.items():
            check(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), f"{where}: {found}"
        for i, value in enumerate(expected):
            check(found[i], value, f"{where}[{i}]")
    elif isinstance(expected, float | int) and found is not None:
        fits = np.isclose(found, expected, rtol=1e-6, atol=1e-7, equal_nan=True)
        assert fits, f"{where}: {found}, expected {expected}"
    else:
        assert found == expected, f"{where}: {found}, expected {expected}"

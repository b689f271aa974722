"""The data of a run: a shop, its judgements, query pairs, a tokenizer.

    python -m experiments.prepare quickstart

Reads the synthetic shop, ESCI, WANDS, Home Depot's release or your own tables, and
writes `runs/NAME/data`: the collection as parquet tables, the query pairs of its three
splits, which queries can be searched for, and the tokenizer. CPU; seconds (quickstart),
half a minute (esci-small).
"""

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments import runs, sources
from experiments.cli import launch, option
from experiments.config import Folds, Lengths, Prepare
from experiments.presets import PRESETS
from jaxqr.data import folds, noise, q2q, shop, tables
from jaxqr.data.tokenize import Tokenizer, train_tokenizer
from jaxqr.records import Collection, Labels, Product

SPLITS = ("train", "validation", "test")


class Prepared(sources.Stored):
    """What later stages read of `runs/NAME/data`, each part when it is asked for."""

    def __init__(self, run: Path):
        """Opens a prepared run.

        Raises:
            FileNotFoundError: it is not prepared yet.
        """
        command = "python -m experiments.prepare PRESET"
        super().__init__(runs.require(run / "data", command))

    @cached_property
    def settings(self) -> Prepare:
        """What it was prepared with."""
        return runs.read(self._folder, Prepare)

    @property
    def lengths(self) -> Lengths:
        """Most tokens of each kind of text in this run."""
        return self.settings.lengths

    @cached_property
    def pairs(self) -> dict[str, list[tuple[str, str]]]:
        """(query, rewrite) pairs by split."""
        pairs = runs.read_json(self._folder / "pairs.json")
        return {split: [(q, r) for q, r in rows] for split, rows in pairs.items()}

    @cached_property
    def searchable(self) -> dict[str, list[str]]:
        """Queries with product text, by split."""
        return runs.read_json(self._folder / "searchable.json")

    @cached_property
    def corpus(self) -> list[str]:
        """Plain text of the shop: its titles, and the queries to train on."""
        whole = self.fully_judged if self.settings.folds.count else None
        held_out = {q2q.folded(query) for query in whole or ()}
        taught = {q: s for q, s in self.split.items() if q2q.folded(q) not in held_out}
        return corpus(self.products, taught)

    @cached_property
    def truth(self) -> shop.Truth | None:
        """What only a synthetic shop's maker knows; None elsewhere."""
        path = self._folder / "truth.json"
        return shop.Truth.load(path) if path.exists() else None

    @property
    def true_gain(self) -> Callable[[str, str], float] | None:
        """Gain of (query, product id) by a synthetic shop's rule; None elsewhere."""
        if self.truth is None:
            return None
        return partial(_true_gain, self.truth, self.labels)


def _true_gain(truth: shop.Truth, labels: Labels, query: str, product: str) -> float:
    return labels.gain(shop.true_label(truth, query, product))


def main(run: Path, config: Prepare) -> None:
    """Prepares the data of a run."""
    folder = run / "data"
    config = sources.moved(folder, config)
    with runs.stage(folder, config) as work:
        if not work:
            return
        collection, truth = sources.load(config, option("prepare", "folder"))
        if not config.official_split:
            forgotten = dict.fromkeys(collection.split, "train")
            collection = collection._replace(split=forgotten)
        held_out = _in_folds(collection, config.folds, config.seed)
        pairs = q2q.query_pairs(
            folds.without(collection, held_out),
            k=config.k,
            labels=config.labels,
            max_degree=config.max_degree,
            equivalent=partial(_equivalent, run, config) if config.verify else None,
            seed=config.seed,
        )
        by_split = {name: getattr(pairs, name) for name in SPLITS}
        if not all(by_split.values()):
            raise ValueError(
                f"too few pairs to train on and to test with:\n{pairs.statistics}\n"
                "lower k, raise max-degree, or give more judgements"
            )
        split = _split(collection, by_split, config.seed) | held_out
        collection = collection._replace(split=split)
        searchable = _searchable(collection)
        taught = [q for q in searchable["train"] if q not in held_out]
        by_split["train"] += _weak_pairs(collection, taught, config)
        tables.save(folder, collection)
        runs.write_json(folder / "pairs.json", by_split)
        runs.write_json(folder / "searchable.json", searchable)
        sources.keep(folder, config)
        if truth is not None:
            truth.save(folder / "truth.json")
        if config.tokenizer:
            tokenizer = Tokenizer.load(config.tokenizer)
        else:
            taught = {q: s for q, s in split.items() if q not in held_out}
            texts = corpus(collection.products, taught)
            tokenizer = train_tokenizer(texts, config.vocab_size)
        tokenizer.save(folder / "tokenizer")
        counts = {
            "products": len(collection.products),
            "queries": len(split),
            "judgements": len(collection.judgements.query),
            "searchable": {name: len(queries) for name, queries in searchable.items()},
        }
        runs.write_json(
            folder / "statistics.json",
            counts | {"pairs": pairs.statistics._asdict()},
        )
        Console().print(str(pairs.statistics))
        Console().print(json.dumps(counts))


def _equivalent(
    run: Path, config: Prepare, first: Sequence[str], second: Sequence[str]
) -> np.ndarray:
    """Whether a language model calls each two queries equivalent: bool [P].

    What is neither yes nor no is not.

    Raises:
        ConnectionError: it could not answer for all of them. What it did is kept.
    """
    from experiments import servers
    from jaxqr.rewards.llm import equivalent

    with servers.llm(config.llm, run, option("prepare", "llm")) as llm:
        found, valid = equivalent(llm, list(zip(first, second, strict=True)))
        unanswered = np.sum(~valid) - llm.counts["no_yes_or_no"]
        if unanswered:
            raise ConnectionError(
                f"{unanswered} of {len(valid)} pairs could not be verified "
                f"({dict(llm.counts)}): run the same command again, it asks for these "
                "alone; or leave out the verification"
            )
    return valid & (found >= 0.5)


def _in_folds(collection: Collection, config: Folds, seed: int) -> dict[str, str]:
    """The split of the queries that make no pairs, as they are held out in folds.

    Raises:
        ValueError: there is no such fold, or no telling which queries to deal out.
    """
    if not config.count:
        return {}
    if not {config.test, config.validation} <= {*range(config.count)} or (
        config.test == config.validation
    ):
        raise ValueError(
            f"{config}: expected two different folds of 0 to {config.count - 1}"
        )
    if collection.fully_judged is None:
        raise ValueError(
            "every query of this collection was fully judged, so folds of them leave "
            "none to make pairs of: prepare it without folds"
        )
    splits = {config.test: "test", config.validation: "validation"}
    dealt = folds.deal(sorted(collection.fully_judged), config.count, seed)
    held_out = {query: splits.get(fold, "train") for query, fold in dealt.items()}
    forms = {q2q.folded(query): split for query, split in held_out.items()}
    # Other forms of the same query go with it.
    return {
        query: forms[form]
        for query in collection.split
        if (form := q2q.folded(query)) in forms
    }


def corpus(products: dict[str, Product], split: dict[str, str]) -> list[str]:
    """Titles, and the queries that may be trained on."""
    titles = [product.title for product in products.values()]
    return titles + [query for query, name in split.items() if name == "train"]


def _split(
    collection: Collection, pairs: dict[str, list[tuple[str, str]]], seed: int
) -> dict[str, str]:
    """The split of every query: its pairs' split, else the official one.

    Where nothing is officially held out, every tenth query without pairs is test and
    every tenth validation, drawn at random.
    """
    split = dict(collection.split)
    if "test" not in split.values():
        drawn = np.random.default_rng(seed).random(len(split))
        for query, place in zip(split, drawn, strict=True):
            if place < 0.2:
                split[query] = "test" if place < 0.1 else "validation"
    for name, rows in pairs.items():
        split |= {query: name for pair in rows for query in pair}
    return split


def _weak_pairs(
    collection: Collection, queries: list[str], config: Prepare
) -> list[tuple[str, str]]:
    """(query, title) pairs of judgements, and of titles and some of their own words."""
    rng = np.random.default_rng(config.seed)
    titles = {p: x.title.lower() for p, x in collection.products.items() if x.title}
    judged, wanted = collection.judgements, set(queries)
    relevant = np.isin(judged.label, collection.labels.relevant)
    of: dict[str, list[str]] = {}
    for i in np.flatnonzero(relevant):
        query, product = judged.query[i], judged.product_id[i]
        if query in wanted and product in titles:
            of.setdefault(query, []).append(titles[product])
    pairs = []
    for query in sorted(of):
        order = rng.permutation(len(of[query]))[: config.titles].tolist()
        pairs += [(query, of[query][i]) for i in order]
    named = noise.selection_pairs([*titles.values()], config.named, rng)
    return pairs + [(words, title) for title, words in named]


def _searchable(collection: Collection) -> dict[str, list[str]]:
    """Queries with a relevant product that the catalogue has text for, sorted."""
    judged = collection.judgements
    relevant = np.isin(judged.label, collection.labels.relevant)
    found = {
        query
        for query, product in zip(
            judged.query[relevant], judged.product_id[relevant], strict=True
        )
        if product in collection.products
    }
    by_split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for query in sorted(found):
        by_split[collection.split[query]].append(query)
    return by_split


if __name__ == "__main__":
    launch(main, {name: run.prepare for name, run in PRESETS.items()}, __doc__)

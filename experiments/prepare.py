"""The data of a run: a shop, its judgements, query pairs, a tokenizer.

    python -m experiments.prepare quickstart

Reads the synthetic shop, ESCI, or your own tables, and writes `runs/NAME/data`: the
collection as parquet tables, the query pairs of its three sides, who may be searched
for, and the tokenizer. CPU; seconds (quickstart), half a minute (esci-small).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from rich.console import Console

from experiments.layout import launch, require, stage, write_json
from jaxqr.data import esci, q2q, shop, tables
from jaxqr.data.tokenize import Tokenizer, train_tokenizer
from jaxqr.records import Collection


@dataclass(frozen=True)
class Config:
    """Where the data comes from and how pairs are mined from it."""

    run: Path = Path("runs/quickstart")
    source: Literal["shop", "esci", "tables"] = "shop"
    """The synthetic shop, the ESCI release (or an extract), or your own tables."""
    folder: Path | None = None
    """Folder of ESCI's files or of your tables."""
    products: int = 6000
    """Size of the synthetic shop's catalogue."""
    types: int | None = None
    """Types of product in it; None lets the size decide."""
    intents: int = 800
    """What the synthetic shop's shoppers may want."""
    k: int = 2
    """Products that two queries must share to be a pair."""
    labels: tuple[str, ...] = ("E", "S")
    """Labels under which a product counts as shared."""
    max_degree: int = 100
    """Products relevant to more queries than this make no pairs."""
    official_split: bool = True
    """Keep official test queries, and what they are paired with, out of training.
    Without it the pairs are dealt out anew, by connected component all the same."""
    vocab_size: int = 2048
    """Vocabulary of the tokenizer that is trained."""
    tokenizer: Path | None = None
    """A Hugging Face tokenizer folder to use instead."""
    seed: int = 0


PRESETS = {
    "quickstart": Config(products=6000, types=12, intents=1000, vocab_size=1024),
    # Of the extract's pairs hardly any are free of official test queries, so it is
    # split anew.
    "esci-small": Config(
        run=Path("runs/esci-small"),
        source="esci",
        official_split=False,
        vocab_size=4096,
    ),
} | {
    name: Config(run=Path("runs") / name, source="esci")
    for name in ("paper-gpt2", "paper-t5", "paper-llama")
}


class Prepared(NamedTuple):
    """What later stages read of `runs/NAME/data`."""

    collection: Collection
    pairs: dict[str, list[tuple[str, str]]]  # "train" | "validation" | "test"
    searchable: dict[str, list[str]]  # queries with product text, by side
    tokenizer: Tokenizer


def main(config: Config) -> None:
    """Prepares the data of a run."""
    folder = config.run / "data"
    with stage(folder, config) as work:
        if not work:
            return
        collection = _collection(config)
        if not config.official_split:
            forgotten = dict.fromkeys(collection.split, "train")
            collection = collection._replace(split=forgotten)
        pairs = q2q.query_pairs(
            collection,
            k=config.k,
            labels=config.labels,
            max_degree=config.max_degree,
            seed=config.seed,
        )
        sides = {name: getattr(pairs, name) for name in ("train", "validation", "test")}
        if not (sides["train"] and sides["validation"] and sides["test"]):
            raise ValueError(
                f"too few pairs to train on and to test with:\n{pairs.statistics}\n"
                "lower --k, raise --max-degree, or give more judgements"
            )
        split = _split(collection, sides, config.seed)
        tables.save(folder, collection._replace(split=split))
        write_json(folder / "pairs.json", sides)
        if config.tokenizer:
            Tokenizer.load(config.tokenizer)  # refuse a bad folder before copying it
            shutil.copytree(config.tokenizer, folder / "tokenizer", dirs_exist_ok=True)
        else:
            texts = corpus(collection._replace(split=split))
            train_tokenizer(texts, config.vocab_size).save(folder / "tokenizer")
        counts = {
            "products": len(collection.products),
            "queries": len(collection.split),
            "judgements": len(collection.judgements.query),
            "searchable": {
                k: len(v) for k, v in _searchable(collection, split).items()
            },
        }
        write_json(
            folder / "statistics.json",
            counts | {"pairs": pairs.statistics._asdict()},
        )
        Console().print(str(pairs.statistics))
        Console().print(json.dumps(counts))


def load(run: Path) -> Prepared:
    """Reads a prepared run.

    Raises:
        FileNotFoundError: it is not prepared yet.
    """
    folder = require(run / "data", "python -m experiments.prepare PRESET")
    collection = tables.load(folder, allow_missing_products=True)
    pairs = json.loads((folder / "pairs.json").read_text())
    return Prepared(
        collection,
        {side: [tuple(pair) for pair in rows] for side, rows in pairs.items()},
        _searchable(collection, collection.split),
        Tokenizer.load(folder / "tokenizer"),
    )


def corpus(collection: Collection) -> list[str]:
    """Plain text of the shop: its titles, and the queries that may be trained on."""
    titles = [product.title for product in collection.products.values()]
    return titles + [q for q, side in collection.split.items() if side == "train"]


def _collection(config: Config) -> Collection:
    if config.source == "shop":
        world = shop.make(
            seed=config.seed,
            num_products=config.products,
            num_intents=config.intents,
            num_types=config.types,
        )
        return world.collection
    if config.folder is None:
        raise ValueError(f"--folder is needed for --source {config.source}")
    if config.source == "esci":
        return esci.load(config.folder)
    return tables.load(config.folder)


def _split(
    collection: Collection, sides: dict[str, list[tuple[str, str]]], seed: int
) -> dict[str, str]:
    """The side of every query: its pairs' side, else the official one.

    Where nothing is officially held out, every tenth query without pairs is test and
    every tenth validation, drawn at random.
    """
    split = dict(collection.split)
    if "test" not in split.values():
        drawn = np.random.default_rng(seed).random(len(split))
        for query, place in zip(split, drawn, strict=True):
            if place < 0.2:
                split[query] = "test" if place < 0.1 else "validation"
    for side, pairs in sides.items():
        split |= {query: side for pair in pairs for query in pair}
    return split


def _searchable(collection: Collection, split: dict[str, str]) -> dict[str, list[str]]:
    """Queries that name a product the catalogue has text for, sorted, by side."""
    judged = collection.judgements
    relevant = np.isin(judged.label, ("E", "S"))
    found = {
        query
        for query, product in zip(
            judged.query[relevant], judged.product_id[relevant], strict=True
        )
        if product in collection.products
    }
    sides: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for query in sorted(found):
        sides[split[query]].append(query)
    return sides


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)

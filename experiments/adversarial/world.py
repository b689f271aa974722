"""The data of an adversarial run: a collection, split for cold start.

Writes `data/`: the collection as parquet tables, the cold-start split, a tokenizer.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from experiments import runs, sources
from experiments.adversarial.config import Adversarial, Data
from experiments.prepare import corpus
from jaxqr.data import tables
from jaxqr.data.cold_start import ColdStart, cold_start
from jaxqr.data.tokenize import Tokenizer, train_tokenizer
from jaxqr.evaluation.classifier import Judged
from jaxqr.records import Collection, Judgements, Product
from jaxqr.rewards.relevance import product_text

COMMAND = "python -m experiments.adversarial PRESET"
SPLIT = "cold_start.npz"

WORDS = {"E": "exact", "S": "substitute", "C": "complement", "I": "irrelevant"}
"""What ESCI's letters stand for; other labels are words already."""


def check_folders(config: Adversarial) -> None:
    """Refuses models that are not there, before anything is run.

    Raises:
        FileNotFoundError: names the option.
    """
    given = {
        "generator.init": config.generator.init,
        "classifier.init": config.classifier.init,
        "prompted": config.prompted,
        "encoder": config.encoder,
    }
    for name, folder in given.items():
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not a folder: give a Hugging Face folder with --{name}"
            )


def prepare(run: Path, config: Data) -> None:
    """Writes the data of a run."""
    folder = run / "data"
    config = sources.moved(folder, config)
    with runs.stage(folder, config) as work:
        if not work:
            return
        collection, _ = sources.load(config, "--data.folder")
        if config.fully_judged:
            collection = _fully_judged(collection)
        if not config.official_split:
            forgotten = dict.fromkeys(collection.split, "train")
            collection = collection._replace(split=forgotten)
        split = cold_start(
            collection,
            unit=config.unit,
            share=config.cold_share,
            independent=config.independent_share,
            held_out=config.held_out_share,
            seed=config.seed,
        )
        tables.save(folder, collection)
        np.savez(folder / SPLIT, **split._asdict())
        sources.keep(folder, config)
        if config.tokenizer:
            tokenizer = Tokenizer.load(config.tokenizer)
        else:
            texts = _corpus(collection.products, collection.judgements, split)
            tokenizer = train_tokenizer(texts, config.vocab_size)
        tokenizer.save(folder / "tokenizer")
        statistics = World(run, folder).statistics
        runs.write_json(folder / "statistics.json", statistics)
        Console().print(json.dumps(statistics))


class World(sources.Stored):
    """What the stages read of `data/`, each part when it is asked for."""

    def __init__(self, run: Path, folder: Path | None = None):
        """Opens prepared data.

        Args:
            run: the run's folder.
            folder: of data that is still being prepared.

        Raises:
            FileNotFoundError: it is not prepared yet.
        """
        super().__init__(folder or runs.require(run / "data", COMMAND))

    @cached_property
    def settings(self) -> Data:
        """What it was prepared with."""
        return runs.read(self._folder, Data)

    @cached_property
    def cold_start(self) -> ColdStart:
        """The rows of the judgements by their part."""
        with np.load(self._folder / SPLIT) as arrays:
            fields: dict[str, Any] = dict(arrays)
        fields["products"] = tuple(fields["products"].tolist())
        return ColdStart(**fields)

    @cached_property
    def corpus(self) -> list[str]:
        """Plain text: all titles, and the queries to train on."""
        return _corpus(self.products, self.judgements, self.cold_start)

    @cached_property
    def queries(self) -> frozenset[str]:
        """All real queries, in lower case."""
        return frozenset(query.lower() for query in self.judgements.query)

    def rows(self, part: str) -> Judged:
        """The judgements of a part of the split, such that ties rank at random."""
        rows = self.cold_start.parts[part]
        return Judged.at(self.judgements, self.labels, rows).shuffled(0)

    @cached_property
    def label_texts(self) -> tuple[str, ...]:
        """What a generator reads for each label, in the labels' order."""
        return tuple(WORDS.get(name, name.lower()) for name in self.labels.names)

    def text(self, product_id: str) -> str:
        """What the models read of a product."""
        return product_text(self.products[product_id], self.settings.fields)

    def sources(
        self, product_ids: Sequence[str], labels: Sequence[int]
    ) -> list[dict[str, str]]:
        """What a generator reads: for each query a label and a product."""
        return [
            {"label": self.label_texts[label], "product": self.text(id)}
            for id, label in zip(product_ids, labels, strict=True)
        ]

    @cached_property
    def statistics(self) -> dict[str, object]:
        """The split in numbers, for reports."""
        judged, names = self.judgements, self.labels.names
        parts = {}
        for part, rows in self.cold_start.parts.items():
            label = judged.label[rows]
            parts[part] = {
                "rows": len(rows),
                "queries": len(set(judged.query[rows])),
                "products": len(set(judged.product_id[rows])),
                "labels": {name: int(np.sum(label == name)) for name in names},
            }
        return {
            "products": len(self.products),
            "queries": len(set(judged.query)),
            "cold_products": len(self.cold_start.products),
            "unit": self.settings.unit,
            "parts": parts,
        }


def _fully_judged(collection: Collection) -> Collection:
    """The queries whose whole list was judged, with their judgements.

    Raises:
        ValueError: there are none.
    """
    whole = collection.fully_judged
    if whole is None:
        return collection
    if not whole:
        raise ValueError(
            "no query of this source is fully judged: leave out --data.fully-judged"
        )
    judged = collection.judgements
    rows = np.array([query in whole for query in judged.query], np.bool_)
    query, product_id, label = (column[rows] for column in judged[:3])
    weight = None if judged.weight is None else judged.weight[rows]
    split = {query: of for query, of in collection.split.items() if query in whole}
    kept = Judgements(query, product_id, label, weight)
    return collection._replace(split=split, judgements=kept)


def _corpus(
    products: dict[str, Product], judgements: Judgements, split: ColdStart
) -> list[str]:
    train = dict.fromkeys(judgements.query[split.train], "train")
    return corpus(products, train)

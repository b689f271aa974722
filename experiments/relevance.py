"""M1: a cross-encoder, a BERT by default, fine-tuned on relevance judgements.

    python -m experiments.relevance quickstart
    python -m experiments.relevance esci-small --init PATH/TO/MiniLM

Reports accuracy, macro-F1 and judged-only nDCG@10 on test queries, next to the
majority label, BM25 and a random order. Each training pair is joined by `negatives`
random products labelled irrelevant, because online the model meets products that no
judge would have been shown. The curve during training is of validation queries; the
model of the last step is kept.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments import runs, system, training
from experiments.cli import launch
from experiments.config import Relevance, SystemConfig
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from jaxqr.data.pipeline import Batches, collate_encoder
from jaxqr.data.tokenize import EncoderRow, Tokenizer
from jaxqr.evaluation import classifier as evaluation
from jaxqr.evaluation.classifier import Judged
from jaxqr.rewards.classifier import Classifier
from jaxqr.rewards.relevance import RelevanceModel, product_text
from jaxqr.train import steps

CURVE_ROWS = 2000
"""Most judgements that are evaluated during training."""


def main(run: Path, config: Relevance) -> None:
    """Trains and tests M1."""
    data = Prepared(run)
    folder = run / "relevance"
    with runs.stage(folder, config) as work:
        if not work:
            return
        judged = {
            split: Judged.of(data.judgements, data.labels, data.products, queries)
            for split, queries in _queries(data).items()
        }
        train, test = judged["train"], judged["test"].shuffled(config.seed)
        if not (len(train.label) and len(test.label)):
            raise ValueError(
                f"{len(train.label)} training and {len(test.label)} test judgements "
                "have product text; M1 needs both: give products for more of them"
            )
        held_out = judged["validation"] if len(judged["validation"].label) else test
        curve = held_out.shuffled(config.seed, CURVE_ROWS)
        start = training.load_classifier(
            config.init,
            config.model,
            data.tokenizer,
            data.labels.num_classes,
            max_tokens=config.max_tokens,
            compute=config.compute,
            lora=config.lora,
            seed=config.seed,
        )

        def evaluate(now: Classifier, step: int) -> dict[str, float]:
            del step
            m1 = RelevanceModel(now, data.products, data.labels)
            queries, products = curve.query.tolist(), curve.product_id.tolist()
            probabilities = m1.probabilities(queries, products)
            return evaluation.classification(probabilities, curve.label)

        training.train(
            folder,
            start,
            steps.classify_step,
            Batches(
                _rows(train, data, start.tokenizer, config),
                partial(collate_encoder, fill=start.tokenizer.eos),
                batch_size=config.optimizer.batch_size,
                seed=config.seed,
            ),
            config.optimizer,
            seed=config.seed,
            evaluate=evaluate,
        )
        trained = Classifier.load(
            folder / "model", max_tokens=config.max_tokens, dtype=config.compute.dtype
        )
        report = evaluation.table(
            RelevanceModel(trained, data.products, data.labels),
            test,
            train,
            data.labels,
            system.engine(SystemConfig(), data.products, run),
            seed=config.seed,
        )
        runs.write_json(folder / "evaluation.json", report)
        _show(report)


def _queries(data: Prepared) -> dict[str, list[str]]:
    by_split: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for query, split in data.split.items():
        by_split[split].append(query)
    return by_split


def _rows(
    train: Judged, data: Prepared, tokenizer: Tokenizer, config: Relevance
) -> list[EncoderRow]:
    """The judgements, and random products for some of their queries as irrelevant."""
    rng = np.random.default_rng(config.seed)
    count = round(config.negatives * len(train.label))
    catalogue = np.array(list(data.products), object)
    queries = np.concatenate([train.query, rng.choice(train.query, count)])
    products = np.concatenate([train.product_id, rng.choice(catalogue, count)])
    irrelevant = np.full(count, int(np.argmin(data.labels.gains)))
    return tokenizer.encoder(
        queries.tolist(),
        [product_text(data.products[p]) for p in products],
        max_tokens=config.max_tokens,
        labels=np.concatenate([train.label, irrelevant]).tolist(),
    )


def _show(report: dict[str, Any]) -> None:
    table = Table(title=f"M1 on {report['test_queries']} test queries")
    names = ("ranker", "accuracy", "macro_f1", "ndcg")
    for name in names:
        table.add_column(name.replace("_", " "))
    for row in report["rows"]:
        cells = [row[name] for name in names]
        shown = (
            "" if c is None else c if isinstance(c, str) else f"{c:.3f}" for c in cells
        )
        table.add_row(*shown)
    Console().print(table)


if __name__ == "__main__":
    launch(main, {name: run.relevance for name, run in PRESETS.items()}, __doc__)

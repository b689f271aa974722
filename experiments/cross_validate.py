"""Does it help search? Measured on every fully judged query, or on several shops.

    python -m experiments.cross_validate esci-smollm2 --prepare.folder PATH/TO/ESCI \
        --sft-teacher.init PATH/TO/SmolLM2 --sft-student.init PATH/TO/SmolLM2 \
        --prepare.tokenizer PATH/TO/SmolLM2 --relevance.init PATH/TO/all-MiniLM-L6-v2 \
        --evaluate.encoder PATH/TO/all-MiniLM-L6-v2
    python -m experiments.cross_validate quickstart --seeds 3

Runs the whole job first, or what is left of it. Of real data, every fold of the fully
judged queries is then served as the other folds have taught: no training pair has one
of these queries, the model that writes is that of the stage before online training (its
reward knew some), and a sentence encoder stands for M1, which has seen them. A
synthetic shop is one of several seeds, each a run of its own in `runs/NAME/seed-N`. The
table takes the place of the run's first table, in `summary.json` and in the report.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments import evaluate, pipeline, report, runs
from experiments.cli import launch
from experiments.config import Run
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from experiments.search import HeldOut, Search, Writer
from experiments.serving import Found, held_out, served
from jaxqr.data.folds import deal


@dataclass(frozen=True)
class Config(Run):
    """All stages of a run, in order."""

    seeds: int = 3
    """Of a synthetic shop: the run's own, and those after it."""
    writer: str | None = None
    """Stage whose model writes the rewrites; None: that of online training, and for
    folds the stage it starts from."""


def main(run: Path, config: Config) -> None:
    """Finishes the run, and measures it part by part."""
    base = Run(**{f.name: getattr(config, f.name) for f in fields(Run)})
    shop = base.prepare.source == "shop"
    if not shop:
        _check(base)
    _train(run, base)
    if not (run / "summary.json").exists():
        evaluate.main(run, base.evaluate)
    found = Found.concatenate([*(_seeds if shop else _folds)(run, base, config)])
    summary = runs.read_json(run / "summary.json") | {"served": found.table()}
    runs.write_json(run / "summary.json", summary)
    evaluate.show_served(Console(), summary["served"])
    report.main(run, report.Config())


def _check(config: Run) -> None:
    """Whether there will be folds and somebody to read products.

    Raises:
        ValueError: a setting is missing.
    """
    if config.prepare.folds.count < 2:
        raise ValueError(
            "queries are not dealt out to folds: give --prepare.folds.count 5"
        )
    if config.evaluate.encoder is None:
        raise ValueError(
            "M1 learns from these queries' judgements, so it cannot help to serve them:"
            " give a sentence encoder's folder with --evaluate.encoder"
        )


def _train(run: Path, config: Run) -> None:
    pipeline.train(run, pipeline.Config(**vars(config)))


def _folds(run: Path, config: Run, how: Config) -> Iterator[Found]:
    """Each fold, served as the queries of all others have taught."""
    data, asked, online = Prepared(run), config.evaluate, config.online
    lm = evaluate.load_named(run, how.writer or online.start, online.name)
    search = Search(run, data, online.system, asked.encoder, rewards=False)
    write = Writer(lm, asked.rewrites, data.lengths)
    folds = config.prepare.folds.count
    whole = sorted(data.fully_judged or ())
    dealt = deal(whole, folds, config.prepare.seed)
    known = [query for query in whole if search.judged.products(query)]
    for fold in range(folds):
        test = [query for query in known if dealt[query] == fold]
        others = [query for query in known if dealt[query] != fold]
        yield served(search, asked.harm, write, HeldOut(others, test))


def _seeds(run: Path, config: Run, how: Config) -> Iterator[Found]:
    """Each seed's shop, a run of its own but for the first."""
    for n in range(how.seeds):
        one, settings = (run / f"seed-{n}" if n else run), _seeded(config, n)
        if n:
            _train(one, settings)
        data, online = Prepared(one), config.online
        lm = evaluate.load_named(one, how.writer or online.name, online.name)
        write = Writer(lm, config.evaluate.rewrites, data.lengths)
        search = Search(one, data, online.system, config.evaluate.encoder)
        if found := held_out(search, config.evaluate, write):
            yield found


def _seeded(config: Run, more: int) -> Run:
    """The same run with every seed higher."""

    def seeded(stage: Any) -> Any:
        return replace(stage, seed=stage.seed + more) if stage else stage

    stages = {f.name: seeded(getattr(config, f.name)) for f in fields(Run)}
    return replace(config, **stages)


CONFIGS = {name: Config(**vars(run)) for name, run in PRESETS.items()}

if __name__ == "__main__":
    launch(main, CONFIGS, __doc__)

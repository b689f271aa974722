"""Where a collection comes from, whether it is still the same, and how it is read.

The one place that turns the name of a source into a collection: a data set is added
here.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from experiments import runs
from experiments.config import SourceConfig
from jaxqr.data import categories, esci, home_depot, shop, tables, wands
from jaxqr.data.tokenize import Tokenizer
from jaxqr.records import Collection, Judgements, Labels, Product

C = TypeVar("C", bound=SourceConfig)

END_BYTES = 1 << 20
"""Of a source file, this many bytes at either end say whether it is the same."""

READERS: dict[str, Callable[[Path], Collection]] = {
    "esci": esci.load,
    "tables": tables.load,
    "wands": wands.load,
    "home-depot": home_depot.load,
    "category": categories.load,
}
"""Sources that are read from a folder."""


def load(config: SourceConfig, option: str) -> tuple[Collection, shop.Truth | None]:
    """The data as published, and what a synthetic shop knows besides.

    Args:
        config: says which.
        option: how the command that was typed calls the folder.

    Raises:
        ValueError: the source is read from a folder, and none is given.
    """
    if config.source == "shop":
        world = shop.make(
            seed=config.seed,
            num_products=config.products,
            num_intents=config.intents,
            num_types=config.types,
        )
        return world.collection, world.truth
    if config.folder is None:
        raise ValueError(
            f"the source {config.source} is read from a folder: give it with {option}"
        )
    return READERS[config.source](config.folder), None


def fingerprint(folder: Path | None) -> dict[str, list] | None:
    """Size and hash of every source file that is there, by name."""
    if folder is None or not folder.is_dir():
        return None
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".csv", ".parquet"):
            with path.open("rb") as file:
                ends = file.read(END_BYTES)
                file.seek(max(0, path.stat().st_size - END_BYTES))
                digest = hashlib.blake2b(ends + file.read(), digest_size=16)
            found[path.name] = [path.stat().st_size, digest.hexdigest()]
    return found


def keep(folder: Path, config: SourceConfig) -> None:
    """Writes down in a prepared folder which files it was made from."""
    runs.write_json(folder / "source.json", fingerprint(config.folder))


def moved(folder: Path, config: C) -> C:
    """The settings with the folder that a run was prepared from: files may move.

    Args:
        folder: the prepared one; where it is not done, the settings stay as they are.
        config: as given now.

    Raises:
        ValueError: the files are not those that it was prepared from.
    """
    source = fingerprint(config.folder)
    if source is None or not (folder / "done").exists():
        return config
    before = runs.read_json(folder / "source.json") or {}
    names = sorted({*source, *before})
    changed = [name for name in names if source.get(name) != before.get(name)]
    if changed:
        raise ValueError(
            f"{folder} was prepared from other files than those in {config.folder} "
            f"({', '.join(changed)} differ). Delete it to prepare again, or choose "
            "another --run"
        )
    return replace(config, folder=runs.read(folder, type(config)).folder)


class Stored:
    """A prepared collection and its tokenizer, each part read when it is asked for."""

    def __init__(self, folder: Path):
        """Opens a folder that `tables.save` and `Tokenizer.save` have written."""
        self._folder = folder

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return Tokenizer.load(self._folder / "tokenizer")

    @cached_property
    def products(self) -> dict[str, Product]:
        """The catalogue, by id."""
        return tables.read_products(self._folder)

    @cached_property
    def judgements(self) -> Judgements:
        """All judgements."""
        return tables.read_judgements(self._folder)

    @cached_property
    def labels(self) -> Labels:
        """The labels of the judgements."""
        return tables.read_labels(self._folder)

    @cached_property
    def _queries(self) -> tuple[dict[str, str], frozenset[str] | None]:
        return tables.read_queries(self._folder)

    @property
    def split(self) -> dict[str, str]:
        """The split of every query."""
        return self._queries[0]

    @property
    def fully_judged(self) -> frozenset[str] | None:
        """Queries whose whole list was judged; None: every one's was."""
        return self._queries[1]

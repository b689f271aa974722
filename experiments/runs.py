"""A run folder: what each stage reads and writes, and how it is started once.

    runs/NAME/
      data/         products, queries, judgements, pairs, tokenizer, statistics.json
      relevance/    M1 as a Hugging Face folder in model/
      pretrain-*/   language models of the shop's text, teacher and student
      sft-*/        fine-tuned on query pairs, teacher and student
      distill*/     the student after distillation
      online/       the student after online DPO
      summary.json  figures/  report.html

Every stage folder holds `config.json`, and `done` once it is finished; training
stages hold `model/`, `checkpoints/`, `metrics.jsonl` and `tensorboard/` too.
"""

import dataclasses
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import cattrs
import numpy as np
from rich.console import Console

C = TypeVar("C")

_CONVERTER = cattrs.Converter(forbid_extra_keys=True)


def _strict(value: Any, kind: type) -> Any:
    """A value of JSON that is of the kind already; cattrs alone would convert it."""
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise ValueError(f"{value!r} is not a value of type {kind.__name__}")
    return kind(value)


def _strict_tuple(value: Any, kind: Any) -> tuple:
    """The same for `tuple[T, ...]`: a text is not a list of letters."""
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is not a list")
    return tuple(_CONVERTER.structure(item, get_args(kind)[0]) for item in value)


for _kind in (bool, float, int, str):
    _CONVERTER.register_structure_hook(_kind, _strict)
_CONVERTER.register_structure_hook_func(lambda t: get_origin(t) is tuple, _strict_tuple)


@contextmanager
def stage(folder: Path, config: Any) -> Iterator[bool]:
    """Guards a stage's folder; yields whether there is work to do.

    The folder remembers the settings it was begun with: the same ones go on or, if
    done, yield False; others are refused. A setting that is newer than the folder
    counts as its default there.

    Raises:
        ValueError: the folder belongs to other settings, or another process works in
            it.
    """
    console = Console()
    path = folder / "config.json"
    if path.exists():
        _check_same(folder, read(folder, type(config)), config)
    if (folder / "done").exists():
        console.print(f"[dim]{folder}: done already[/dim]")
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        try:
            write_json(path, config)
            console.rule(str(folder))
            yield True
        except BaseException:
            if not {*folder.iterdir()} - {path}:  # nothing was begun
                path.unlink(missing_ok=True)
                folder.rmdir()
            raise
        (folder / "done").touch()


def read(folder: Path, kind: type[C]) -> C:
    """The settings that a stage was begun with, defaults filled in.

    Args:
        folder: the stage's.
        kind: the class of its settings, such as `config.SFT`.

    Raises:
        FileNotFoundError: the stage was not begun.
        ValueError: its `config.json` is broken, or has settings of another version.
    """
    path = folder / "config.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(given, dict):
            raise ValueError(f"it is a {type(given).__name__}, expected an object")
        return _CONVERTER.structure(given, kind)
    except (ValueError, cattrs.BaseValidationError) as error:
        reasons = [str(error)]
        if isinstance(error, cattrs.BaseValidationError):
            reasons = cattrs.transform_error(error, path="", format_exception=_told)
        raise ValueError(
            f"{path} does not hold the settings of this version ({'; '.join(reasons)}):"
            " go on with the version that began this run, or choose another --run"
        ) from None


def require(folder: Path, command: str) -> Path:
    """`folder` of a stage that must be finished.

    Raises:
        FileNotFoundError: it is not; the message names the command to run.
    """
    if not (folder / "done").exists():
        raise FileNotFoundError(f"{folder} is not there yet: run `{command}` first")
    return folder


def _told(error: BaseException, kind: type | None) -> str:
    """What is wrong with one value, for a person."""
    if isinstance(error, cattrs.ForbiddenExtraKeysError):
        return f"no setting is called {', '.join(sorted(error.extra_fields))}"
    if isinstance(error, KeyError):
        return "it is missing"
    if dataclasses.is_dataclass(kind) and not isinstance(error, ValueError):
        return "it is not an object with settings"
    return str(error)


def read_json(path: Path) -> Any:
    """What `write_json` has written.

    Raises:
        ValueError: the file is not JSON any more; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is not whole ({error}): delete {path.parent} and run its stage "
            "again"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Writes a value, as `write_text` does."""
    write_text(path, json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes under a temporary name and renames: never half a file."""
    partial = path.with_suffix(".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _check_same(folder: Path, begun: Any, given: Any) -> None:
    old, new = dict(_leaves(_plain(begun))), dict(_leaves(_plain(given)))
    changed = ", ".join(
        f"{key} {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    )
    if changed:
        raise ValueError(
            f"{folder} was begun with other settings ({changed}). Delete it to "
            "begin again, or choose another --run"
        )


def _leaves(settings: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting under its dotted name."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _leaves(value, f"{name}.{key}" if name else key)
    else:
        yield name, settings


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder against other processes; the lock ends with this one.

    A killed pipeline can leave the process that trains M1 running.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ValueError(
            f"another process works in {folder}: wait for it, or stop it and run the "
            "same command again"
        ) from error
    try:
        yield
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """Settings and results as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        fields = getattr(value, "_fields", None)
        if fields:
            return {name: _plain(getattr(value, name)) for name in fields}
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None  # JSON has no NaN
    return value

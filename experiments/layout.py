"""A run folder: what each stage reads and writes, and how it is started once.

    runs/NAME/
      data/         products, queries, judgements, pairs, tokenizer, statistics.json
      relevance/    M1 as a Hugging Face folder in model/
      warmup-*/     language models of the shop's text, teacher and student
      sft-*/        fine-tuned on query pairs, teacher and student
      distill*/     the student after distillation
      online/       the student after online DPO
      summary.json  figures/  report.html

Every stage folder holds `config.json`, and `done` once it is finished; training
stages hold `model/`, `checkpoints/`, `metrics.jsonl` and `tensorboard/` too.
"""

import dataclasses
import fcntl
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import tyro
from rich.console import Console

Config = TypeVar("Config")

CACHE = Path.home() / ".cache" / "jaxqr"
"""Compiled functions, unless JAX_COMPILATION_CACHE_DIR names another place."""


def launch(
    main: Callable[[Config], None], presets: Mapping[str, Config], doc: str | None
) -> None:
    """The command line of a stage: `PRESET [--overrides]`, errors as one message.

    Exits with 2 on an error in what was given, and with 130 after ctrl-C.
    """
    set_up()
    described = {name: (f"The {name} preset.", c) for name, c in presets.items()}
    options = (tyro.conf.AvoidSubcommands,)  # a stage that a preset lacks stays out
    if len(presets) == 1:
        (default,) = presets.values()
        config = tyro.cli(
            type(default), default=default, description=doc, config=options
        )
    else:
        config = tyro.extras.overridable_config_cli(
            described, description=doc, config=options
        )
    try:
        main(config)
    except KeyboardInterrupt as stop:
        print(
            f"\nInterrupted. {stop} Run the same command again to go on.",
            file=sys.stderr,
        )
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if "JAXQR_TRACEBACK" in os.environ:
            raise
        print(f"error: {error}\n(JAXQR_TRACEBACK=1 shows where)", file=sys.stderr)
        sys.exit(2)


def set_up() -> None:
    """What every process of a run begins with."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # progress, in a log file too
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        # Stages share many compiled functions, and so does a resumed run.
        jax.config.update("jax_compilation_cache_dir", str(CACHE))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextmanager
def stage(folder: Path, config: Any) -> Iterator[bool]:
    """Guards a stage's folder; yields whether there is work to do.

    The folder remembers the configuration it was begun with: the same one goes on
    or, if done, yields False; another one is refused.

    Raises:
        ValueError: the folder belongs to another configuration, or another process
            works in it.
    """
    console = Console()
    settings = _plain(config)
    settings.pop("run", None)
    path = folder / "config.json"
    if path.exists():
        before = json.loads(path.read_text())
        if before != settings:
            old, new = dict(_leaves(before)), dict(_leaves(settings))
            changed = ", ".join(
                f"{key} {old.get(key)!r} -> {new.get(key)!r}"
                for key in sorted({*old, *new})
                if old.get(key) != new.get(key)
            )
            raise ValueError(
                f"{folder} was begun with other settings ({changed}). Delete it to "
                "begin again, or choose another --run"
            )
    if (folder / "done").exists():
        console.print(f"[dim]{folder}: done already[/dim]")
        yield False
        return
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        write_json(path, settings)
        console.rule(str(folder))
        try:
            yield True
        except Exception:
            if list(folder.iterdir()) == [path]:  # nothing was begun
                path.unlink()
                folder.rmdir()
            raise
        (folder / "done").touch()


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

    A killed pipeline can leave the process that trains M1 behind.
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


def require(folder: Path, command: str) -> Path:
    """`folder` of a stage that must be finished.

    Raises:
        FileNotFoundError: it is not; the message names the command to run.
    """
    if not (folder / "done").exists():
        raise FileNotFoundError(f"{folder} is not there yet: run `{command}` first")
    return folder


def write_json(path: Path, value: Any) -> None:
    """Writes beside the place and renames: never half a file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")
    partial.replace(path)


def _plain(value: Any) -> Any:
    """Configurations and results as JSON values."""
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

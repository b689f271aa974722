"""The command line of every stage: `python -m experiments.STAGE PRESET [--overrides]`.

What a process begins with is set here, and errors end as one message.
"""

import contextlib
import ctypes
import dataclasses
import errno
import glob
import io
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

C = TypeVar("C")

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT_BYTES = 1 << 30
"""Freed memory up to this size stays with the process."""
ARENAS = 2
"""Heaps that threads share; each of their own would be given back when it is free."""

CACHE_ROOM = 1 << 27
"""Bytes that must be free on the disk for the compilation cache."""

_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def launch(
    main: Callable[[Path, C], None],
    presets: Mapping[str, C],
    doc: str | None,
    *,
    prefix: str = "",
) -> None:
    """Parses `PRESET [--overrides]` and runs a stage in the run's folder.

    Exits with 2 on an error in what was given, and with 130 after ctrl-C.

    Args:
        main: the stage: called with the run's folder and the settings.
        presets: settings by name; a single one needs no name on the command line.
        doc: the stage's module docstring.
        prefix: of the names of run folders.
    """
    given = parse(presets, doc, prefix)
    try:
        set_up()
        given = _expanded(given)
        main(given.run, given.config)
    except KeyboardInterrupt as stop:
        saved = f" {stop}." if str(stop) else ""
        _end(130, f"\nInterrupted.{saved} Run the same command again to go on.")
    except Exception as error:
        if not _expected(error) or "JAXQR_TRACEBACK" in os.environ:
            raise
        _end(2, f"error: {_one_message(error)} (JAXQR_TRACEBACK=1 shows where)")


def parse(presets: Mapping[str, Any], doc: str | None, prefix: str = "") -> Any:
    """The command line's `run` and `config`.

    Exits after `--help`, and with 2 where it cannot be parsed.
    """
    commands = {n: _command(prefix + n, c) for n, c in presets.items()}
    # A stage that a preset lacks stays out, instead of becoming a subcommand.
    options = (tyro.conf.AvoidSubcommands,)
    if len(commands) == 1:
        (default,) = commands.values()
        return tyro.cli(type(default), default=default, description=doc, config=options)
    described = {n: (f"The {n} preset.", c) for n, c in commands.items()}
    return tyro.extras.overridable_config_cli(
        described, description=doc, config=options
    )


def run_folder(preset: str) -> Path:
    """Where a preset's run is kept; those of a teacher and its student share it.

    >>> str(run_folder("quickstart-teacher"))
    'runs/quickstart'
    """
    name = preset.removesuffix("-teacher").removesuffix("-student")
    return Path("runs") / name


def option(stage: str, name: str) -> str:
    """How the command that was typed calls a setting of a stage.

    `--folder` of `experiments.prepare` is `--prepare.folder` of a whole pipeline.
    """
    alone = Path(sys.argv[0]).stem == stage
    return f"--{name}" if alone else f"--{stage}.{name}"


def command() -> str:
    """The command that was typed."""
    path = Path(sys.argv[0])
    name = path.parent.name if path.stem == "__main__" else path.stem
    return " ".join([f"python -m experiments.{name}", *sys.argv[1:]])


def set_up() -> None:
    """What every process of a run begins with."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Progress, in a log file too; a text that the terminal cannot show is no error.
        sys.stdout.reconfigure(line_buffering=True, errors="replace")
    keep_freed_memory()
    import jax

    # Stages share many compiled functions, and so does a resumed run.
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    cache = Path(given) if given else _cache_folder()
    if cache is not None:
        if not given:
            jax.config.update("jax_compilation_cache_dir", str(cache))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        _forget_cut_entries(cache)


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory; returns whether it did (elsewhere: False).

    A train step frees its temporaries and allocates them again in the next step. By
    default glibc gives them back to the system in between, and every page of them is
    then faulted in again, and zeroed. The arenas that threads get are given back
    whatever the thresholds say, so threads share a few; that has to be said before
    they start.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not Linux, or another libc
        return False
    wanted = {
        M_ARENA_MAX: ARENAS,
        M_MMAP_THRESHOLD: KEPT_BYTES,
        M_TRIM_THRESHOLD: KEPT_BYTES,
    }
    done = [mallopt(option, value) for option, value in wanted.items()]
    return all(done)


def _command(name: str, config: Any) -> Any:
    """A stage's settings without a prefix, and the run that they are for."""
    fields = [
        (
            "run",
            Annotated[Path, tyro.conf.arg(help="The run's folder.")],
            dataclasses.field(default=run_folder(name)),
        ),
        (
            "config",
            Annotated[type(config), tyro.conf.arg(name="")],
            dataclasses.field(default=config),
        ),
    ]
    return dataclasses.make_dataclass("Command", fields, frozen=True)()


def _end(code: int, message: str) -> None:
    """Exits with a message as the last line."""
    print(message, file=sys.stderr)
    sys.exit(code)


def _expected(error: Exception) -> bool:
    """Whether what was given is wrong, or a file, and not the code."""
    return (
        isinstance(error, (ValueError, OSError, RuntimeError))
        or _number(error) is not None
    )


def _number(error: Exception) -> int | None:
    """The system's number of an error; safetensors and tokenizers only name it."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _one_message(error: Exception) -> str:
    number = _number(error)
    if number in _FULL:
        name = getattr(error, "filename", None)
        where = f" for {name}" if name else ""
        return (
            f"no room on the disk{where} ({os.strerror(number)}): make room and "
            "run the same command again, it goes on"
        )
    return str(error) or repr(error)


def _expanded(value: Any) -> Any:
    """The same with `~` in every path expanded: after `--run=` no shell does it.

    Raises:
        ValueError: a path that this process's locale has no letters for, which the
            libraries below cannot open.
    """
    if isinstance(value, Path):
        try:
            str(value).encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{os.fsencode(value)!r} is not a path in this locale's encoding "
                f"({sys.getfilesystemencoding()}): set PYTHONUTF8=1, or choose a path "
                "of ASCII letters"
            ) from None
        return value.expanduser()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changes = {
            f.name: _expanded(getattr(value, f.name)) for f in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changes)
    return value


def _cache_folder() -> Path | None:
    """A folder that can be written, in the home directory."""
    try:
        cache = Path.home() / ".cache" / "jaxqr"
        cache.mkdir(parents=True, exist_ok=True)
        room = shutil.disk_usage(cache).free
    except (OSError, RuntimeError):  # no home, or a read-only one
        return None
    return cache if os.access(cache, os.W_OK) and room > CACHE_ROOM else None


def _forget_cut_entries(cache: Path) -> None:
    """Removes entries of the compilation cache that JAX cannot read or not write.

    A full disk or a kill leaves an entry cut short, which JAX neither reads nor
    replaces: it would warn in every process, for ever.
    """
    show = warnings.showwarning

    def forget_or_show(message: Any, *args: Any, **options: Any) -> None:
        found = re.search(
            r"persistent compilation cache entry for '(.+?)'", f"{message}"
        )
        if not found:
            return show(message, *args, **options)
        for path in cache.glob(f"{glob.escape(found[1])}-*"):
            with contextlib.suppress(OSError):
                path.unlink()

    warnings.showwarning = forget_or_show

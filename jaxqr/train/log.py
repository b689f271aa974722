"""What a run writes down: `metrics.jsonl`, TensorBoard, and lines for a person."""

import json
import math
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

# Protobuf makes its classes at run time.
Event = vars(event_pb2)["Event"]
_START = vars(event_pb2)["SessionLog"](status=1)

BAR_METRICS = {"loss": "loss", "reward": "reward", "tokens_per_second": "tok/s"}
"""Metrics that the progress bar shows, and their names there."""

FLUSH_SECONDS = 30
"""How often TensorBoard sees new numbers, at most."""

PLAIN_LINES = 20
"""Progress lines of a run where there is no terminal."""

SPEED_SECONDS = 1800.0
"""The time that is left follows from the steps of so many seconds; one online step may
take a minute."""


class MetricWriter:
    """Numbers per step, appended to `folder/metrics.jsonl` and TensorBoard events.

    A line is `{"step": ..., "kind": "train" | "evaluation", name: number, ...}`;
    numbers that are not finite are null. Fields that depend on the clock are
    `seconds` and `tokens_per_second`; all others repeat bitwise in a resumed run. An
    evaluation that failed leaves a line of the kind "failure" with its `error`.

    Args:
        folder: created if missing.
        step: the step to go on from. Lines of later steps are dropped, and those of
            this step's evaluation, which is repeated: a resumed run leaves the same
            file as an unbroken one.
    """

    def __init__(self, folder: str | Path, step: int):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        kept = [
            json.dumps(line)
            for line in read_metrics(self._path)
            if line["step"] < step or (line["step"] == step and line["kind"] == "train")
        ]
        partial = self._path.with_suffix(".partial")
        try:
            partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            partial.replace(self._path)
        finally:
            partial.unlink(missing_ok=True)
        self._file = self._path.open("a", buffering=1, encoding="utf-8")
        # Without tensorboardX's thread, in which a full disk would go unnoticed.
        board = folder / "tensorboard"
        board.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
        self._board = RecordWriter(str(board / name))
        self._flushed = time.monotonic()
        self._event(file_version="brain.Event:2")
        # TensorBoard drops what it has of this step and later ones.
        self._event(step=step + 1, session_log=_START)

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Appends one line of numbers."""
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._append({"step": step, "kind": kind, **finite})
        for name, value in finite.items():
            if value is not None:
                self._event(step=step, summary=scalar(f"{kind}/{name}", value))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._board.flush()
            self._flushed = time.monotonic()

    def write_failure(self, step: int, error: str) -> None:
        """Appends a line about an evaluation that failed."""
        self._append({"step": step, "kind": "failure", "error": error})

    def close(self) -> None:
        """Flushes both files."""
        try:
            self._file.close()
        finally:
            self._board.close()

    def _event(self, **fields: Any) -> None:
        event = Event(wall_time=time.time(), **fields)
        self._board.write(event.SerializeToString())

    def _append(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    path = Path(path)
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class ProgressBar:
    """A progress bar with ETA on a terminal, some twenty plain lines elsewhere.

    It fits a terminal of 80 columns.
    """

    def __init__(
        self, title: str, step: int, num_steps: int, console: Console | None = None
    ):
        self._title, self._num_steps = title, num_steps
        self._console = console or Console()
        self._every = max(1, num_steps // PLAIN_LINES)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),  # what the other columns leave
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            console=self._console,
            speed_estimate_period=SPEED_SECONDS,
            disable=not self._console.is_terminal,
            expand=True,
        )
        self._task = self._bar.add_task(
            title, total=num_steps, completed=step, numbers=""
        )
        self._bar.start()

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Moves to `step`; `values` is empty between the steps that are logged."""
        numbers = " ".join(
            f"{word} {values[name]:.3g}"
            if values[name] < 1000
            else f"{word} {values[name]:.0f}"
            for name, word in BAR_METRICS.items()
            if name in values
        )
        if numbers:
            self._bar.update(self._task, completed=step, numbers=numbers)
        else:
            self._bar.update(self._task, completed=step)
        if not self._console.is_terminal and numbers and step % self._every == 0:
            self._console.print(f"{self._title}  {step}/{self._num_steps}  {numbers}")

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """Leaves the bar on the screen."""
        self._bar.stop()

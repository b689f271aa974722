"""A run folder becomes figures and one page: `write(run)`.

Reads `run/summary.json`; writes `run/figures/*.png` and `run/report.html`, one file
without scripts that needs no network. The page says first, in words made from the
numbers, whether rewriting beats sending the query unchanged, then shows MiniELM's
Tables 2, 3 and 5 and its Figure 4 (arXiv 2501.18056), always next to that baseline.

The fields of summary.json, which `python -m experiments.evaluate PRESET` writes, are
declared in `jaxqr.report.schema`. Adversarial runs have a page of their own,
`jaxqr.report.adversarial`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxqr.report import figures, page, schema
from jaxqr.report.adversarial import figures as adversarial_figures
from jaxqr.report.adversarial import page as adversarial_page
from jaxqr.report.adversarial import schema as adversarial_schema
from jaxqr.report.drawing import Image


class _Kind(NamedTuple):
    """What a kind of run has a page of its own for."""

    problems: Callable[[Any], list[str]]
    draw: Callable[[Mapping[str, Any]], dict[str, Image]]
    render: Callable[[Mapping[str, Any], Mapping[str, Image]], str]
    pictures: tuple[str, ...]
    remedy: str


_REWRITER = _Kind(
    schema.problems,
    figures.draw,
    page.render,
    figures.NAMES,
    "write it with `python -m experiments.evaluate PRESET`",
)
_ADVERSARIAL = _Kind(
    adversarial_schema.problems,
    adversarial_figures.draw,
    adversarial_page.render,
    adversarial_figures.NAMES,
    "write it with `python -m experiments.adversarial PRESET`",
)


def write(run: Path) -> Path:
    """Writes `run/figures/*.png` and `run/report.html` and returns the page's path.

    Every file is written under another name and renamed, the page last. A figure of an
    earlier page that this summary has no numbers for is removed.

    Raises:
        FileNotFoundError: there is no `run/summary.json`.
        ValueError: it is not JSON, or not as its schema declares.
    """
    summary = read(run)
    kind = _kind(summary)
    images = kind.draw(summary)
    html = kind.render(summary, images)
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    for name in kind.pictures:
        if name in images:
            _replace(folder / f"{name}.png", images[name].png)
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)
    path = run / "report.html"
    _replace(path, html.encode())
    return path


def read(run: Path) -> dict[str, Any]:
    """The checked `run/summary.json`, without the sections that are empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or not as its schema declares.
    """
    path = run / "summary.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: {_REWRITER.remedy}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {_REWRITER.remedy}") from None
    summary = schema.without_empty(given)
    kind = _kind(summary)
    if problems := kind.problems(summary):
        raise ValueError(f"{path}: {'; '.join(problems)}: {kind.remedy}")
    return summary


def _kind(summary: Any) -> _Kind:
    """Adversarial runs compare strategies."""
    there = isinstance(summary, dict) and "strategies" in summary
    return _ADVERSARIAL if there else _REWRITER


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

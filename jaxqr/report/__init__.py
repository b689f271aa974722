"""A run folder becomes figures and one page: `write(run)`.

Reads `run/summary.json`; writes `run/figures/*.png` and `run/report.html`, one file
without scripts that needs no network. The page says first, in words made from the
numbers, whether rewriting beats sending the query unchanged, then shows MiniELM's
Tables 2, 3 and 5 and its Figure 4 (arXiv 2501.18056), always next to that baseline.

The fields of summary.json, which `python -m experiments.evaluate PRESET` writes, are
declared in `jaxqr.report.schema`.
"""

import json
from pathlib import Path
from typing import Any

from jaxqr.report import figures, page, schema

_REMEDY = "write it with `python -m experiments.evaluate PRESET`"


def write(run: Path) -> Path:
    """Writes `run/figures/*.png` and `run/report.html` and returns the page's path.

    Every file is written under another name and renamed, the page last. A figure of an
    earlier page that this summary has no numbers for is removed.

    Raises:
        FileNotFoundError: there is no `run/summary.json`.
        ValueError: it is not JSON, or not as `jaxqr.report.schema` declares.
    """
    summary = read(run)
    images = figures.draw(summary)
    html = page.render(summary, images)
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    for name in figures.NAMES:
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
        ValueError: it is not JSON, or not as `jaxqr.report.schema` declares.
    """
    path = run / "summary.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is not there: {_REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {_REMEDY}") from None
    summary = schema.without_empty(given)
    if problems := schema.problems(summary):
        raise ValueError(f"{path}: {'; '.join(problems)}: {_REMEDY}")
    return summary


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)

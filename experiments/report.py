"""A run's summary as figures and one HTML page.

    python -m experiments.report quickstart

Reads `runs/NAME/summary.json`, writes `figures/*.png` and `report.html` next to it.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments.cli import launch
from experiments.presets import PRESETS
from jaxqr import report


@dataclass(frozen=True)
class Config:
    """The page has no settings of its own."""


def main(run: Path, config: Config) -> None:
    """Writes the page."""
    del config
    print(f"wrote {report.write(run)}")


if __name__ == "__main__":
    launch(main, dict.fromkeys(PRESETS, Config()), __doc__)

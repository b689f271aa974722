"""A run's summary as figures and one HTML page.

    python -m experiments.report quickstart

Reads `runs/NAME/summary.json`, writes `figures/*.png` and `report.html` beside it.
"""

from dataclasses import dataclass
from pathlib import Path

from experiments import prepare
from experiments.layout import launch
from jaxqr import report


@dataclass(frozen=True)
class Config:
    """Which run to report."""

    run: Path = Path("runs/quickstart")


PRESETS = {name: Config(Path("runs") / name) for name in prepare.PRESETS}


def main(config: Config) -> None:
    """Writes the page."""
    print(f"wrote {report.write(config.run)}")


if __name__ == "__main__":
    launch(main, PRESETS, __doc__)

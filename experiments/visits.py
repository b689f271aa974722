"""Simulated shoppers visit the synthetic shop, and leave logs as those of a real one.

    python -m experiments.visits --run runs/shop-logs

They type the training queries, see what the search engine shows, and click, add and buy
by the shop's own rule of what fits. `runs/NAME/logs` is in the format of User Behavior
Insights, which `--system.judge logged` reads, as it reads a real shop's from
`--system.logs.folder`.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console

from experiments import runs, system
from experiments.cli import launch
from experiments.config import SystemConfig, Visits
from experiments.prepare import Prepared
from experiments.presets import PRESETS
from jaxqr.data import ubi
from jaxqr.rewards import SimulatedShopper, sample_profiles
from jaxqr.rewards.visits import visits


def main(run: Path, config: Visits) -> None:
    """Leaves the logs of a run."""
    data = Prepared(run)
    folder = run / "logs"
    with runs.stage(folder, config) as work:
        if not work:
            return
        if data.true_gain is None:
            raise ValueError(
                "only the synthetic shop has shoppers to simulate; give the logs of "
                "your own shop with --system.logs.folder"
            )
        gain = cache(data.true_gain)

        def relevance(queries: Sequence[str], ids: np.ndarray) -> np.ndarray:
            rows = zip(queries, ids.tolist(), strict=True)
            gains = [[gain(q, i) if i else 0.0 for i in row] for q, row in rows]
            return np.array(gains, np.float32)

        impressions = visits(
            data.searchable["train"],
            retriever=system.engine(SystemConfig(), data.products, run),
            relevance=relevance,
            shopper=SimulatedShopper(data.products),
            profiles=sample_profiles(
                config.shoppers, config.seed, brands=system.brands(data.products)
            ),
            n=config.n,
            k=config.k,
            shuffled=config.shuffled,
            seed=config.seed,
        )
        ubi.save(folder, impressions, kind="parquet")
        Console().print(
            f"{config.n} visits: {len(impressions.click)} products shown, "
            f"{impressions.click.sum()} clicked, {impressions.add_to_cart.sum()} "
            f"added, {impressions.purchase.sum()} bought"
        )


LOGS = {name: run.visits for name, run in PRESETS.items() if run.visits}

if __name__ == "__main__":
    launch(main, LOGS, __doc__)

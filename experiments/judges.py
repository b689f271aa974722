"""Who looks through the lists, put together from the settings; models are watched."""

import logging
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import runs
from experiments.config import LogsConfig, SystemConfig
from experiments.prepare import Prepared
from jaxqr.data import ubi
from jaxqr.lm import LM
from jaxqr.records import Product
from jaxqr.rewards import Judge, Profile, SimulatedShopper
from jaxqr.rewards.anchors import Anchors, anchors, click_rates, watch
from jaxqr.rewards.blend import Blend
from jaxqr.rewards.logged import LoggedJudge

RANKS = (1, 2, 5, 10, 20)
"""Ranks whose propensities a run with logs reports."""
MOVED = 0.05
"""Click rate: anchors that move by more on average, or that stuffing wins by more, are
worth a warning."""

_log = logging.getLogger(__name__)


class Watched(NamedTuple):
    """A language model as a judge of anchors, and where its first answers are kept."""

    judge: Judge
    anchors: Anchors
    name: str
    """Which judge it is."""
    path: Path

    def __call__(self) -> dict[str, float]:
        """Asks about the anchors, and warns where rewards are not what they were.

        Returns:
            What `jaxqr.rewards.anchors.Watch` says, each as `anchors_NAME`.
        """
        now = click_rates(self.judge, self.anchors)
        kept = runs.read_json(self.path) if self.path.exists() else {}
        before = None
        if kept.get("judge") == self.name and len(kept["click"]) == len(now):
            before = np.array(kept["click"], np.float64)
        else:
            runs.write_json(self.path, {"judge": self.name, "click": now})
        found = watch(self.anchors, now, before)
        if found.drift > MOVED:
            _log.warning(
                "the judge %s answers otherwise than when this run began: its click "
                "rates of the anchor lists have moved by %.3f on average, so rewards "
                "of then and now cannot be compared",
                *(self.name, found.drift),
            )
        if found.stuffing > MOVED:
            _log.warning(
                "the judge %s clicks irrelevant products more, by %.3f on average, if "
                "their titles begin with the query's words",
                *(self.name, found.stuffing),
            )
        return {f"anchors_{name}": value for name, value in found._asdict().items()}


class Asked(NamedTuple):
    """A judge, what it counts, and the watch over it."""

    judge: Judge
    counts: Mapping[str, float]
    """What it knows, or could not answer."""
    watched: Watched | None = None


def judge(
    config: SystemConfig, data: Prepared, run: Path, profiles: list[Profile]
) -> Asked:
    """Who looks through the lists.

    Args:
        config: the settings.
        data: the run's data.
        run: its folder.
        profiles: the pool that anchors are shown to.

    Raises:
        ValueError: it is a language model, and the settings do not say which.
    """
    products = data.products
    if config.judge == "simulated":
        return Asked(SimulatedShopper(products), {})
    if config.judge == "logged":
        return _logged(config.logs, products, run)
    fixed = anchors(data.judgements, products, data.labels, profiles, n=config.anchors)
    known = ChainMap(fixed.products, dict(products))
    path = run / f"anchors-{config.judge}.json"
    if config.judge == "local":
        from jaxqr.rewards.local import LocalJudge

        if config.local is None:
            raise ValueError(
                "the judge is a model in this process, but it is not said which: give "
                "the folder of an instruct model, --system.local FOLDER (--online"
                ".system.local of a pipeline)"
            )
        found = again = LocalJudge(LM.load(config.local), known)
        name, counts = str(config.local), found.counts
    else:
        from experiments import servers
        from jaxqr.rewards.llm import LLMJudge

        llm = servers.llm(config.llm, run, "--system.llm (--online.system.llm)")
        both = config.llm.both_orders
        found, again = (
            LLMJudge(llm, known, both_orders=both, fresh=fresh)
            for fresh in (False, True)
        )
        name, counts = f"{config.llm.model} at {config.llm.url}", llm.counts
    return Asked(
        found, counts, Watched(again, fixed, name, path) if config.anchors else None
    )


def _logged(config: LogsConfig, products: Mapping[str, Product], run: Path) -> Asked:
    if not 0 < config.weight <= 1:
        raise ValueError(f"logs.weight is {config.weight}, expected a share above 0")
    folder = config.folder or runs.require(
        run / "logs", f"python -m experiments.visits --run {run}"
    )
    logged = LoggedJudge(
        ubi.load(folder)[0],
        min_impressions=config.min_impressions,
        min_coverage=config.min_coverage,
        strength=config.strength,
    )
    theta = logged.pbm.propensity
    known = {"queries": float(logged.queries), "pairs": float(logged.pairs)}
    known |= {f"propensity_{i}": float(theta[i - 1]) for i in RANKS if i <= len(theta)}
    if config.weight == 1:
        return Asked(logged, known)
    simulated = SimulatedShopper(products)
    blended = Blend({logged: config.weight, simulated: 1 - config.weight})
    return Asked(blended, known)

"""What online training maximises: numbers for rewrites, computed on the host.

`rewrite_reward` searches with the rewrites and puts together relevance, diversity and
a judge's interactions; `Sidecar` runs it beside the device. Nothing here imports jax,
save `jaxqr.rewards.relevance`, which has to be imported by its own name.
"""

from jaxqr.rewards.judges import SimulatedShopper
from jaxqr.rewards.profiles import Profile, sample_profiles
from jaxqr.rewards.reward import (
    Interactions,
    Judge,
    Relevance,
    Reward,
    rewrite_reward,
)
from jaxqr.rewards.sidecar import Sidecar

__all__ = [
    "Interactions",
    "Judge",
    "Profile",
    "Relevance",
    "Reward",
    "Sidecar",
    "SimulatedShopper",
    "rewrite_reward",
    "sample_profiles",
]

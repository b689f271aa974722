"""What online training maximizes: numbers for rewrites, computed on the host.

`rewrite_reward` searches with the rewrites and puts together relevance, diversity and
a judge's interactions; `ScoringPool` runs it in threads while the device works. Nothing
here imports jax, except `classifier`, `relevance`, `similarity` and `local`. These have
to be imported by their own names, as `llm`, `service` and `client` have.
"""

from jaxqr.rewards.blend import Blend
from jaxqr.rewards.judges import SimulatedShopper
from jaxqr.rewards.pool import ScoringPool
from jaxqr.rewards.profiles import Profile, sample_profiles
from jaxqr.rewards.reward import (
    INTERACTIONS,
    PARTS,
    Judge,
    Relevance,
    list_reward,
    rewrite_reward,
)

__all__ = [
    "INTERACTIONS",
    "PARTS",
    "Blend",
    "Judge",
    "Profile",
    "Relevance",
    "ScoringPool",
    "SimulatedShopper",
    "list_reward",
    "rewrite_reward",
    "sample_profiles",
]

"""Decoding with an explicit cache: sampling, beam search, diverse beam search.

`generate` draws continuations and `generate_mixture` draws them from two models
(`jaxqr.decode.generation`); `sample` draws one token per row and `Sampling` holds
its settings (`jaxqr.decode.sampling`); `beam_search` looks for the most probable
ones (`jaxqr.decode.beams`).
"""

from jaxqr.decode.beams import Beams, beam_search
from jaxqr.decode.generation import Mixture, generate, generate_mixture
from jaxqr.decode.sampling import Sampling, sample

__all__ = [
    "Beams",
    "Mixture",
    "Sampling",
    "beam_search",
    "generate",
    "generate_mixture",
    "sample",
]

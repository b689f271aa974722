"""T5 (Raffel et al. 2020), its version 1.1 and FLAN-T5: an encoder and a decoder.

Attention has no factor 1 / sqrt(C), and instead of positions a learned bias by the
distance of query and key, which all layers of a stack share. Version 1.0 has a ReLU
network, and scales the last state by 1 / sqrt(D) before the output embedding, which is
the input embedding; version 1.1 and FLAN-T5 have a gated GELU network and an output
embedding of their own. Without dropout: on small data use weight decay.
"""

from jaxqr.models.t5.blocks import T5Config, bucket_table
from jaxqr.models.t5.model import T5, Cache

__all__ = ["T5", "Cache", "T5Config", "bucket_table"]

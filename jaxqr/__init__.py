"""jaxqr: train small language models to rewrite shop-search queries.

The modules in reading order; this one imports none of them.

========================  ======================================================
`jaxqr.types`             the axis alphabet and the batches
`jaxqr.records`           products, judgements, collections
`jaxqr.losses`            objectives on per-token and per-sequence numbers
`jaxqr.vocab`             the only code that sees the vocabulary axis
`jaxqr.metrics`           text, ranking, coverage, significance
`jaxqr.models`            GPT-2, Llama, T5 and BERT; Hugging Face folders in and out
`jaxqr.decode`            sampling, and beam search, with an explicit cache
`jaxqr.data`              ESCI, your own tables, the synthetic shop, Q2Q, batches
`jaxqr.retrieval`         the Retriever protocol and the embedded search engine
`jaxqr.rewards`           relevance, diversity, simulated shoppers, the sidecar
`jaxqr.train`             steps, rollouts, checkpoints and the one loop
`jaxqr.report`            a run folder becomes figures and one page
========================  ======================================================
"""

__version__ = "0.1.0"

"""jaxqr: train small language models to rewrite shop-search queries.

The modules in reading order; this one imports none of them.

========================  ======================================================
`jaxqr.lm`                `LM`: a model, its parameters and its tokenizer in one
`jaxqr.types`             the axis alphabet and the batches
`jaxqr.records`           products, judgements, labels; hits, rewards
`jaxqr.losses`            objectives on per-token and per-sequence numbers
`jaxqr.vocab`             the only code that sees the vocabulary axis
`jaxqr.metrics`           text, ranking, coverage, significance
`jaxqr.sharding`          meshes, and where arrays live on them
`jaxqr.models`            GPT-2, Llama, T5 and BERT; Hugging Face folders in and out
`jaxqr.data`              ESCI, WANDS, Home Depot, own tables, a synthetic shop
`jaxqr.retrieval`         the Retriever protocol and the embedded search engine
`jaxqr.decode`            sampling, and beam search, with an explicit cache
`jaxqr.rewards`           relevance, diversity, simulated shoppers, the scoring pool
`jaxqr.train`             steps, rollouts, checkpoints and the one loop
`jaxqr.evaluation`        every table as numbers per query
`jaxqr.report`            a run folder becomes figures and one page
========================  ======================================================
"""

__version__ = "0.1.0"

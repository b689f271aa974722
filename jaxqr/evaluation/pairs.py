"""Rewrites against the references of held-out pairs: MiniELM's Table 2."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxqr import metrics
from jaxqr.data.tokenize import Tokenizer
from jaxqr.decode import Sampling
from jaxqr.evaluation.compare import difference, mean_by_query
from jaxqr.lm import LM

SAMPLES = 5
"""Samples of each query in a sampled ROUGE-L, as in MiniLLM's evaluation."""

Pair = tuple[str, str]


class PairColumns(NamedTuple):
    """Numbers of one system, one entry per (query, reference) pair; NaN: undefined.

    Of the greedy rewrite where nothing else is said.
    """

    exact_match: Float[np.ndarray, " P"]
    rouge_l: Float[np.ndarray, " P"]  # in [0, 1], as all three
    rouge_l_sampled: Float[np.ndarray, " P"]  # mean over samples at temperature 1
    tokens: Float[np.ndarray, " P"]  # length of the rewrite
    words: Float[np.ndarray, " P"]
    nll: Float[np.ndarray, " P"]  # of the reference, in nats, summed over its tokens
    reverse_kl: Float[np.ndarray, " P"]  # KL(model || teacher) there, likewise
    target_tokens: Float[np.ndarray, " P"]  # of the reference, end of text included

    def means(self) -> dict[str, float]:
        """The line of the table: means over pairs, per token where it says so."""
        tokens = self.target_tokens.sum()
        return {
            "exact_match": 100 * float(self.exact_match.mean()),
            "rouge_l": 100 * float(self.rouge_l.mean()),
            "rouge_l_sampled": 100 * float(self.rouge_l_sampled.mean()),
            "nll_per_token": float(self.nll.sum() / tokens),
            "nll_per_sequence": float(self.nll.mean()),
            "reverse_kl": float(self.reverse_kl.sum() / tokens),
            "tokens": float(self.tokens.mean()),
            "words": float(self.words.mean()),
        }


def copy_columns(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> PairColumns:
    """The baseline that copies the query: it has no likelihood."""
    copies = {query: [query] for query, _ in pairs}
    unknown = np.full(len(pairs), np.nan)
    return PairColumns(
        **_text_columns(tokenizer, copies, copies, pairs),
        nll=unknown,
        reverse_kl=unknown,
        target_tokens=unknown,
    )


def lm_columns(
    lm: LM,
    pairs: Sequence[Pair],
    *,
    max_source: int,
    max_target: int,
    teacher: LM | None = None,
    samples: int = SAMPLES,
) -> PairColumns:
    """A language model on (query, reference) pairs.

    Args:
        lm: writes one greedy rewrite of every query, and `samples` at temperature 1.
        pairs: a query may be in several.
        max_source: tokens of a prompt.
        max_target: tokens of a rewrite, end of text included.
        teacher: what `reverse_kl` is measured to; None leaves it undefined.
        samples: 0 leaves `rouge_l_sampled` undefined.
    """
    queries = list(dict.fromkeys(query for query, _ in pairs))

    def write(temperature: float, n: int) -> dict[str, list[str]]:
        sampling = Sampling(max_source, max_target, temperature)
        rewrites = lm.rewrite(queries, n=n, sampling=sampling)
        texts = ([rewrite.text for rewrite in several] for several in rewrites)
        return dict(zip(queries, texts, strict=True))

    greedy = write(0.0, 1)
    drawn = write(1.0, samples) if samples else {}
    stats = lm.token_stats(
        pairs, teacher=teacher, max_source=max_source, max_target=max_target
    )
    unknown = np.full(len(pairs), np.nan)
    return PairColumns(
        **_text_columns(lm.tokenizer, greedy, drawn, pairs),
        nll=np.asarray(stats.nll, np.float64),
        reverse_kl=unknown
        if teacher is None
        else np.asarray(stats.reverse_kl, np.float64),
        target_tokens=np.asarray(stats.tokens, np.float64),
    )


def _text_columns(
    tokenizer: Tokenizer,
    greedy: Mapping[str, Sequence[str]],
    drawn: Mapping[str, Sequence[str]],
    pairs: Sequence[Pair],
) -> dict[str, np.ndarray]:
    """The columns that follow from texts alone, those of each query given by it."""
    references = [reference for _, reference in pairs]
    written = [greedy[query][0] for query, _ in pairs]
    sampled = np.full(len(pairs), np.nan)
    if drawn:
        by_sample = zip(*(drawn[query] for query, _ in pairs), strict=True)
        sampled = np.mean([metrics.rouge_l(t, references) for t in by_sample], axis=0)
    lengths = [len(ids) for ids in tokenizer.encode(written)]
    return {
        "exact_match": metrics.exact_match(written, references),
        "rouge_l": metrics.rouge_l(written, references),
        "rouge_l_sampled": sampled,
        "tokens": np.array(lengths, np.float64),
        "words": np.array([len(text.split()) for text in written], np.float64),
    }


def table(
    systems: Mapping[str, PairColumns],
    pairs: Sequence[Pair],
    compared: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Table 2 as data; its fields are those of `offline` in `jaxqr.report`.

    Args:
        systems: columns by name, in the order of the rows.
        pairs: what the columns were measured on.
        compared: (better, worse) names whose differences are shown, if both are there.
    """
    return {
        "pairs": len(pairs),
        "queries": len({query for query, _ in pairs}),
        "rows": [{"model": name} | c.means() for name, c in systems.items()],
        "comparisons": [
            comparison
            for better, worse in compared
            if better in systems and worse in systems
            for comparison in _compare(systems, better, worse, pairs)
        ],
    }


def _compare(
    systems: Mapping[str, PairColumns],
    better: str,
    worse: str,
    pairs: Sequence[Pair],
) -> list[dict[str, Any]]:
    """Differences by query, in the units of the table."""
    names = [query for query, _ in pairs]
    after, before = systems[better], systems[worse]
    results = []
    for metric in ("rouge_l", "rouge_l_sampled", "nll", "reverse_kl"):
        a, b = getattr(before, metric), getattr(after, metric)
        scale = 100.0 if metric.startswith("rouge") else 1.0
        if metric in ("nll", "reverse_kl"):
            a, b = a / before.target_tokens, b / after.target_tokens
        if np.isnan(a).all() or np.isnan(b).all():
            continue
        columns = scale * mean_by_query(a, names), scale * mean_by_query(b, names)
        name = "nll_per_token" if metric == "nll" else metric
        results.append(
            {"metric": name, "model": better, "than": worse} | difference(*columns)
        )
    return results


def validation(
    pairs: Sequence[Pair],
    *,
    max_source: int,
    max_target: int,
    teacher: LM | None = None,
    samples: int = 0,
) -> Callable[[LM, int], dict[str, float]]:
    """Table 2's numbers during training, for `train.fit`.

    `nll` in nats per target token and `rouge_l` (x 100); with samples
    `rouge_l_sampled`, with a teacher `reverse_kl`.
    """
    shown = {"nll": "nll_per_token", "rouge_l": "rouge_l"}
    if samples:
        shown["rouge_l_sampled"] = "rouge_l_sampled"
    if teacher is not None:
        shown["reverse_kl"] = "reverse_kl"

    def evaluate(lm: LM, step: int) -> dict[str, float]:
        del step
        columns = lm_columns(
            lm,
            pairs,
            max_source=max_source,
            max_target=max_target,
            teacher=teacher,
            samples=samples,
        )
        means = columns.means()
        return {name: means[metric] for name, metric in shown.items()}

    return evaluate

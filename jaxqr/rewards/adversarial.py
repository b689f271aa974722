"""The reward of adversarial queries: what a classifier gets wrong, in likely words.

Source: "Reinforcement Learning for Adversarial Query Generation to Enhance Relevance in
Cold-Start Product Search". A generator writes a query for a product and a label; at
the end of the text it gets

    alpha L_cls - (1 - alpha) log P_gen

L_cls is the classifier's cross-entropy against that label, `hardness`; P_gen is the
generator's probability of the text, `terminal_score`. The penalty for the KL to the
fine-tuned generator is a reward of every token, and PPO's (`losses.token_rewards`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from jaxqr.records import Reward

LOSS = "classifier_loss"

PgenSign = Literal["formula", "prose"]
"""The paper's formula subtracts (1 - alpha) log P_gen, which rewards unlikely texts;
its prose rewards confidence, so adds it."""

Read = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, "Q K"]]
"""Class probabilities of (query, product text) rows."""


def hardness(
    sources: Sequence[Mapping[str, str]],
    texts: Sequence[str],
    *,
    classifier: Read,
    labels: Mapping[str, int],
    max_loss: float = 5.0,
) -> Reward:
    """How wrong a classifier is about generated queries, in nats.

        L_cls = min(-log C(label | query, product), max_loss)

    An empty text is a query of nobody: it gets 0, and the classifier is not asked.

    Args:
        sources: what each query was written for, with the texts `product` and `label`.
        texts: the queries.
        classifier: reads (query, product text) pairs.
        labels: the class of each label, as the sources name it.
        max_loss: cross-entropy has no upper bound; without one, a generator is paid
            best for the few texts that the classifier is most sure about.

    Returns:
        The loss as the total and as the part `classifier_loss`; the flags `empty` and
        `clipped`, whose share belongs in every table.

    Raises:
        ValueError: a source names a label that is not one of `labels`, or `max_loss`
            is not above 0.
    """
    if not max_loss > 0:
        raise ValueError(f"{max_loss=}: expected nats above 0")
    wanted = [source["label"] for source in sources]
    if unknown := sorted({name for name in wanted if name not in labels}):
        raise ValueError(
            f"sources with the labels {', '.join(unknown)}: expected one of "
            f"{', '.join(labels)}"
        )
    empty = np.array([not text.strip() for text in texts], np.bool_)
    asked = np.flatnonzero(~empty).tolist()
    loss = np.zeros(len(texts), np.float32)
    if asked:
        probabilities = classifier(
            [texts[i] for i in asked], [sources[i]["product"] for i in asked]
        )
        index = [labels[wanted[i]] for i in asked]
        with np.errstate(divide="ignore"):  # a class that is excluded costs infinity
            loss[asked] = -np.log(probabilities[np.arange(len(asked)), index])
    clipped = loss > max_loss
    loss = np.minimum(loss, np.float32(max_loss))
    known = np.ones(len(texts), np.bool_)
    return Reward(loss, {LOSS: loss}, known, {"empty": empty, "clipped": clipped})


def terminal_score(
    loss: Float[np.ndarray, " B"],
    logps: Float[np.ndarray, "B T"],
    mask: Bool[np.ndarray, "B T"],
    *,
    alpha: float = 0.9,
    pgen_sign: PgenSign = "formula",
    per_token: bool = True,
) -> Float[np.ndarray, " B"]:
    """What a finished text is worth, in nats: classifier loss and probability.

        alpha L_cls -+ (1 - alpha) log P_gen

    Args:
        loss: L_cls of each text.
        logps: log-probabilities of its tokens under the generator that drew it.
        mask: True where a token counts, the end of the text included.
        alpha: share of the classifier's loss, in [0, 1].
        pgen_sign: minus is the paper's formula, plus its prose.
        per_token: log P_gen is the mean over the tokens, or else their sum: then short
            texts are the likely ones.

    Raises:
        ValueError: `alpha` or `pgen_sign` is none of these.

    >>> one = np.ones((1, 1), bool)
    >>> terminal_score(np.float32([2.0]), np.float32([[-1.0]]), one, alpha=0.5)
    array([1.5], dtype=float32)
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"{alpha=}: expected a number in [0, 1]")
    signs = {"formula": -1.0, "prose": 1.0}
    if pgen_sign not in signs:
        raise ValueError(f"{pgen_sign=}: expected one of {', '.join(signs)}")
    log_probability = np.sum(logps, axis=1, where=mask, dtype=np.float64)
    if per_token:
        log_probability /= np.maximum(mask.sum(axis=1), 1)
    score = alpha * loss + signs[pgen_sign] * (1 - alpha) * log_probability
    return score.astype(np.float32)

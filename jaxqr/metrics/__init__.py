"""What reports print: text overlap, ranking, coverage, classification, significance.

Everything is numpy, in float64. A metric of texts or rankings returns one number per
row, [Q], so that the caller decides what to average and how to resample it:
`bootstrap_interval(rouge_l(predictions, references))`. scikit-learn and scipy.stats
take longer to import than all the rest, so the functions that need them import them.

================  ================================================================
`text`            exact match, ROUGE-L, BERTScore, distinct-n, self-BLEU, copies
`ranking`         nDCG, recall, coverage, diversity
`classification`  macro-F1, PR-AUC, calibration
`significance`    bootstrap intervals, of queries and of training seeds
================  ================================================================
"""

from jaxqr.metrics.classification import (
    ece,
    macro_f1,
    pr_auc_micro,
    pr_auc_per_class,
    pr_auc_resampled,
)
from jaxqr.metrics.ranking import diversity, ndcg, product_coverage, recall
from jaxqr.metrics.significance import (
    Interval,
    PairedInterval,
    bootstrap_interval,
    crossed_counts,
    paired_bootstrap,
)
from jaxqr.metrics.text import (
    BertScore,
    bert_score,
    copied,
    distinct_n,
    exact_match,
    rouge_l,
    self_bleu,
)

__all__ = [
    "BertScore",
    "Interval",
    "PairedInterval",
    "bert_score",
    "bootstrap_interval",
    "copied",
    "crossed_counts",
    "distinct_n",
    "diversity",
    "ece",
    "exact_match",
    "macro_f1",
    "ndcg",
    "paired_bootstrap",
    "pr_auc_micro",
    "pr_auc_per_class",
    "pr_auc_resampled",
    "product_coverage",
    "recall",
    "rouge_l",
    "self_bleu",
]

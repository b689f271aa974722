"""M1: how relevant a product is to a query, by a cross-encoder such as BERT.

The classifier reads query and product text together and predicts the collection's
relevance labels; the relevance is the expected gain, sum_j p_j gain_j, in [0, 1].
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxqr.records import Labels, Product
from jaxqr.rewards.classifier import Classifier

FIELDS = ("title", "brand", "color")


def product_text(product: Product, fields: Sequence[str] = FIELDS) -> str:
    """What the encoder reads of a product: fields, without what the first one says.

    >>> product_text(Product("1", "Red shoe", brand="Acme", color="red"))
    'Red shoe Acme'
    """
    first, *rest = (getattr(product, field) for field in fields)
    extra = (part for part in rest if part and part.lower() not in first.lower())
    return " ".join([first, *extra])


class RelevanceModel:
    """Expected gain of (query, product) pairs; every pair is scored once and kept.

    Several threads may call it, such as those of a scoring pool and of an evaluation.

    Args:
        classifier: has one class per label, in the labels' order.
        products: product by id.
        labels: of the collection that the classifier was trained on.
        batch_size: pairs per forward pass.

    Raises:
        ValueError: the classifier has another number of classes than there are labels.
    """

    def __init__(
        self,
        classifier: Classifier,
        products: Mapping[str, Product],
        labels: Labels = Labels(),  # noqa: B008 - a tuple
        *,
        batch_size: int = 128,
    ):
        if (classes := classifier.model.config.num_labels) != labels.num_classes:
            raise ValueError(
                f"the classifier has {classes} classes, the collection the labels "
                f"{', '.join(labels.names)}: train M1 on this collection"
            )
        self._classifier, self._products = classifier, products
        self._gains = np.array(labels.gains, np.float32)
        self._batch_size = batch_size
        self._known: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def __call__(
        self, queries: Sequence[str], ids: np.ndarray
    ) -> Float[np.ndarray, "Q M"]:
        """Gains of each query's products `[Q, M]`; 0 for the padding id ""."""
        pairs = [
            (query, str(product))
            for query, row in zip(queries, ids, strict=True)
            for product in row
        ]
        with self._lock:
            new = list(dict.fromkeys(p for p in pairs if p[1] and p not in self._known))
            if new:
                scores = self.probabilities(
                    [query for query, _ in new], [product for _, product in new]
                )
                gains = (scores @ self._gains).tolist()
                self._known.update(zip(new, gains, strict=True))
        gains = [self._known[pair] if pair[1] else 0.0 for pair in pairs]
        return np.array(gains, np.float32).reshape(ids.shape)

    def probabilities(
        self, queries: Sequence[str], products: Sequence[str]
    ) -> Float[np.ndarray, "R K"]:
        """Label probabilities of each (query, product id) row, in the labels' order."""
        texts = [product_text(self._product(product)) for product in products]
        return self._classifier.probabilities(
            queries, texts, batch_size=self._batch_size
        )

    def _product(self, product: str) -> Product:
        if product not in self._products:
            raise ValueError(
                f"product {product!r} was found but is not in the catalogue that M1 "
                "reads: index the same products that it is given"
            )
        return self._products[product]

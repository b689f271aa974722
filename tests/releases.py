"""A small shop, written down as other releases are published."""

import csv

import numpy as np

from jaxqr.data import shop

GRADES = {"E": "Exact", "S": "Partial", "C": "Partial", "I": "Irrelevant"}
RATINGS = {"E": 3.0, "S": 2.33, "C": 1.67, "I": 1.0}


def collection():
    return shop.make(num_products=400, num_intents=24, num_types=6).collection


def _write(path, columns, rows, *, delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(rows)


def write_wands(folder):
    made = collection()
    number = {query: i for i, query in enumerate(made.split)}
    tabs = {"delimiter": "\t"}
    queries = [(i, query, "") for query, i in number.items()]
    _write(folder / "query.csv", ("query_id", "query", "query_class"), queries, **tabs)
    products = [
        (p.id, p.title, "", p.category.replace(">", "/"), p.description, p.bullets)
        for p in made.products.values()
    ]
    columns = ("product_id", "product_name", "product_class", "category hierarchy")
    columns += ("product_description", "product_features")
    _write(folder / "product.csv", columns, products, **tabs)
    rows = [
        (i, number[q], p, GRADES[label])
        for i, (q, p, label) in enumerate(zip(*made.judgements[:3], strict=True))
    ]
    _write(
        folder / "label.csv", ("id", "query_id", "product_id", "label"), rows, **tabs
    )


def write_home_depot(folder):
    made = collection()
    number = {id: 100_001 + i for i, id in enumerate(made.products)}
    rows = [
        (i, number[p], made.products[p].title, q, RATINGS[label])
        for i, (q, p, label) in enumerate(zip(*made.judgements[:3], strict=True))
    ]
    columns = ("id", "product_uid", "product_title", "search_term", "relevance")
    latin = {"encoding": "iso-8859-1"}
    _write(folder / "train.csv", columns, rows, **latin)
    texts = [(number[p.id], p.description) for p in made.products.values()]
    columns = ("product_uid", "product_description")
    _write(folder / "product_descriptions.csv", columns, texts, **latin)
    attributes = [
        (f"{number[p.id]}.0", "MFG Brand Name", p.brand) for p in made.products.values()
    ]
    columns = ("product_uid", "name", "value")
    _write(folder / "attributes.csv", columns, [*attributes, ("", "", "")], **latin)


def write_category(folder):
    """Clicks on what is relevant; the category is half of the shop's."""
    made = collection()
    rng = np.random.default_rng(0)
    there = sorted({product.category for product in made.products.values()})
    half = there[: len(there) // 2]
    # Each query is searched for on one day: parts must not share queries.
    day = {q: f"2024-01-{rng.integers(1, 29):02d}" for q in made.split}
    rows = []
    for q, p, label in zip(*made.judgements[:3], strict=True):
        if label in "ES" or rng.random() < 0.02:
            product = made.products[p]
            inside = product.category in half
            volume = rng.integers(1, 50)
            rows.append((q, p, product.title, volume, str(inside).lower(), day[q]))
    columns = ("query", "product_id", "title", "volume", "in_category", "date")
    _write(folder / "interactions.csv", columns, rows)


WRITERS = {
    "wands": write_wands,
    "home-depot": write_home_depot,
    "category": write_category,
}

"""Where products, queries and judgements come from.

Every source gives a `jaxqr.records.Collection`:

- `shop`        a synthetic shop in which the true relevance of any product is known
- `esci`        Amazon's Shopping Queries data set
- `wands`       Wayfair's annotation data set
- `home_depot`  Home Depot's product search relevance
- `categories`  clicks, and whether their products belong to one category
- `tables`      one's own queries, products and judgements as CSV or parquet

and from a collection, `q2q` makes the (query, rewrite) pairs to train on.
"""

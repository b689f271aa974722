"""The retriever: searches, what fails of them, and ties in the order of ids."""

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from jaxqr.records import Hits, Product
from jaxqr.retrieval.documents import (
    TIE,
    Text,
    as_hits,
    check_k,
    check_weights,
    in_order,
    ties_on,
    title_brand_color,
)
from jaxqr.retrieval.elastic import catalogue
from jaxqr.retrieval.elastic.catalogue import Documents, IndexReport
from jaxqr.retrieval.elastic.connection import Connection, reason
from jaxqr.retry import TEMPORARY, pause

WINDOW = 10_000
"""The server's longest list (`index.max_result_window`)."""

_LAST_ID = "\U0010ffff"  # no id comes after it
_log = logging.getLogger(__name__)

MatchType = Literal["best_fields", "most_fields", "cross_fields"]
Query = dict[str, Any]
"""In the server's query language."""
Found = list[tuple[str, float]]
"""Ids and scores, in the server's order."""
Failure = tuple[str, bool]
"""Why a search failed, and whether that may pass."""


class ElasticRetriever:
    """An index on a server; a `Retriever`.

    Threads may share it. A search that fails for good on one query (too many words for
    the server) or for now (no answer, overloaded, after all tries) gives a row that is
    not `valid`. What no later try can mend raises: wrong credentials, no such index, a
    field that cannot be sorted, a server that is no Elasticsearch 8 or 9.

    Where many products tie, an order by id cannot always be had: lists longer than
    10,000 are cut by the server. Ties of exactly equal scores are ordered by the server
    itself, so this takes 10,000 products whose scores differ in their last bit alone.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None,
        index: str,
        *,
        cloud_id: str | None = None,
        api_key: str | None = None,
        basic_auth: tuple[str, str] | None = None,
        ca_certs: str | None = None,
        fields: Sequence[str] = ("text",),
        match_type: MatchType = "best_fields",
        id_field: str = "id",
        text: Text = title_brand_color,
        timeout: float = 10.0,
        retries: int = 4,
        backoff: float = 0.5,
        batch_size: int = 64,
    ):
        """Sets up the connection; nothing is sent yet.

        Args:
            url: of the server, or of several nodes of one cluster; None with
                `cloud_id`.
            index: name of the index, or of the alias that `index` makes.
            cloud_id: of an Elastic Cloud deployment, instead of `url`.
            api_key: encoded, as the server gives it.
            basic_auth: user and password.
            ca_certs: file of the certificates to trust, for https.
            fields: what is searched, with boosts as in "title^2". One field is a
                `match` query, several are a `multi_match`.
            match_type: how the scores of several fields become one.
            id_field: a keyword field with the product ids.
            text: what `index` and `add` put in the field `text`.
            timeout: seconds of one request.
            retries: how often a request that failed for now is sent again.
            backoff: seconds before the first of these, on average; each further one
                waits twice as long (`jaxqr.retry.pause`).
            batch_size: queries of one request (`_msearch`).

        Raises:
            ValueError: neither or both of `url` and `cloud_id`, both kinds of
                credentials, no fields, or something in them that cannot be read.
        """
        if not fields:
            raise ValueError("no fields to search: give some, such as ('title^2',)")
        self.name = index
        self.fields = tuple(fields)
        self._match_type, self._id_field, self._text = match_type, id_field, text
        self._batch_size = batch_size
        self._connection = Connection(
            url,
            cloud_id=cloud_id,
            api_key=api_key,
            basic_auth=basic_auth,
            ca_certs=ca_certs,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
        )

    def close(self) -> None:
        """Closes the connections."""
        self._connection.client.close()

    def __enter__(self) -> "ElasticRetriever":
        """Returns the retriever."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the connections."""
        self.close()

    def index(
        self, products: Iterable[Product], *, max_failures: int = 0
    ) -> IndexReport:
        """Puts a whole catalogue in a new index, and the alias on it in one step.

        Searches see the former catalogue until then, and its index is removed. An index
        that holds just these products already stays as it is.

        Args:
            products: with distinct ids.
            max_failures: products that the server may refuse; with more of them the
                former catalogue stays.

        Raises:
            ValueError: an id is empty, has a lone surrogate or occurs twice, a field is
                no text of a product, `self.name` is an index and no alias, or too many
                products failed.
        """
        documents = self._documents(products)
        with self._connection.explained(self.name):
            return catalogue.replace(
                self._connection, self.name, documents, max_failures
            )

    def add(self, products: Iterable[Product]) -> dict[str, str]:
        """Adds products; one whose id is known replaces the former.

        Returns:
            The products that the server did not take: id and reason.

        Raises:
            ValueError: as `index`. Nothing is added then.
        """
        documents = self._documents(products)
        with self._connection.explained(self.name):
            return documents.refused | catalogue.change(
                self._connection, "index", self.name, documents.rows
            )

    def delete(self, ids: Iterable[str]) -> dict[str, str]:
        """Removes products; unknown ids are passed over. Returns as `add`."""
        rows = [(product_id, {}) for product_id in ids]
        with self._connection.explained(self.name):
            return catalogue.change(self._connection, "delete", self.name, rows)

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """Returns the `k` best products of each query; see `Retriever.search`.

        Raises:
            ValueError: `k` is below 1 or above what the server lists; the index does
                not exist, or cannot be sorted by its ids.
            PermissionError: the credentials are wrong or missing.
        """
        return self._lists([self._match(query) for query in queries], k)

    def search_terms(self, queries: Sequence[Mapping[str, float]], k: int) -> Hits:
        """Returns the `k` best products; see `TermRetriever.search_terms`.

        Raises as `search` does, and:

        Raises:
            ValueError: a weight is not above 0 and finite.
        """
        check_weights(queries)
        searches = [
            {"bool": {"should": [self._match(t, w) for t, w in terms.items()]}}
            if terms
            else {"match_none": {}}
            for terms in queries
        ]
        return self._lists(searches, k)

    def _documents(self, products: Iterable[Product]) -> Documents:
        return Documents.of(list(products), self.fields, self._id_field, self._text)

    def _lists(self, queries: Sequence[Query], k: int) -> Hits:
        check_k(k)
        if k >= WINDOW:
            raise ValueError(f"k is {k}, expected fewer than {WINDOW}")
        rows: list[Found | None] = []
        for start in range(0, len(queries), self._batch_size):
            rows += self._search(queries[start : start + self._batch_size], k)
        return as_hits(rows, k)

    def _search(self, queries: Sequence[Query], k: int) -> list[Found | None]:
        size = k + 1
        rows = self._ask(queries, size)
        while size < WINDOW:
            # Products that tie with place k may be missing.
            cut = [i for i, row in enumerate(rows) if row and _is_cut(row, k, size)]
            # Equal scores are in order already; are the next lower ones all but equal?
            equal = {i: row[-1][1] for i in cut if (row := rows[i]) and _equal(row, k)}
            nexts = self._ask([queries[i] for i in equal], 1, [*equal.values()])
            for (i, score), row in zip(equal.items(), nexts, strict=True):
                if row is not None and not (row and row[0][1] >= score * (1 - TIE)):
                    cut.remove(i)
            if not cut:
                break
            size = min(4 * size, WINDOW)
            more = self._ask([queries[i] for i in cut], size)
            for i, row in zip(cut, more, strict=True):
                rows[i] = row
        return [None if row is None else in_order(row, k) for row in rows]

    def _ask(
        self, queries: Sequence[Query], size: int, below: Sequence[float] | None = None
    ) -> list[Found | None]:
        """The `size` first products of each query; of those below a score, if given."""
        searches = [self._body(query, size) for query in queries]
        for search, score in zip(searches, below or [], strict=below is not None):
            search["search_after"] = [score, _LAST_ID]
        rows: list[Found | None] = [None] * len(searches)
        waiting, failed = list(range(len(searches))), dict[int, str]()
        for attempt in range(1 + self._connection.retries):
            if not waiting:
                break
            if attempt:
                time.sleep(pause(attempt - 1, self._connection.backoff) or 0.0)
            answers = self._msearch([searches[i] for i in waiting])
            again = []
            for i, answer in zip(waiting, answers, strict=True):
                if isinstance(answer, list):
                    rows[i] = answer
                    failed.pop(i, None)
                else:
                    failed[i], may_pass = answer
                    again += [i] * may_pass
            waiting = again
        for i, why in failed.items():
            _log.warning("search %.200s failed: %s", queries[i], why)
        return rows

    def _match(self, text: str, boost: float = 1.0) -> Query:
        """A text as the server's own query, its score times `boost`."""
        if len(self.fields) == 1:
            field = self.fields[0].split("^")[0]
            return {"match": {field: {"query": text, "boost": boost}}}
        fields = {"fields": list(self.fields), "type": self._match_type}
        return {"multi_match": {"query": text, "boost": boost, **fields}}

    def _body(self, query: Query, size: int) -> dict[str, Any]:
        return {
            "query": query,
            "size": size,
            "sort": [{"_score": "desc"}, {self._id_field: "asc"}],
            "_source": False,
            "track_total_hits": False,
        }

    def _msearch(self, searches: Sequence[Mapping[str, Any]]) -> list[Found | Failure]:
        lines = [line for s in searches for line in ({"index": self.name}, s)]
        try:
            with self._connection.explained(self.name):
                response = self._connection.client.msearch(searches=lines)
            items = response["responses"]
            if len(items) != len(searches):
                raise LookupError(f"{len(items)} answers to {len(searches)} searches")
            return [self._read(item) for item in items]
        except (ConnectionError, LookupError, TypeError, AttributeError) as error:
            return [(str(error) or repr(error), True)] * len(searches)

    def _read(self, item: Mapping[str, Any]) -> Found | Failure:
        """One search's list from its part of the answer."""
        if "error" in item:
            why, status = reason(item["error"]), item.get("status", 500)
            if "No mapping found" in why or "ielddata" in why:
                raise ValueError(
                    f"{self.name!r} at {self._connection.where} cannot be sorted by "
                    f"{self._id_field!r} ({why}): give the keyword field with the "
                    "product ids as id_field"
                )
            if status in (401, 403, 404):
                raise self._connection.refusal(status, why, self.name)
            return why, status in TEMPORARY
        if item.get("timed_out") or item["_shards"]["failed"]:
            return "some shards did not answer", True
        sorts = [hit["sort"] for hit in item["hits"]["hits"]]
        found = [(sort[1], float(sort[0])) for sort in sorts]
        scores = [score for _, score in found]
        # Scores are numbers that fall, ids are texts: anything else is no answer.
        if not (
            all(0 <= score < math.inf for score in scores)
            and scores == sorted(scores, reverse=True)
            and all(isinstance(i, str) and i for i, _ in found)
        ):
            return "hits without an id or a score, or out of order", True
        return found


def _is_cut(row: Found, k: int, size: int) -> bool:
    return len(row) == size and ties_on([score for _, score in row], k)


def _equal(row: Found, k: int) -> bool:
    """Whether all that tie with place `k` have exactly its score."""
    top = row[k - 1][1] * (1 + TIE)
    return all(score == row[-1][1] for _, score in row if score <= top)

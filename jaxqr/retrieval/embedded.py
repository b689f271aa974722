"""BM25 search inside the process, on tantivy, with Elasticsearch's defaults.

The score of document d for query q is

    sum over the terms t of q, repeated ones repeated:
        ln(1 + (N - n_t + 0.5) / (n_t + 0.5))
        * (k1 + 1) f_td / (f_td + k1 (1 - b + b L_d / L))

with k1 = 1.2, b = 0.75, `f_td` how often t occurs in d, `n_t` in how many of the `N`
documents, `L` the mean length in terms, and `L_d` the length as kept in one byte (exact
up to 40, above that rounded down to four significant bits after taking 24 off).
Elasticsearch keeps the factor k1 + 1, which Lucene itself dropped in version 8.
Source: Robertson & Zaragoza 2009, eq. 3.15, and Lucene's `BM25Similarity`.
"""

import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import tantivy

from jaxqr.records import Hits, Product
from jaxqr.retrieval.analysis import bag, tokens
from jaxqr.retrieval.documents import (
    Text,
    as_hits,
    check_id,
    check_k,
    check_weights,
    in_order,
    name_of,
    ties_on,
    title_brand_color,
)

_META = "jaxqr.json"
# One indexing thread gives one segment and the same index every time.
_WRITER = {"heap_size": 128_000_000, "num_threads": 1}


class EmbeddedRetriever:
    """An index of products in memory or in a folder; see `build` and `open`.

    Threads may search while another adds or deletes: a search sees the index as the
    last finished change left it.

    As in Lucene, `N`, `n_t` and `L` count a deleted or replaced product until its
    segment is merged, so scores may differ a little from those of a fresh build.
    Products without a single term cannot be found and are not kept.
    """

    def __init__(
        self,
        index: tantivy.Index,
        path: Path | None,
        text: Text,
    ):
        """Wraps an open index; `build` and `open` are the ways to get one."""
        self.path = path
        self._index = index
        self._text = text
        self._writing = threading.Lock()

    @classmethod
    def build(
        cls,
        products: Iterable[Product],
        path: str | os.PathLike[str] | None = None,
        text: Text = title_brand_color,
    ) -> "EmbeddedRetriever":
        """Indexes products.

        Args:
            products: Any number of products with distinct ids.
            path: Folder to keep the index in; None keeps it in memory. An index that
                is there is replaced, once the new one is complete.
            text: What is searched of a product. Its module and name are kept with
                the index, and asked for again by `open`.

        Raises:
            ValueError: If an id is empty, has a lone surrogate or occurs twice, or if
                `path` is something other than an index or an empty folder. Nothing is
                written then.
        """
        if path is None:
            retriever = cls(tantivy.Index(_schema()), None, text)
            retriever.add(products)
            return retriever
        path = Path(path)
        if path.exists() and not (_is_index(path) or _is_empty(path)):
            raise ValueError(
                f"{path} exists and is not a jaxqr index; expected an index, an empty "
                "folder or a new name. Choose another path or move it away."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        partial.mkdir()
        try:
            cls(tantivy.Index(_schema(), str(partial)), partial, text).add(products)
            meta = json.dumps({"text": name_of(text)})
            (partial / _META).write_text(meta, encoding="utf-8")
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return cls.open(path, text)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        text: Text = title_brand_color,
    ) -> "EmbeddedRetriever":
        """Opens the index that `build` left in a folder.

        Raises:
            ValueError: If there is no index at `path`, or if it was built with
                another `text`: products added later would be searched differently.
        """
        path = Path(path)
        if not _is_index(path):
            raise ValueError(
                f"{path} is not a jaxqr index. Make one with EmbeddedRetriever.build."
            )
        built_with = json.loads((path / _META).read_text(encoding="utf-8"))["text"]
        if built_with != name_of(text):
            raise ValueError(
                f"{path} was built with text={built_with}, not {name_of(text)}. "
                "Open it with that function or build it again."
            )
        return cls(tantivy.Index.open(str(path)), path, text)

    @property
    def count(self) -> int:
        """How many products can be found."""
        return self._index.searcher().num_docs

    def add(self, products: Iterable[Product]) -> None:
        """Adds products; one whose id is known replaces the former.

        Raises:
            ValueError: If an id is empty, has a lone surrogate or occurs twice. Nothing
                is added then.
        """
        seen: set[str] = set()
        with self._writing:
            writer = self._index.writer(**_WRITER)
            try:
                for product in products:
                    check_id(product.id, seen)
                    writer.delete_documents_by_term("id", product.id)
                    if terms := tokens(self._text(product)):
                        document = tantivy.Document(id=product.id, text=" ".join(terms))
                        writer.add_document(document)
                writer.commit()
            except BaseException:
                writer.rollback()
                raise
            finally:
                self._settle(writer)

    def delete(self, ids: Iterable[str]) -> None:
        """Removes products; unknown ids are passed over."""
        with self._writing:
            writer = self._index.writer(**_WRITER)
            for product_id in ids:
                writer.delete_documents_by_term("id", product_id)
            writer.commit()
            self._settle(writer)

    def search(self, queries: Sequence[str], k: int) -> Hits:
        """Returns the `k` best products of each query; see `Retriever.search`."""
        return self.search_terms([bag(query) for query in queries], k)

    def search_terms(self, queries: Sequence[Mapping[str, float]], k: int) -> Hits:
        """Returns the `k` best products; see `TermRetriever.search_terms`."""
        check_k(k)
        check_weights(queries)
        searcher = self._index.searcher()
        schema = self._index.schema
        rows = [_search(searcher, _query(schema, terms), k) for terms in queries]
        return as_hits(rows, k)

    def _settle(self, writer: tantivy.IndexWriter) -> None:
        writer.wait_merging_threads()
        self._index.reload()


def _schema() -> tantivy.Schema:
    # Texts arrive as analysed terms, none of which has whitespace in it.
    builder = tantivy.SchemaBuilder()
    builder.add_text_field(
        "id", stored=True, tokenizer_name="raw", index_option="basic"
    )
    builder.add_text_field("text", tokenizer_name="whitespace", index_option="freq")
    return builder.build()


def _query(schema: tantivy.Schema, terms: Mapping[str, float]) -> tantivy.Query:
    # One clause per distinct term, weighted by its count, is Lucene's own rewriting.
    return tantivy.Query.boolean_query(
        [
            (
                tantivy.Occur.Should,
                tantivy.Query.boost_query(
                    tantivy.Query.term_query(schema, "text", term, "freq"),
                    weight,
                ),
            )
            for term, weight in terms.items()
        ]
    )


def _search(
    searcher: tantivy.Searcher, query: tantivy.Query, k: int
) -> list[tuple[str, float]]:
    # Ties are settled by id, so all that tie with place k must be seen: fetch more
    # until the last one scores less.
    limit = k + 1
    while True:
        limit = max(1, min(limit, searcher.num_docs))
        hits = searcher.search(query, limit, count=False).hits
        if len(hits) < limit or limit == searcher.num_docs:
            break
        if not ties_on([score for score, _ in hits], k):
            break
        limit *= 4
    found = ((searcher.doc(address)["id"][0], score) for score, address in hits)
    return in_order(found, k)


def _is_index(path: Path) -> bool:
    return (path / _META).is_file()


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())

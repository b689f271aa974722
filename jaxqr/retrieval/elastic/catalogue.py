"""A catalogue on the server: indexed whole, and changed while it is searched."""

import hashlib
import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from elasticsearch import helpers

from jaxqr.records import Product
from jaxqr.retrieval.documents import Text, check_id, name_of
from jaxqr.retrieval.elastic.connection import Connection, reason
from jaxqr.retry import MAX_BACKOFF

PRODUCT_FIELDS = ("title", "description", "bullets", "brand", "color", "category")
"""Texts of a product that can be a field of their own, next to `text`."""
LONGEST_ID = 512
"""Bytes; the server refuses a whole request for one longer id."""

_OWN = "jaxqr"  # the key of an index's `_meta` that says it is ours


class IndexReport(NamedTuple):
    """What became of a catalogue."""

    name: str
    """Of the index that the alias now points to."""
    indexed: int
    """Products in it."""
    failed: dict[str, str]
    """Products that the server did not take: id and reason."""
    reused: bool
    """Whether the index was there already, with the same products."""


class Documents(NamedTuple):
    """Products as the server keeps them."""

    rows: Sequence[tuple[str, Mapping[str, str]]]
    """Id and fields of each."""
    texts: Sequence[str]
    """The fields that are searched."""
    id_field: str
    refused: dict[str, str]
    """Products that no server takes: id and reason."""
    fingerprint: str

    @classmethod
    def of(
        cls,
        products: Sequence[Product],
        fields: Sequence[str],
        id_field: str,
        text: Text,
    ) -> "Documents":
        """The documents of products, with the fields that are searched and no others.

        Raises:
            ValueError: an id is empty, has a lone surrogate or occurs twice, or a field
                is no text of a product.
        """
        names = tuple(dict.fromkeys(field.split("^")[0] for field in fields))
        if unknown := set(names) - {"text", *PRODUCT_FIELDS}:
            raise ValueError(
                f"fields {sorted(unknown)} are no text of a product: to index products "
                f"search some of text, {', '.join(PRODUCT_FIELDS)}"
            )
        seen: set[str] = set()
        rows, refused = [], {}
        digest = hashlib.blake2b(name_of(text).encode(), digest_size=16)
        for product in products:
            check_id(product.id, seen)
            if (length := len(product.id.encode())) > LONGEST_ID:
                refused[product.id] = f"an id of {length} bytes, {LONGEST_ID} at most"
                continue
            source = {
                name: text(product) if name == "text" else getattr(product, name)
                for name in names
            }
            source[id_field] = product.id
            rows.append((product.id, source))
            digest.update(json.dumps(source).encode())
        return cls(rows, names, id_field, refused, digest.hexdigest())


def replace(
    connection: Connection, alias: str, documents: Documents, max_failures: int
) -> IndexReport:
    """See `ElasticRetriever.index`."""
    client = connection.client
    current, count = _current(connection, alias), len(documents.rows)
    refused = documents.refused
    if len(refused) > max_failures:
        raise ValueError(_failures(refused, connection.where))
    if len(current) == 1:
        ((name, meta),) = current.items()
        if meta.get("fingerprint") == documents.fingerprint:
            return IndexReport(name, count, refused, True)
    if not current and client.indices.exists(index=alias):
        raise ValueError(
            f"{alias} on {connection.where} is an index, expected an alias or a new "
            "name: choose another name, or search the index as it is, without indexing"
        )
    name = f"{alias}-{time.strftime('%Y%m%d%H%M%S')}-{uuid.uuid4().hex[:8]}"
    properties = {text: {"type": "text"} for text in documents.texts}
    client.indices.create(
        index=name,
        settings={"number_of_shards": 1, "refresh_interval": "-1"},
        mappings={
            "dynamic": "strict",
            "_meta": {_OWN: {"fingerprint": documents.fingerprint}},
            "properties": properties | {documents.id_field: {"type": "keyword"}},
        },
    )
    try:
        failed = _bulk(connection, "index", name, documents.rows)
        if len(failed) + len(refused) > max_failures:
            raise ValueError(_failures(refused | failed, connection.where))
        if failed:
            _forget_fingerprint(connection, name)
        client.indices.put_settings(index=name, settings={"refresh_interval": None})
        connection.patient.indices.refresh(index=name)
        actions: list[Mapping[str, Any]] = [
            {"remove_index": {"index": old}}
            if meta
            else {"remove": {"index": old, "alias": alias}}
            for old, meta in current.items()
        ]
        actions.append({"add": {"index": name, "alias": alias}})
        client.indices.update_aliases(actions=actions)
    except BaseException:
        client.options(ignore_status=404).indices.delete(index=name)
        raise
    return IndexReport(name, count - len(failed), refused | failed, False)


def change(
    connection: Connection,
    operation: Literal["index", "delete"],
    alias: str,
    rows: Sequence[tuple[str, Mapping[str, str]]],
) -> dict[str, str]:
    """Adds or deletes documents; returns those that failed: id and reason."""
    failed = _bulk(connection, operation, alias, rows)
    connection.patient.indices.refresh(index=alias)
    for name, meta in _current(connection, alias).items():
        if meta:
            _forget_fingerprint(connection, name)
    return failed


def _bulk(
    connection: Connection,
    operation: str,
    index: str,
    rows: Sequence[tuple[str, Mapping[str, str]]],
) -> dict[str, str]:
    actions: Iterator[dict[str, Any]] = (
        {"_op_type": operation, "_index": index, "_id": product_id}
        | ({"_source": source} if operation == "index" else {})
        for product_id, source in rows
    )
    failed = {}
    for done, item in helpers.streaming_bulk(
        connection.patient,
        actions,
        max_retries=connection.retries,
        initial_backoff=connection.backoff,
        max_backoff=MAX_BACKOFF,
        raise_on_error=False,
        raise_on_exception=False,
    ):
        result = item[operation]
        if not (done or (operation == "delete" and result["status"] == 404)):
            failed[result["_id"]] = reason(result.get("error"))
    return failed


def _current(connection: Connection, alias: str) -> dict[str, Mapping[str, Any]]:
    """The indices under an alias, and what each of ours says of itself."""
    indices = connection.client.options(ignore_status=404).indices
    found = indices.get_alias(name=alias)
    names = [] if found.meta.status == 404 else list(found.body)
    return {name: _meta(connection, name) for name in names}


def _meta(connection: Connection, name: str) -> Mapping[str, Any]:
    found = connection.client.indices.get_mapping(index=name).body[name]
    return found["mappings"].get("_meta", {}).get(_OWN, {})


def _forget_fingerprint(connection: Connection, name: str) -> None:
    """It no longer holds just the products that it was made from."""
    meta = {_OWN: {"fingerprint": None}}
    connection.client.indices.put_mapping(index=name, meta=meta)


def _failures(failed: Mapping[str, str], where: str) -> str:
    some = list(failed.items())[:3]
    first = "; ".join(f"{i[:40]!r}: {why}" for i, why in some)
    return (
        f"{len(failed)} products were not taken by Elasticsearch at {where} ({first}): "
        "mend or drop them, or allow some with max_failures"
    )

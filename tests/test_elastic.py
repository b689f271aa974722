"""Elasticsearch: real servers where they can be had, a fake one that misbehaves.

A real server is the one of JAXQR_ES_URL (several are divided by blanks, with
user:password@ where one is needed; their indices `jaxqr-test*` are deleted), or one
that is started from what Maven has. With JAXQR_ES_REQUIRED set, none is a failure.
"""

import math
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import elasticsearch_server
import numpy as np
import pytest
from elasticsearch import Elasticsearch

from benchmarks.misbehaving import Reply, serving
from jaxqr.data import esci
from jaxqr.records import Product
from jaxqr.retrieval.documents import title
from jaxqr.retrieval.elastic import ElasticRetriever
from jaxqr.retrieval.embedded import EmbeddedRetriever

ESCI = Path(__file__).parents[2] / "shared/data/esci"
GIVEN = os.environ.get("JAXQR_ES_URL", "").split()
PASSWORDS = {"8.19.4": None, "9.1.4": "secret"}
"""What is started where nothing is given."""
ODD_QUERIES = [
    *('3/4" bolt', "a:b -free AND (x", "½", "", "   ", "W1 w1 W1", "w1 😀 ギター 弦"),
    *("w0 " * 500, " ".join(f"w{i}" for i in range(200)), "w" * 300, "nothing"),
]


@pytest.fixture(scope="module", params=GIVEN or list(PASSWORDS))
def server(request) -> Iterator[tuple[str, tuple[str, str] | None]]:
    """A real server's URL and credentials."""
    with ExitStack() as stack:
        if GIVEN:
            parts = urlsplit(request.param)
            auth = (parts.username, parts.password) if parts.username else None
            url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        elif elasticsearch_server.can_run(request.param):
            password = PASSWORDS[request.param]
            auth = ("elastic", password) if password else None
            run = elasticsearch_server.running(request.param, password=password)
            url = stack.enter_context(run)
        elif "JAXQR_ES_REQUIRED" in os.environ:
            pytest.fail(f"Elasticsearch {request.param} or a Java for it is missing")
        else:
            pytest.skip("no Elasticsearch server: set JAXQR_ES_URL")
        yield url, auth
        if GIVEN:
            with Elasticsearch(url, basic_auth=auth) as client:
                for name in client.indices.get(index="jaxqr-test*").body:
                    client.indices.delete(index=name)


@pytest.fixture
def connect(server):
    """Makes retrievers on the server; gives each an index of its own by default."""
    url, auth = server
    with ExitStack() as stack:

        def make(index: str | None = None, **options) -> ElasticRetriever:
            name = index or f"jaxqr-test-{uuid.uuid4().hex[:8]}"
            options = {"basic_auth": auth, "text": title} | options
            return stack.enter_context(ElasticRetriever(url, name, **options))

        yield make


@pytest.fixture
def client(server):
    url, auth = server
    with Elasticsearch(url, basic_auth=auth) as client:
        yield client


def products(n: int, seed: int = 0) -> list[Product]:
    """Titles of few words, so that many scores tie."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(40)] + ["Été", "ギター弦", "😀", "don't"])
    chance = 1 / np.arange(1, len(words) + 1)
    return [
        Product(f"p{i:04d}", " ".join(rng.choice(words, size, p=chance / chance.sum())))
        for i, size in zip(rng.permutation(n), rng.integers(0, 9, n), strict=True)
    ]


def queries() -> list[str]:
    rng = np.random.default_rng(1)
    sizes = rng.integers(1, 5, 80)
    return [" ".join(f"w{i}" for i in rng.integers(0, 45, n)) for n in sizes]


def assert_equal(one, other):
    np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_allclose(one.scores, other.scores, rtol=1e-5)


def test_lists_are_those_of_the_embedded_engine(connect):
    catalogue, asked = products(1500), queries() + ODD_QUERIES
    theirs, ours = connect(), EmbeddedRetriever.build(catalogue, text=title)
    report = theirs.index(catalogue)
    assert (report.indexed, report.failed) == (1500, {})
    for k in (1, 20, 300):
        assert_equal(theirs.search(asked, k), ours.search(asked, k))
    for engine in (theirs, ours):  # both count deleted products in the frequencies
        engine.delete([product.id for product in catalogue[::5]] + ["unknown"])
        engine.add([Product("p0001", "w1 w2"), Product("new", "w40 w39")])
    assert_equal(theirs.search(asked, 20), ours.search(asked, 20))


def test_weighted_terms_find_what_they_find_in_the_embedded_engine(connect):
    catalogue, rng = products(1500), np.random.default_rng(2)
    bags = [
        {
            f"w{i}": float(w)
            for i, w in zip(rng.permutation(45)[:n], rng.random(n), strict=True)
        }
        for n in rng.integers(1, 30, 60)
    ]
    bags += [{}, {"unknown": 2.0}, {"w1": 1.0, "don't": 0.5}]
    theirs, ours = connect(), EmbeddedRetriever.build(catalogue, text=title)
    theirs.index(catalogue)
    for k in (1, 20, 300):
        assert_equal(theirs.search_terms(bags, k), ours.search_terms(bags, k))
    texts = ["w1 w1 w2", "w3"]
    same = theirs.search_terms([{"w1": 2.0, "w2": 1.0}, {"w3": 1.0}], 20)
    assert_equal(same, theirs.search(texts, 20))
    with pytest.raises(ValueError, match="'w1' weighs 0"):
        theirs.search_terms([{"w1": 0.0}], 20)


@pytest.mark.skipif(not ESCI.exists(), reason="the extract of ESCI is not here")
def test_lists_are_equal_for_every_query_of_the_extract(connect):
    collection = esci.load(ESCI)
    catalogue, asked = list(collection.products.values()), sorted(collection.split)
    theirs, ours = connect(), EmbeddedRetriever.build(catalogue, text=title)
    theirs.index(catalogue)
    assert_equal(theirs.search(asked, 20), ours.search(asked, 20))


def test_ties_without_end_are_settled_by_the_server(connect):
    retriever = connect()
    ids = [f"{i:05d}" for i in np.random.default_rng(0).permutation(12_000)]
    retriever.index(Product(i, "red shoe") for i in ids)
    assert retriever.search(["shoe"], 20).ids[0].tolist() == sorted(ids)[:20]


def test_a_new_catalogue_takes_over_in_one_step(connect, client):
    retriever = connect()
    first = retriever.index([Product("a", "red shoe")])
    assert retriever.index([Product("a", "red shoe")]) == first._replace(reused=True)
    seen, stop = set(), threading.Event()

    def watch():
        while not stop.is_set():
            hits = retriever.search(["shoe"], 1)
            assert hits.valid.all()
            seen.add(str(hits.ids[0, 0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    second = retriever.index([Product("b", "blue shoe")])
    stop.set()
    watcher.join()
    assert second.name != first.name
    assert seen <= {"a", "b"}
    assert list(client.indices.get_alias(name=retriever.name)) == [second.name]
    assert not client.indices.exists(index=first.name)

    retriever.add([Product("c", "green shoe")])  # no longer what it was made from
    assert not retriever.index([Product("b", "blue shoe")]).reused
    assert retriever.search(["green"], 1).ids.tolist() == [[""]]


def test_products_that_the_server_refuses(connect, client):
    retriever = connect()
    good = retriever.index([Product("a", "shoe")])
    long_id = "x" * 600
    with pytest.raises(ValueError, match=r"1 products were not taken .*xxx.*max_fail"):
        retriever.index([Product(long_id, "shoe"), Product("b", "shoe")])
    assert list(client.indices.get_alias(name=retriever.name)) == [good.name]
    report = retriever.index(
        [Product(long_id, "shoe"), Product("b", "shoe")], max_failures=1
    )
    assert report.indexed == 1
    assert list(report.failed) == [long_id]
    assert list(retriever.add([Product(long_id, "shoe")])) == [long_id]
    assert "512" in report.failed[long_id]
    with pytest.raises(ValueError, match="occurs twice"):
        retriever.index([Product("a", "x"), Product("a", "y")])


def test_several_fields_with_boosts(connect):
    fields = ("title^3", "brand")
    retriever = connect(fields=fields)
    retriever.index([Product("a", "shoe", brand="acme"), Product("b", "acme boot")])
    hits = retriever.search(["acme"], 2)
    assert hits.ids[0].tolist() == ["b", "a"]
    assert connect(retriever.name, fields=("brand",)).search(["acme"], 2).ids[
        0
    ].tolist() == ["a", ""]
    with pytest.raises(ValueError, match=r"\['sku'\] are no text of a product"):
        connect(fields=("sku",)).index([Product("a", "x")])


def test_an_index_of_ones_own(connect, client):
    name = f"jaxqr-test-{uuid.uuid4().hex[:8]}"
    texts = {"name": {"type": "text"}, "sku": {"type": "keyword"}}
    client.indices.create(index=name, mappings={"properties": texts})
    for sku in ("B-2", "A-1"):
        client.index(index=name, document={"name": "Red Shoe", "sku": sku})
    client.indices.refresh(index=name)
    retriever = connect(name, fields=("name",), id_field="sku")
    assert retriever.search(["shoe"], 3).ids[0].tolist() == ["A-1", "B-2", ""]
    with pytest.raises(ValueError, match=r"'id'.*give the keyword field"):
        connect(name, fields=("name",)).search(["shoe"], 3)
    with pytest.raises(ValueError, match="cannot be sorted by 'name'"):
        connect(name, fields=("name",), id_field="name").search(["shoe"], 3)
    with pytest.raises(ValueError, match="is an index, expected an alias"):
        connect(name, fields=("title",)).index([])
    refused = connect(name, fields=("title",), id_field="sku")
    client.indices.put_mapping(index=name, dynamic="strict")
    assert "strict" in refused.add([Product("C-3", "x")])["C-3"]


def test_a_query_with_too_many_words_fails_alone(connect, caplog):
    retriever = connect()
    retriever.index([Product("a", "w1")])
    hits = retriever.search(["w1", " ".join(f"w{i}" for i in range(20_000)), "w1"], 2)
    assert hits.valid.tolist() == [True, False, True]
    assert hits.ids[:, 0].tolist() == ["a", "", "a"]
    assert "maxClauseCount" in caplog.text


def test_missing_index_and_bad_names(connect):
    with pytest.raises(ValueError, match=r"no index '.*' at .*: build it with"):
        connect().search(["shoe"], 2)
    with pytest.raises(ValueError, match="refuses"):
        connect("Upper Case").index([Product("a", "x")])
    with pytest.raises(ValueError, match="k is 10000"):
        connect().search(["shoe"], 10_000)


def test_credentials(server, connect):
    url, auth = server
    if auth is None or GIVEN:
        pytest.skip("this server has no users of these names")
    retriever = connect(basic_auth=("writer", auth[1]))  # the README's least rights
    retriever.index([Product("a", "shoe")])
    retriever.index([Product("a", "red shoe")])
    retriever.add([Product("b", "boot")])
    reader = connect(retriever.name, basic_auth=("reader", auth[1]))
    assert reader.search(["shoe"], 1).ids.tolist() == [["a"]]
    for write in (reader.add, reader.index):
        with pytest.raises(PermissionError, match=r"refuses .403"):
            write([Product("b", "shoe")])
    for wrong in ({}, {"basic_auth": (auth[0], "wrong")}, {"api_key": "bm86bm8="}):
        with (
            ElasticRetriever(url, retriever.name, **wrong) as stranger,
            pytest.raises(PermissionError, match="check the API key or the user"),
        ):
            stranger.search(["shoe"], 1)


# Without a server


OWN = {
    "x-elastic-product": "Elasticsearch",
    "content-type": "application/vnd.elasticsearch+json;compatible-with=8",
}


def fake(answers):
    """A server that gives each request the next (status, body, headers)."""
    answers = iter(answers)

    def answer(_):
        status, body, headers = next(answers)
        return Reply(body, status, headers)

    return serving(answer, OWN)


HIT = {
    "_shards": {"failed": 0},
    "hits": {"hits": [{"_id": "1", "sort": [1.5, "a"]}]},
    "status": 200,
}
BUSY = {"error": {"type": "es_rejected_execution_exception"}, "status": 429}
ODD = {"error": {"reason": "this query has a fault"}, "status": 400}


def search(url: str, count: int, retries: int = 2):
    with ElasticRetriever(url, "x", retries=retries, backoff=0.0) as retriever:
        return retriever.search(["q"] * count, 1)


def test_only_what_may_pass_is_asked_again(caplog):
    partial = HIT | {"_shards": {"failed": 1}}
    late = HIT | {"timed_out": True}
    answers = [
        (200, {"responses": [HIT, BUSY, ODD, partial, late]}, {}),
        (503, {"error": "unavailable"}, {}),
        (200, {"responses": [HIT, HIT, BUSY]}, {}),
    ]
    with fake(answers) as url:
        hits = search(url, 5)
    assert hits.valid.tolist() == [True, True, False, True, False]
    assert hits.ids[:, 0].tolist() == ["a", "a", "", "a", ""]
    assert caplog.text.count("this query has a fault") == 1
    assert caplog.text.count("failed:") == 2


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"error": "busy"}, {}),
        (200, {"responses": [HIT]}, {}),  # one too few
        (200, {}, {}),
        (200, {"responses": [{"hits": {}}, HIT]}, {}),
        (200, {"responses": [HIT | {"hits": {"hits": [{}]}}, HIT]}, {}),
        *(
            (200, {"responses": [HIT | {"hits": {"hits": [{"sort": sort}]}}] * 2}, {})
            for sort in (
                [math.nan, "a"],
                [-1, "a"],
                [math.inf, "a"],
                [1.5],
                [None, "a"],
                [1.5, None],
                [1.5, ""],
                [1.5, 7],
            )
        ),
        (200, {"responses": ["no", None]}, {}),
        (200, b'{"responses": [', {}),
        (200, b"<html>", {"content-type": "text/html"}),
    ],
)
def test_answers_that_are_none_fail_their_rows(answer):
    with fake([answer] * 3) as url:
        hits = search(url, 2)
    assert not hits.valid.any()
    assert not hits.scores.any()


def test_no_server(caplog):
    with fake([]) as url:
        pass
    assert not search(url, 2, retries=1).valid.any()
    assert "check that it runs" in caplog.text
    with (
        ElasticRetriever(url, "x", retries=1) as retriever,
        pytest.raises(ConnectionError, match="check that it runs"),
    ):
        retriever.index([Product("a", "shoe")])


def test_servers_that_are_no_elasticsearch_of_today():
    with (
        fake([(200, {"responses": [HIT]}, {"x-elastic-product": "other"})]) as url,
        pytest.raises(ValueError, match="is no Elasticsearch"),
    ):
        search(url, 1)
    old = {"error": {"type": "media_type_header_exception", "reason": "Invalid"}}
    with (
        fake([(400, old, {})]) as url,
        pytest.raises(ValueError, match="another major version"),
    ):
        search(url, 1)


def test_what_cannot_be_a_connection():
    with pytest.raises(ValueError, match="expected one of them"):
        ElasticRetriever(None, "x")
    with pytest.raises(ValueError, match="both api_key and basic_auth"):
        ElasticRetriever("http://h:1", "x", api_key="k", basic_auth=("u", "p"))
    with pytest.raises(ValueError, match="no fields"):
        ElasticRetriever("http://h:1", "x", fields=())
    with pytest.raises(ValueError, match="URL must include"):
        ElasticRetriever("localhost", "x")

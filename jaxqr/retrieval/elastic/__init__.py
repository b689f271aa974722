"""Search on an Elasticsearch server, version 8 or 9.

    retriever = ElasticRetriever("http://localhost:9200", "products")
    retriever.index(products)              # a new index, then the alias moves to it
    retriever.search(["running shoes"], k=20)

Lists are those of `jaxqr.retrieval.embedded` where one shard and one field are
searched: the server computes the same scores, and ties are settled by id.
"""

from jaxqr.retrieval.elastic.catalogue import IndexReport
from jaxqr.retrieval.elastic.retriever import ElasticRetriever

__all__ = ["ElasticRetriever", "IndexReport"]

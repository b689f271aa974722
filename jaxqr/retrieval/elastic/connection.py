"""The connection to a server, and what its errors mean."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import elasticsearch
from elasticsearch import Elasticsearch

from jaxqr.retry import TEMPORARY

BULK_PATIENCE = 6
"""A bulk request or a refresh may take this many times a search's time."""


class Connection:
    """A client whose errors say what to do.

    Attributes:
        where: the server, for messages.
        client: for requests that the caller repeats.
        patient: for writing: it repeats a request itself, and waits longer.
        retries: how often a request that failed for now is sent again.
        backoff: seconds before the first of these.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None,
        *,
        cloud_id: str | None,
        api_key: str | None,
        basic_auth: tuple[str, str] | None,
        ca_certs: str | None,
        timeout: float,
        retries: int,
        backoff: float,
    ):
        """See `ElasticRetriever`."""
        if (url is None) == (cloud_id is None):
            raise ValueError(
                f"{url=} and {cloud_id=}: expected one of them, such as "
                "url='http://localhost:9200'"
            )
        if api_key and basic_auth:
            raise ValueError("both api_key and basic_auth are given: give one of them")
        self.where = str(url or cloud_id)
        self.retries, self.backoff = retries, backoff
        options = {
            "cloud_id": cloud_id,
            "api_key": api_key,
            "basic_auth": basic_auth,
            "ca_certs": ca_certs,
        }
        self.client = Elasticsearch(
            url if url is None or isinstance(url, str) else list(url),
            request_timeout=timeout,
            max_retries=0,
            **{name: value for name, value in options.items() if value},
        )
        self.patient = self.client.options(
            max_retries=retries,
            retry_on_timeout=True,
            retry_on_status=tuple(TEMPORARY),
            request_timeout=BULK_PATIENCE * timeout,
        )

    @contextmanager
    def explained(self, index: str) -> Iterator[None]:
        """Says what to do about the client's errors.

        Raises:
            PermissionError: wrong or missing credentials.
            ConnectionError: no answer, or one that may be better next time.
            ValueError: everything else.
        """
        try:
            yield
        except elasticsearch.UnsupportedProductError:
            raise ValueError(
                f"the server at {self.where} is no Elasticsearch (OpenSearch answers "
                "like this): give the URL of an Elasticsearch 8 or 9"
            ) from None
        except elasticsearch.ApiError as error:
            status = error.meta.status
            if "media_type_header" in f"{error.body}" or status == 406:
                raise ValueError(
                    f"the server at {self.where} speaks another major version of the "
                    "protocol: expected Elasticsearch 8 or 9"
                ) from error
            if status in TEMPORARY:
                raise ConnectionError(
                    f"Elasticsearch at {self.where} answers {status}: {error.message}"
                ) from error
            raise self.refusal(status, reason(error.body), index) from error
        except elasticsearch.TransportError as error:
            raise ConnectionError(
                f"no answer from Elasticsearch at {self.where} ({error.message}): "
                "check that it runs and that the URL is right"
            ) from error

    def refusal(self, status: int, why: str, index: str) -> Exception:
        """The error for an answer that no later try can better."""
        if status in (401, 403):
            return PermissionError(
                f"Elasticsearch at {self.where} refuses ({status}: {why}): check the "
                f"API key or the user and password, and that they may use {index!r}"
            )
        if status == 404:
            return ValueError(
                f"no index {index!r} at {self.where}: build it with "
                "`ElasticRetriever.index`, or give the name of one that exists"
            )
        return ValueError(f"Elasticsearch at {self.where} refuses ({status}): {why}")


def reason(error: Any) -> str:
    """What a server's error says, with its innermost cause."""
    if isinstance(error, Mapping):
        error = error.get("error", error)
    if not isinstance(error, Mapping):
        return str(error)
    shards = error.get("failed_shards") or [{}]
    inner = shards[0].get("reason") or error
    while isinstance(inner, Mapping) and inner.get("caused_by"):
        inner = inner["caused_by"]
    return str(inner.get("reason") or inner.get("type") or error)

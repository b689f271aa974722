"""A language model on a server that speaks OpenAI's protocol."""

import hashlib
import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import openai
from openai import AsyncOpenAI

from jaxqr.retry import TEMPORARY, pause
from jaxqr.rewards.background import Background
from jaxqr.rewards.llm.cache import Cache
from jaxqr.rewards.questions import Message, Position, expected_number, number

ALTERNATIVES = 20
"""Likeliest tokens asked for at each place; servers give no more."""
ANSWER_TOKENS = 4
"""Tokens of an answer: a number of two digits, and room around it."""
SCHEMA_TOKENS = 24
"""The same of an answer in JSON."""
CHARACTERS_PER_TOKEN = 4
"""What a budget counts where a server does not say how many tokens it read."""

_log = logging.getLogger(__name__)
A = TypeVar("A")
B = TypeVar("B")


class Answer(NamedTuple):
    """What a model answered."""

    text: str
    tokens: Sequence[str] = ()
    """Its tokens, where the server gives them."""
    positions: Sequence[Position] = ()
    """The likeliest tokens at each of these places."""


class NoAnswerError(Exception):
    """A question without an answer; the message is the reason, in one word."""


class Abilities(NamedTuple):
    """What a server can do, as found out by asking."""

    logprobs: bool
    """It says how likely which tokens were."""
    schema: bool
    """It keeps to a JSON schema."""
    continues: bool
    """It goes on from the beginning of an answer."""


class LLM:
    """Asks questions, keeps the answers, counts the failures.

    Requests that fail for now (408, 409, 429, 5xx, no answer in time) are sent again,
    after a pause that grows, with jitter, or that the server asks for. One that fails
    for good is `NoAnswerError`. Threads may share it.

    Attributes:
        counts: how many questions were `answered`, found in the cache (`cached`), or
            failed, by reason: `timeout`, `connection`, `status_500`, `garbage`, ...;
            `budget` were not asked at all.
        tokens: read and written so far, as the server counts them.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout: float = 20.0,
        retries: int = 4,
        backoff: float = 0.5,
        concurrency: int = 8,
        cache: Path | None = None,
        budget: int | None = None,
    ):
        """Sets up the connection; nothing is sent yet.

        Args:
            base_url: such as "http://localhost:8000/v1".
            model: its name on the server.
            api_key: what the server asks for.
            timeout: seconds from a request to the end of its answer.
            retries: how often a request is sent again.
            backoff: seconds before the first of these; each further one waits twice as
                long (`jaxqr.retry.pause`).
            concurrency: requests at a time.
            cache: file of the answers; None: they are not kept.
            budget: tokens, read and written, after which nothing is asked any more.
        """
        self.model, self._budget = model, budget
        self.counts: Counter[str] = Counter()
        self.tokens = 0
        self._where, self._timeout = base_url, timeout
        self._retries, self._backoff = retries, backoff
        self._background = Background()
        self._client = AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",
            timeout=timeout,
            max_retries=0,
        )
        self._cache = None if cache is None else Cache(cache)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="llm")
        self._lock, self._probing = threading.Lock(), threading.Lock()
        self._abilities: Abilities | None = None
        self._fingerprint = ""

    def close(self) -> None:
        """Closes the connections and the cache, and ends the threads."""
        self._threads.shutdown(cancel_futures=True)
        self._background.run(self._client.close())
        self._background.close()
        if self._cache is not None:
            self._cache.close()

    def __enter__(self) -> "LLM":
        """Returns the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def map(self, function: Callable[[A], B], items: Iterable[A]) -> list[B]:
        """`function` of every item, `concurrency` at a time."""
        return list(self._threads.map(function, items))

    def abilities(self) -> Abilities:
        """What the server can do; asked once, and again if it did not answer.

        Raises:
            NoAnswerError: it does not answer.
        """
        with self._probing:
            if self._abilities is None:
                self._abilities = self._probe()
                _log.info("%s can do %s", self._where, self._abilities)
            return self._abilities

    def number(
        self, messages: Sequence[Message], most: int, *, fresh: bool = False
    ) -> float:
        """The number of 0..`most` that the model answers with.

        Where the server gives probabilities, their mean (`questions.expected_number`);
        otherwise, or where they leave it open, the number that was written. `fresh`
        passes the cache by.

        Raises:
            NoAnswerError: the answer is no number (`no_number`), or there is none.
        """
        abilities = self.abilities()
        schema = _NUMBER if abilities.schema and not abilities.logprobs else None
        answer = self.ask(
            messages,
            schema=schema,
            max_tokens=SCHEMA_TOKENS if schema else ANSWER_TOKENS,
            logprobs=abilities.logprobs,
            fresh=fresh,
        )
        if answer.positions:
            mean = self._mean(messages, answer, most, abilities, fresh)
            if mean is not None:
                return mean
            self.count("no_distribution")
        written = answer.text if schema is None else _field(answer.text, "number")
        found = number(written, most)
        if found is None:
            raise self._failed("no_number")
        return float(found)

    def ask(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = ANSWER_TOKENS,
        logprobs: bool = False,
        schema: dict[str, Any] | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        fresh: bool = False,
    ) -> Answer:
        """One answer, from the cache if it is there.

        Args:
            messages: the conversation; if the last one is the assistant's, the answer
                goes on from it.
            max_tokens: of the answer.
            logprobs: whether to ask for probabilities.
            schema: a JSON schema that the answer must keep to.
            temperature: 0 is greedy.
            seed: of what is drawn above temperature 0.
            fresh: whether to pass the cache by.

        Raises:
            NoAnswerError: with the reason.
            PermissionError: the server wants another key.
            ValueError: the server has no such model.
        """
        request: dict[str, Any] = {
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        if logprobs:
            request |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        if schema is not None:
            named = {"name": "answer", "strict": True, "schema": schema}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        if messages[-1]["role"] == "assistant":
            request["extra_body"] = CONTINUE
        key = self._key(request)
        if self._cache is not None and not fresh:
            kept = _read(self._cache.get(key))
            if kept is not None:
                self.count("cached")
                return kept
        answer = self._request(request)
        if self._cache is not None and not fresh:
            self._cache.put(self._key(request), json.dumps(answer))
        return answer

    def count(self, what: str) -> None:
        """Adds one to a count."""
        with self._lock:
            self.counts[what] += 1

    def _failed(self, reason: str) -> NoAnswerError:
        self.count(reason)
        return NoAnswerError(reason)

    def _request(self, request: dict[str, Any]) -> Answer:
        with self._lock:
            spent = self._budget is not None and self.tokens >= self._budget
            first = spent and not self.counts["budget"]
        if first:
            _log.warning(
                "the budget of %d tokens is spent: nothing more is asked", self._budget
            )
        if spent:
            raise self._failed("budget")
        attempt = 0
        while True:
            answer, wait = self._attempt(request, attempt)
            if isinstance(answer, Answer):
                self.count("answered")
                return answer
            if wait is None or attempt == self._retries:
                raise self._failed(answer)
            time.sleep(wait)
            attempt += 1

    def _attempt(
        self, request: dict[str, Any], attempt: int
    ) -> tuple[Answer | str, float | None]:
        """An answer, or why there is none and when to try again, if at all."""
        again = pause(attempt, self._backoff)
        call = self._client.chat.completions.create(model=self.model, **request)
        try:
            response = self._background.run(call, self._timeout)
        except (TimeoutError, openai.APITimeoutError):
            return "timeout", again
        except openai.APIConnectionError:
            return "connection", again
        except openai.APIStatusError as error:
            self._explain(error)
            reason, headers = f"status_{error.status_code}", error.response.headers
            if error.status_code not in TEMPORARY:
                return reason, None
            return reason, pause(attempt, self._backoff, headers)
        except (openai.OpenAIError, ValueError, TypeError):
            return "garbage", again
        answer = self._checked(response, request)
        return ("garbage", again) if answer is None else (answer, None)

    def _explain(self, error: openai.APIStatusError) -> None:
        """Raises for what concerns every question."""
        status = error.status_code
        if status in (401, 403):
            raise PermissionError(
                f"the language model's server {self._where} refuses ({status}): check "
                "the API key (JAXQR_LLM_API_KEY)"
            ) from None
        if status == 404:
            raise ValueError(
                f"{self._where} has no model {self.model!r} or is no OpenAI-compatible "
                "URL (it ends in /v1): check both"
            ) from None

    def _checked(self, response: Any, request: dict[str, Any]) -> Answer | None:
        """The answer in a response; None if there is none in it."""
        try:
            choice = response.choices[0]
            text = choice.message.content
            given = choice.logprobs and choice.logprobs.content
            tokens = [place.token for place in given or []]
            positions = [
                [(each.token, math.exp(each.logprob)) for each in place.top_logprobs]
                for place in given or []
            ]
            usage = response.usage and response.usage.total_tokens
            fingerprint = response.system_fingerprint or ""
        except (AttributeError, IndexError, TypeError, OverflowError, ValueError):
            return None
        masses = [sum(p for _, p in place) for place in positions]
        numbers = [p for place in positions for _, p in place]
        names = tokens + [token for place in positions for token, _ in place]
        if not (
            isinstance(text, str)
            and all(isinstance(name, str) for name in names)
            and all(0 <= p <= 1 + 1e-4 for p in numbers)  # not a NaN either
            and all(0 < mass <= 1 + 1e-2 for mass in masses)
        ):
            return None
        read = sum(len(message["content"]) for message in request["messages"])
        guess = (read + len(text)) // CHARACTERS_PER_TOKEN
        with self._lock:
            self.tokens += usage if isinstance(usage, int) and usage > 0 else guess
            changed = self._fingerprint and fingerprint != self._fingerprint
            self._fingerprint = str(fingerprint)
        if changed:
            _log.warning("%s has changed: it is now %s", self._where, fingerprint)
        return Answer(text, tokens, positions)

    def _key(self, request: dict[str, Any]) -> str:
        """Of the cache: the model, the state of its server, and the request."""
        name = json.dumps([self.model, self._fingerprint, request], sort_keys=True)
        return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()

    def _mean(
        self,
        messages: Sequence[Message],
        answer: Answer,
        most: int,
        abilities: Abilities,
        fresh: bool,
    ) -> float | None:
        # Some models begin with whitespace.
        places, tokens = list(answer.positions), list(answer.tokens)
        while places and not tokens[0].strip() and len(places) > 1:
            places, tokens = places[1:], tokens[1:]

        def after(digits: str) -> Position | None:
            if tokens[0].strip() == digits and len(places) > 1:
                return places[1]
            if not abilities.continues:
                return None
            begun = {"role": "assistant", "content": digits}
            more = self.ask(
                [*messages, begun], max_tokens=1, logprobs=True, fresh=fresh
            )
            return more.positions[0] if more.positions else None

        return expected_number(places[0], after, most)

    def _probe(self) -> Abilities:
        """Asks easy questions to see what the server answers to."""
        question = [{"role": "user", "content": "How many legs has a cat? A number:"}]
        begun = "1, 2, 3, 4, 5,"
        count = [
            {"role": "user", "content": "Count from 1 to 9, like this: 1, 2, 3"},
            {"role": "assistant", "content": begun},
        ]
        schema = {"schema": _NUMBER, "max_tokens": SCHEMA_TOKENS}
        structured = _field(self._understood(question, **schema).text, "number")
        return Abilities(
            bool(self._understood(question, logprobs=True).positions),
            number(structured, 1000) is not None,
            # Some servers repeat what was begun.
            self._understood(count).text.removeprefix(begun).strip().startswith("6"),
        )

    def _understood(self, messages: Sequence[Message], **options: Any) -> Answer:
        """The answer, which is empty where the server refuses these options."""
        try:
            return self.ask(messages, fresh=True, **options)
        except NoAnswerError as error:
            if str(error) not in ("status_400", "status_422"):
                raise
            return Answer("")


CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
"""How vLLM is told that the last message is to be gone on with."""

_NUMBER = {
    "type": "object",
    "properties": {"number": {"type": "integer"}},
    "required": ["number"],
    "additionalProperties": False,
}


def _field(text: str, name: str) -> str:
    """A field of a JSON object as text; "" if it is none."""
    try:
        return str(json.loads(text)[name])
    except (ValueError, TypeError, KeyError):
        return ""


def _read(kept: str | None) -> Answer | None:
    """An answer out of the cache."""
    if kept is None:
        return None
    try:
        text, tokens, positions = json.loads(kept)
        places = [[(token, p) for token, p in place] for place in positions]
        return Answer(text, tokens, places)
    except (ValueError, TypeError):
        return None

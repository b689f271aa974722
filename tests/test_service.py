"""The reward as a service, and its client against servers that misbehave."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn

from benchmarks.misbehaving import Reply, serving
from jaxqr.records import Hits, Reward
from jaxqr.rewards import service
from jaxqr.rewards.client import RemoteReward
from jaxqr.rewards.pool import ScoringPool

TOKEN = "sésame"


def lengths(queries, rewrites) -> Reward:
    """A reward with every kind of field, of the texts alone."""
    parts = {
        "relevance": np.float32([1 / (3 + len(text)) for text in rewrites]),
        "diversity": np.float32([len(query) / 100 for query in queries]),
    }
    valid = np.array([bool(text) for text in rewrites], np.bool_)
    total = np.where(valid, (parts["relevance"] + parts["diversity"]) / 2, 0)
    parts = {name: np.where(valid, part, 0) for name, part in parts.items()}
    hits = Hits(
        np.array([[text[:3], "é"] for text in rewrites]).reshape(-1, 2),
        np.ones((len(rewrites), 2), np.float32) / 3,
        valid,
    )
    return Reward(total, parts, valid, {"judge_failed": ~valid}, hits)


def assert_same(one: Reward, other: Reward):
    assert one.to_json() == other.to_json()


@contextmanager
def started(app) -> Iterator[str]:
    """The service on a real socket; its URL."""
    config = uvicorn.Config(app, port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def post(url: str, body=None, token: str | None = TOKEN, **options) -> httpx.Response:
    body = {"queries": ["q"], "rewrites": ["r"]} if body is None else body
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {} if token is None else {b"authorization": f"Bearer {token}".encode()}
    return httpx.post(f"{url}/v1/reward", content=content, headers=headers, **options)


# The service


def test_it_answers_with_the_reward_bit_for_bit():
    queries = [f"query {i}" for i in range(150)]
    rewrites = ["", "ünï 日本 😀", *(f"text {i}" * (i % 7) for i in range(148))]
    scores = {"reward": lengths, "guard": lambda q, r: lengths(r, q)}
    with started(service.app(scores, token=TOKEN, workers=2)) as url:
        with RemoteReward(url, TOKEN, batch_size=64) as remote:
            assert_same(remote(queries, rewrites), lengths(queries, rewrites))
            assert remote.counts == {"scored": 3}
            assert len(remote([], []).valid) == 0
        with RemoteReward([url, url], TOKEN, pool="guard", batch_size=7) as remote:
            assert_same(remote(queries, rewrites), lengths(rewrites, queries))
        headers = {b"authorization": f"Bearer {TOKEN}".encode()}
        text = httpx.get(f"{url}/metrics", headers=headers).text
    assert 'jaxqr_requests_total{status="200"} 25.0' in text  # 3 and 22 batches
    assert "jaxqr_rows_total 300.0" in text
    empty = sum(not text for text in rewrites)
    assert f'jaxqr_rows_failed_total{{why="judge"}} {empty}.0' in text
    assert "jaxqr_in_flight 0.0" in text


def test_who_may_ask(caplog):
    app = service.app({"reward": lengths}, token=TOKEN)
    with started(app) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.get(f"{url}/ready").status_code == 200
        assert httpx.get(f"{url}/metrics").status_code == 401
        for wrong in (None, "sesame", TOKEN[:-1], TOKEN + "x"):
            refused = post(url, token=wrong)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in refused.text
        assert post(url).status_code == 200
        with (
            RemoteReward(url, "wrong") as remote,
            pytest.raises(PermissionError, match="JAXQR_TOKEN"),
        ):
            remote(["q"], ["r"])
    assert TOKEN not in caplog.text
    with started(service.app({"reward": lengths})) as url:
        assert post(url, token=None).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        {},
        {"queries": ["a"]},
        {"queries": ["a"], "rewrites": []},
        {"queries": "a", "rewrites": "b"},
        {"queries": [1], "rewrites": ["b"]},
        {"queries": [None], "rewrites": ["b"]},
        {"queries": [["a"]], "rewrites": ["b"]},
        {"queries": ["\ud800"], "rewrites": ["b"]},
        {"queries": ["a"], "rewrites": ["b"], "pool": "other"},
        {"queries": ["a"], "rewrites": ["b"], "pool": ["reward"]},
    ],
)
def test_requests_that_are_none(body):
    with started(service.app({"reward": lengths}, token=TOKEN)) as url:
        refused = post(url, body)
    assert refused.status_code == 422
    assert "two lists of texts" in refused.json()["error"]


def test_what_goes_wrong_inside(caplog):
    def broken(queries, rewrites):
        raise KeyError("/secret/path")

    def infinite(queries, rewrites):
        return lengths(queries, rewrites)._replace(total=np.float32([math.inf]))

    with started(service.app({"a": broken, "b": infinite}, token=TOKEN)) as url:
        for pool in "ab":
            failed = post(url, {"queries": ["q"], "rewrites": ["r"], "pool": pool})
            assert failed.status_code == 500
            assert "secret" not in failed.text
        with RemoteReward(url, TOKEN, retries=1, backoff=0.0) as remote:
            reward = remote(["q"], ["r"])
    assert "/secret/path" in caplog.text
    assert not reward.valid.any()
    assert reward.flags["service_failed"].all()
    assert remote.counts == {"status_500": 2}


def test_large_bodies_are_not_read_to_the_end():
    app = service.app({"reward": lengths}, token=TOKEN, max_body=1000)

    def parts():
        for _ in range(100):
            yield b"x" * 1000

    with started(app) as url:
        assert post(url, b"x" * 1001).status_code == 413
        headers = {b"authorization": f"Bearer {TOKEN}".encode()}
        try:
            sent = httpx.post(f"{url}/v1/reward", content=parts(), headers=headers)
            assert sent.status_code == 413
        except httpx.WriteError:  # the server has closed already
            pass
        with (
            RemoteReward(url, TOKEN) as remote,
            pytest.raises(ValueError, match=r"answers 413.*fewer rows"),
        ):
            remote(["q" * 2000], ["r"])


def test_more_than_it_can_do_is_turned_away():
    held, calls = threading.Event(), []

    def slow(queries, rewrites):
        calls.append(queries)
        held.wait(10)
        return lengths(queries, rewrites)

    with started(service.app({"reward": slow}, token=TOKEN, queue=1)) as url:
        statuses = []
        threads = [
            threading.Thread(target=lambda: statuses.append(post(url).status_code))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        while not calls:
            time.sleep(0.01)
        time.sleep(0.2)  # until the second waits
        full = post(url)
        assert (full.status_code, full.headers["retry-after"]) == (429, "1")
        with RemoteReward(url, TOKEN, retries=0) as remote:
            assert remote(["q"], ["r"]).flags["service_failed"].all()
        held.set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200]
        assert post(url).status_code == 200


def test_a_client_that_leaves_gives_its_place_back():
    held, begun = threading.Event(), []

    def slow(queries, rewrites):
        begun.append(queries)
        held.wait(10)
        return lengths(queries, rewrites)

    with started(service.app({"reward": slow}, token=TOKEN, queue=1)) as url:
        first = threading.Thread(target=post, args=(url,))
        first.start()
        while not begun:
            time.sleep(0.01)
        with pytest.raises(httpx.ReadTimeout):
            post(url, {"queries": ["gone"], "rewrites": ["r"]}, timeout=0.3)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            waiting = httpx.get(
                f"{url}/metrics",
                headers={b"authorization": f"Bearer {TOKEN}".encode()},
            ).text
            if "jaxqr_in_flight 1.0" in waiting:
                break
            time.sleep(0.05)
        else:
            pytest.fail("the place was not given back")
        held.set()
        first.join()
    assert ["gone"] not in begun  # nor was it scored


def test_it_is_not_ready_at_once():
    ready = []
    app = service.app({"reward": lengths}, token=TOKEN, ready=lambda: bool(ready))
    with started(app) as url:
        assert httpx.get(f"{url}/ready").status_code == 503
        assert post(url).status_code == 503
        ready.append(1)
        assert httpx.get(f"{url}/ready").status_code == 200
        assert post(url).status_code == 200


def test_settings_that_make_no_sense():
    for options in ({"workers": 0}, {"queue": -1}, {"token": ""}):
        with pytest.raises(ValueError, match=r"expected|empty"):
            service.app({"reward": lengths}, **options)
    with pytest.raises(ValueError, match="no rewards"):
        service.app({})
    with pytest.raises(ValueError, match="no URL"):
        RemoteReward([])


# The client


def good(queries=("q",), rewrites=("r",)) -> dict:
    return lengths(list(queries), list(rewrites)).to_json()


def changed(**fields) -> dict:
    return good() | fields


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(b"<html>"), "garbage"),
        (Reply([]), "garbage"),
        (Reply({}), "garbage"),
        (Reply(b"[" * 100_000), "garbage"),
        (Reply(good("ab", "cd")), "garbage"),  # two rows for one
        (Reply(changed(total=["1"])), "garbage"),
        (Reply(changed(total=[None])), "garbage"),
        (Reply(changed(total=[math.nan])), "garbage"),
        (Reply(changed(total=[-0.1])), "garbage"),
        (Reply(changed(total=[1e30])), "garbage"),
        (Reply(changed(parts={"relevance": [math.inf]})), "garbage"),
        (Reply(changed(valid=[1])), "garbage"),
        (Reply(good(), sent=0.5), "connection"),
        (Reply(None, reset=True), "connection"),
        (Reply(good(), delay=3), "timeout"),
        (Reply(good(), drip=0.02), "timeout"),
        (Reply(good(), 429, {"retry-after": "0"}), "status_429"),
        (Reply(good(), 503), "status_503"),
    ],
)
def test_what_is_no_reward_masks_its_rows(reply, reason):
    def answer(request):
        return reply if request.json()["rewrites"] == ["r"] else Reply(good("p", "s"))

    with (
        serving(answer) as url,
        RemoteReward(
            url, timeout=0.5, retries=1, backoff=0.0, batch_size=1, concurrency=1
        ) as remote,
    ):
        reward = remote(["p", "q"], ["s", "r"])
    assert reward.valid.tolist() == [True, False]
    assert reward.flags["service_failed"].tolist() == [False, True]
    assert reward.total[1] == 0
    assert remote.counts == {"scored": 1, reason: 2}


def test_another_server_is_asked_instead():
    asked = []

    def down(request):
        asked.append(request)
        return Reply({}, 503, {"retry-after": "60"})  # the other one need not wait

    with (
        serving(down) as first,
        serving(lambda _: Reply(good())) as second,
        RemoteReward([first, second], backoff=0.0) as remote,
    ):
        for _ in range(4):
            assert remote(["q"], ["r"]).valid.all()
    assert len(asked) == 2  # in turn
    assert remote.counts == {"scored": 4, "status_503": 2}


def test_servers_that_differ():
    other = good()
    del other["parts"]["diversity"]
    with (
        serving(lambda _: Reply(good())) as first,
        serving(lambda _: Reply(other)) as second,
        RemoteReward([first, second], batch_size=1) as remote,
        pytest.raises(ValueError, match="the reward servers differ"),
    ):
        remote(["q", "q"], ["r", "r"])


def test_a_client_that_leaves_while_it_sends(caplog):
    with started(service.app({"reward": lengths})) as url:
        host, port = url.removeprefix("http://").split(":")
        head = b"POST /v1/reward HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n{"
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head)
        time.sleep(0.3)
        assert post(url).status_code == 200
        text = httpx.get(f"{url}/metrics").text
    assert 'jaxqr_requests_total{status="499"} 1.0' in text
    assert "Traceback" not in caplog.text


def test_a_server_that_says_when_to_come_back():
    times = []

    def answer(_):
        times.append(time.monotonic())
        late = len(times) > 1
        return Reply(good()) if late else Reply({}, 429, {"retry-after": "0.4"})

    with serving(answer) as url, RemoteReward(url, backoff=0.0) as remote:
        assert remote(["q"], ["r"]).valid.all()
    assert 0.4 <= times[1] - times[0] < 2


def test_what_no_other_try_can_mend():
    with (
        serving(lambda _: Reply({"detail": "unknown path"}, 404)) as url,
        RemoteReward(url) as remote,
        pytest.raises(ValueError, match=r"answers 404.*unknown path"),
    ):
        remote(["q"], ["r"])
    with (
        RemoteReward("localhost:8765") as remote,
        pytest.raises(ValueError, match="is no URL of a reward server"),
    ):
        remote(["q"], ["r"])
    with (
        RemoteReward(url) as remote,
        pytest.raises(ValueError, match="1 queries and 2"),
    ):
        remote(["q"], ["r", "s"])


def test_nothing_is_left_over():
    def left():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    def ask():
        with (
            started(service.app({"reward": lengths}, token=TOKEN, workers=3)) as url,
            RemoteReward(url, TOKEN, batch_size=2) as remote,
        ):
            assert remote(["q"] * 9, ["r"] * 9).valid.all()

    ask()  # what libraries open once
    before = left()
    ask()
    assert left() == before


def test_the_pool_names_the_service():
    with serving(lambda _: Reply({}, 500)) as url:
        remote = RemoteReward(url, retries=0)
        with (
            ScoringPool(remote, max_consecutive_failures=1) as pool,
            pytest.raises(RuntimeError, match="service failed for 1"),
        ):
            pool.submit(["q"], ["r"]).result()
        remote.close()


# The command


def test_the_command_drains_and_ends(tmp_path):
    """A real process: SIGTERM in the middle of a request, which is answered."""
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from types import SimpleNamespace
from pathlib import Path
import experiments.reward_server as server
from experiments.config import RewardServer
import test_service
def slow(queries, rewrites):
    time.sleep(1.5)
    return test_service.lengths(queries, rewrites)
server.System = lambda *_: SimpleNamespace(reward=slow, guard=slow, counts=dict)
server.Prepared = lambda run: None
server.main(Path("runs/x"), RewardServer(port=0))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAXQR_TOKEN": TOKEN, "PYTHONIOENCODING": "utf-8"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving the reward of runs/x at http://127.0.0.1:")
    url = line.split()[-1]
    answers = []
    asking = threading.Thread(target=lambda: answers.append(post(url, timeout=10)))
    asking.start()
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    asking.join()
    rest = process.stdout.read()
    assert process.wait(20) == 0
    process.stdout.close()
    assert answers[0].status_code == 200
    assert Reward.from_json(answers[0].json()).valid.all()
    assert "all requests are answered" in rest


def test_what_the_command_refuses(monkeypatch):
    from experiments import reward_server
    from experiments.config import RewardServer, ServiceConfig, SystemConfig

    monkeypatch.delenv("JAXQR_TOKEN", raising=False)
    with pytest.raises(ValueError, match="set JAXQR_TOKEN"):
        reward_server.main(Path("x"), RewardServer(host="0.0.0.0"))
    system = SystemConfig(service=ServiceConfig(("http://h:1",)))
    with pytest.raises(ValueError, match="does not ask another"):
        reward_server.main(Path("x"), RewardServer(system=system))

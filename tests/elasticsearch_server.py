"""A real Elasticsearch server for tests, from the distribution on Maven Central.

    python tests/elasticsearch_server.py 9.1.4 [--port 9209] [--password SECRET]
    python tests/elasticsearch_server.py --fetch 8.19.4 9.1.4

The first prints the server's URL once it answers, and stops it on ctrl-C. The
distribution is the minimal one that Elasticsearch's own builds test against: the core,
the network layer and security. `mvn` fetches it into its own repository.
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534
"""Elasticsearch refuses to run as root."""
STARTED = 180.0
"""Seconds that a server may take to start."""
INDICES = "jaxqr-*"
ROLES = {"reader": ["read"], "writer": ["manage", "write", "read"]}
"""Rights of further users of these names, with the same password."""
OLDEST_JAVA = {"7": 11, "8": 17, "9": 21}
JAVAS = "/usr/lib/jvm", "/Library/Java/JavaVirtualMachines", "/opt"

_ARTIFACT = "org/elasticsearch/distribution/integ-test-zip/elasticsearch"


def distribution(version: str) -> Path | None:
    """The distribution's file, if Maven has it."""
    home = Path.home() / ".m2/repository" / _ARTIFACT / version
    return next(iter(home.glob("*.zip")), None)


def fetch(version: str) -> Path:
    """Asks Maven for the distribution."""
    group, _, name = _ARTIFACT.rpartition("/")
    artifact = f"{group.replace('/', '.')}:{name}:{version}:zip"
    subprocess.run(
        [
            "mvn",
            "-q",
            "-B",
            "dependency:get",
            "-Dtransitive=false",
            f"-Dartifact={artifact}",
        ],
        check=True,
    )
    found = distribution(version)
    assert found is not None, f"Maven has fetched {artifact}, but not where expected"
    return found


def java(version: str) -> Path | None:
    """The oldest Java of this machine that runs this version."""
    oldest = OLDEST_JAVA[version.split(".")[0]]
    found = []
    given = os.environ.get("JAVA_HOME")
    homes = [Path(given)] if given else []
    for folder in JAVAS:
        homes += [path.parent.parent for path in Path(folder).glob("*/bin/java")]
    for home in homes:
        asked = subprocess.run(
            [home / "bin/java", "-version"], capture_output=True, text=True
        )
        number = re.search(r'version "(\d+)', asked.stderr)
        if number and int(number[1]) >= oldest:
            found.append((int(number[1]), home))
    return min(found)[1] if found else None


def can_run(version: str) -> bool:
    """Whether this machine has what it takes."""
    return distribution(version) is not None and java(version) is not None


@contextmanager
def running(
    version: str, *, port: int | None = None, password: str | None = None
) -> Iterator[str]:
    """Starts a server and stops it in the end.

    Args:
        version: such as "9.1.4".
        port: of 127.0.0.1; None: a free one.
        password: of the users `elastic`, `reader` and `writer`; None: without security.
    """
    file, home = distribution(version) or fetch(version), java(version)
    assert home is not None, f"no Java for Elasticsearch {version} in {JAVAS}"
    folder = Path(tempfile.mkdtemp(prefix="elasticsearch-"))
    server = None
    try:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(folder)
        (root,) = folder.glob("elasticsearch-*")
        programs = [*root.glob("bin/*"), *root.glob("modules/*/platform/*/bin/*")]
        for program in programs:
            program.chmod(0o755)
        (folder / "tmp").mkdir()
        port = port or _free_port()
        settings = {
            "discovery.type": "single-node",
            "http.port": str(port),
            "http.host": "127.0.0.1",
            "transport.host": "127.0.0.1",
            "transport.port": str(_free_port()),
            "path.data": str(folder / "data"),
            "path.logs": str(folder / "logs"),
            "cluster.routing.allocation.disk.threshold_enabled": "false",
            "xpack.security.enabled": "true" if password else "false",
        }
        identity: dict[str, int] = {}
        if os.geteuid() == 0:
            folder.chmod(0o755)
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
            identity = {"user": NOBODY, "group": NOBODY}
        environment = os.environ | {
            "ES_JAVA_HOME": str(home),
            "JAVA_HOME": str(home),
            "ES_JAVA_OPTS": "-Xms512m -Xmx512m",
            "ES_TMPDIR": str(folder / "tmp"),
            "HOME": str(folder),
        }
        if password:

            def tool(name: str, *arguments: str, given: str | None = None) -> None:
                subprocess.run(
                    [root / "bin" / f"elasticsearch-{name}", *arguments],
                    input=given,
                    text=True,
                    env=environment,
                    check=True,
                    capture_output=True,
                    **identity,
                )

            tool("keystore", "create")
            tool("keystore", "add", "-x", "bootstrap.password", given=password)
            roles = [
                f"{role}: {{indices: [{{names: ['{INDICES}'], privileges: {rights}}}]}}"
                for role, rights in ROLES.items()
            ]
            with (root / "config/roles.yml").open("a") as file:
                file.write("\n".join(roles) + "\n")
            for role in ROLES:
                tool("users", "useradd", role, "-p", password, "-r", role)
        with (folder / "output").open("wb") as log:
            server = subprocess.Popen(
                [root / "bin/elasticsearch"]
                + [part for s in settings.items() for part in ("-E", "=".join(s))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                **identity,
            )
        url = f"http://127.0.0.1:{port}"
        _wait(server, url, folder / "output")
        yield url
    finally:
        if server is not None:
            server.terminate()
            server.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: subprocess.Popen, url: str, log: Path) -> None:
    """Returns when the server answers, be it that a password is missing."""
    deadline = time.monotonic() + STARTED
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/_cluster/health", timeout=5).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 401:
                return
        except OSError:
            pass
        time.sleep(0.5)
    text = log.read_text(errors="replace")[-4000:]
    raise RuntimeError(f"Elasticsearch did not start:\n{text}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="+")
    parser.add_argument("--fetch", action="store_true", help="only fetch them")
    parser.add_argument("--port", type=int)
    parser.add_argument("--password")
    given = parser.parse_args()
    if given.fetch:
        for version in given.versions:
            print(distribution(version) or fetch(version))
    else:
        (version,) = given.versions
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        with running(version, port=given.port, password=given.password) as url:
            print(url, flush=True)
            while True:
                time.sleep(3600)

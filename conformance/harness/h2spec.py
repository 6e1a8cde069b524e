"""h2spec against Envoy and Fairway on one bootstrap: no test may fail that passes against Envoy."""
import html
import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .config import bootstrap, listener, route
from .proxy import Proxy
from .tls import downstream

# The commit of h2spec 2.6.0, whose tag is no version to Go: its module path lacks the /v2.
SOURCE = "github.com/summerwind/h2spec/cmd/h2spec@v0.0.0-20200804131034-70ac22940108"
KINDS = {"h2c": [], "TLS": ["--tls", "--insecure"]}
# Nothing is answered before it came whole: an early answer could be what a test sees in place of a refusal.
PATHS = {"to HTTP/1": "/", "to HTTP/2": "/2"}


def config(p):
    routes = [route("/2", "up2"), route("/", "up")]
    secured = listener(p, routes, "TLS")
    secured["filter_chains"][0]["transport_socket"] = downstream("server", alpn=["h2"])
    return bootstrap(p, [listener(p, routes, "h2c"), secured])


def tool(folder):
    """h2spec's path; builds it into `folder` once, which needs Go."""
    folder = Path(folder) / SOURCE.rsplit("-", 1)[1]
    if not (folder / "h2spec").exists():
        subprocess.run(["go", "install", SOURCE], check=True, env={**os.environ, "GOBIN": str(folder)})
    return str(folder / "h2spec")


# The report is no XML where bytes that were seen are: read by its lines.
CASE = re.compile(r'<testcase package="(.*?)" classname="(.*?)" time="[^"]*">(.*?)</testcase>', re.S)


def tests(h2spec, port, arguments):
    """The outcome of every test by its name: None, or what h2spec saw that it did not want."""
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        command = [h2spec, "--port", str(port), "--junit-report", report.name, "--strict", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        found = CASE.findall(Path(report.name).read_text(errors="replace"))
    if not found:
        raise RuntimeError(f"h2spec made no report: {done.stdout[-2000:]}")
    outcome = {}
    for package, name, text in found:
        lines = re.sub("</?(error|failure)>", "", text).strip().splitlines()
        seen = lines[-1] if lines else None
        outcome[f"{package}: {html.unescape(name)}"] = seen and "".join(filter(str.isprintable, seen))
    return outcome


def side(h2spec, binary):
    """One proxy through all runs."""
    proxy, outcomes = Proxy(binary, config), {}
    proxy.backend.begin([{"body": b"forwarded"}])
    try:
        for kind, arguments in KINDS.items():
            for name, path in PATHS.items():
                found = tests(h2spec, proxy.ports.listener(kind), [*arguments, "--path", path])
                outcomes.update({f"{kind}, {name}: {test}": seen for test, seen in found.items()})
        if proxy.process.poll() is not None:
            raise RuntimeError(f"{binary} left: {proxy.said()}")
        return outcomes
    finally:
        proxy.stop()


def compare(envoy, fairway, folder):
    """Runs all; the number of tests that fail against Fairway only."""
    h2spec = tool(folder)
    with ThreadPoolExecutor() as pool:
        left, right = pool.map(lambda binary: side(h2spec, binary), (envoy, fairway))
    failed = 0
    for test in sorted(left.keys() | right.keys()):
        theirs, ours = (found.get(test, "not run") for found in (left, right))
        if ours and theirs:
            print(f"both fail {test}: {ours}")
        elif theirs:
            print(f"only Envoy fails {test}: {theirs}")
        elif ours:
            failed += 1
            print(f"FAIL {test}: {ours}")
    print(f"{len(right) - failed} passed, {failed} failed")
    return failed

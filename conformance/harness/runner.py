"""Runs every case against both proxies and compares all that is visible."""
import difflib
import errno
import importlib
import json
import pkgutil
import re
import sys
import threading
import time
from pathlib import Path

from . import namespace
from .proxy import Proxy, Talk

HERE = Path(__file__).resolve().parent.parent
SLOW = []  # (seconds, binary, case): what makes a run long
UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")


class Group:
    """The cases that share one bootstrap: a file of cases/ makes one and decorates its cases with it."""

    def __init__(self, config, files=None, redirects=None):
        """`redirects`: what makes the nftables rules of a network of its own, in which proxy, clients and backends then are."""
        self.config, self.files, self.redirects, self.cases = config, files, redirects, []

    def case(self, name, upstream=(), logs=None, blind=False):
        """`upstream`: the backend's actions, one per request; `logs`: access log lines if not one per response;
        `blind`: what the backend saw depends on timing and is left out."""
        def keep(function):
            self.cases.append((name, function, upstream, logs, blind))
            return function
        return keep

    def side(self, binary, wanted, results):
        """One proxy through all wanted cases."""
        if self.redirects is None:
            return self._side(binary, wanted, results)
        try:
            namespace.run(self._side, binary, wanted, results)
        except namespace.Refused as reason:
            print(f"skipped, as the kernel refuses a network of their own ({reason}): {len(wanted)} cases")
            results.update((case[0], {"skipped": str(reason)}) for case in wanted)

    def _start(self, binary):
        """A port that was free when it was chosen may be somebody's when it is bound; then others are chosen."""
        for again in (True, True, False):
            try:
                return Proxy(binary, self.config, self.files)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not again:
                    raise

    def _side(self, binary, wanted, results):
        try:
            proxy = self._start(binary)
            if self.redirects:
                namespace.redirect(self.redirects(proxy.ports))
        except namespace.Refused:
            proxy.stop()
            raise
        except Exception as error:
            print(f"FAIL the bootstrap of this group: {error}")
            for case in wanted:
                results[case[0]] = {"did not start": binary}
            return
        for name, function, upstream, logs, blind in wanted:
            results[name] = observe(proxy, name, function, upstream, logs, blind)
        proxy.stop()


def groups():
    """Every case file's groups, by file name."""
    for found in sorted(pkgutil.iter_modules([str(HERE / "cases")]), key=lambda m: m.name):
        module = importlib.import_module("cases." + found.name)
        yield from ((found.name, g) for g in list(vars(module).values()) if isinstance(g, Group))


def differences():
    """Case name -> reason, from docs/differences.md: lines of the form "- `case name`: reason"."""
    path = HERE.parent / "docs" / "differences.md"
    return dict(re.findall(r"^- `([^`]+)`: (.+)$", path.read_text(), re.M)) if path.exists() else {}


def normal(value, ports, name=""):
    """Hides what is random by nature (dates, generated ids, measured times, ports) and keeps its presence and shape."""
    if isinstance(value, dict):
        return {k: (headers(v, ports) if k in ("headers", "trailers") else normal(v, ports, k))
                for k, v in value.items()}
    if isinstance(value, list):
        return [normal(v, ports, name) for v in value]
    if not isinstance(value, str):
        return value
    value = UUID.sub("<uuid>", value).replace(ports.home, "<home>")
    return re.sub(r"\b\d{5}\b", lambda m: ports.names.get(int(m[0]), m[0]), value)


def headers(pairs, ports):
    """Header order between different names carries no meaning; between equal names it does, and is kept."""
    hidden = {"date": "<date>", "x-envoy-upstream-service-time": "<ms>"}

    def remaining(value):
        """The rest of a deadline after a few milliseconds of tries, told as the deadline."""
        step = 1000 if int(value) > 1000 else 100
        return str(-(-int(value) // step) * step)
    pairs = [[h[0], remaining(h[1])] if h[0] == "x-envoy-expected-rq-timeout-ms" and h[-1].isdigit() else h for h in pairs]
    made = [[h[0], hidden.get(h[0].lower(), normal(h[-1], ports)) if h[-1] else h[-1]] if len(h) > 1 else h
            for h in pairs]
    return sorted(made, key=lambda h: h[0].lower())


def observe(proxy, name, function, upstream, logs, blind):
    proxy.backend.begin(upstream)
    talk = Talk(proxy)
    began = time.monotonic()
    try:
        function(talk)
        failed = None
    except Exception as error:  # a proxy that dies or hangs is a result to compare, not a crash of the runner
        failed = f"{type(error).__name__}: {error}"
    finally:
        for conn in talk.open:
            conn.close()
    if talk.unsure and logs is None:
        time.sleep(0.15)  # a stream that ended without a response may or may not be logged: several flush intervals
    lines = sorted(proxy.lines(talk.expect if logs is None else logs))
    seen = {"client": talk.record, "upstream": proxy.backend.settled(), "log": lines}
    if blind:
        del seen["upstream"]
    if failed:
        seen["case stopped"] = failed
    if proxy.process.poll() is not None:
        seen["process left"] = proxy.process.returncode
    if (took := time.monotonic() - began) > 1.5:
        SLOW.append((took, proxy.binary, name))
    return normal(seen, proxy.ports)


def text(observed):
    return json.dumps(observed, indent=1, sort_keys=True).splitlines()


def differential(envoy, fairway, only=None, verbose=False):
    """Runs all; returns the number of failures. Without `fairway`, shows what Envoy does."""
    sys.stdout.reconfigure(line_buffering=True)
    listed, passed, failed, names = differences(), 0, 0, set()
    began = time.monotonic()
    for file, group in groups():
        wanted = [c for c in group.cases if not only or only in c[0]]
        names.update(c[0] for c in group.cases)
        if not wanted:
            continue
        left, right = {}, {}
        threads = [threading.Thread(target=group.side, args=(envoy, wanted, left))]
        if fairway:
            threads.append(threading.Thread(target=group.side, args=(fairway, wanted, right)))
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if fairway:
            # Real processes and clocks on a busy machine: what differs is run once more, alone, before it counts.
            again = [c for c in wanted if c[0] not in listed and left[c[0]] != right[c[0]] and "did not start" not in right[c[0]]]
            for case in again:
                group.side(envoy, [case], left)
                group.side(fairway, [case], right)
                if left[case[0]] == right[case[0]]:
                    print(f"equal when run alone: {file}: {case[0]}")
        for name, *_ in wanted:
            if not fairway:
                ok = "did not start" not in left[name] and "case stopped" not in left[name]
                print(f"{'ran ' if ok else 'FAIL'} {file}: {name}")
                if verbose or not ok:
                    print("\n".join(text(left[name])))
                passed, failed = passed + ok, failed + (not ok)
                continue
            # A case that Envoy cannot be taken through shows nothing, though both stop alike.
            same = left[name] == right[name] and not {"did not start", "case stopped"} & set(left[name])
            if same and name in listed:
                print(f"FAIL {file}: {name}: equal now; take it off docs/differences.md")
                failed += 1
            elif same or name in listed:
                passed += 1
                if not same:
                    print(f"listed {file}: {name}: {listed[name]}")
            else:
                failed += 1
                print(f"FAIL {file}: {name}")
                for line in difflib.unified_diff(text(left[name]), text(right[name]), "envoy", "fairway", n=3, lineterm=""):
                    print("    " + line)
    for name in sorted(set(listed) - names):
        failed += 1
        print(f"FAIL docs/differences.md names `{name}`, which is no case")
    if not names or passed + failed == 0:
        failed += 1
        print("FAIL no case was run")
    for took, binary, name in sorted(SLOW, reverse=True)[:10]:
        print(f"slow: {took:.1f} s {name} ({Path(binary).name})")
    print(f"differential: {time.monotonic() - began:.0f} s")
    print(f"{passed} passed, {failed} failed")
    return failed

"""Runs the table in the lab, for stock Envoy and for Fairway: `conformance/run policies`."""
import json
import os
import re
import shlex
import time
from pathlib import Path

from control import PATIENCE, Lab

from .base import CLIENTS, NAMESPACE, base
from .table import CANARY, POLICIES, REQUESTS, SERVICES

HERE = Path(__file__).resolve().parent
VERDICTS = HERE / "verdicts.json"
PROFILE = HERE.parent / "lab" / "profiles" / "stock-envoy-ambient"


class Policies(Lab):
    """A lab that is up with a data plane, with the table's policies."""

    profile = PROFILE

    def prepare(self):
        self.apply(base() + SERVICES)
        self.wait(NAMESPACE, *CLIENTS.values())
        self.apply(POLICIES)
        canaries = [("alice", "on-the-waypoint"), ("alice", "on-its-own-waypoint"), ("outside", "gateway-istio")]
        asks = [(who, "GET", f"http://{host}.{NAMESPACE}{CANARY}", ["host: canary.test"]) for who, host in canaries]
        until = time.monotonic() + PATIENCE
        while any(code != "403" for code in self.verdicts(asks).values()):
            if time.monotonic() > until:
                raise SystemExit("the policies have not arrived")
            time.sleep(0.5)

    def verdicts(self, requests):
        """The status of each request, by its line; 000: the connection ended without one."""
        found = {}
        for client in CLIENTS:
            mine = [r for r in requests if r[0] == client]
            if not mine:
                continue
            # curl fails where a connection ends without an answer; that is one of the verdicts.
            script = "\n".join([*map(command, mine), "true"])
            said = self.kubectl("exec", "-n", CLIENTS[client], f"deploy/{client}", "--", "sh", "-c", script)
            found.update(zip(map(line, mine), said.split(), strict=True))
        return found


def line(request):
    client, method, url, headers = request
    return " ".join([client, method, url, *(f"[{h}]" for h in headers)])


def command(request):
    _, method, url, headers = request
    way = ["--head"] if method == "HEAD" else ["--request", method]
    lines = [word for header in headers for word in ("--header", header if not header.endswith(":") else header[:-1] + ";")]
    words = ["curl", "--silent", "--max-time", "10", "--path-as-is", "--output", "/dev/null", "--write-out", "%{http_code}\\n", *way, *lines, url]
    return shlex.join(words)


def ingress_identity(lab):
    """Who, by the certificates, tunnelled the gateway's requests to the workload: the node's stand-in for ztunnel says it."""
    log = Path(os.environ.get("LAB_DIR", Path.home() / ".cache" / "lab")) / "run" / "logs" / "podd.log"
    peers = re.findall(r"ambient: \[(\S+)\] to \S+:3000 of shop/web-", log.read_text())
    return sorted(set(peers))


def one(program, proxy):
    lab = Policies(program, proxy)
    try:
        found = lab.verdicts(REQUESTS)
        return {"verdicts": found, "principals seen by the workload": ingress_identity(lab)}
    finally:
        lab.do("down")


def run(program, envoy, fairway, record):
    """Both runs, and the comparison with each other and with the record."""
    envoys = one(program, envoy)
    if record:
        VERDICTS.write_text(json.dumps(envoys, indent=1) + "\n")
    table = json.loads(VERDICTS.read_text())
    ours = one(program, fairway)
    wrong = 0
    for name, found in (("Envoy", envoys), ("Fairway", ours)):
        for ask in sorted({*table["verdicts"], *found["verdicts"]}):
            want, got = (side["verdicts"].get(ask, "absent") for side in (table, found))
            if want != got:
                print(f"{name}: {ask}: {got}, in the table {want}")
                wrong += 1
        key = "principals seen by the workload"
        if table[key] != found[key]:
            print(f"{name}: {key}: {found[key]}, in the table {table[key]}")
            wrong += 1
    print(f"{len(REQUESTS)} requests under {len(POLICIES)} policies, {wrong} answers differ from the table")
    return 1 if wrong else 0

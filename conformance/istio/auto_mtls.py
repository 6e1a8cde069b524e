"""istio's auto mTLS from a gateway to a real Envoy as sidecar, in the lab: `conformance/run auto-mtls`.

istiod injects the sidecar itself. Nothing redirects a pod's connections in the lab, so that the server's Sidecar resource binds the
port of its service; PeerAuthentication demands mTLS there."""
import json
import time
from pathlib import Path

from control import PATIENCE, Lab
from policies.base import gateway, resource

NAMESPACE = "shop"
BOUND, BEHIND = 9080, 3000


def resources():
    pod = {
        "metadata": {
            "labels": {"app": "web", "sidecar.istio.io/inject": "true"},
            "annotations": {"sidecar.istio.io/interceptionMode": "NONE", "sidecar.istio.io/proxyImage": "lab/peer:lab"}},
        "spec": {"serviceAccountName": "web", "containers": [{
            "name": "main", "image": "gcr.io/k8s-staging-gateway-api/echo-basic:lab", "env": [
                {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                for name, path in (("POD_NAME", "metadata.name"), ("NAMESPACE", "metadata.namespace"))]}]}}
    return [
        resource("v1", "Namespace", NAMESPACE, None),
        resource("v1", "ServiceAccount", "web"),
        resource("networking.istio.io/v1", "Sidecar", "web", spec={
            "workloadSelector": {"labels": {"app": "web"}}, "ingress": [{
                "port": {"number": BOUND, "protocol": "HTTP", "name": "http"}, "bind": "0.0.0.0", "captureMode": "NONE",
                "defaultEndpoint": f"127.0.0.1:{BEHIND}"}]}),
        resource("security.istio.io/v1", "PeerAuthentication", "strict", spec={"mtls": {"mode": "STRICT"}}),
        resource("apps/v1", "Deployment", "web", spec={"selector": {"matchLabels": {"app": "web"}}, "template": pod}),
        resource("v1", "Service", "web", spec={
            "selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": BOUND}]}),
        gateway("gateway", "istio", {"name": "http", "port": 80, "protocol": "HTTP"}),
        resource("gateway.networking.k8s.io/v1", "HTTPRoute", "web", spec={
            "parentRefs": [{"name": "gateway"}], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]}),
    ]


class AutoMtls(Lab):
    profile = Path(__file__).resolve().parent / "lab" / "profiles" / "stock-envoy"

    def prepare(self):
        self.apply(resources())
        self.wait(NAMESPACE)

    def get(self, address):
        """Status and body of a request from outside of the mesh."""
        said = self.do("exec", "sh", "-c", f"curl --silent --max-time 5 --write-out '\\n%{{http_code}}' http://{address}/ || true")
        body, _, code = said.rpartition("\n")
        return code, body


def run(program, envoy, fairway):
    lab = AutoMtls(program, fairway, "--peer", envoy)
    try:
        address = lab.kubectl("get", "-n", NAMESPACE, "gateway", "gateway", "-o", "jsonpath={.status.addresses[0].value}")
        pod = lab.kubectl("get", "-n", NAMESPACE, "pods", "-l", "app=web", "-o", "jsonpath={.items[0].status.podIP}")
        until = time.monotonic() + PATIENCE
        while (answer := lab.get(address))[0] != "200" and time.monotonic() < until:
            time.sleep(0.5)
        plain, _ = lab.get(f"{pod}:{BOUND}")
    finally:
        lab.do("down")
    headers = json.loads(answer[1])["headers"] if answer[0] == "200" else {}
    seen = ",".join(headers.get("X-Forwarded-Client-Cert", []))
    print(f"through the gateway: {answer[0]}; the sidecar saw: {seen or 'nobody'}\nin plaintext to the sidecar: {plain}")
    wanted = [f"By=spiffe://cluster.local/ns/{NAMESPACE}/sa/web", f"URI=spiffe://cluster.local/ns/{NAMESPACE}/sa/gateway-istio"]
    return 0 if all(part in seen for part in wanted) and plain == "000" else 1

"""The lab (conformance/istio/lab) with a data plane, as scripts use it."""
import json
import subprocess

# How long pods may take to be ready and configuration to arrive, in seconds.
PATIENCE = 120


class Lab:
    """A lab that is up; subclasses say with which profile, and `prepare` what is in it."""

    profile = None

    def __init__(self, program, proxy, *options):
        self.program = program
        self.do("up", "--proxy", proxy, "--profile", str(self.profile), *options)
        try:
            self.prepare()
        except BaseException:
            self.do("down")
            raise

    def do(self, *command, **more):
        return subprocess.run([self.program, *command], check=True, text=True, stdout=subprocess.PIPE, **more).stdout

    def kubectl(self, *command, **more):
        return self.do("kubectl", *command, **more)

    def apply(self, resources):
        self.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": resources}))

    def wait(self, *namespaces):
        """Until what is in the namespaces is ready; the first one's gateways too."""
        self.kubectl("wait", "-n", namespaces[0], "--for=condition=Programmed", "gateway", "--all", f"--timeout={PATIENCE}s")
        for namespace in sorted({*namespaces}):
            self.kubectl("wait", "-n", namespace, "--for=condition=Available", "deployment", "--all", f"--timeout={PATIENCE}s")

"""Bootstraps given to a proxy's `--mode validate`: both must accept or both refuse, and ours must say why in one line."""
import copy
import json
import random
import subprocess
import tempfile
from pathlib import Path

from .config import bootstrap, cluster, listener, route
from .runner import Group

DELETE = object()


class Home:
    """Stands in for a running proxy's ports; nothing is bound."""

    def __init__(self, folder):
        self.home, self.log = str(folder), str(folder / "access.log")
        self.admin, self.up, self.up2, self.dead = (self.listener(n) for n in ("admin", "up", "up2", "dead"))

    def listener(self, name):
        return 15000 + random.Random(name).randrange(15000)


def base(p):
    return bootstrap(p, [listener(p, [route("/", "up")])])


def put(document, path, value):
    """Sets, or with DELETE takes away, what is at the dotted path."""
    *steps, last = [int(s) if s.isdigit() else s for s in path.split(".")]
    for step in steps:
        if isinstance(document, dict):
            document = document.setdefault(step, {})
        else:
            document = document[step]
    if value is DELETE:
        del document[last]
    elif isinstance(document, list) and last == len(document):
        document.append(value)
    else:
        document[last] = value


class Loads(Group):
    """Cases that only load a bootstrap."""

    def __init__(self):
        super().__init__(base)

    def load(self, name, content=None, extension="json", args=(), says=(), mode="validate", **changes):
        """One bootstrap: `content` (text, bytes, or what makes a document from the ports), or the base with `changes`
        (path with __ for dots). `says`: what our error must contain, beside the file's name."""
        self.cases.append((name, (content, extension, list(args), list([says] if isinstance(says, str) else says), mode, changes),
                           (), None, False))

    def side(self, binary, wanted, results):
        for name, case, *_ in wanted:
            results[name] = load(binary, *case)


def load(binary, content, extension, args, says, mode, changes):
    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        home = Home(Path(folder))
        if content is None:
            content = base(home)
        elif callable(content):
            content = content(home)
        if isinstance(content, dict):
            content = copy.deepcopy(content)
            for path, value in changes.items():
                put(content, path.replace("__", "."), value(home) if callable(value) else value)
            content = json.dumps(content)
        file = Path(folder) / f"bootstrap.{extension}"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        args = [a.replace("HOME", folder) for a in args]
        command = [binary, *([] if "--no-file" in args else ["-c", str(file)]), *[a for a in args if a != "--no-file"],
                   "--mode", mode, "--disable-hot-restart", "-l", "critical" if "envoy" in Path(binary).name else "info"]
        done = subprocess.run(command, capture_output=True, timeout=30, text=True, errors="replace")
        seen = {"accepted": done.returncode == 0}
        if done.returncode < 0:
            seen["killed by"] = -done.returncode
        if "envoy" not in Path(binary).name and not seen["accepted"]:
            complain(seen, done.stderr, file, args, says)
        return seen


def complain(seen, said, file, args, says):
    """Notes what is wrong with an error message: it is one line, names its file and says what is asked for."""
    lines = said.strip().splitlines()
    missing = [s for s in says if s not in said]
    if len(lines) != 1:
        seen["lines of the error"] = lines[:5]
    elif missing or ("--no-file" not in args and file.name not in said and "--config-yaml" not in said):
        seen["the error"] = said.strip()
        seen["does not contain"] = missing or [file.name]

"""A network of one's own: a namespace with a loopback, some addresses on it, and rules that redirect connections."""
import ctypes
import os
import subprocess
import threading

NEW_NETWORK = 0x40000000  # CLONE_NEWNET
SILENT = "192.0.2.0/24"  # Nobody answers there, with no word that nobody does.
ADDRESSES = ["10.1.0.1/32", "10.1.0.2/32", "fd00::1/128"]


class Refused(Exception):
    """The kernel does not let this process have one."""


def command(*words, given=None):
    done = subprocess.run(words, input=given, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")


def run(function, *args):
    """Calls the function in a thread, which alone is in the new network: so are the sockets and processes it makes."""
    failed = []

    def inside():
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK):
                raise Refused(os.strerror(ctypes.get_errno()))
            command("ip", "link", "set", "lo", "up")
            for address in ADDRESSES:
                command("ip", "address", "add", address, "dev", "lo")
            command("ip", "route", "add", SILENT, "dev", "lo")
            function(*args)
        except Exception as error:
            failed.append(error)
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def redirect(rules):
    """What leaves, by rules such as `ip daddr 10.1.0.1 tcp dport 80 redirect to :8080`."""
    try:
        command("nft", "list", "ruleset")
    except RuntimeError as error:
        raise Refused(str(error)) from error
    command("nft", "-f", "-", given="table inet redirects {\n chain output {\n  type nat hook output priority -100;\n"
            + "".join(f"  {rule}\n" for rule in rules) + " }\n}\n")

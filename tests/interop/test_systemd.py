"""The watchdog stops when one shard does, though everything else lives on; and the units of docs/operations.md are good."""

import ctypes
import os
import pathlib
import re
import socket
import subprocess
import unittest

import place
import tokens
from case import AtAGateway

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Watchdog(AtAGateway):
    devices = ["lives"]

    @classmethod
    def start(cls, folder):
        cls.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        cls.addClassCleanup(cls.told.close)
        cls.told.bind(str(folder / "notify"))
        cls.told.settimeout(place.PATIENCE)
        cls.options = {"environment": {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "1000000"}}
        super().start(folder)

    def test_a_shard_that_stands_still_stops_the_watchdog_and_one_that_turns_again_starts_it(self):
        self.until_told("WATCHDOG=1")
        shard = Thread(self.gateway.program.process.pid, "tollgate-1")
        with shard.stopped():
            log = self.gateway.program.log
            place.until("the gateway to say so", lambda: b"shards stand still" in log.read_bytes())
            self.forget_what_was_told()
            # The rest of the process goes on: it is the shard alone that is missed.
            self.assertEqual(self.gateway.get("/healthz")[0], 200)
            self.told.settimeout(1.5)
            with self.assertRaises(TimeoutError):
                self.until_told("WATCHDOG=1")
            self.told.settimeout(place.PATIENCE)
        self.until_told("WATCHDOG=1")
        topic = "devices/lives/messages/events/"
        events = self.run_client("paho", 5, "lives", tokens.sas("lives"), publish=[(topic, b"still", 1)])
        self.assertIn("puback", [event["event"] for event in events])

    def until_told(self, line):
        while line not in self.told.recv(1024).decode().splitlines():
            pass

    def forget_what_was_told(self):
        self.told.setblocking(False)
        try:
            while self.told.recv(1024):
                pass
        except BlockingIOError:
            self.told.setblocking(True)


class Thread:
    """One thread of a process, which alone is stopped: a debugger can do that, no signal does."""

    def __init__(self, process, name):
        tasks = pathlib.Path(f"/proc/{process}/task").iterdir()
        self.id = next(int(task.name) for task in tasks if (task / "comm").read_text().strip() == name)

    def stopped(self):
        ptrace(PTRACE_SEIZE, self.id)
        ptrace(PTRACE_INTERRUPT, self.id)
        os.waitpid(self.id, WALL)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        ptrace(PTRACE_DETACH, self.id)


class Units(unittest.TestCase):
    def test_the_units_that_the_operator_is_given_are_good(self):
        text = (place.ROOT / "docs/operations.md").read_text()
        units = dict(re.findall(r"```ini\n# /etc/systemd/system/(\S+)\n(.*?)```", text, re.DOTALL))
        self.assertEqual(sorted(units), ["tollgate.service", "tollgate.socket"])
        folder = place.new_folder()
        for name, unit in units.items():
            unit = unit.replace("/usr/local/bin/tollgate", str(place.PROGRAMS / "tollgate"))
            (folder / name).write_text(unit)
        verify = ["systemd-analyze", "verify", *(str(folder / name) for name in units)]
        said = subprocess.run(verify, capture_output=True, text=True)
        ours = [line for line in said.stderr.splitlines() if "tollgate" in line]
        self.assertEqual((said.returncode, ours), (0, []), said.stderr)


def ptrace(request, thread):
    if libc.ptrace(request, thread, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")


# sys/ptrace.h, and __WALL of waitpid(2): a thread is no child like others.
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, WALL = 17, 0x4206, 0x4207, 0x40000000

if __name__ == "__main__":
    unittest.main()

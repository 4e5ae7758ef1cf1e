"""The clients of tests/interop/clients as a test drives them."""

import base64
import json
import os
import signal
import subprocess
import sys
import threading

import tokens
from place import PATIENCE, PROGRAMS, ROOT

CLIENTS = ROOT / "tests/interop/clients"
# paho-mqtt 2.x and what stands on it: Azure's SDK pins 1.x.
NEWER = str(ROOT / "tests/.venv-clients/bin/python")
PROGRAMS_OF = {
    "mosquitto": [sys.executable, str(CLIENTS / "mosquitto_client.py")],
    "paho": [sys.executable, str(CLIENTS / "paho_client.py")],
    "mqtt.js": ["node", str(CLIENTS / "mqttjs_client.js")],
    "rumqttc": [str(PROGRAMS / "examples/rumqttc_client")],
}
NAMES = list(PROGRAMS_OF)
PROGRAMS_OF |= {
    "paho2": [NEWER, str(CLIENTS / "paho_client.py")],
    "aiomqtt": [NEWER, str(CLIENTS / "aiomqtt_client.py")],
    "gmqtt": [NEWER, str(CLIENTS / "gmqtt_client.py")],
}


class Driven:
    """A program that is told what to do in lines of JSON, and says in lines of JSON what happened."""

    def __init__(self, command):
        self.events, self.changed = [], threading.Condition()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.threads = [threading.Thread(target=self._read, daemon=True), threading.Thread(target=self._errors, daemon=True)]
        self.errors = []
        for thread in self.threads:
            thread.start()

    def tell(self, what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def wait(self, kind, count=1):
        """The first `count` events of a kind, when they are there."""
        with self.changed:
            there = self.changed.wait_for(
                lambda: len(self.of(kind)) >= count or (self._ended() and not self.threads[0].is_alive()), PATIENCE
            )
            found = self.of(kind)
            if not there or len(found) < count:
                raise AssertionError(f"{count} × {kind} expected, events: {self.events}, errors: {self.errors[-8:]}")
            return found[:count]

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]

    def finish(self):
        """Lets it leave; all of its events."""
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.process.wait(PATIENCE)
        for thread in self.threads:
            thread.join(PATIENCE)
        return self.events

    def outcome(self):
        """All of its events, when it has left by itself."""
        try:
            self.process.wait(PATIENCE * 2)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"still there: {self.events}, {self.errors[-8:]}") from late
        return self.finish()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            # With what it started itself: a mosquitto_sub would connect again for ever.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.finish()
        self.process.stdout.close()
        self.process.stderr.close()

    def _ended(self):
        return self.process.poll() is not None

    def _read(self):
        for line in self.process.stdout:
            with self.changed:
                self.events.append(json.loads(line))
                self.changed.notify_all()
        with self.changed:
            self.changed.notify_all()

    def _errors(self):
        for line in self.process.stderr:
            self.errors.append(line.rstrip())


class Client(Driven):
    """One run of one client: connects at once; events are read as they come."""

    def __init__(self, name, gateway, version, device, token, *, tls=False, publish=(), pipelined=(), subscribe=(), stay=False,
                 user_name=None, port=None, path=None, clean=True, expiry=0, keep_alive=60, will=None, tls_version=None, reconnect=False):
        tokens.remember(token)
        for _, payload, _ in (*publish, *pipelined, *filter(None, [will])):
            tokens.add(payload)
        super().__init__(PROGRAMS_OF[name])
        self.tell({
            "host": "localhost" if tls else "127.0.0.1",
            "port": port or (gateway.tls_port if tls else gateway.port),
            "path": path,
            "ca": str(gateway.authority.file) if tls else None,
            "version": version,
            "client_id": device,
            "username": device if user_name is None else user_name,
            "password": token,
            "subscribe": [{"filter": filter_, "qos": qos} for filter_, qos in subscribe],
            "publish": [spoken(message) for message in publish],
            "pipelined": [spoken(message) for message in pipelined],
            "stay": stay,
            "clean": clean,
            "expiry": expiry,
            "keep_alive": keep_alive,
            "will": will and spoken(will),
            "tls_version": tls_version,
            "reconnect": reconnect,
        })

    def publish(self, messages):
        """Without waiting in between; another `done` comes when all are acknowledged."""
        for _, payload, _ in messages:
            tokens.add(payload)
        self.tell([spoken(message) for message in messages])


def spoken(message):
    topic, payload, qos = message
    return {"topic": topic, "payload": base64.b64encode(payload).decode(), "qos": qos, "retain": False}


def message_of(event):
    return event["topic"], base64.b64decode(event["payload"]), event["qos"]

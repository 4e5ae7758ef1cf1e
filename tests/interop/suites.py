"""Runs the public conformance suites of other projects against a gateway, from a checkout that the caller has.

    suites.py mosquitto CHECKOUT    the packet sequences of mosquitto's test/broker/data
    suites.py paho CHECKOUT         interoperability/client_test.py and client_test5.py of eclipse/paho.mqtt.testing

None of their files is part of this repository. Their clients know no token: a relay on loopback puts one into each
CONNECT that is whole and carries none, and leaves every other byte alone. What came out stands in docs/conformance.md.
"""

import collections
import importlib
import io
import json
import pathlib
import socket
import struct
import sys
import threading
import unittest

import place
import tokens
import wire

DEVICES = ["p", "helper", "myclientid", "myclientid2", "clean-retained", "assigned", "response"]


class Relay:
    """Listens like a broker without passwords; every connection of its own goes to the gateway with a token."""

    def __init__(self, port):
        self.gateway = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        upstream = socket.create_connection(("127.0.0.1", self.gateway))
        for end in (client, upstream):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_copy, args=(upstream, client), daemon=True).start()
        first = client.recv(65536)
        if first:
            upstream.sendall(with_token(first))
        _copy(client, upstream)


def _copy(source, sink):
    """Until the source ends; then the sink is told, and may go on speaking: it has yet to read what was said last."""
    goes_on = True
    try:
        while data := source.recv(65536):
            if goes_on:
                try:
                    sink.sendall(data)
                except OSError:
                    goes_on = False
    except OSError:
        pass
    try:
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def with_token(data):
    """The same bytes, with user name and token where a whole CONNECT without them begins."""
    try:
        return _with_token(data)
    except (IndexError, ValueError, struct.error):
        return data


def _with_token(data):
    if data[0] != 0x10:
        return data
    length, at = _varint(data, 1)
    body, rest = data[at:at + length], data[at + length:]
    if len(body) != length:
        return data
    name, at = _field(body, 0)
    level, flags = body[at], body[at + 1]
    if (name, level) not in ((b"MQTT", 4), (b"MQTT", 5)):
        return data
    at += 4
    if level == 5:
        size, at = _varint(body, at)
        at += size
    head = body[:at]
    client_id, at = _field(body, at)
    middle = at
    if flags & 4:
        if level == 5:
            size, at = _varint(body, at)
            at += size
        _, at = _field(body, at)
        _, at = _field(body, at)
    if flags & 0xC0 or at != len(body):
        return data
    device = client_id.decode().replace(" ", "-") or "assigned"
    head = head.replace(bytes([level, flags]), bytes([level, flags | 0xC0]), 1)
    named = wire.field(device if client_id else "")
    body = head + named + body[middle:] + wire.field(device) + wire.field(tokens.sas(device))
    return b"\x10" + wire.varint(len(body)) + body + rest


def _varint(data, at):
    value, shift = 0, 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 21:
            raise ValueError


def _field(data, at):
    (size,) = struct.unpack_from(">H", data, at)
    if at + 2 + size > len(data):
        raise ValueError
    return data[at + 2:at + 2 + size], at + 2 + size


class Suite:
    """A gateway whose devices may use every topic, and the relay before it."""

    def __init__(self, publish, subscribe):
        folder = place.new_folder()
        authority = place.Authority(folder)
        self.hub = place.Hub(authority)
        scope = f"scope.publish = {json.dumps(publish)}\nscope.subscribe = {json.dumps(subscribe)}\n"
        more = "".join(f'[[device]]\nid = "{d}"\nprimary_key = "{tokens.key_of(d)}"\n{scope}' for d in DEVICES)
        route = '[[route]]\nfrom = "#"\nupstream = "hub"\n'
        self.gateway = place.Gateway(authority, self.hub, [], more=more, sections=route)
        self.relay = Relay(self.gateway.port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.gateway.program.stop()
        self.hub.stop()


# --- mosquitto ---------------------------------------------------------------------------------------------------


def packet_bytes(text):
    """The notation of the sequences: hex; i, H/k/m/s, L and v/r for numbers; quoted text."""
    out, parts = b"", text.split(" ")
    at = 0
    while at < len(parts):
        part = parts[at]
        at += 1
        if not part:
            continue
        if part[0] == "i":
            out += struct.pack(">B", int(part[1:]))
        elif part[0] in "Hkms":
            out += struct.pack(">H", int(part[1:]))
        elif part[0] == "L":
            out += struct.pack(">I", int(part[1:]))
        elif part[0] in "vr":
            out += wire.varint(int(part[1:]))
        elif part[0] == "'":
            while not part.endswith("'") or len(part) == 1:
                part += " " + parts[at]
                at += 1
            out += part[1:-1].encode()
        else:
            out += bytes.fromhex(part)
    return out


class Sequence:
    """One connection; what came beside what was expected."""

    def __init__(self, port, version):
        self.version = version
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.socket.settimeout(5)

    def packet(self):
        """(first byte, body), or None where the connection was closed."""
        try:
            first = self._read(1)[0]
            length, shift = 0, 0
            while True:
                byte = self._read(1)[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:
                    return first, self._read(length)
        except (EOFError, ConnectionResetError):
            return None

    def _read(self, count):
        got = b""
        while len(got) < count:
            part = self.socket.recv(count - len(got))
            if not part:
                raise EOFError
            got += part
        return got

    def connect(self, device="p"):
        properties = b"\x02\x17\x00" if self.version == 5 else b""  # no reason strings: bytes can be compared
        body = wire.field("MQTT") + bytes([self.version, 2]) + b"\0\x3C" + properties + wire.field(device)
        self.socket.sendall(b"\x10" + wire.varint(len(body)) + body)
        answer = self.packet()
        assert answer and answer[0] == 0x20 and answer[1][1] == 0, answer

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def ask(self, data, kind):
        self.send(data)
        answer = self.packet()
        assert answer and answer[0] >> 4 == kind, answer
        return answer

    def is_open(self):
        """Answers PINGREQ; what else is under way is read over."""
        self.send(b"\xC0\0")
        try:
            while answer := self.packet():
                if answer[0] == 0xD0:
                    return True
        except TimeoutError:
            pass
        return False

    def is_closed(self):
        """(whether it closes, the reason that it said)"""
        said = None
        try:
            while answer := self.packet():
                if answer[0] == 0xE0:
                    said = answer[1][0] if answer[1] else 0
        except TimeoutError:
            return False, said
        return True, said


def same(expected, answer, first):
    """The packet's kind and what it says; properties of CONNACK are each server's own."""
    if answer is None:
        return False
    raw = bytes([answer[0]]) + wire.varint(len(answer[1])) + answer[1]
    if raw == expected:
        return True
    if expected[0] != answer[0]:
        return False
    if answer[0] == 0x20:
        return expected[2:4] == answer[1][:2] or (expected[3] >= 0x80 and expected[3] == answer[1][1])
    return False


def run_sequence(relay, group, test):
    version = test.get("ver", group.get("ver", 4))
    sequence = Sequence(relay.port, version)
    if test.get("connect", group.get("connect", True)):
        sequence.connect()
    for number, message in enumerate(test["msgs"]):
        kind = message["type"]
        if kind == "send":
            sequence.send(packet_bytes(message["payload"]))
        elif kind == "recv":
            expected = packet_bytes(message["payload"])
            try:
                answer = sequence.packet()
            except TimeoutError:
                return f"step {number}: nothing came for {expected.hex()}"
            if not same(expected, answer, number == 1):
                came = "close" if answer is None else f"{answer[0]:02x} {answer[1].hex()}"
                return f"step {number}: {came} for {expected.hex()}"
        elif kind in ("subscribe", "unsubscribe"):
            body = b"\0\1" + (b"\0" if version == 5 else b"") + wire.field(message["topic"])
            body += bytes([message["qos"]]) if kind == "subscribe" else b""
            sequence.ask(bytes([0x82 if kind == "subscribe" else 0xA2]) + wire.varint(len(body)) + body,
                         9 if kind == "subscribe" else 11)
        elif kind == "external_publish":
            helper = Sequence(relay.port, 4)
            helper.connect("helper")
            qos = message["qos"]
            body = wire.field(message["topic"]) + (b"\0\1" if qos else b"") + message["payload"].encode()
            first = 0x30 | qos << 1 | bool(message.get("retain"))
            helper.send(bytes([first]) + wire.varint(len(body)) + body)
            if qos == 1:
                assert helper.packet()[0] == 0x40
            elif qos == 2:
                answer = helper.packet()
                assert answer and answer[0] == 0x50, answer
                helper.send(b"\x62\2\0\1")
                assert helper.packet()[0] == 0x70
            helper.send(b"\xE0\0")
            helper.socket.close()
    if test.get("expect_disconnect", group.get("expect_disconnect", True)):
        closed, said = sequence.is_closed()
        return None if closed else f"open at the end, {said}"
    return None if sequence.is_open() else "closed at the end"


def mosquitto(checkout):
    counts = collections.Counter()
    with Suite(["#"], ["#"]) as suite:
        for file in sorted((checkout / "test/broker/data").glob("*.json")):
            for group in json.loads(file.read_text()):
                if group.get("disable"):
                    continue
                for test in group["tests"]:
                    try:
                        wrong = run_sequence(suite.relay, group, test)
                    except (AssertionError, OSError) as error:
                        wrong = repr(error)
                    counts[file.stem, wrong is None] += 1
                    if wrong:
                        print(f"{file.stem} | {group['group']} | {test['name']} | {wrong}")
    for stem in sorted({stem for stem, _ in counts}):
        print(f"== {stem}: {counts[stem, True]} as expected, {counts[stem, False]} otherwise")


# --- paho --------------------------------------------------------------------------------------------------------


def paho(checkout):
    sys.path.insert(0, str(checkout / "interoperability"))
    # The second sets its own topics, and leaves a prefix in one place.
    for name, prefix in (("client_test", ""), ("client_test5", "")):
        with Suite(["#"], ["#"]) as suite:
            module = importlib.import_module(name)
            module.host, module.port = "localhost", suite.relay.port
            module.topic_prefix = prefix
            module.topics = [prefix + t for t in ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA")]
            module.wildtopics = [prefix + t for t in ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#")]
            module.nosubscribe_topics = ("test/nosubscribe",)
            for test in unittest.defaultTestLoader.loadTestsFromTestCase(module.Test):
                result = unittest.TextTestRunner(io.StringIO(), verbosity=0).run(unittest.TestSuite([test]))
                wrong = [text.strip().splitlines()[-1] for _, text in result.errors + result.failures]
                print(f"{name} | {test.id().rsplit('.')[-1]} | {'; '.join(wrong) or 'ok'}", flush=True)


if __name__ == "__main__":
    {"mosquitto": mosquitto, "paho": paho}[sys.argv[1]](pathlib.Path(sys.argv[2]).resolve())

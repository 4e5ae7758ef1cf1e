"""Another number of shards, or of connections to the hub: what mosquitto kept for devices that were away reaches them, under
whichever client id it has it."""

import json
import re
import struct
import unittest

import place
import tokens
import wire
from case import AtAGateway, each, expanded
from relay import Relay

DEVICES = [f"moves-{n}" for n in range(12)]
SHARED = "site/all/commands"
ALL = '[[route]]\nfrom = "site/all/#"\nupstream = "hub"\n'


class Device:
    """A persistent session: subscribes, and acknowledges what comes."""

    def __init__(self, gateway, name):
        self.name, self.inbox = name, f"devices/{name}/messages/devicebound"
        connect = wire.Connect(4, name, name, tokens.sas(name), clean=False)
        self.session = wire.Session(gateway.port, connect.packet())
        self.code = self.session.code()

    def subscribe(self, *filters):
        body = b"".join(wire.field(filter_) + b"\2" for filter_ in filters)
        self._send(0x82, struct.pack(">H", 1) + body)
        kind, answer = self.session.packet()
        assert kind == 0x90 and 0x80 not in answer[2:], (kind, answer)

    def until(self, last):
        """Payloads in the order in which they came, up to the one that is sent last, and those that come before PINGRESP."""
        came, at_2, pinged = [], set(), False
        while True:
            kind, body = self.session.packet()
            if kind >> 4 == 3:
                qos, length = kind >> 1 & 3, struct.unpack(">H", body[:2])[0]
                packet_id, payload = body[2 + length:4 + length], body[4 + length:]
                if qos == 1 or packet_id not in at_2:
                    came.append(payload.decode())
                if qos == 2:
                    at_2.add(packet_id)
                self._send(0x40 if qos == 1 else 0x50, packet_id)
            elif kind >> 4 == 6:
                at_2.remove(body[:2])
                self._send(0x70, body[:2])
            elif kind >> 4 == 13:
                return came
            if set(last) <= set(came) and not pinged:
                self._send(0xC0, b"")
                pinged = True

    def leave(self):
        self._send(0xE0, b"")
        self.session.socket.close()

    def _send(self, first, body):
        self.session.send(bytes([first]) + wire.varint(len(body)) + body)


@expanded
class Moved(AtAGateway):
    @classmethod
    def setUpClass(cls):
        pass  # each test has a hub of its own: client ids of one gateway are those of another

    def begin(self, version, client):
        self.twice = []
        self.authority = place.Authority(place.new_folder())
        self.hub = place.Hub(self.authority)
        self.addCleanup(self.hub.stop)
        self.relay = Relay(self.hub.port)
        self.addCleanup(self.relay.close)
        upstream = (
            f'kind = "mqtt"\nurl = "mqtt://127.0.0.1:{self.relay.port}"\nversion = {version}\nclient = "{client}"\n'
            f'username = "gateway"\npassword_file = "{self.authority.folder}/hub-credential"\nconnections = 2\n'
        )
        devices = "".join(
            f'[[device]]\nid = "{name}"\nprimary_key = "{tokens.key_of(name)}"\n'
            f'scope.subscribe = ["devices/{{device}}/messages/devicebound/#", "{SHARED}/#"]\n'
            for name in DEVICES
        )
        self.gateway = place.Gateway(self.authority, self.hub, [], upstream=upstream, more=devices, sections=ALL)
        self.addCleanup(self.gateway.stop)
        for name in DEVICES:
            device = Device(self.gateway, name)
            device.subscribe(f"{device.inbox}/#", f"{SHARED}/#")
            device.leave()

    def change(self, shards, connections):
        file = self.gateway.folder / "gateway.toml"
        text = re.sub(r"shards = \d+", f"shards = {shards}", file.read_text())
        file.write_text(re.sub(r"connections = \d+", f"connections = {connections}", text))

    def send(self, what):
        """To each device, and to all at once; what each is to get."""
        expected = {}
        for name in DEVICES:
            sent = [(f"{what} for {name}: {n}", qos) for n, qos in enumerate((1, 2, 1))]
            for payload, qos in sent:
                self.hub.send(f"devices/{name}/messages/devicebound/c", payload.encode(), qos)
            expected[name] = [payload for payload, _ in sent]
        self.hub.send(f"{SHARED}/c", f"{what} for all".encode(), 1)
        return {name: [*own, f"{what} for all"] for name, own in expected.items()}

    def arrives(self, expected):
        """All of it once: what is one device's in its order. What went to all while two connections had the filter may come
        again, also later."""
        for name, sent in expected.items():
            device = Device(self.gateway, name)
            self.assertEqual(device.code, 0)
            came = device.until(sent)
            device.leave()
            again = [one for n, one in enumerate(came) if one in self.twice and (one in came[:n] or one not in sent)]
            self.assertEqual(sorted(came), sorted([*sent, *again]), name)
            for kind in {payload.split(" for ")[0] for payload in sent}:
                own = f"{kind} for {name}: "
                self.assertEqual([one for one in came if own in one], [one for one in sent if own in one])

    def earlier(self):
        return self.gateway.metric("tollgate_upstream_earlier_connections")

    def kept_by_hub(self, number):
        """Whether the hub has a session for this connection; asking takes it from whoever has it."""
        connect = wire.Connect(4, f"tollgate-edge-interop-hub-{number}", "gateway", "hub-password", clean=False)
        with wire.Session(self.hub.port, connect.packet()) as session:
            _, body = session.packet()
            self.assertEqual(body[1], 0)
            return body[0] == 1

    @each(way=((4, "native"), (5, "native"), (5, "rumqttc")))
    def test_what_the_hub_kept_reaches_devices_once(self, way):
        self.begin(*way)
        for shards, connections in ((4, 4), (1, 3)):
            self.gateway.leave()
            kept = self.send(f"before {shards}")
            self.change(shards, connections)
            self.gateway.run()
            self.assertGreater(self.earlier(), 0)
            self.twice.append(f"before {shards} for all")
            self.arrives(kept)
            place.until("all to be fetched", lambda: self.earlier() == 0)
            self.arrives(self.send(f"after {shards}"))
        self.gateway.leave()
        layouts = json.loads((self.gateway.folder / "var/pools.json").read_text())["hub"]
        self.assertEqual(layouts, [{"client_id": "tollgate-edge-interop-hub", "shards": 1, "connections": 3}])
        self.assertEqual([self.kept_by_hub(number) for number in range(4)], [True, True, True, False])

    def test_a_start_that_reached_no_hub_is_not_the_end_of_it(self):
        self.begin(5, "native")
        self.gateway.leave()
        kept = self.send("kept")
        self.relay.down()
        self.change(4, 4)
        self.gateway.run()
        # kill -9
        self.gateway.program.stop()
        self.change(3, 3)
        self.gateway.run()
        self.relay.up()
        self.twice.append("kept for all")
        self.arrives(kept)
        place.until("all to be fetched", lambda: self.earlier() == 0)
        self.arrives(self.send("after"))


if __name__ == "__main__":
    unittest.main()

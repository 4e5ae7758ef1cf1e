"""Clients that speak WebSocket, plain and under TLS: telemetry up, commands down, refusals."""

from case import VERSIONS, AtAGateway, each, expanded
from client import message_of

import place
import tokens

NAMES = ("paho", "mqtt.js")
PATHS = ("/mqtt", "/$iothub/websocket")


@expanded
class WebSocket(AtAGateway):
    devices = [f"{name}-{version}-{tls}" for name in NAMES for version in VERSIONS for tls in (False, True)]

    @classmethod
    def start(cls, folder):
        cls.ports = {False: place.free_port(), True: place.free_port()}
        files = f'certificate = "{folder}/server.pem"\nprivate_key = "{folder}/server.key"\n'
        listener = '[[listener]]\nbind = "127.0.0.1:{}"\ntransport = "{}"\n{}'
        sections = listener.format(cls.ports[False], "ws", "") + listener.format(cls.ports[True], "wss", files)
        cls.options = {"sections": sections}
        super().start(folder)

    @each(client=NAMES, version=VERSIONS, tls=(False, True))
    def test_telemetry_goes_up_and_commands_come_down(self, name, version, tls):
        device = f"{name}-{version}-{tls}"
        events = f"devices/{device}/messages/events"
        sent = [
            (f"{events}/", b"plain text", 1),
            (f"{events}/bytes", bytes(range(256)), 1),
            (f"{events}/empty", b"", 1),
            (f"{events}/large", b"\xa5" * (250 * 1024), 1),
            (f"{events}/at-most-once", b"\x00\xff", 0),
        ]
        commands = f"devices/{device}/messages/devicebound"
        session = self.stay(
            name, version, device, tokens.sas(device), tls=tls, port=self.ports[tls], path=PATHS[tls],
            publish=sent, subscribe=[(f"{commands}/#", 1)],
        )
        session.wait("done")
        self.assertEqual({event["code"] for event in session.of("puback")} - {0, None}, set())
        for topic, payload, qos in sent:
            [arrived] = self.hub.take(topic, 1)
            self.assertEqual((arrived.payload, arrived.qos), (payload, qos), topic)
        large = (f"{commands}/large", b"\x5a" * (250 * 1024), 1)
        self.hub.send(*large)
        self.assertEqual(message_of(session.wait("message")[0]), large)

    @each(client=NAMES, version=VERSIONS)
    def test_a_wrong_key_is_refused(self, name, version):
        device = f"{name}-{version}-False"
        events = self.run_client(
            name, version, device, tokens.sas(device, key=tokens.key_of("somebody else")),
            port=self.ports[False], path="/mqtt",
        )
        codes = [event["code"] for event in events if event["event"] == "connack"]
        self.assertEqual(codes, [0x87 if version == 5 else 5], events)

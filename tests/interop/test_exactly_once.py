"""QoS 2 with every client: what it publishes arrives once and in order, and so does what it subscribes to."""

from case import TRANSPORTS, VERSIONS, AtAGateway, each, expanded
from client import NAMES, message_of

import tokens

COUNT = 20


def device_of(name, version):
    return f"{name}-{version}"


@expanded
class ExactlyOnce(AtAGateway):
    devices = [device_of(name, version) for name in NAMES for version in VERSIONS]

    @each(client=NAMES, version=VERSIONS, tls=TRANSPORTS)
    def test_what_a_device_publishes_arrives_once_and_in_order(self, name, version, tls):
        device = device_of(name, version)
        topic = f"devices/{device}/messages/events/{TRANSPORTS[tls]}"
        # A QoS 1 between them keeps its place.
        sent = [(topic, str(n).encode(), 1 if n % 5 == 4 else 2) for n in range(COUNT)]
        events = self.run_client(name, version, device, tokens.sas(device), tls=tls, publish=sent + [(f"{topic}/end", b"", 2)])
        self.assertIn({"event": "done"}, events)
        self.hub.take(f"{topic}/end", 1)
        arrived = [message for message in self.hub.messages if message.topic == topic]
        self.assertEqual([message.payload for message in arrived], [payload for _, payload, _ in sent])
        self.assertEqual({message.qos for message in arrived}, {1}, "a hub is sent QoS 1")

    @each(client=NAMES, version=VERSIONS)
    def test_commands_arrive_once_and_in_order(self, name, version):
        device = device_of(name, version)
        topic = f"devices/{device}/messages/devicebound"
        session = self.stay(name, version, device, tokens.sas(device), subscribe=[(f"{topic}/#", 2)])
        session.wait("done")
        self.assertEqual([code for event in session.of("suback") for code in event["codes"]], [2])
        # One QoS after the other: many clients hand a message of QoS 2 on at its PUBREL, behind later ones of QoS 1.
        commands = []
        for qos in (2, 1):
            commands += [(f"{topic}/{qos}/{n}", str(n).encode(), qos) for n in range(COUNT)]
            for sent_topic, payload, _ in commands[-COUNT:]:
                self.hub.send(sent_topic, payload, qos)
            arrived = [message_of(event) for event in session.wait("message", len(commands))]
            self.assertEqual(arrived, commands)
        self.hub.send(f"{topic}/end", b"", 0)
        events = session.wait("message", len(commands) + 1)
        self.assertEqual(message_of(events[-1]), (f"{topic}/end", b"", 0), "nothing came twice")

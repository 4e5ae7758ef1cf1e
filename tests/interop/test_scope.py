"""What lies outside a device's scope never takes effect; commands from the hub reach the device they are for."""

from case import VERSIONS, AtAGateway, each, expanded
from client import NAMES, message_of

import tokens

QOS = (0, 1)


@expanded
class Scope(AtAGateway):
    devices = [f"{name}-{version}" for name in NAMES for version in VERSIONS] + ["victim"]

    @each(client=NAMES, version=VERSIONS, qos=QOS)
    def test_a_publish_outside_the_scope_never_arrives(self, name, version, qos):
        device = f"{name}-{version}"
        witness = f"devices/{device}/messages/events/before-{qos}"
        outside = [
            f"devices/victim/messages/events/{device}-{qos}",
            f"devices/{device}/messages/devicebound/x",
            f"devices/{device}x/messages/events/",
            f"$SYS/{device}",
        ]
        for topic in outside:
            # No topic as it stands: topics may be logged, payloads may not.
            sent = [(witness, f"before {topic}".encode(), 1), (topic, b"outside", qos)]
            events = self.run_client(name, version, device, tokens.sas(device), publish=sent)
            codes = [event["code"] for event in events if event["event"] == "puback"]
            if version == 5 and qos == 1 and name != "paho":
                self.assertEqual(codes, [0, 0x87], events)
            if version == 4 and name != "mosquitto" and qos == 1:
                self.assertEqual(len(codes), 1, events)
                self.assertIn({"event": "closed"}, events)
        self.hub.take(witness, len(outside))
        # A second device's message comes after all of those: had one of them been sent on, it would be here.
        self.run_client("paho", 5, "victim", tokens.sas("victim"), publish=[("devices/victim/messages/events/end", b"", 1)])
        self.hub.take("devices/victim/messages/events/end", 1)
        seen = {message.topic for message in self.hub.messages}
        self.assertEqual(seen & set(outside), set())

    @each(client=NAMES, version=VERSIONS)
    def test_a_subscription_outside_the_scope_is_refused_and_delivers_nothing(self, name, version):
        device = f"{name}-{version}"
        inside = f"devices/{device}/messages/devicebound/#"
        outside = ["#", "devices/+/messages/devicebound/#", "devices/victim/messages/devicebound/#", f"devices/{device}/#"]
        session = self.stay(
            name, version, device, tokens.sas(device), subscribe=[(filter_, 1) for filter_ in outside + [inside]]
        )
        session.wait("done")
        codes = [code for event in session.of("suback") for code in event["codes"]]
        refused = 0x87 if version == 5 else 0x80
        self.assertEqual(codes, [refused] * len(outside) + [1])
        self.hub.send("devices/victim/messages/devicebound/secret", b"not for you", 1)
        self.hub.send(f"devices/{device}/messages/other", b"not subscribed", 1)
        self.hub.send(f"devices/{device}/messages/devicebound/end", b"end", 1)
        first = message_of(session.wait("message")[0])
        self.assertEqual(first, (f"devices/{device}/messages/devicebound/end", b"end", 1))

    @each(client=NAMES, version=VERSIONS, qos=QOS)
    def test_commands_reach_a_subscribed_device(self, name, version, qos):
        device = f"{name}-{version}"
        topic = f"devices/{device}/messages/devicebound"
        session = self.stay(name, version, device, tokens.sas(device), subscribe=[(f"{topic}/#", qos)])
        session.wait("done")
        commands = [(f"{topic}/{n}", bytes([n]) * n, qos) for n in range(20)] + [(f"{topic}/é", b"x" * 100_000, qos)]
        for sent_topic, payload, _ in commands:
            self.hub.send(sent_topic, payload, 1)
        arrived = [message_of(event) for event in session.wait("message", len(commands))]
        self.assertEqual(arrived, commands)

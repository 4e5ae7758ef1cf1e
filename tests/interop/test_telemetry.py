"""Telemetry of every client arrives at a real mosquitto, byte for byte."""

from case import TRANSPORTS, VERSIONS, AtAGateway, each, expanded
from client import NAMES

KINDS = ("SAS", "JWT")


def device_of(*axes):
    """One of its own for each combination: `mqtt.js-TLS-5-JWT`."""
    return "-".join(str(axis) for axis in axes)


def payloads(device):
    """Topic, payload, QoS."""
    events = f"devices/{device}/messages/events"
    return [
        (f"{events}/", b"plain text", 1),
        (f"{events}/bytes", bytes(range(256)), 1),
        (f"{events}/at-most-once", b"\x00\xff", 0),
        (f"{events}/empty", b"", 1),
        (f"{events}/Größe/温度", b"names of levels are UTF-8", 1),
        (f"{events}/%24.mid=1&%24.ct=a%2Fb&k=v%23%2B", b"a property bag is a topic", 1),
        (f"{events}/large", b"\xa5" * (250 * 1024), 1),
        (f"{events}/large-at-most-once", b"\x5a" * (250 * 1024), 0),
    ]


class Telemetry(AtAGateway):
    def send_and_compare(self, name, tls, version, kind):
        device = device_of(name, TRANSPORTS[tls], version, kind)
        sent = payloads(device)
        events = self.run_client(name, version, device, self.token(kind, device), tls=tls, publish=sent)
        codes = [event["code"] for event in events if event["event"] == "puback"]
        self.assertEqual(len(codes), sum(qos for _, _, qos in sent), events)
        self.assertLessEqual(set(codes), {0, None})
        self.assertTrue(all(event["code"] == 0 for event in events if event["event"] == "connack"), events)
        for topic, payload, qos in sent:
            [arrived] = self.hub.take(topic, 1)
            self.assertEqual((arrived.payload, arrived.qos), (payload, qos), topic)
            self.assert_stamped(arrived, device, kind)

    def assert_stamped(self, arrived, device, kind):
        stamped = dict(getattr(arrived.properties, "UserProperty", []))
        self.assertEqual(stamped["tollgate-device"], device)
        self.assertEqual(stamped["tollgate-gateway"], "edge-interop")
        self.assertEqual(stamped["tollgate-auth"], {"SAS": "sas/primary", "JWT": "jwt/factory"}[kind])
        self.assertRegex(stamped["tollgate-received"], r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertGreater(len(stamped["tollgate-id"]), 8)


@expanded
class ToAHubOf5OverTcp(Telemetry):
    devices = [device_of(n, t, v, k) for n in NAMES for t in TRANSPORTS.values() for v in VERSIONS for k in KINDS]

    @each(client=NAMES, tls=TRANSPORTS, version=VERSIONS, kind=KINDS)
    def test_telemetry_arrives(self, name, tls, version, kind):
        self.send_and_compare(name, tls, version, kind)

    def test_ids_are_unique(self):
        device = device_of("paho", "TCP", 5, "SAS")
        topic = f"devices/{device}/messages/events/ids"
        sent = [(topic, str(n).encode(), 1) for n in range(50)]
        self.run_client("paho", 5, device, self.token("SAS", device), publish=sent)
        arrived = self.hub.take(topic, len(sent))
        self.assertEqual([message.payload for message in arrived], [payload for _, payload, _ in sent])
        ids = {dict(message.properties.UserProperty)["tollgate-id"] for message in arrived}
        self.assertEqual(len(ids), len(sent))


class AnotherHub(Telemetry):
    devices = [device_of("paho", "TCP", v, k) for v in VERSIONS for k in KINDS]

    def test_telemetry_arrives(self):
        for version in VERSIONS:
            for kind in KINDS:
                with self.subTest(version=version, kind=kind):
                    self.send_and_compare("paho", False, version, kind)


class ToAHubOf5OverTls(AnotherHub):
    options = {"hub_tls": True}


class ToAHubOf3OverTcp(AnotherHub):
    options = {"hub_version": 4}

    def assert_stamped(self, arrived, device, kind):
        """3.1.1 has no properties: the device is in the topic."""
        self.assertFalse(hasattr(arrived.properties, "UserProperty"))


class ToAHubOf3OverTls(ToAHubOf3OverTcp):
    options = {"hub_version": 4, "hub_tls": True}


del Telemetry, AnotherHub

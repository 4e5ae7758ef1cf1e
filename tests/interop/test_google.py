"""The profile google with clients of every kind: configuration, commands, telemetry, state, as IoT Core's devices knew them."""

import struct
import time

import forge
import place
import wire
from case import VERSIONS, AtAGateway, each, expanded
from client import NAMES, message_of

REGISTRY = "projects/acme/locations/europe-west1/registries/line"
SCOPE = """
scope.publish = ["/devices/{device}/events/#", "/devices/{device}/state"]
scope.subscribe = ["/devices/{device}/config", "/devices/{device}/commands/#"]
"""


@expanded
class Google(AtAGateway):
    names = [f"{name}-{version}" for name in [*NAMES, "wire"] for version in VERSIONS]

    @classmethod
    def start(cls, folder):
        cls.key = {}
        more = ""
        for name in cls.names:
            cls.key[name] = forge.new_p256()
            (folder / f"{name}.pem").write_bytes(forge.public_pem(cls.key[name]))
            more += f'[[device]]\nid = "{name}"\n{SCOPE}[[device.public_key]]\nfile = "{name}.pem"\n'
        cls.google = place.free_port()
        listener = f'[[listener]]\nbind = "127.0.0.1:{cls.google}"\ntransport = "tcp"\nprofile = "google"\n'
        cls.options = {
            "settings": f'google_registries = ["{REGISTRY}"]',
            "sections": listener + '[[route]]\nfrom = "/devices/{device}/#"\nupstream = "hub"\n',
            "more": more,
        }
        super().start(folder)

    def own(self, device):
        now = int(time.time())
        return forge.honest({"aud": "acme", "iat": now, "exp": now + 3600}, self.key[device], "ES256", None)

    @each(client=NAMES, version=VERSIONS)
    def test_configuration_commands_telemetry_and_state(self, name, version):
        device = f"{name}-{version}"
        topics = f"/devices/{device}"
        config = (f"{topics}/config", b"interval=30", 1)
        self.hub.send(*config, retain=True)
        # mosquitto's programs either subscribe or publish.
        sent = [(f"{topics}/events", b"21.5", 1), (f"{topics}/events/vibration", b"0.7", 0), (f"{topics}/state", b"idle", 1)]
        both = name != "mosquitto"
        connection = {"user_name": "unused", "port": self.google}
        session = self.stay(
            name, version, f"{REGISTRY}/devices/{device}", self.own(device), publish=sent if both else (),
            subscribe=[(config[0], 1), (f"{topics}/commands/#", 2)], **connection,
        )
        session.wait("done")
        granted = [code for event in session.of("suback") for code in event["codes"]]
        self.assertEqual(granted, [1, 1], "QoS 2 is granted 1")
        self.assertEqual(message_of(session.wait("message")[0]), config, "the retained configuration comes at once")
        command = (f"{topics}/commands/valve", b"open", 1)
        self.hub.send(*command)
        self.assertEqual(message_of(session.wait("message", 2)[1]), command)
        session.finish()
        if not both:
            for message in sent:
                self.run_client(
                    name, version, f"{REGISTRY}/devices/{device}", self.own(device), publish=[message], **connection
                )
        for topic, payload, qos in sent:
            [arrived] = self.hub.take(topic, 1)
            self.assertEqual((arrived.payload, arrived.qos), (payload, qos), topic)
            self.assertEqual(dict(arrived.properties.UserProperty)["tollgate-device"], device)

    @each(version=VERSIONS)
    def test_a_publish_of_qos_2_closes(self, version):
        device = f"wire-{version}"
        connect = wire.Connect(version, f"{REGISTRY}/devices/{device}", user_name="unused", password=self.own(device))
        with wire.Session(self.google, connect.packet()) as session:
            self.assertEqual(session.code(), 0)
            body = wire.field(f"/devices/{device}/events") + struct.pack(">H", 1) + (b"\x00" if version == 5 else b"") + b"x"
            session.send(b"\x34" + wire.varint(len(body)) + body)
            if version == 5:
                kind, body = session.packet()
                self.assertEqual((kind >> 4, body[0]), (14, 0x9B))
            with self.assertRaises(EOFError):
                session.packet()

"""Modules, devices that sign their tokens themselves, and the google profile: over real sockets, with tokens of PyJWT and
of Python's hmac, and with the official Azure SDK for modules."""

import base64
import logging
import time
import unittest
import warnings

from azure.iot.device import IoTHubModuleClient, Message

import forge
import place
import tokens
import wire
from case import AtAGateway

# As in test_azure.py: an address of loopback of its own for port 8883.
ADDRESS = "127.0.0.78"
REGISTRY = "projects/acme/locations/europe-west1/registries/line"
CAMERA = "localhost/devices/pump-17/modules/camera"
# Long enough for a changed file to be read and a device to connect.
KEY_LIFE = 6


def rfc3339(at):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


class Identities(AtAGateway):
    devices = ["pump-17", "pump-1"]

    @classmethod
    def setUpClass(cls):
        folder = place.new_folder()
        cls.es256, cls.rs256, cls.ed, cls.old = forge.new_p256(), forge.new_rsa(), forge.new_ed25519(), forge.new_p256()
        cls.brief = forge.new_p256()
        for name in ["es256", "rs256", "ed", "old", "brief"]:
            (folder / f"{name}.pem").write_bytes(forge.public_pem(getattr(cls, name)))
        cls.google, cls.azure = place.free_port(), place.free_port()
        sections = "".join(
            f'[[listener]]\nbind = "127.0.0.1:{port}"\ntransport = "tcp"\nprofile = "{profile}"\n'
            for port, profile in [(cls.google, "google"), (cls.azure, "azure")]
        ) + '[[route]]\nfrom = "/devices/{device}/#"\nupstream = "hub"\n'
        cls.options = {
            "tls_bind": f"{ADDRESS}:8883",
            "settings": f'aliases = ["{ADDRESS}"]\ngoogle_registries = ["{REGISTRY}"]',
            "sections": sections,
            "more": cls.identities(),
        }
        cls.start(folder)

    @classmethod
    def identities(cls):
        text = f'[[module]]\nid = "pump-17/camera"\nprimary_key = "{forge.key_text("camera")}"\n'
        text += f'secondary_key = "{forge.key_text("camera/secondary")}"\n'
        text += f'[[module]]\nid = "pump-1/off"\nprimary_key = "{forge.key_text("off")}"\nenabled = false\n'
        text += f'[[module]]\nid = "line7-a/camera"\nprimary_key = "{forge.key_text("line7 camera")}"\n'
        text += f'[[group]]\nprefix = "line7-"\nprimary_key = "{forge.key_text("line7")}"\n'
        for name, resource, more in [
            ("all", "localhost", ""), ("pump", "localhost/devices/pump-17", ""), ("other", "localhost/devices/pump-1", ""),
        ]:
            key = forge.key_text(f"policy {name}")
            text += f'[[policy]]\nname = "{name}"\nresource = "{resource}"\nprimary_key = "{key}"\n{more}\n'
        text += '[[policy]]\nname = "bus"\nresource = "sb://localhost/devices"\nkey_encoding = "utf8"\n'
        text += f'primary_key = "{forge.key_text("bus")}"\n'
        now = int(time.time())
        # The tests' identities have a [defaults.scope], which comes before what the profile has.
        text += '[[device]]\nid = "robot"\nscope.publish = ["/devices/{device}/events/#"]\n'
        for kid, file, more in [
            ("es", "es256", ""), ("", "rs256", 'algorithm = "RS256"\n'), ("ed", "ed", ""),
            ("old", "old", f'not_after = "{rfc3339(now - 60)}"\n'),
        ]:
            named = f'kid = "{kid}"\n' if kid else ""
            text += f'[[device.public_key]]\nfile = "{file}.pem"\n{named}{more}'
        return text + '[[device]]\nid = "brief"\n[[device.public_key]]\nfile = "brief.pem"\n'

    def setUp(self):
        warnings.simplefilter("ignore")
        logging.getLogger("azure").setLevel(logging.CRITICAL + 1)

    def code(self, client_id, token, *, port=None, version=5, user_name=None):
        connect = wire.Connect(version, client_id, user_name=client_id if user_name is None else user_name, password=token)
        with wire.Session(port or self.gateway.port, connect.packet()) as session:
            return session.code()

    def sas(self, key, resource, skn=None):
        return forge.sas(forge.secret(key), resource, int(time.time()) + 3600, skn)

    def own(self, key, algorithm, kid=None, device="robot", leave_out=(), **claims):
        now = int(time.time())
        claims = {"iat": now, "exp": now + 600, "aud": "acme"} | claims
        return forge.honest({k: v for k, v in claims.items() if k not in leave_out}, key, algorithm, kid)

    def test_whose_token_opens_a_module(self):
        device, module = "localhost/devices/pump-17", CAMERA
        text_key = forge.sas(forge.key_text("bus").encode(), "sb://localhost/devices/pump-17", int(time.time()) + 600, "bus")
        derived = forge.derived(forge.secret("line7"), "line7-a")
        line7 = forge.sas(derived, "localhost/devices/line7-a", int(time.time()) + 600)
        for what, client_id, token, expected in [
            ("its own key", "pump-17/camera", self.sas("camera", module), 0),
            ("its secondary key", "pump-17/camera", self.sas("camera/secondary", module), 0),
            ("the key of its device", "pump-17/camera", self.token("SAS", "pump-17"), 0x85),
            ("its own token as its device", "pump-17", self.sas("camera", module), 0x85),
            ("a policy, for the module", "pump-17/camera", self.sas("policy all", module, "all"), 0),
            ("a policy, for the device", "pump-17/camera", self.sas("policy all", device, "all"), 0),
            ("a policy within the device", "pump-17/camera", self.sas("policy pump", module, "pump"), 0),
            ("a policy of another device", "pump-17/camera", self.sas("policy other", module, "other"), 0x87),
            ("a policy, as the device", "pump-17", self.sas("policy all", module, "all"), 0x85),
            ("a module that is not", "pump-17/ghost", self.sas("policy all", device, "all"), 0x87),
            ("a module that is off", "pump-1/off", self.sas("off", "localhost/devices/pump-1/modules/off"), 0x87),
            ("of a device of a group", "line7-a/camera", self.sas("line7 camera", "localhost/devices/line7-a/modules/camera"), 0),
            ("its device, by the group", "line7-a", line7, 0),
            ("its device's derived key", "line7-a/camera", line7, 0x85),
            ("a JWT of the module", "pump-17/camera", self.gateway.jwt("pump-17/camera"), 0),
            ("a JWT of the device", "pump-17/camera", self.gateway.jwt("pump-17"), 0x85),
            ("a key that is text", "pump-17", text_key, 0),
        ]:
            with self.subTest(what):
                self.assertEqual(self.code(client_id, token), expected)
        user_name = "localhost/pump-17/camera/?api-version=2021-04-12&DeviceClientType=x"
        good = self.sas("camera", module)
        self.assertEqual(self.code("pump-17/camera", good, user_name=user_name), 0)
        self.assertEqual(self.code("pump-17/camera", good, user_name=user_name.replace("camera", "other")), 0x86)

    def test_device_and_module_are_connected_side_by_side_and_stamped(self):
        topic = "devices/pump-17/modules/camera/messages/events/x"
        device = self.stay("paho", 5, "pump-17", self.token("SAS", "pump-17"))
        device.wait("connack")
        events = self.run_client("paho", 5, "pump-17/camera", self.sas("camera", CAMERA), publish=[(topic, b"picture", 1)])
        self.assertTrue(events, "it was connected")
        [arrived] = self.hub.take(topic, 1)
        stamped = dict(arrived.properties.UserProperty)
        self.assertEqual((stamped["tollgate-device"], stamped["tollgate-auth"]), ("pump-17/camera", "sas/primary"))
        self.assertIsNone(device.process.poll(), "the device's own session goes on")

    def test_the_azure_sdk_for_modules(self):
        key = base64.b64encode(forge.secret("camera")).decode()
        text = f"HostName={ADDRESS};DeviceId=pump-17;ModuleId=camera;SharedAccessKey={key}"
        sdk = IoTHubModuleClient.create_from_connection_string(text, server_verification_cert=self.authority.pem)
        self.addCleanup(sdk.shutdown)
        sdk.connect()
        sdk.send_message(Message("from the module"))
        [arrived] = self.hub.take("devices/pump-17/modules/camera/messages/events/", 1)
        self.assertEqual(arrived.payload, b"from the module")

    def test_the_google_profile(self):
        now = int(time.time())
        good = self.own(self.es256, "ES256")
        for what, client_id, token, expected in [
            ("ES256", f"{REGISTRY}/devices/robot", good, 0),
            ("RS256", f"{REGISTRY}/devices/robot", self.own(self.rs256, "RS256"), 0),
            ("EdDSA, with its kid", f"{REGISTRY}/devices/robot", self.own(self.ed, "EdDSA", "ed"), 0),
            ("a bare id", "robot", good, 0x85),
            ("another registry", f"{REGISTRY}-2/devices/robot", good, 0x85),
            ("another device", f"{REGISTRY}/devices/pump-1", good, 0x87),
            ("a key that has ended", f"{REGISTRY}/devices/robot", self.own(self.old, "ES256", "old"), 0x87),
            ("a stranger's key", f"{REGISTRY}/devices/robot", self.own(forge.new_p256(), "ES256"), 0x87),
            ("no iat", f"{REGISTRY}/devices/robot", self.own(self.es256, "ES256", leave_out=["iat"]), 0x87),
            ("no aud", f"{REGISTRY}/devices/robot", self.own(self.es256, "ES256", leave_out=["aud"]), 0x87),
            ("another aud", f"{REGISTRY}/devices/robot", self.own(self.es256, "ES256", aud="other"), 0x87),
            ("a day and 5 minutes", f"{REGISTRY}/devices/robot", self.own(self.es256, "ES256", exp=now + 86_700), 0),
            ("a day and 15 minutes", f"{REGISTRY}/devices/robot", self.own(self.es256, "ES256", exp=now + 87_300), 0x87),
            (
                "expired 9 minutes ago", f"{REGISTRY}/devices/robot",
                self.own(self.es256, "ES256", iat=now - 3600, exp=now - 540), 0,
            ),
            (
                "expired 11 minutes ago", f"{REGISTRY}/devices/robot",
                self.own(self.es256, "ES256", iat=now - 3600, exp=now - 660), 0x87,
            ),
        ]:
            with self.subTest(what):
                self.assertEqual(self.code(client_id, token, port=self.google, user_name="ignored"), expected)
        refused = self.gateway.metric("tollgate_connects_total", 'denial="key_out_of_validity"')
        self.assertGreaterEqual(refused, 1)

    def test_telemetry_of_the_google_profile(self):
        client_id = f"{REGISTRY}/devices/robot"
        topic = "/devices/robot/events/vibration"
        events = self.run_client(
            "paho", 4, client_id, self.own(self.rs256, "RS256"), user_name="unused", port=self.google,
            publish=[(topic, b"0.7", 1)],
        )
        self.assertIn("puback", str(events))
        [arrived] = self.hub.take(topic, 1)
        self.assertEqual(dict(arrived.properties.UserProperty)["tollgate-device"], "robot")

    def test_skew_and_lifetimes_are_those_of_the_listener(self):
        week, late = int(time.time()) + 7 * 86_400, int(time.time()) - 200
        sas = lambda se: forge.sas(base64.b64decode(tokens.key_of("pump-1")), "localhost/devices/pump-1", se)
        self.assertEqual(self.code("pump-1", sas(week)), 0x87)
        self.assertEqual(self.code("pump-1", sas(week), port=self.azure), 0)
        self.assertEqual(self.code("pump-1", sas(late)), 0x87)
        self.assertEqual(self.code("pump-1", sas(late), port=self.azure), 0)

    def test_a_session_ends_with_the_key_that_let_it_in(self):
        token = self.own(self.brief, "ES256", aud="localhost")
        packet = wire.Connect(5, "brief", user_name="brief", password=token).packet()
        with wire.Session(self.gateway.port, packet) as session:
            self.assertEqual(session.code(), 0)
            ends = int(time.time()) + KEY_LIFE
            file = self.gateway.folder / "identities.toml"
            place.write_secret(file, file.read_text() + f"not_after = {rfc3339(ends)}\n")
            kind, body = session.packet()
            self.assertEqual((kind >> 4, body[0]), (14, 0x87), "its end was moved to before the session's")
        with wire.Session(self.gateway.port, packet) as session:
            self.assertEqual(session.code(), 0)
            kind, body = session.packet()
            ended = time.time()
        self.assertEqual((kind >> 4, body[0]), (14, 0xA0))
        self.assertLess(abs(ended - ends), 2)
        self.assertEqual(self.code("brief", token), 0x87)


if __name__ == "__main__":
    unittest.main()

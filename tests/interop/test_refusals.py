"""Who is refused, is refused with the code of the protocol's version, whatever client asks."""

import json
import unittest

from cryptography.hazmat.primitives.asymmetric import ec

import place
import tokens
from case import TRANSPORTS, VERSIONS, AtAGateway, each, expanded
from client import NAMES

HOST = "localhost"
NOT_AUTHORIZED = {4: 5, 5: 0x87}
BAD_PASSWORD = {4: 5, 5: 0x86}
BAD_CLIENT_ID = {4: 2, 5: 0x85}


def unsigned(gateway):
    """alg: none, as RFC 8725 §2.1 warns of."""
    signed = gateway.jwt("good")
    header = tokens.base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{header}.{signed.split('.')[1]}."


# What is sent as the token of device `good`, and what CONNACK must say.
CASES = {
    "SAS: wrong signature": (lambda g: tokens.sas("good", key=tokens.key_of("other")), NOT_AUTHORIZED),
    "SAS: expired": (lambda g: tokens.sas("good", expires_in=-3600), NOT_AUTHORIZED),
    "SAS: of another device": (lambda g: tokens.sas("other"), BAD_CLIENT_ID),
    "SAS: unknown policy": (lambda g: tokens.sas("good", policy="nobody"), NOT_AUTHORIZED),
    "SAS: a day too long": (lambda g: tokens.sas("good", expires_in=49 * 3600), NOT_AUTHORIZED),
    "SAS: another host": (lambda g: tokens.sas("good", resource="elsewhere/devices/good"), NOT_AUTHORIZED),
    "SAS: for the whole hub": (lambda g: tokens.sas("good", resource=HOST), NOT_AUTHORIZED),
    "SAS: malformed": (lambda g: tokens.sas("good").replace("sig=", "sgi="), BAD_PASSWORD),
    "JWT: wrong signature": (lambda g: tokens.json_web_token("good", ec.generate_private_key(ec.SECP256R1())), NOT_AUTHORIZED),
    "JWT: expired": (lambda g: g.jwt("good", expires_in=-3600), NOT_AUTHORIZED),
    "JWT: of another device": (lambda g: g.jwt("other"), BAD_CLIENT_ID),
    "JWT: unknown key": (lambda g: g.jwt("good", kid="k9"), NOT_AUTHORIZED),
    "JWT: unknown issuer": (lambda g: g.jwt("good", iss="https://elsewhere.example"), NOT_AUTHORIZED),
    "JWT: another audience": (lambda g: g.jwt("good", aud="elsewhere"), NOT_AUTHORIZED),
    "JWT: not yet valid": (lambda g: g.jwt("good", nbf=4_000_000_000), NOT_AUTHORIZED),
    "JWT: unsigned": (unsigned, BAD_PASSWORD),
    "JWT: revoked": (lambda g: g.jwt("good", jti="stolen"), NOT_AUTHORIZED),
    "neither": (lambda g: "secret", BAD_PASSWORD),
}


@expanded
class Refused(AtAGateway):
    devices = ["good", "other", "scrapped"]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.gateway.revoke({"jti": "stolen"})
        cls.gateway.revoke({"device": "scrapped"})
        place.until("the list to be applied", lambda: cls.gateway.metric("tollgate_revocations") == 2)

    @each(client=NAMES, tls=TRANSPORTS, version=VERSIONS)
    def test_a_bad_token(self, name, tls, version):
        for what, (make, codes) in CASES.items():
            with self.subTest(what):
                self.assert_code(codes[version], name, version, "good", make(self.gateway), tls)
        with self.subTest("a revoked device"):
            self.assert_code(NOT_AUTHORIZED[version], name, version, "scrapped", tokens.sas("scrapped"), tls)
        with self.subTest("an unknown device"):
            self.assert_code(NOT_AUTHORIZED[version], name, version, "nobody", tokens.sas("nobody"), tls)
        with self.subTest("a good one"):
            self.assert_code(0, name, version, "good", tokens.sas("good"), tls)

    def assert_code(self, code, name, version, device, token, tls):
        sent = [(f"devices/{device}/messages/events/", b"hello", 1)]
        events = self.run_client(name, version, device, token, tls=tls, publish=sent)
        connack = next((event for event in events if event["event"] == "connack"), None)
        self.assertEqual(connack, {"event": "connack", "code": code}, events)

    def test_the_operator_is_told_why_and_no_token_is_logged(self):
        token = tokens.sas("good", key=tokens.key_of("other"))
        self.assert_code(5, "paho", 4, "good", token, False)
        refused = self.gateway.metric("tollgate_connects_total", 'denial="signature_invalid"')
        self.assertGreaterEqual(refused, 1)
        log = self.gateway.program.log.read_text()
        self.assertIn("signature_invalid", log)
        signature = token.split("sig=")[1].split("&")[0]
        self.assertNotIn(signature, log)
        self.assertNotIn(tokens.key_of("good"), log)


@expanded
class LiveSession(AtAGateway):
    devices = [f"{name}-{version}" for name in NAMES for version in VERSIONS]

    @each(client=[name for name in NAMES if name != "mosquitto"], version=VERSIONS)
    def test_a_revoked_session_is_closed_with_the_reason(self, name, version):
        device = f"{name}-{version}"
        session = self.stay(name, version, device, self.gateway.jwt(device, jti=device))
        session.wait("done")
        self.gateway.revoke({"jti": device, "reason": "laptop stolen"})
        session.wait("closed")
        # rumqttc reports any end of the connection alike.
        if version == 5 and name != "rumqttc":
            self.assertEqual(session.of("disconnect"), [{"event": "disconnect", "code": 0x98}])
        self.assertEqual(json.loads(self.gateway.revocations.read_text().splitlines()[-1])["jti"], device)


if __name__ == "__main__":
    unittest.main()

"""The table of tokens: good and hostile ones over a real socket, each with the code that the device is told in both
versions of the protocol, and with the denial that the operator is shown."""

import collections
import dataclasses
import http.client
import json
import time
import unittest

import forge
import place
import table_connect
import table_jwt
import table_parts
import table_place
import table_sas
import wire
from case import AtAGateway

CASES = [case for module in (table_sas, table_jwt, table_connect, table_parts) for case in module.cases()]
REJECTED, BAD_ID, BAD_PASSWORD, OTHER_METHOD = (5, 0x87), (2, 0x85), (5, 0x86), (None, 0x8C)
# CONNACK of 3.1.1 and of 5.0, by tag: written by hand from the rules, not made from the gateway's own table.
CODES = {
    "credential_missing": BAD_PASSWORD, "credential_malformed": BAD_PASSWORD, "user_name_mismatch": BAD_PASSWORD,
    "client_id_invalid": BAD_ID, "device_mismatch": BAD_ID, "authentication_method_unknown": OTHER_METHOD,
} | dict.fromkeys([
    "credential_kind_not_accepted", "device_unknown", "signature_invalid", "key_unknown", "issuer_unknown", "algorithm_mismatch",
    "audience_mismatch", "host_mismatch", "hub_wide_token", "resource_out_of_policy", "claim_invalid", "device_disabled", "expired",
    "not_yet_valid", "issued_in_future", "lifetime_too_long", "revoked", "will_out_of_scope", "key_out_of_validity",
], REJECTED)


class Table(AtAGateway):
    devices = ["d0"]

    @classmethod
    def setUpClass(cls):
        folder = place.new_folder()
        ports = {profile: place.free_port() for profile in ("azure", "google")}
        sections = "".join(
            f'[[listener]]\nbind = "127.0.0.1:{port}"\ntransport = "tcp"\nprofile = "{profile}"\n' for profile, port in ports.items()
        )
        more = table_place.authority().identities(folder)
        cls.options = {"more": more, "settings": 'aliases = ["hub.example"]', "sections": sections}
        cls.start(folder)
        cls.gateway.azure_port, cls.gateway.google_port = ports["azure"], ports["google"]
        entries = list(entries_of_list())
        cls.gateway.revocations.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        place.until("the list to be applied", lambda: cls.gateway.metric("tollgate_revocations") == len(entries))
        token = (cls.gateway.folder / "var/admin.token").read_text().strip()
        cls.desk = http.client.HTTPConnection("127.0.0.1", cls.gateway.admin_port, timeout=20)
        cls.addClassCleanup(cls.desk.close)
        cls.headers = {"Authorization": f"Bearer {token}"}

    def check(self, case):
        for version in case.versions:
            with self.subTest(version=version):
                peer, code, shown = self.attempt(case, version)
                if case.want is None:
                    self.assertEqual((code, shown), (0, None), peer)
                    continue
                v4, v5 = CODES[case.want]
                if case.port == "azure_port" and v4 == 2:
                    v4 = 5
                expected = v5 if version == 5 else wire.CLOSED if v4 is None else v4
                self.assertEqual((shown, code), (case.want, expected), peer)

    def attempt(self, case, version):
        """Where it came from, the code of CONNACK, and the tag that the operator is shown."""
        while True:
            if case.edge:
                place.until("the middle of a second", lambda: 0.1 < time.time() % 1 < 0.7)
            now = int(time.time())
            token = case.token(now)
            forge.tokens.remember(token or "")
            packet = self.connect(case, version, token).packet()
            with wire.Session(getattr(self.gateway, case.port), packet) as session:
                code = session.code()
                if case.edge and int(time.time()) != now:
                    continue
                return session.peer, code, None if code == 0 else self.refusal_of(session.peer)

    def connect(self, case, version, token):
        said = {"user_name": case.device} | case.connect
        if said.pop("password_is_data", False):
            return wire.Connect(version, case.device, said.pop("user_name"), method=said["method"], data=token)
        # MQTT 3.1.1 [MQTT-3.1.2-22]: no password without a user name.
        return wire.Connect(version, case.device, password=token, **said)

    def refusal_of(self, peer):
        self.desk.request("GET", "/v1/refusals?last=20", headers=self.headers)
        refusals = json.loads(self.desk.getresponse().read())["refusals"]
        return next((entry["tag"] for entry in reversed(refusals) if entry["peer"] == peer), "nothing")


class Count(unittest.TestCase):
    def test_the_table_is_large_and_no_case_stands_in_it_twice(self):
        names = collections.Counter(case.name for case in CASES)
        self.assertEqual([name for name, count in names.items() if count > 1], [])
        self.assertGreaterEqual(len(CASES), 600)
        admitted = sum(case.want is None for case in CASES)
        self.assertGreaterEqual(admitted, 100)
        self.assertGreaterEqual(len(CASES) - admitted, 300)
        tried = {case.want for case in CASES if case.want}
        self.assertEqual(tried, set(CODES))


def entries_of_list():
    """What is revoked in the table."""
    now = time.time()
    rfc3339 = lambda at: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    yield {"jti": "stolen", "reason": "laptop stolen"}
    yield {"jti": "of-single", "issuer": "single"}
    yield {"jti": "ended", "until": rfc3339(now - 60)}
    yield {"jti": "not-ended", "until": rfc3339(now + 3600)}
    yield {"device": "scrapped"}
    yield {"key": "policy:withdrawn/primary"}
    yield {"key": "issuer:hmac/withdrawn"}
    yield {"key": "device:held/withdrawn"}
    before = rfc3339(table_place.ISSUED_BEFORE)
    yield {"issued_before": before, "policy": "dated"}
    yield {"issued_before": before, "issuer": "claim"}
    yield {"issued_before": before, "device": "renewed"}


for number, each_case in enumerate(CASES):
    setattr(Table, f"test_{number:03}[{each_case.name}]", lambda self, case=each_case: self.check(case))


if __name__ == "__main__":
    unittest.main()

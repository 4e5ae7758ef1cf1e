"""The two devices of examples/, as a developer would run them: one that holds its key, one that holds tokens only. Both
renew before their token ends, and go on under the next one."""

import hashlib
import json
import secrets
import ssl
import subprocess
import urllib.request

import place
import tokens
from case import AtAGateway

TOKEN_PORT = place.free_port()
CALLER_KEY = secrets.token_urlsafe(32)
# Short enough to see renewals, long enough to connect: they renew after four fifths of it.
LIFE = 5


class Examples(AtAGateway):
    devices = ["holds-a-key", "holds-tokens"]
    options = {"sections": f"""
[token_service]
bind = "127.0.0.1:{TOKEN_PORT}"
certificate = "server.pem"
private_key = "server.key"
jitter_percent = 0
[[token_service.caller]]
name = "site"
key_sha256 = "{hashlib.sha256(CALLER_KEY.encode()).hexdigest()}"
prefix = "holds-"
"""}

    def test_a_device_that_holds_its_key_renews_by_itself(self):
        key = self.gateway.folder / "device.secret"
        place.write_secret(key, tokens.key_of("holds-a-key"))
        self.renews("device_with_key", "holds-a-key", TOLLGATE_KEY_FILE=str(key))

    def test_a_device_that_holds_tokens_only_exchanges_its_refresh_token(self):
        tokens.add(CALLER_KEY.encode())
        answer = self.asked({"device": "holds-tokens", "refresh": True})
        tokens.remember(answer["token"])
        first = answer["refresh_token"]
        tokens.add(first.encode())
        file = self.gateway.folder / "refresh.json"
        place.write_secret(file, json.dumps({"refresh_token": first}))
        self.renews("device_with_tokens", "holds-tokens", TOLLGATE_REFRESH_FILE=str(file), TOLLGATE_TOKEN_PORT=str(TOKEN_PORT))
        held = json.loads(file.read_text())["refresh_token"]
        tokens.add(held.encode())
        self.assertNotEqual(held, first, "it was exchanged, and the next one kept")

    def test_what_is_missing_is_said_in_a_sentence(self):
        for example, environment, said in [
            ("device_with_key", {}, "TOLLGATE_DEVICE is not set"),
            ("device_with_key", {"TOLLGATE_DEVICE": "x"}, "TOLLGATE_KEY_FILE is not set"),
            ("device_with_key", {"TOLLGATE_DEVICE": "x", "TOLLGATE_KEY_FILE": "/nowhere"}, "/nowhere cannot be read"),
            ("device_with_tokens", {}, "TOLLGATE_DEVICE is not set"),
            ("device_with_tokens", {"TOLLGATE_DEVICE": "x", "TOLLGATE_CA": "/nowhere"}, "/nowhere cannot be read"),
            ("device_with_tokens", {"TOLLGATE_DEVICE": "x", "TOLLGATE_TOKEN_PORT": "many"}, "is no number"),
        ]:
            ran = subprocess.run([place.PROGRAMS / "examples" / example], env=environment, cwd=self.gateway.folder,
                                 capture_output=True, text=True, timeout=place.PATIENCE)
            self.assertEqual(ran.returncode, 2, ran)
            self.assertIn(said, ran.stderr)
            self.assertEqual(len(ran.stderr.splitlines()), 1, ran.stderr)

    def renews(self, example, device, **environment):
        """It sends under one token after the other, and is never refused or cut."""
        settings = {"TOLLGATE_DEVICE": device, "TOLLGATE_CA": str(self.authority.file), "TOLLGATE_TTL": str(LIFE),
                    "TOLLGATE_PORT": str(self.gateway.tls_port), "TOLLGATE_EVERY": "1",
                    "RUST_LOG": "trace"} | environment
        program = place.Program([place.PROGRAMS / "examples" / example], self.gateway.folder, f"log/{example}.log", **settings)
        # Whoever copies an example copies what it logs.
        self.addCleanup(lambda: self.gateway.search(program.log))
        self.addCleanup(program.stop)

        def said():
            program.check()
            return program.log.read_text().splitlines()

        # Connected a third time: renewed twice, and what was sent meanwhile was acknowledged.
        place.until(f"{example} to renew twice", lambda: said().count("connected") >= 3, within=60)
        count = len(self.hub.take(f"devices/{device}/messages/events/", 3))
        lines = said()
        self.assertGreaterEqual(count, 3)
        self.assertEqual(set(lines), {"connected", "acknowledged", "renewing"}, lines)
        ended = self.gateway.metric("tollgate_sessions_closed_total", 'reason="expired"')
        self.assertEqual(ended, 0, "it renews before its token ends")

    def asked(self, request):
        """The token service's answer to the site's own server."""
        trust = ssl.create_default_context(cafile=self.authority.file)
        head = {"Authorization": f"Bearer {CALLER_KEY}", "Content-Type": "application/json"}
        call = urllib.request.Request(f"https://localhost:{TOKEN_PORT}/v1/tokens", json.dumps(request).encode(), head)
        with urllib.request.urlopen(call, timeout=place.PATIENCE, context=trust) as answer:
            return json.loads(answer.read())

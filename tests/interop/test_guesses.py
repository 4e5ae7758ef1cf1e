"""Somebody guesses from the address of a real device: the device connects all the same, and what is kept is bounded."""

import concurrent.futures
import json
import pathlib
import time

import forge
import place
import tokens
import wire
from case import AtAGateway

GUESSES, GUESSERS = 10_000, 4
BANNED, TRY_AGAIN = 0x8A, 0x9F


class Guesses(AtAGateway):
    devices = ["pump-1", "pump-2"]

    @classmethod
    def setUpClass(cls):
        # A site behind one address, as docs/configuration.md has it; all else stands at its default.
        limits = "[limits]\nconnects_per_second_per_ip = 0\n"
        cls.options = {"sections": limits}
        super().setUpClass()

    def connect(self, device, token):
        with wire.Session(self.gateway.port, wire.Connect(5, device, device, token).packet()) as session:
            return session.code()

    def test_the_real_device_behind_the_same_address_connects_while_ten_thousand_guesses_run(self):
        resident = self.resident_kib()
        with concurrent.futures.ThreadPoolExecutor(GUESSERS) as guessers:
            runs = [guessers.submit(self.guess, part) for part in range(GUESSERS)]
            known = self.gateway.jwt("pump-2")
            rounds = 0
            while not all(run.done() for run in runs):
                # The device that is guessed at, and another one; a SAS token, a JWT that was seen, and one that was not.
                self.assertEqual(self.connect("pump-1", tokens.sas("pump-1")), 0)
                self.assertEqual(self.connect("pump-2", known), 0)
                self.until_admitted("pump-1", self.gateway.jwt("pump-1", jti=f"renewed-{rounds}"))
                rounds += 1
            codes = [code for run in runs for code in run.result()]
        self.assertGreater(rounds, 20)
        self.assertEqual(len(codes), GUESSES)
        self.assertLessEqual(set(codes), {0x87, BANNED, TRY_AGAIN})
        self.assertGreater(codes.count(BANNED), 3000, "the burst is 3,000 guesses")
        self.assertEqual(self.gateway.metric("tollgate_bans_total"), 1)
        self.assertLess(self.resident_kib() - resident, 24 * 1024)
        self.assert_one_ban_is_shown()

    def guess(self, part):
        """SAS tokens by another key, and JWTs by another: each one new."""
        stranger = forge.new_p256()
        codes = []
        for n in range(GUESSES // GUESSERS):
            if n % 5 == 0:
                token = tokens.json_web_token("pump-1", stranger, jti=f"guess-{part}-{n}")
            else:
                token = forge.sas(forge.secret(f"guess {part} {n}"), "localhost/devices/pump-1", int(time.time()) + 60)
            codes.append(self.connect("pump-1", token))
        return codes

    def until_admitted(self, device, token):
        """A device that is asked to try again does; it is never told that it is not authorized."""
        def answered():
            code = self.connect(device, token)
            self.assertIn(code, (0, TRY_AGAIN))
            return code == 0
        place.until("the device to be admitted", answered)

    def assert_one_ban_is_shown(self):
        token = (self.gateway.folder / "var/admin.token").read_text().strip()
        request = place.urllib.request.Request(
            f"http://127.0.0.1:{self.gateway.admin_port}/v1/refusals?last=1000", headers={"Authorization": f"Bearer {token}"}
        )
        with place.urllib.request.urlopen(request, timeout=20) as answer:
            refusals = json.loads(answer.read())["refusals"]
        bans = [entry for entry in refusals if entry["tag"] == "banned"]
        self.assertEqual(len(bans), 1, bans[:3])
        self.assertRegex(bans[0]["detail"], r"^127\.0\.0\.1 guesses: \d{4} in this ban.* lifts \d+ s after the last")

    def resident_kib(self):
        status = pathlib.Path(f"/proc/{self.gateway.program.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

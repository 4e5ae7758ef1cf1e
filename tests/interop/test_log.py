"""Every gateway of these tests logs at TRACE, and its log is searched for every secret when it ends: the search finds."""

import place
import tokens
import wire
from case import AtAGateway


class Planted(AtAGateway):
    devices = ["d0"]

    def test_a_secret_that_is_logged_is_found(self):
        planted = b"planted-0123456789-abcdef"
        packet = wire.Connect(5, planted, password=tokens.sas("d0")).packet()
        with wire.Session(self.gateway.port, packet) as session:
            self.assertEqual(session.code(), 0x85)
        place.until("the line", lambda: planted in self.gateway.program.log.read_bytes())
        self.gateway.search_log()
        tokens.SECRETS.add(planted)
        self.addCleanup(tokens.SECRETS.discard, planted)
        with self.assertRaisesRegex(AssertionError, "holds 1 secrets"):
            self.gateway.search_log()

    def test_all_forms_of_tokens_and_keys_are_searched_for(self):
        key, token = tokens.key_of("d0"), tokens.sas("d0")
        raw = tokens.base64.b64decode(key)
        signature = token.split("sig=")[1].split("&")[0]
        for form in (key, raw.hex(), token, signature, tokens.urllib.parse.unquote(signature), self.gateway.jwt("d0")):
            with self.subTest(form=form[:20]):
                self.assertEqual(len(place.secrets_in(f"a line with {form} in it".encode())) > 0, True)
        self.assertEqual(place.secrets_in(b"a line with d0 and 127.0.0.1:1883 in it"), [])

    def test_what_stands_in_files_is_searched_for(self):
        folder = place.new_folder()
        (folder / "var").mkdir()
        planted = ["0123456789abcdefPlanted/Key+1234567890abcd0=", "tgr_0123456789abcdefghijKLMNOP"]
        place.write_secret(folder / "policy.primary", planted[0] + "\n")
        place.write_secret(folder / "var/other.token", planted[1])
        place.remember_files(folder)
        raw = tokens.base64.b64decode(planted[0])
        self.addCleanup(lambda: tokens.SECRETS.difference_update(text.encode() for text in planted))
        for form in (planted[0], planted[0].rstrip("="), raw.hex(), planted[1]):
            self.assertTrue(place.secrets_in(f"a line with {form} in it".encode()), form)

    def test_the_log_is_at_trace(self):
        place.until("a TRACE line", lambda: b"TRACE" in self.gateway.program.log.read_bytes())

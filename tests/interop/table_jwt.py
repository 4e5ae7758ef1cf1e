"""JSON Web Tokens, good and hostile: every line of the rules, allowed and denied."""

import base64
import json

import forge
from forge import b64url
from table_place import (
    DAY, HMAC_KIDS, ISSUED_BEFORE, LEAVE_OUT, RSA_KIDS, SKEW, Case, authority, changed, claims_of,
)

MALFORMED, INVALID, CLAIM = "credential_malformed", "signature_invalid", "claim_invalid"
MISMATCH, UNKNOWN = "algorithm_mismatch", "key_unknown"
KIDS = {
    **{kid: ("hmac", algorithm) for kid, algorithm in HMAC_KIDS.items()},
    **{kid: ("rsa", algorithm) for kid, algorithm in RSA_KIDS.items()},
    "e256": ("ec", "ES256"), "e384": ("ec", "ES384"), "ed": ("ed", "EdDSA"),
}


def cases():
    for family in (algorithms, confusion, headers, kids, parts, dates, texts, duplicates, audiences, devices, scopes, signatures,
                   revoked, edges):
        yield from family()


def made(issuer="single", claims=None, header=None, **other):
    return lambda now: authority().jwt(issuer, now, claims(now) if callable(claims) else claims, header, **other)


def edited(change, issuer="single"):
    """A good token's text, changed."""
    return lambda now: change(authority().jwt(issuer, now))


def algorithms():
    for kid, (issuer, algorithm) in KIDS.items():
        yield Case(f"{algorithm}: by PyJWT", None, lambda now, i=issuer, kid=kid: authority().honest(i, now, kid))
        yield Case(f"{algorithm}: by hand", None, made(issuer, kid=kid))
        yield Case(f"{algorithm}: payload of another", INVALID, lambda now, i=issuer, kid=kid: swapped(i, now, kid))
    for kid in ("j-ec", "j-rsa", "j-ed"):
        yield Case(f"JWKS: {kid}", None, lambda now, kid=kid: authority().honest("jwks", now, kid))
    yield Case("JWKS: an unknown kid", UNKNOWN, made("jwks", header={"kid": "j-none"}))
    yield Case("JWKS: the kid of another key", MISMATCH, made("jwks", header={"kid": "j-rsa"}, kid="j-ec"))
    yield Case("one key without a kid", None, lambda now: authority().honest("single", now, "only"))


def swapped(issuer, now, kid):
    """The claims of one token with the signature of another."""
    one = authority().jwt(issuer, now, kid=kid)
    other = authority().jwt(issuer, now, {"exp": now + 1800}, kid=kid)
    return one.rsplit(".", 1)[0] + "." + other.rsplit(".", 1)[1]


def confusion():
    """RFC 8725 §2.1: what the header names is never what decides."""
    publics = {"r256": "rsa", "p256": "rsa", "e256": "ec", "e384": "ec", "ed": "ed", "j-ec": "jwks"}
    for kid, issuer in publics.items():
        for size in ("256", "384", "512"):
            for form, public in (("PEM", forge.public_pem), ("DER", forge.public_der)):
                def confused(now, kid=kid, issuer=issuer, size=size, public=public):
                    key = public(authority().issuers[issuer].keys[kid][1])
                    return authority().jwt(issuer, now, header={"alg": f"HS{size}"}, kid=kid, sign=forge.signer(f"HS{size}", key))
                if form == "PEM" or size == "256":
                    yield Case(f"{kid} with HS{size} over the public key's {form}", MISMATCH, confused)
    for kid, (issuer, own) in KIDS.items():
        for algorithm in ("HS256", "RS256", "PS256", "ES256", "ES384", "EdDSA"):
            if algorithm != own:
                yield Case(f"{kid} said to be {algorithm}", MISMATCH, made(issuer, header={"alg": algorithm}, kid=kid))
    for name in ("none", "None", "NONE", "nOnE", "", "hs256", "ES256 ", " ES256", "ES256K", "ES512", "RS1", "HS1", "RSA-OAEP", "dir", "ES256\0"):
        yield Case(f"alg {name!r}, signed", MISMATCH, made(header={"alg": name}))
        if name.lower() == "none":
            yield Case(f"alg {name!r}, no signature", MALFORMED, made(header={"alg": name}, sign=lambda _: b""))
    for value in (None, 1, True, ["ES256"], {"ES256": 1}):
        yield Case(f"alg {value!r}", MALFORMED, made(header={"alg": value}))
    yield Case("no alg", MALFORMED, made(header={"alg": LEAVE_OUT}))
    yield Case("Alg in upper case", MALFORMED, made(header={"alg": LEAVE_OUT, "ALG": "ES256"}))


def headers():
    key = authority().stranger.public_key().public_numbers()
    coordinates = [b64url(n.to_bytes(32, "big")) for n in (key.x, key.y)]
    evil = {
        "jwk": {"kty": "EC", "crv": "P-256", "x": coordinates[0], "y": coordinates[1]},
        "jku": "https://evil.example/jwks.json", "x5u": "https://evil.example/c.pem", "x5c": ["MIIB"], "x5t": "AAAA",
    }
    for name, value in evil.items():
        yield Case(f"{name} of a stranger who signs", INVALID, lambda now, n=name, v=value: authority().jwt(
            "single", now, header={n: v}, sign=forge.signer("ES256", authority().stranger)))
        yield Case(f"{name} beside a good signature is not looked at", None, made(header={name: value}))
    for value in ([], ["exp"], ["b64"], "exp", None, True):
        yield Case(f"crit {value!r}", MALFORMED, made(header={"crit": value}))
    for value in (False, True, None):
        yield Case(f"b64 {value!r}", MALFORMED, made(header={"b64": value}))
    for value in ("JWT", "jwt", "at+jwt", ""):
        yield Case(f"typ {value!r}", None, made(header={"typ": value}))
    yield Case("no typ", None, made(header={"typ": LEAVE_OUT}))
    for value in (1, None, ["JWT"], {}):
        yield Case(f"typ {value!r}", MALFORMED, made(header={"typ": value}))
    yield Case("an unknown member", None, made(header={"x": {"y": [1, 2]}}))
    good = '{"alg":"ES256","typ":"JWT"}'
    for name, text in {
        "is a list": "[]", "is a text": '"ES256"', "is a number": "1", "is null": "null", "is empty": "", "is no JSON": "{alg:ES256}",
        "has a comma too many": '{"alg":"ES256",}', "has a comment": '{"alg":"ES256"/*x*/}', "has single quotes": "{'alg':'ES256'}",
        "ends early": '{"alg":"ES256"', "goes on": good + "x", "is two": good + good, "begins with a byte order mark": "\ufeff" + good,
        "has alg twice": '{"alg":"ES256","alg":"ES256"}', "has alg twice, none first": '{"alg":"none","alg":"ES256"}',
        "has alg twice, none last": '{"alg":"ES256","alg":"none"}', "has alg twice, once escaped": '{"alg":"ES256","\\u0061lg":"none"}',
        "has 300 members": "{" + ",".join(f'"{n}":0' for n in range(300)) + "}", "is 200 deep": '{"a":' * 200 + "1" + "}" * 200,
    }.items():
        yield Case(f"header {name}", MALFORMED, made(header=text))
    yield Case("header is not UTF-8", MALFORMED, made(header=b'{"alg":"ES256","typ":"\xff"}'))
    yield Case("header with spaces", None, made(header='{ "alg" : "ES256" ,\n"typ":"JWT" }'))


def kids():
    yield Case("no kid, one key", None, made())
    yield Case("a kid, where the key has none", UNKNOWN, made(header={"kid": "only"}))
    yield Case("no kid, several keys", UNKNOWN, made("ec", header={"kid": LEAVE_OUT}))
    for kid in ("e999", "E256", "e25", "e2566", "k1", "x" * 128, "~._-", "e256.pem", "0"):
        yield Case(f"kid {kid[:20]!r}", UNKNOWN, made("ec", header={"kid": kid}))
    for kid in ("", " e256", "e256 ", "../../etc/passwd", "/dev/null", "C:\\key", "file:///etc/passwd", "https://evil.example/key",
                "' OR '1'='1", "e256'; DROP TABLE keys;--", "e256\0", "e256\n", "$(id)", "`id`", "{{7*7}}", "e256/../e384", "*", "%65256",
                "é256", "x" * 129, "x" * 9000):
        yield Case(f"kid {kid[:24]!r}, {len(kid)}", MALFORMED, made("ec", header={"kid": kid}))
    for kid in (None, 0, 1, True, ["e256"], {"kid": "e256"}):
        yield Case(f"kid {kid!r}", MALFORMED, made("ec", header={"kid": kid}))
    yield Case("kid twice", MALFORMED, made("ec", header='{"alg":"ES256","kid":"e256","kid":"e256"}'))
    yield Case("kid twice, another", MALFORMED, made("ec", header='{"alg":"ES256","kid":"e256","kid":"e384"}'))
    yield Case("the kid of another issuer", UNKNOWN, made("ec", header={"kid": "r256"}))
    yield Case("the iss of another issuer", UNKNOWN, made("rsa", claims={"iss": "https://ec.example"}))
    yield Case("the kid of the other curve", MISMATCH, made("ec", header={"kid": "e384"}))


def parts():
    for name, change in {
        "one": lambda t: t.replace(".", ""), "two": lambda t: t.rsplit(".", 1)[0], "four": lambda t: t + ".x", "five (JWE)": lambda t: t + ".x.y",
        "five of a JWE": lambda t: b64url(b'{"alg":"dir","enc":"A256GCM"}') + "..AAAA.AAAA.AAAA", "six": lambda t: t + ".x.y.z",
        "a dot before": lambda t: "." + t, "a dot behind": lambda t: t + ".", "no signature": lambda t: t.rsplit(".", 1)[0] + ".",
        "no payload": lambda t: "..".join((t.split(".")[0], t.split(".")[2])), "no header": lambda t: "." + t.split(".", 1)[1], "dots": lambda t: "..",
        "Bearer before": lambda t: "Bearer " + t, "bearer: before": lambda t: "bearer:" + t, "a space before": lambda t: " " + t,
        "a space behind": lambda t: t + " ", "a newline behind": lambda t: t + "\n", "a NUL behind": lambda t: t + "\0", "quotes around": lambda t: f'"{t}"',
        "a space within": lambda t: t.replace(".", " .", 1), "a newline within": lambda t: t[:30] + "\n" + t[30:], "a + for -": lambda t: t[:-1] + "+",
        "a / for _": lambda t: t[:-1] + "/", "padding": lambda t: t + "=", "padding of the header": lambda t: t.replace(".", "=.", 1),
        "escaped dots": lambda t: t.replace(".", "%2E"), "full stops": lambda t: t.replace(".", "。"), "SAS before": lambda t: "SharedAccessSignature " + t,
        "a % within": lambda t: t.replace(".", "%20.", 1), "the word": lambda t: "a.b.c", "17 KiB": lambda t: t + "A" * 17_000,
    }.items():
        yield Case(f"parts: {name}", MALFORMED, edited(change))
    # The last character of 64 bytes in base64url has four bits that say nothing: only zeros are canonical.
    yield Case("parts: signature that is not canonical", MALFORMED, edited(lambda t: t[:-1] + {"A": "B", "Q": "R", "g": "h", "w": "x"}[t[-1]]))
    yield Case("parts: signature not UTF-8", MALFORMED, lambda now: authority().jwt("single", now).encode()[:-1] + b"\xff")
    for name, text in {"is a list": "[]", "is a text": '"x"', "is null": "null", "is empty": "", "is no JSON": "exp=1", "ends early": '{"exp":1',
                       "is not UTF-8": b'{"sub":"\xff"}', "is 200 deep": '{"a":' * 200 + "1" + "}" * 200}.items():
        yield Case(f"payload {name}", MALFORMED, made(claims=text))
    yield Case("payload is an empty object", CLAIM, made(claims="{}"))


def dates():
    wrong = {"a text": "never", "a number as text": "4000000000", "a date": "2026-11-22T00:00:00Z", "true": True, "a list": [4_000_000_000],
             "an object": {"$date": 1}, "negative": -1, "a negative fraction": -0.5, "null": None}
    for name in ("exp", "nbf", "iat"):
        for what, value in wrong.items():
            yield Case(f"{name} is {what}", CLAIM, made(claims={name: value}))
        for number in ("1e300", "99999999999999999999999999", "1e16"):
            yield Case(f"{name} is {number}", CLAIM, lambda now, n=name, v=number: with_number(now, n, v))
        for number in ("1e400", "-1e400", "NaN", "Infinity", "0x7fffffff", "01", "+1", "1."):
            yield Case(f"{name} is {number}", MALFORMED, lambda now, n=name, v=number: with_number(now, n, v))
        yield Case(f"{name} with a fraction", None, made(claims=lambda now, n=name: {n: claims_of(authority().issuers["single"], now, "x").get(n, now) + 0.5}))
    yield Case("exp as 1e9 and more", None, lambda now: with_number(now, "exp", f"{(now + 600) / 1e9:.9f}e9"))
    yield Case("no exp", CLAIM, made(claims={"exp": LEAVE_OUT}))
    yield Case("no exp, where the issuer asks for it alone", CLAIM, made("loose", {"exp": LEAVE_OUT}))
    yield Case("no iat, where it is required", CLAIM, made(claims={"iat": LEAVE_OUT}))
    yield Case("no iat, where it is not", None, made("loose", {"iat": LEAVE_OUT}))
    yield Case("exp 0", "expired", made("loose", {"exp": 0, "iat": LEAVE_OUT}))
    yield Case("exp in milliseconds", "lifetime_too_long", made(claims=lambda now: {"exp": (now + 600) * 1000}))
    yield Case("exp in milliseconds, no iat", "lifetime_too_long", made("loose", lambda now: {"exp": (now + 600) * 1000, "iat": LEAVE_OUT}))
    yield Case("exp is iat", CLAIM, made(claims=lambda now: {"exp": now, "iat": now}))
    yield Case("exp before iat", CLAIM, made(claims=lambda now: {"exp": now + 9, "iat": now + 10}))
    yield Case("exp one second after iat", None, made(claims=lambda now: {"exp": now + 1, "iat": now}))
    yield Case("iat 0", "lifetime_too_long", made(claims={"iat": 0}))
    yield Case("nbf 0", None, made(claims={"nbf": 0}))
    yield Case("nbf after exp", "not_yet_valid", made(claims=lambda now: {"nbf": now + 7200}))


def with_number(now, name, number):
    """A number as no library would write it."""
    claims = claims_of(authority().issuers["single"], now, "pump-1") | {name: "@"}
    return authority().jwt("single", now, json.dumps(claims, separators=(",", ":")).replace('"@"', number))


def texts():
    for name in ("iss", "sub", "jti"):
        for what, value in {"a number": 1, "true": True, "a list": ["x"], "an object": {}, "null": None}.items():
            yield Case(f"{name} is {what}", CLAIM, made(claims={name: value}))
    yield Case("no iss", "issuer_unknown", made(claims={"iss": LEAVE_OUT}))
    for iss in ("", "https://single.example/", "HTTPS://SINGLE.EXAMPLE", "https://single.example ", "single", "https://sing1e.example",
                "https://single.example.evil.example", "https://single.examplе", "https://elsewhere.example"):
        yield Case(f"iss {iss!r}", "issuer_unknown", made(claims={"iss": iss}))
    yield Case("no sub", CLAIM, made(claims={"sub": LEAVE_OUT}))
    yield Case("no jti, where it is required", CLAIM, made(claims={"jti": LEAVE_OUT}))
    yield Case("no jti, where it is not", None, made("loose", {"jti": LEAVE_OUT}))
    for length, want in [(0, CLAIM), (1, None), (127, None), (128, None), (129, CLAIM), (5000, CLAIM)]:
        yield Case(f"jti of {length} bytes", want, made(claims={"jti": "j" * length}))
    yield Case("jti of 65 letters of two bytes", CLAIM, made(claims={"jti": "é" * 65}))
    yield Case("jti with a newline", None, made(claims={"jti": 'a\n{"level":"ERROR"}\x1b[31m'}))
    yield Case("an unknown claim", None, made(claims={"x": {"y": [1, None, 1.5, -1]}}))
    yield Case("cnf of no kind that is known", None, made(claims={"azp": "x", "roles": ["admin"]}))


def duplicates():
    def twice(name, value):
        def make(now):
            claims = claims_of(authority().issuers["single"], now, "pump-1")
            return authority().jwt("single", now, json.dumps(claims)[:-1] + f',"{name}":{json.dumps(value)}}}')
        return make
    for name, value in {"exp": 4_000_000_000, "sub": "pump-10", "iss": "https://ec.example", "aud": "elsewhere", "jti": "x", "iat": 1,
                        "s\\u0075b": "pump-10", "\\u0065xp": 4_000_000_000}.items():
        yield Case(f"claim {name} twice", MALFORMED, twice(name, value))
    yield Case("claims: a name twice, deep within", MALFORMED, lambda now: with_number(now, "x", '{"a":[{"b":1,"b":2}]}'))
    yield Case("claims: the same name at two depths", None, lambda now: with_number(now, "x", '{"exp":1,"x":{"exp":2}}'))
    yield Case("claims: 300 members", MALFORMED, made(claims={str(n): n for n in range(300)}))


def audiences():
    wrong = "audience_mismatch"
    for name, value, want in [
        ("one of two", "site-b", None), ("a list with ours", ["x", "localhost"], None), ("a list of ours", ["localhost", "site-b"], None),
        ("another", "elsewhere", wrong), ("a list of others", ["x", "y"], wrong), ("an empty list", [], wrong), ("empty", "", wrong),
        ("in upper case", "LOCALHOST", wrong), ("with a slash", "localhost/", wrong), ("longer", "localhost.example", wrong),
        ("both in one text", "localhost site-b", wrong), ("absent", LEAVE_OUT, wrong), ("a wildcard", "*", wrong),
        ("a number", 1, CLAIM), ("an object", {"localhost": 1}, CLAIM), ("a list with a number", ["localhost", 1], CLAIM),
        ("a list within a list", [["localhost"]], CLAIM), ("null", None, CLAIM), ("true", True, CLAIM),
    ]:
        yield Case(f"aud: {name}", want, made(claims={"aud": value}))
    yield Case("aud: of another issuer's list", wrong, made("loose", {"aud": "site-b"}))


def devices():
    good = lambda device: lambda now: authority().honest("single", now, "only", device)
    yield Case("jwt of another device", "device_mismatch", good("pump-10"))
    yield Case("jwt of pump-1, presented by its sibling", "device_mismatch", good("pump-1"), "pump-10")
    yield Case("jwt of a device without a key", None, good("keyless"), "keyless")
    yield Case("jwt of a group's device", None, good("line7-5"), "line7-5")
    yield Case("jwt of a disabled device", "device_disabled", good("off"), "off")
    yield Case("jwt of a disabled device of a group", "device_disabled", good("line7-off"), "line7-off")
    yield Case("jwt of an unknown device", "device_unknown", good("nobody"), "nobody")
    yield Case("jwt of an id in upper case", "device_unknown", good("PUMP-1"), "PUMP-1")
    yield Case("jwt for a device that takes SAS alone", "credential_kind_not_accepted", good("only-sas"), "only-sas")
    yield Case("jwt for a device that takes JWT alone", None, good("only-jwt"), "only-jwt")
    for sub in ("pump-1/x", "devices/pump-1"):
        yield Case(f"sub {sub!r}, which could be a module", "device_unknown", made(claims={"sub": sub}))
    for sub in ("", "pump-1 ", "pump-1/", "pump-1/x/y", "+", "#", "pump-1\0", "x" * 129, "/devices/pump-1", "рump-1", "pump-1\n"):
        yield Case(f"sub {sub[:20]!r}", CLAIM, made(claims={"sub": sub}))
    yield Case("device claim: its own name", None, made("claim"))
    yield Case("device claim: sub does not count", CLAIM, made("claim", {"dev": LEAVE_OUT, "sub": "pump-1"}))
    yield Case("device claim: sub of another does not count", None, made("claim", {"sub": "pump-10"}))
    for value in (1, True, None, ["pump-1"], {}):
        yield Case(f"device claim: {value!r}", CLAIM, made("claim", {"dev": value}))


def scopes():
    mine, other = "devices/pump-1/messages/events/#", "devices/pump-2/messages/events/#"
    for name, value in {
        "both": {"pub": [mine], "sub": []}, "pub alone": {"pub": [mine]}, "sub alone": {"sub": ["a/+/#"]}, "nothing": {},
        "wider": {"pub": ["#"], "sub": ["#"]}, "elsewhere": {"pub": [other]}, "absent": LEAVE_OUT,
    }.items():
        yield Case(f"acl {name}", None, made("narrow", {"acl": value}))
    for name, value in {
        "is null": None, "is a text": "pub", "is a list": [mine], "is true": True, "is a number": 1, "has an unknown side": {"pub": [mine], "publish": []},
        "has PUB in upper case": {"PUB": [mine]}, "has a text for a list": {"pub": mine}, "has null for a list": {"pub": None},
        "has a number in a list": {"pub": [1]}, "has an empty filter": {"pub": [""]}, "has # in the middle": {"pub": ["a/#/b"]},
        "has + within a level": {"sub": ["a+/b"]}, "has a NUL": {"sub": ["a\0b"]}, "has a list within a list": {"sub": [["a"]]},
        "has a good filter and a bad one": {"pub": [mine, "a/#/b"]}, "has an object for a list": {"pub": {"0": mine}},
    }.items():
        yield Case(f"acl {name}", CLAIM, made("narrow", {"acl": value}))
    yield Case("acl malformed, where none is asked for", None, made(claims={"acl": "pub"}))


def signatures():
    own = lambda: authority().p256
    def by(make, issuer="single", kid=""):
        return lambda now: authority().jwt(issuer, now, kid=kid, sign=make)
    sign = lambda message: forge.signer("ES256", own())(message)
    yield Case("signature: its ECDSA twin", None, lambda now: forge.twin(authority().jwt("single", now)))
    for name, make in {
        "of a stranger": lambda m: forge.signer("ES256", authority().stranger)(m), "of zeros": lambda m: bytes(64), "of ones": lambda m: b"\xff" * 64,
        "r is 0": lambda m: bytes(32) + sign(m)[32:], "s is 0": lambda m: sign(m)[:32] + bytes(32), "r and s exchanged": lambda m: sign(m)[32:] + sign(m)[:32],
        "r is the order": lambda m: bytes.fromhex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551") + sign(m)[32:],
        "DER": lambda m: own().sign(m, forge.ec.ECDSA(forge.HASHES["256"])), "a byte short": lambda m: sign(m)[:-1], "a byte long": lambda m: sign(m) + b"\0",
        "one byte": lambda m: b"x", "twice": lambda m: sign(m) * 2, "over SHA-384": lambda m: forge.raw_ecdsa(own(), m, forge.HASHES["384"]),
        "over the payload alone": lambda m: sign(m.split(b".")[1]), "over the header alone": lambda m: sign(m.split(b".")[0]),
        "over more": lambda m: sign(m + b"."), "of the other curve": lambda m: forge.raw_ecdsa(authority().p384, m, forge.HASHES["256"]),
        "HMAC with the claims as key": lambda m: forge.signer("HS256", m)(m),
    }.items():
        yield Case(f"signature: ES256 {name}", INVALID, by(make))
    rsa = lambda algorithm: lambda m: forge.signer(algorithm, authority().rsa)(m)
    for name, kid, make in [
        ("PSS for PKCS#1", "r256", rsa("PS256")), ("PKCS#1 for PSS", "p256", rsa("RS256")), ("SHA-512 for SHA-256", "r256", rsa("RS512")),
        ("SHA-256 for SHA-384", "r384", rsa("RS256")), ("PSS with SHA-512 for SHA-256", "p256", rsa("PS512")),
        ("of zeros", "r256", lambda m: bytes(256)), ("of one", "r256", lambda m: bytes(255) + b"\1"), ("of ones", "r256", lambda m: b"\xff" * 256),
        ("a byte short", "r256", lambda m: rsa("RS256")(m)[1:]), ("a zero before it", "r256", lambda m: b"\0" + rsa("RS256")(m)),
        ("HMAC", "r256", lambda m: forge.signer("HS256", b"k" * 32)(m)),
    ]:
        yield Case(f"signature: RSA {kid} {name}", INVALID, by(make, "rsa", kid))
    order = 2**252 + 27742317777372353535851937790883648493
    malleable = lambda m: (lambda s: s[:32] + (int.from_bytes(s[32:], "little") + order).to_bytes(32, "little"))(authority().ed.sign(m))
    for name, make in {"with S plus the order": malleable, "of zeros": lambda m: bytes(64), "of the small point": lambda m: b"\1" + bytes(63),
                       "a byte short": lambda m: authority().ed.sign(m)[:-1], "of a stranger": lambda m: forge.new_ed25519().sign(m)}.items():
        yield Case(f"signature: Ed25519 {name}", INVALID, by(make, "ed", "ed"))
    for name, key in {"empty": b"", "another": forge.secret("h384") * 2, "the text of the key": base64.b64encode(forge.secret("h256") * 2),
                      "half of the key": forge.secret("h256"), "the kid": b"h256", "secret": b"secret", "changeme": b"changeme"}.items():
        yield Case(f"signature: HS256 with {name}", INVALID, by(forge.signer("HS256", key), "hmac", "h256"))
    for size in ("16", "31"):
        yield Case(f"signature: HS256 cut to {size} bytes", INVALID,
                   by(lambda m, n=int(size): forge.signer("HS256", forge.secret("h256") * 2)(m)[:n], "hmac", "h256"))
    yield Case("signature: a header that only looks the same", INVALID, edited(
        lambda t: b64url(b'{"typ":"JWT","alg":"ES256"}') + "." + t.split(".", 1)[1]))


def revoked():
    yield Case("jti on the list", "revoked", made(claims={"jti": "stolen"}))
    yield Case("jti on the list, of another issuer too", "revoked", made("loose", {"jti": "stolen"}))
    yield Case("jti on the list, its twin", "revoked", lambda now: forge.twin(authority().jwt("single", now, {"jti": "stolen"})))
    yield Case("jti in upper case", None, made(claims={"jti": "STOLEN"}))
    yield Case("jti on the list, expired", "expired", made(claims=lambda now: {"jti": "stolen", "iat": now - 7200, "exp": now - 3600}))
    yield Case("jti on the list, wrong signature", INVALID, made(claims={"jti": "stolen"}, sign=lambda _: bytes(64)))
    yield Case("jti of one issuer, that one", "revoked", made("single", {"jti": "of-single"}))
    yield Case("jti of one issuer, another", None, made("loose", {"jti": "of-single"}))
    yield Case("jti whose entry has ended", None, made(claims={"jti": "ended"}))
    yield Case("jti whose entry has not ended", "revoked", made(claims={"jti": "not-ended"}))
    yield Case("device on the list", "revoked", lambda now: authority().honest("single", now, "only", "scrapped"), "scrapped")
    yield Case("key on the list", "revoked", made("hmac", kid="withdrawn"))
    for offset, want in [(-1, "revoked"), (0, None), (1, None)]:
        iat = ISSUED_BEFORE + offset
        yield Case(f"iat {offset:+} s from what is revoked of an issuer", want, made("claim", {"iat": iat}))
        yield Case(f"iat {offset:+} s from what is revoked of a device", want, made("single", {"iat": iat}, device="renewed"), "renewed")
    yield Case("no iat, where older tokens are revoked", CLAIM, made("claim", {"iat": LEAVE_OUT}))


def edges():
    """Seconds around each limit, decided within the second for which they are made."""
    old = {"iat": -120}
    def at(issuer="single", **offsets):
        return made(issuer, lambda now: {name: LEAVE_OUT if by is None else now + by for name, by in offsets.items()})
    for by, want in [(-SKEW - 1, "expired"), (-SKEW, "expired"), (-SKEW + 1, None), (-1, None), (0, None), (1, None)]:
        yield Case(f"exp at now {by:+}", want, at(exp=by, **old), edge=True)
    for by, want in [(-1, None), (0, None), (1, None), (SKEW - 1, None), (SKEW, None), (SKEW + 1, "not_yet_valid")]:
        yield Case(f"nbf at now {by:+}", want, at(nbf=by), edge=True)
    for by, want in [(-1, None), (0, None), (1, None), (SKEW - 1, None), (SKEW, None), (SKEW + 1, "issued_in_future")]:
        yield Case(f"iat at now {by:+}", want, at(iat=by), edge=True)
    for by, want in [(SKEW - 1, None), (SKEW, None), (SKEW + 1, "lifetime_too_long")]:
        yield Case(f"exp a day and {by} s after iat", want, at(iat=-10, exp=DAY - 10 + by), edge=True)
        yield Case(f"exp a day and {by} s from now, no iat", want, at("loose", iat=None, exp=DAY + by), edge=True)
        yield Case(f"exp five minutes and {by} s after iat", want, at("short", iat=0, exp=300 + by), edge=True)

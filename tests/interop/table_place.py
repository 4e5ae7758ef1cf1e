"""Who may sign what at the gateway of the table: the rules that its cases are tried against."""

import base64
import dataclasses
import functools
import json
import time

import forge
from place import write_secret

ISS = "https://%s.example"
DAY = 86_400
SKEW = 30
# Of the entries that revoke by time of issue: half an hour before this run.
ISSUED_BEFORE = int(time.time()) - 1800
RSA_KIDS = {"r256": "RS256", "r384": "RS384", "r512": "RS512", "p256": "PS256", "p384": "PS384", "p512": "PS512"}
HMAC_KIDS = {"h256": "HS256", "h384": "HS384", "h512": "HS512"}
LONG_ID = "x" * 128
ODD_ID = "a-b.c_d:e%f=g@h!i'j(k)l,m"
# Device, whether it has a key of its own, and what else stands at it.
DEVICES = {
    "pump-1": "", "pump-10": "", "pump-2": "", LONG_ID: "", ODD_ID: "",
    "off": "enabled = false",
    "only-sas": 'accept = ["sas"]',
    "only-jwt": 'accept = ["jwt"]',
    "brief": 'token_lifetime_max = "10m"',
    "scrapped": "", "renewed": "",
    "line7-own": "",
}


@dataclasses.dataclass(frozen=True)
class Issuer:
    """An issuer with its keys: kid → (algorithm, what signs)."""

    name: str
    keys: dict
    more: str = ""

    @property
    def iss(self):
        return ISS % self.name


class Authority:
    """All keys; made once a run, since RSA keys take their time."""

    def __init__(self):
        self.rsa, self.p256, self.p384 = forge.new_rsa(), forge.new_p256(), forge.new_p384()
        self.ed, self.stranger = forge.new_ed25519(), forge.new_p256()
        # Keys that the device `held` signs with: kid → (algorithm, key, what stands at it).
        at = lambda seconds: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        self.held = {
            "h1": ("ES256", forge.new_p256(), ""),
            "bare": ("RS256", self.rsa, 'algorithm = "RS256"'),
            "later": ("ES256", forge.new_p256(), f'not_before = "{at(3600)}"'),
            "over": ("ES256", forge.new_p256(), f'not_after = "{at(-3600)}"'),
            "dated": ("EdDSA", forge.new_ed25519(), f'not_before = "{at(-3600)}"\nnot_after = "{at(7200)}"'),
            "withdrawn": ("ES384", forge.new_p384(), ""),
        }
        self.issuers = {issuer.name: issuer for issuer in self._issuers()}

    def _issuers(self):
        shared = {kid: (algorithm, forge.secret(kid) * 2) for kid, algorithm in HMAC_KIDS.items()}
        yield Issuer("hmac", shared | {"withdrawn": ("HS256", forge.secret("withdrawn"))})
        yield Issuer("rsa", {kid: (algorithm, self.rsa) for kid, algorithm in RSA_KIDS.items()})
        yield Issuer("ec", {"e256": ("ES256", self.p256), "e384": ("ES384", self.p384)})
        yield Issuer("ed", {"ed": ("EdDSA", self.ed)})
        yield Issuer("jwks", {"j-ec": ("ES256", self.p256), "j-rsa": ("RS256", self.rsa), "j-ed": ("EdDSA", self.ed)})
        one = {"only": ("ES256", self.p256)}
        yield Issuer("single", one, 'audience = ["localhost", "site-b"]\nrequire = ["exp", "iat", "jti"]\n')
        yield Issuer("loose", one, 'require = ["exp"]\n')
        yield Issuer("narrow", one, 'scope_claim = "acl"\n')
        yield Issuer("claim", one, 'device_claim = "dev"\n')
        yield Issuer("short", one, 'token_lifetime_max = "5m"\n')

    def identities(self, folder):
        """identities.toml behind the devices that the tests share, and the files that it names."""
        text = "".join(self._issuer(folder, issuer) for issuer in self.issuers.values())
        for device, more in DEVICES.items():
            text += f'[[device]]\nid = "{device}"\nprimary_key = "{forge.key_text(device)}"\n{more}\n'
        text += f'[[device]]\nid = "two"\nprimary_key = "{forge.key_text("two")}"\n'
        text += f'secondary_key = "{forge.key_text("two/secondary")}"\n[[device]]\nid = "keyless"\n'
        text += '[[device]]\nid = "line7-off"\nenabled = false\n'
        text += '[[device]]\nid = "held"\n'
        for kid, (_, key, more) in self.held.items():
            (folder / f"held-{kid}").write_bytes(forge.public_pem(key))
            named = "" if kid == "bare" else f'kid = "{kid}"\n'
            text += f'[[device.public_key]]\n{named}file = "held-{kid}"\n{more}\n'
        for module in ("pump-1/camera", "pump-1/camera2", "off/camera", "scrapped/camera"):
            text += f'[[module]]\nid = "{module}"\nprimary_key = "{forge.key_text(module)}"\n'
        for name, resource, more in [
            ("device", "localhost", f'secondary_key = "{forge.key_text("policy device/secondary")}"'),
            ("narrow", "localhost/devices/pump-1", 'rights = ["publish"]'),
            ("short", "localhost", 'token_lifetime_max = "5m"'),
            ("withdrawn", "localhost", ""),
            ("dated", "localhost", 'token_lifetime_max = "1h"'),
        ]:
            key = forge.key_text(f"policy {name}")
            text += f'[[policy]]\nname = "{name}"\nresource = "{resource}"\nprimary_key = "{key}"\n{more}\n'
        key = forge.key_text("policy bus")
        text += f'[[policy]]\nname = "bus"\nresource = "sb://localhost"\nkey_encoding = "utf8"\nprimary_key = "{key}"\n'
        for prefix in ["line7-", "line8-"]:
            key, other = forge.key_text(f"group {prefix}"), forge.key_text(f"group {prefix}/secondary")
            text += f'[[group]]\nprefix = "{prefix}"\nprimary_key = "{key}"\nsecondary_key = "{other}"\n'
        return text

    def _issuer(self, folder, issuer):
        algorithms = sorted({algorithm for algorithm, _ in issuer.keys.values()})
        text = f'[[issuer]]\nname = "{issuer.name}"\niss = "{issuer.iss}"\nalgorithms = {json.dumps(algorithms)}\n'
        text += issuer.more + ("" if "audience" in issuer.more else 'audience = ["localhost"]\n')
        if issuer.name == "jwks":
            (folder / "jwks.json").write_text(json.dumps({"keys": self._jwks()}))
            return text + 'jwks_file = "jwks.json"\n'
        for kid, (algorithm, key) in issuer.keys.items():
            named = "" if kid == "only" else f'kid = "{kid}"\n'
            file = f"{issuer.name}-{kid}"
            if isinstance(key, bytes):
                write_secret(folder / file, base64.b64encode(key).decode())
                text += f'[[issuer.key]]\n{named}secret_file = "{file}"\nalgorithm = "{algorithm}"\n'
            else:
                (folder / file).write_bytes(forge.public_pem(key))
                text += f'[[issuer.key]]\n{named}file = "{file}"\nalgorithm = "{algorithm}"\n'
        return text

    def _jwks(self):
        ec, rsa = self.p256.public_key().public_numbers(), self.rsa.public_key().public_numbers()
        number = lambda n, size: forge.b64url(n.to_bytes(size, "big"))
        yield_ec = {"kty": "EC", "crv": "P-256", "kid": "j-ec", "x": number(ec.x, 32), "y": number(ec.y, 32)}
        yield_rsa = {"kty": "RSA", "kid": "j-rsa", "n": number(rsa.n, 256), "e": number(rsa.e, 3), "alg": "RS256"}
        raw = self.ed.public_key().public_bytes_raw()
        yield_ed = {"kty": "OKP", "crv": "Ed25519", "kid": "j-ed", "x": forge.b64url(raw)}
        return [yield_ec | {"alg": "ES256", "use": "sig"}, yield_rsa, yield_ed]

    def jwt(self, issuer, now, claims=None, header=None, *, kid="", sign=None, device="pump-1"):
        """A JWT of the issuer: claims and header are changes of what is good (None leaves one out), or a whole text."""
        issuer = self.issuers[issuer]
        kid = kid or next(iter(issuer.keys))
        algorithm, key = issuer.keys.get(kid, next(iter(issuer.keys.values())))
        head = {"alg": algorithm, "typ": "JWT"} | ({} if kid == "only" else {"kid": kid})
        whole = claims_of(issuer, now, device)
        head = changed(head, header)
        return forge.jwt(head, changed(whole, claims), sign or forge.signer(algorithm, key))

    def honest(self, issuer, now, kid, device="pump-1"):
        """The same by PyJWT."""
        issuer = self.issuers[issuer]
        algorithm, key = issuer.keys[kid]
        return forge.honest(claims_of(issuer, now, device), key, algorithm, None if kid == "only" else kid)


def claims_of(issuer, now, device):
    claim = "dev" if issuer.name == "claim" else "sub"
    lifetime = 240 if issuer.name == "short" else 3600
    return {
        "iss": issuer.iss, "aud": "localhost", claim: device, "iat": now, "exp": now + lifetime,
        "jti": f"{issuer.name}-{device}-{now}",
    }


def changed(good, changes):
    if not isinstance(changes, (dict, type(None))):
        return changes
    return {name: value for name, value in (good | (changes or {})).items() if value is not LEAVE_OUT}


LEAVE_OUT = object()
authority = functools.cache(Authority)


@dataclasses.dataclass(frozen=True)
class Case:
    """One CONNECT. `token` is made at `now`, so that what stands at an edge stands there when it arrives."""

    name: str
    # The tag of the denial; None: admitted.
    want: str | None
    token: object
    device: str = "pump-1"
    versions: tuple = (4, 5)
    # What else CONNECT says, other than a device that follows the README.
    connect: dict = dataclasses.field(default_factory=dict)
    # Decided within the second for which the token was made.
    edge: bool = False
    port: str = "port"

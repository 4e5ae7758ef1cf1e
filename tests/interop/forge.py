"""Tokens by hand, good and hostile: hmac, hashlib and cryptography, and PyJWT for what an honest issuer makes."""

import base64
import hashlib
import hmac
import json
import urllib.parse

import jwt as pyjwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

import tokens

HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
DIGESTS = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}


def quote(text):
    """Every byte that is no letter or digit as %XX."""
    return urllib.parse.quote(text, safe="")


def secret(name):
    """32 bytes of that name, the same in every run."""
    return hashlib.sha256(f"secret of {name}".encode()).digest()


def key_text(name):
    return tokens.remember_key(base64.b64encode(secret(name)).decode())


def derived(group_key, device):
    """As group enrolment derives a device's key."""
    return hmac.new(group_key, device.encode(), hashlib.sha256).digest()


def sas_signature(key, sr, se, digest=hashlib.sha256):
    return hmac.new(key, f"{sr}\n{se}".encode(), digest).digest()


def sas_fields(key, sr, se, skn=None, *, signed_sr=None, signed_se=None):
    """The fields of a token whose `sr` and `se` stand as they are given; what is signed may differ."""
    signature = sas_signature(key, signed_sr or sr, signed_se or se)
    fields = [("sr", sr), ("sig", quote(base64.b64encode(signature).decode())), ("se", str(se))]
    return fields + ([("skn", skn)] if skn is not None else [])


def sas_text(fields, word="SharedAccessSignature "):
    return tokens.remember(word + "&".join(f"{name}={value}" for name, value in fields))


def sas(key, resource, se, skn=None, **other):
    return sas_text(sas_fields(key, quote(resource), se, skn, **other))


def b64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def as_json(value):
    """A dict as JSON; text goes as it is, so that what no library writes can be written."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))).encode()


def jwt(header, claims, sign):
    """`sign` makes the signature of `header.payload`."""
    message = f"{b64url(as_json(header))}.{b64url(as_json(claims))}"
    return tokens.remember(f"{message}.{b64url(sign(message.encode()))}")


def signer(algorithm, key):
    """What signs as RFC 7518 says, whatever the token's header names."""
    size = algorithm[2:]
    if algorithm.startswith("HS"):
        return lambda message: hmac.new(key, message, DIGESTS[size]).digest()
    if algorithm.startswith("RS"):
        return lambda message: key.sign(message, padding.PKCS1v15(), HASHES[size])
    if algorithm.startswith("PS"):
        pss = padding.PSS(padding.MGF1(HASHES[size]), HASHES[size].digest_size)
        return lambda message: key.sign(message, pss, HASHES[size])
    if algorithm.startswith("ES"):
        return lambda message: raw_ecdsa(key, message, HASHES[size])
    return key.sign


def raw_ecdsa(key, message, digest):
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
    size = (key.curve.key_size + 7) // 8
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def twin(token):
    """The same token with the other ECDSA signature that is as good: (r, n - s)."""
    message, signature = token.rsplit(".", 1)
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    s = order - int.from_bytes(raw[32:], "big")
    return f"{message}.{b64url(raw[:32] + s.to_bytes(32, 'big'))}"


def honest(claims, key, algorithm, kid):
    """PyJWT's."""
    headers = {"kid": kid} if kid is not None else None
    return tokens.remember(pyjwt.encode(claims, key, algorithm=algorithm, headers=headers))


def public_pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public_der(key):
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def new_rsa():
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def new_p256():
    return ec.generate_private_key(ec.SECP256R1())


def new_p384():
    return ec.generate_private_key(ec.SECP384R1())


def new_ed25519():
    return ed25519.Ed25519PrivateKey.generate()

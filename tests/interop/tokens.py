"""SAS tokens and JWTs minted without the code under test: hmac and PyJWT."""

import base64
import hashlib
import hmac
import time
import urllib.parse

import jwt


def key_of(device):
    """The primary key of a device in these tests, base64: its own, the same in every run."""
    return base64.b64encode(hashlib.sha256(f"primary key of {device}".encode()).digest()).decode()


def sas(device, *, resource=None, key=None, expires_in=3600, policy=None):
    resource = urllib.parse.quote(resource or f"localhost/devices/{device}", safe="")
    expiry = int(time.time()) + expires_in
    signed = f"{resource}\n{expiry}".encode()
    digest = hmac.new(base64.b64decode(key or key_of(device)), signed, hashlib.sha256).digest()
    signature = urllib.parse.quote(base64.b64encode(digest).decode(), safe="")
    token = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"
    return token + (f"&skn={policy}" if policy else "")


def json_web_token(device, private_key, *, kid="k1", expires_in=3600, **claims):
    now = int(time.time())
    claims = {
        "iss": "https://id.example",
        "aud": "localhost",
        "sub": device,
        "iat": min(now, now + expires_in - 1),
        "exp": now + expires_in,
        "jti": f"{device}-{now}",
        **claims,
    }
    return jwt.encode(claims, private_key, algorithm="ES256", headers={"kid": kid})

"""SAS tokens and JWTs minted without the code under test: hmac and PyJWT."""

import base64
import hashlib
import hmac
import time
import urllib.parse

import jwt


# Every token, signature and key that a test used: none may stand in a log (`place.search_log`).
SECRETS = {b"hub-password"}


def remember(token):
    """The token, which may stand in no log, and nor may its signature."""
    text = token if isinstance(token, bytes) else token.encode()
    add(text)
    signature = text.split(b"sig=")[-1].split(b"&")[0] if b"sig=" in text else text.rsplit(b".", 1)[-1]
    add(signature)
    add(urllib.parse.unquote_to_bytes(signature))
    return token


def add(secret):
    """Shorter texts, and one letter again and again, stand in many a log line by chance."""
    if len(secret) >= 24 and len(set(secret)) >= 8:
        SECRETS.add(secret)


def remember_key(text):
    """A key in base64: the same in base64url, in hexadecimal and as bytes are secrets, too."""
    raw = base64.b64decode(text, validate=True)
    if len(raw) < 16:
        return text
    forms = [text.encode(), base64.urlsafe_b64encode(raw), raw.hex().encode(), raw.hex().upper().encode(), raw]
    SECRETS.update(form.rstrip(b"=") for form in forms)
    return text


def key_of(device):
    """The primary key of a device in these tests, base64: its own, the same in every run."""
    return remember_key(base64.b64encode(hashlib.sha256(f"primary key of {device}".encode()).digest()).decode())


def sas(device, *, resource=None, key=None, expires_in=3600, policy=None):
    resource = urllib.parse.quote(resource or f"localhost/devices/{device}", safe="")
    expiry = int(time.time()) + expires_in
    signed = f"{resource}\n{expiry}".encode()
    digest = hmac.new(base64.b64decode(key or key_of(device)), signed, hashlib.sha256).digest()
    signature = urllib.parse.quote(base64.b64encode(digest).decode(), safe="")
    token = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"
    return remember(token + (f"&skn={policy}" if policy else ""))


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
    return remember(jwt.encode(claims, private_key, algorithm="ES256", headers={"kid": kid}))

"""Modules, devices that sign their own tokens, and the profile google: allowed and denied."""

import forge
from table_place import LEAVE_OUT, Case, authority, changed
from table_sas import own

CLIENT, USER, MISMATCH, INVALID = "client_id_invalid", "user_name_mismatch", "device_mismatch", "signature_invalid"
CAMERA, CAMERA_SR = "pump-1/camera", "localhost/devices/pump-1/modules/camera"
GOOGLE = "projects/p/locations/europe-west1/registries/r/devices/"


def cases():
    for family in (module_tokens, module_names, module_jwts, held_keys, google):
        yield from family()


def by(key, resource, skn=None):
    return lambda now: forge.sas(forge.secret(key), resource, now + 3600, skn)


def module_tokens():
    yield Case("module: its own key", None, by(CAMERA, CAMERA_SR), CAMERA)
    yield Case("module: its device's key", INVALID, by("pump-1", CAMERA_SR), CAMERA)
    yield Case("module: its key for its device", INVALID, by(CAMERA, "localhost/devices/pump-1"))
    yield Case("module: its token, presented by its device", MISMATCH, by(CAMERA, CAMERA_SR))
    yield Case("module: its device's token", MISMATCH, own(), CAMERA)
    yield Case("module: a policy's token for it", None, by("policy device", CAMERA_SR, "device"), CAMERA)
    yield Case("module: a policy's token for its device", None, by("policy device", "localhost/devices/pump-1", "device"), CAMERA)
    yield Case("module: a policy's token for another device", MISMATCH, by("policy device", "localhost/devices/pump-10", "device"), CAMERA)
    yield Case("module: a policy's token for it, presented by its device", MISMATCH, by("policy device", CAMERA_SR, "device"))
    yield Case("module: a policy's token for its sibling", MISMATCH, by("policy device", CAMERA_SR + "2", "device"), CAMERA)
    yield Case("module: a policy within its device", None, by("policy narrow", CAMERA_SR, "narrow"), CAMERA)
    yield Case("module: unknown", "device_unknown", by("pump-1/nobody", "localhost/devices/pump-1/modules/nobody"), "pump-1/nobody")
    yield Case("module: of an unknown device", "device_unknown", by("x/camera", "localhost/devices/x/modules/camera"), "x/camera")
    yield Case("module: in upper case", "device_unknown", by(CAMERA, "localhost/devices/pump-1/modules/CAMERA"), "pump-1/CAMERA")
    yield Case("module: of a disabled device", "device_disabled", by("off/camera", "localhost/devices/off/modules/camera"), "off/camera")
    yield Case("module: of a revoked device", "revoked", by("scrapped/camera", "localhost/devices/scrapped/modules/camera"), "scrapped/camera")
    for tail in ("/modules", "/modules/camera/x", "/Modules/camera", "/modules/camera/modules/camera"):
        yield Case(f"module: sr with {tail}", "resource_out_of_policy", by("policy device", "localhost/devices/pump-1" + tail, "device"), CAMERA)
    for tail in ("/modules/", "/modules//camera", "/modules/../camera", "/modules/camera/"):
        yield Case(f"module: sr with {tail}", "credential_malformed", by("policy device", "localhost/devices/pump-1" + tail, "device"), CAMERA)


def module_names():
    good = by(CAMERA, CAMERA_SR)
    for name in (CAMERA, "localhost/pump-1/camera", "localhost/pump-1/camera/?api-version=2021-04-12", "LOCALHOST/pump-1/camera/"):
        yield Case(f"module: user name {name!r}", None, good, CAMERA, connect={"user_name": name})
    for name in ("pump-1", "localhost/pump-1", "localhost/pump-1/?api-version=2021-04-12", "localhost/pump-1/camera2/?api-version=2021-04-12",
                 "localhost/pump-10/camera", "camera", "localhost/pump-1/CAMERA", "localhost/camera/pump-1"):
        yield Case(f"module: user name {name!r}", USER, good, CAMERA, connect={"user_name": name})
    for name in ("pump-1/", "/camera", "pump-1//camera", "pump-1/camera/", "pump-1/cam era", "pump-1/+", "pump-1/#", "pump-1/" + "x" * 129):
        yield Case(f"module: client id {name[:24]!r}", CLIENT, good, name, connect={"user_name": None}, versions=(5,))


def module_jwts():
    jwt = lambda device: lambda now: authority().jwt("single", now, device=device)
    yield Case("module: jwt", None, jwt(CAMERA), CAMERA)
    yield Case("module: jwt of its device", MISMATCH, jwt("pump-1"), CAMERA)
    yield Case("module: jwt, presented by its device", MISMATCH, jwt(CAMERA))
    yield Case("module: jwt of an unknown one", "device_unknown", jwt("pump-1/nobody"), "pump-1/nobody")
    yield Case("module: jwt of a revoked device's", "revoked", jwt("scrapped/camera"), "scrapped/camera")
    yield Case("module: jwt of a disabled device's", "device_disabled", jwt("off/camera"), "off/camera")


def held(claims=None, header=None, *, kid="h1", sign=None, lifetime=3600):
    def make(now):
        algorithm, key, _ = authority().held[kid]
        head = {"alg": algorithm, "typ": "JWT"} | ({} if kid == "bare" else {"kid": kid})
        whole = {"aud": "localhost", "iat": now, "exp": now + lifetime}
        changes = claims(now) if callable(claims) else claims
        return forge.jwt(changed(head, header), changed(whole, changes), sign or forge.signer(algorithm, key))
    return make


def held_keys():
    out, device = "key_out_of_validity", "held"
    yield Case("held key: good", None, held(), device)
    yield Case("held key: without a kid", None, held(kid="bare"), device)
    yield Case("held key: iss and sub are the device", None, held({"iss": "held", "sub": "held"}), device)
    yield Case("held key: in an hour", out, held(kid="later"), device)
    yield Case("held key: until an hour ago", out, held(kid="over"), device)
    yield Case("held key: within its dates", None, held(kid="dated"), device)
    yield Case("held key: wrong signature", INVALID, held(sign=forge.signer("ES256", authority().stranger)), device)
    yield Case("held key: out of its dates, wrong signature", INVALID, held(kid="over", sign=lambda _: bytes(64)), device)
    yield Case("held key: the key of another kid", INVALID, held({}, {"kid": "h1"}, kid="later"), device)
    yield Case("held key: HS256 over its PEM", "algorithm_mismatch", held(
        None, {"alg": "HS256"}, sign=forge.signer("HS256", forge.public_pem(authority().held["h1"][1]))), device)
    yield Case("held key: another audience", "audience_mismatch", held({"aud": "elsewhere"}), device)
    yield Case("held key: no audience", "audience_mismatch", held({"aud": LEAVE_OUT}), device)
    yield Case("held key: expired", "expired", held(lambda now: {"iat": now - 7200, "exp": now - 3600}), device)
    yield Case("held key: of a week", "lifetime_too_long", held(lifetime=7 * 86_400), device)
    yield Case("held key: no iat", "claim_invalid", held({"iat": LEAVE_OUT}), device)
    yield Case("held key: of a device that is revoked by it", "revoked", held(kid="withdrawn"), device)


def google():
    """The client id of Cloud IoT Core, any user name, and tokens that devices sign themselves."""
    port = {"port": "google_port"}
    for name in ("unused", "", "other/device", "x" * 200):
        yield Case(f"google: user name {name[:20]!r}", None, held(), GOOGLE + "held", connect={"user_name": name}, **port)
    yield Case("google: an issuer's token", None, lambda now: authority().jwt("single", now), GOOGLE + "pump-1", connect={"user_name": "unused"}, **port)
    yield Case("google: another device", MISMATCH, lambda now: authority().jwt("single", now), GOOGLE + "pump-10",
               connect={"user_name": "unused"}, **port)
    for name in ("held", "projects/p/devices/held", "projects/p/locations/l/registries/r/devices/", "projects//locations/l/registries/r/devices/held",
                 "projects/p/locations/l/registries/r/devices/held/x", "projects/p/locations/l/registries/r/held", GOOGLE + "he+ld",
                 "x" + GOOGLE + "held", "/" + GOOGLE + "held"):
        yield Case(f"google: client id {name!r}", CLIENT, held(), name, connect={"user_name": "unused"}, **port)
    for by_seconds, want in [(-601, "expired"), (-600, "expired"), (-599, None)]:
        yield Case(f"google: exp at now {by_seconds:+}", want, held(lambda now, s=by_seconds: {"iat": now - 3600, "exp": now + s}),
                   GOOGLE + "held", connect={"user_name": "unused"}, edge=True, **port)
    for more, want in [(599, None), (600, None), (601, "lifetime_too_long")]:
        yield Case(f"google: a day and {more} s", want, held(lifetime=86_400 + more), GOOGLE + "held",
                   connect={"user_name": "unused"}, edge=True, **port)

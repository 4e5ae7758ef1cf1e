"""What CONNECT says beside its token: client id, user name, password, method and will."""

import forge
from table_place import Case, authority
from table_sas import own

CLIENT, USER, MALFORMED = "client_id_invalid", "user_name_mismatch", "credential_malformed"


def cases():
    for family in (client_ids, user_names, passwords, methods, wills):
        yield from family()


def client_ids():
    for name in ("pump 1", "pump+1", "pump-1/#", "#", "+", "pump*", "$SYS", "pump?", "é", "pump\u200b-1", "x" * 129, "a/b/c", "/pump-1",
                 "projects/p/locations/l/registries/r/devices/pump-1"):
        yield Case(f"client id {name[:24]!r}", CLIENT, own(), name, connect={"user_name": None}, versions=(5,))
        yield Case(f"client id {name[:24]!r}, azure", CLIENT, own(), name, versions=(4,), port="azure_port")
    yield Case("client id empty", CLIENT, own(), "", connect={"user_name": None}, versions=(5,))
    for name in ("Pump-1", "pump-1.", "PUMP-1", "pump-2"):
        yield Case(f"client id {name!r}", "device_mismatch", own(), name)
        yield Case(f"client id {name!r}, azure", "device_mismatch", own(), name, versions=(4,), port="azure_port")


def user_names():
    host = "localhost/pump-1"
    for name in ("pump-1", host, "LOCALHOST/pump-1", host + "/", host + "/?api-version=2021-04-12",
                 host + "/api-version=2016-11-14", "hub.example/pump-1/?api-version=2021-04-12&DeviceClientType=py%2F2.14",
                 host + "/?api-version=1&api-version=2", host + "/?model-id=dtmi:x;1&auth-chain=a;b&unknown=c"):
        yield Case(f"user name {name[:50]!r}", None, own(), connect={"user_name": name})
    for name in ("pump-10", "pump-2", "PUMP-1", "admin", "localhost", "elsewhere/pump-1/?api-version=2021-04-12",
                 "localhost/pump-10/?api-version=2021-04-12", "localhost.evil/pump-1", "/pump-1", "localhost//pump-1",
                 "localhost/PUMP-1", "pump-1/localhost", "localhost/pump-1/module/?api-version=2021-04-12"):
        yield Case(f"user name {name[:50]!r}", USER, own(), connect={"user_name": name})
    yield Case("user name absent", None, own(), connect={"user_name": None}, versions=(5,))
    yield Case("user name of another, a bad token", USER, own(key="pump-2"), connect={"user_name": "pump-2"})


def passwords():
    yield Case("password absent", "credential_missing", lambda now: None)
    yield Case("password and user name absent", "credential_missing", lambda now: None, connect={"user_name": None})
    yield Case("password empty", "credential_missing", lambda now: "")
    for name in ("x", "password", "null", "{}", "0", " ", "\0", "Bearer", "a.b", "a.b.c.d", "https://localhost/"):
        yield Case(f"password {name!r}", MALFORMED, lambda now, name=name: name)
    yield Case("password is the key", MALFORMED, lambda now: forge.key_text("pump-1"))
    yield Case("password is a connection string", MALFORMED,
               lambda now: f"HostName=localhost;DeviceId=pump-1;SharedAccessKey={forge.key_text('pump-1')}")
    yield Case("password is a PEM", MALFORMED, lambda now: forge.public_pem(authority().p256))
    yield Case("password is bytes", MALFORMED, lambda now: bytes(range(256)))


def methods():
    """MQTT 5.0 §3.1.2.11.9: the token as authentication data."""
    def by(method, data=True):
        return {"method": method, "password_is_data": data}
    jwt = lambda now: authority().jwt("single", now)
    yield Case("method SAS", None, own(), versions=(5,), connect=by("SAS"))
    yield Case("method JWT", None, jwt, versions=(5,), connect=by("JWT"))
    for name in ("sas", "jwt", "SCRAM-SHA-1", "", "SAS ", "K8S-SAT", "x" * 300):
        yield Case(f"method {name[:20]!r}", "authentication_method_unknown", own(), versions=(5,), connect=by(name))
    yield Case("method SAS, a wrong signature", "signature_invalid", own(key="pump-2"), versions=(5,), connect=by("SAS"))
    yield Case("method JWT, a wrong signature", "signature_invalid", lambda now: authority().jwt("single", now, sign=lambda _: bytes(64)),
               versions=(5,), connect=by("JWT"))
    yield Case("method JWT, no data", "credential_missing", lambda now: None, versions=(5,), connect=by("JWT"))
    yield Case("method SAS, empty data", "credential_missing", lambda now: "", versions=(5,), connect=by("SAS"))
    yield Case("method SAS, of another device", "device_mismatch", own("pump-2"), versions=(5,), connect=by("SAS"))


def wills():
    mine = "devices/pump-1/messages/events/"
    for name, topic, want in [
        ("its own", mine, None), ("below its own", mine + "gone", None), ("a sibling's", "devices/pump-10/messages/events/", "will_out_of_scope"),
        ("another's", "devices/pump-2/messages/events/", "will_out_of_scope"), ("outside its part", "devices/pump-1/x", "will_out_of_scope"),
        ("the hub's own", "$SYS/x", "will_out_of_scope"), ("its commands", "devices/pump-1/messages/devicebound/x", "will_out_of_scope"),
        ("a dot dot", mine + "../../../pump-2/messages/events/", None),
    ]:
        yield Case(f"will: {name}", want, own(), connect={"will_topic": topic})
        yield Case(f"will: {name}, retained", want, own(), connect={"will_topic": topic, "will_retain": True})
    yield Case("will: of a token that may only read", None, lambda now: forge.sas(
        forge.secret("policy narrow"), "localhost/devices/pump-1", now + 600, "narrow"), connect={"will_topic": mine})
    yield Case("will: another's, a bad token", "signature_invalid", own(key="pump-2"),
               connect={"will_topic": "devices/pump-2/messages/events/"})

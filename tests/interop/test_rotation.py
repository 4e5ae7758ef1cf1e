"""Keys are rotated while real clients publish and renew: who is refused is what the times of tokens and rotations say, nobody else.

A token that is made with key k is verified until the second rotation from then. It is cut by that rotation where it is still
used, and it is still used then only where it lives longer than the period and was made shortly before the first.
"""

import base64
import collections
import dataclasses
import hashlib
import json
import math
import threading
import time
import unittest
import urllib.parse
import urllib.request
import warnings

import paho.mqtt.client as mqtt

import place
import tokens
from case import AtAGateway
from client import CLIENTS, Driven
from test_azure_node import Sdk

# Seconds between two rotations.
PERIOD = 6
LIVES = (PERIOD - 1, PERIOD, PERIOD + 1)
# Of a few more devices: what a rotation cuts for sure, also on a machine that takes a second for it.
LONGER = PERIOD + 3
# A device renews so long before its token ends: what a rotation cuts ends in the second of that rotation, after it.
MARGIN = 0.05
# The clock skew: for so long a device that renews late, on a machine that has no time for it, is not cut for that.
SKEW = 4
# Between two messages of one device.
PAUSE = 0.15
# What is made to last until the end.
LONG = 600
REFUSED = {"paho-4": 5, "paho-5": 0x87, "paho_in_session-4": 5, "paho_in_session-5": 0x87, "mqttjs-5": 0x87, "azure": 5}
CUT = {"paho-4": None, "paho-5": 0x87, "paho_in_session-4": None, "paho_in_session-5": 0x87, "mqttjs-5": 0x87, "azure": None}
# In the second of the first rotation, of the second one, and in the middle of a period.
COHORTS = ("first", "second", "between")
DEVICES = [f"{kind}_{life}_{cohort}" for kind in REFUSED for life in LIVES for cohort in COHORTS[:2]]
DEVICES += [f"{kind}_{LONGER}_{cohort}" for kind in ("paho-4", "paho_in_session-5", "mqttjs-5") for cohort in COHORTS[:2]]
DEVICES += [f"{kind}_{life}_between" for kind in ("paho-4", "paho_in_session-5") for life in LIVES]


@dataclasses.dataclass(frozen=True)
class Token:
    device: str
    # How often the keys had been rotated when it was made.
    key: int
    made: float
    expires: int
    text: str

    def id(self):
        """As the gateway names it: by what it means."""
        fields = dict(part.split("=", 1) for part in self.text.split(" ", 1)[1].split("&"))
        signature = base64.b64decode(urllib.parse.unquote(fields["sig"]))
        return hashlib.sha256(f"{fields['sr']}\n{fields['se']}\n".encode() + signature).hexdigest()[:32]


@dataclasses.dataclass(frozen=True)
class Rotation:
    before: float
    after: float


@dataclasses.dataclass
class Use:
    """Of one token: from `admitted` on, and not any more from between `left` and `done`. The same where it was cut."""

    token: Token
    admitted: float
    left: float = math.inf
    done: float = math.inf
    cut: object = None
    again: object = None


class Signer:
    """Signs with the primary, and hears of a new one when it is in force."""

    def __init__(self, gateway):
        self.gateway, self.rotations = gateway, []
        self.primary = (0, self.read())

    def mint(self, device, life):
        number, key = self.primary
        made = time.time()
        text = tokens.sas(device, key=key, expires_in=life, policy="site")
        expires = int(urllib.parse.parse_qs(text.split(" ", 1)[1])["se"][0])
        return Token(device, number, made, expires, text)

    def rotate(self, meanwhile=lambda: None):
        """Does something else before it hears of the new key."""
        before = time.time()
        status, answer = desk(self.gateway, "/v1/keys/policy%3Asite/rotate", b"{}")
        assert status == 200, answer
        rotation = Rotation(before, time.time())
        meanwhile()
        self.rotations.append(rotation)
        self.primary = (len(self.rotations), self.read())
        return rotation

    def read(self):
        return tokens.remember_key((self.gateway.folder / "policy.primary").read_text().strip())


class Paho:
    """paho; `in_session` by a PUBLISH of the fresh token, else by leaving and connecting again."""

    # It came too late with it.
    CLOSED = "closed"

    def __init__(self, gateway, device, version, in_session):
        self.gateway, self.device, self.in_session = gateway, device, in_session
        self.changed = threading.Condition()
        self.code = self.closed = self.renewed = None
        self.leaving, self.number_of, self.acknowledged = False, {}, []
        clean = {} if version == 5 else {"clean_session": True}
        self.client = mqtt.Client(device, protocol=mqtt.MQTTv5 if version == 5 else mqtt.MQTTv311, **clean)
        self.client.on_connect, self.client.on_disconnect = self._on_connect, self._on_disconnect
        self.client.on_publish, self.client.on_message = self._on_publish, self._on_message

    def connect(self, token):
        """The code of CONNACK."""
        self.client.loop_stop()
        self.code = self.closed = None
        self.leaving = False
        self.client.username_pw_set(self.device, token)
        self.client.connect("127.0.0.1", self.gateway.port)
        self.client.loop_start()
        self._wait("CONNACK", lambda: self.code is not None)
        if self.code == 0 and self.in_session:
            self.client.subscribe("$tollgate/auth/result", 1)
        return self.code

    def renew(self, token):
        if not self.in_session:
            self.leaving = True
            self.client.disconnect()
            return self.connect(token)
        self.renewed = None
        self.client.publish("$tollgate/auth/renew", token, 1)
        self._wait("the renewal", lambda: self.renewed is not None or self.closed)
        return {"renewed": 0, None: Paho.CLOSED}.get(self.renewed, self.renewed)

    def publish(self):
        number = len(self.number_of)
        # Without a lock: paho calls back with its own held.
        self.number_of[self.client.publish(f"devices/{self.device}/messages/events/", str(number), 1).mid] = number

    def report(self):
        """What was acknowledged."""
        return [self.number_of[mid] for mid in self.acknowledged if mid in self.number_of]

    def end(self):
        self.leaving = True
        self.client.disconnect()
        self.client.loop_stop()

    def _wait(self, what, holds):
        with self.changed:
            assert self.changed.wait_for(holds, place.PATIENCE), f"{self.device}: waited for {what}"

    def _told(self, **what):
        with self.changed:
            vars(self).update(what)
            self.changed.notify_all()

    def _on_connect(self, _client, _userdata, _flags, code, _properties=None):
        self._told(code=getattr(code, "value", code))

    def _on_disconnect(self, client, _userdata, code, _properties=None):
        if not self.leaving:
            # Else it would connect again by itself.
            client.disconnect()
            if self.code == 0:
                self._told(closed=(getattr(code, "value", None),))

    def _on_publish(self, _client, _userdata, mid):
        self.acknowledged.append(mid)

    def _on_message(self, _client, _userdata, message):
        self._told(renewed=json.loads(message.payload)["result"])


class MqttJs(Driven):
    """mqtt.js, which leaves and connects again; it publishes by itself."""

    def __init__(self, gateway, device, version=5, every=PAUSE * 1000):
        super().__init__(["node", str(CLIENTS / "renewing_client.js")])
        self.connection = 0
        self.how = {
            "host": "127.0.0.1", "port": gateway.port, "version": version, "client_id": device,
            "topic": f"devices/{device}/messages/events/", "every": every,
        }

    def connect(self, token):
        before = len(self.of("connack"))
        self.connection += 1
        self.tell({"do": "connect", "password": token, **self.how})
        return self.wait("connack", before + 1)[-1]["code"]

    @property
    def closed(self):
        is_closed = any(event["connection"] == self.connection for event in self.of("closed"))
        return (self.of("disconnect")[-1]["code"],) if is_closed else None

    def renew(self, token):
        left = len(self.of("left"))
        self.tell({"do": "leave"})
        self.wait("left", left + 1)
        return self.connect(token)

    def publish(self):
        pass

    def report(self):
        self.tell({"do": "report"})
        return self.wait("report")[0]["acknowledged"]

    def end(self):
        self.__exit__()


class Azure(Sdk):
    """Azure's SDK for Node: `updateSharedAccessSignature`, which leaves and connects again."""

    def __init__(self, gateway, device):
        super().__init__(transport="tls", ca=str(gateway.authority.file), ports={8883: gateway.tls_port})
        self.seen = 0

    def connect(self, token):
        error = self.do("open", sas=token, **self.how)
        self.seen = len(self.of("disconnect"))
        if error:
            return {"UnauthorizedError": 5}.get(error["name"], 3)
        self.must("stream", every=PAUSE * 1000)
        return 0

    @property
    def closed(self):
        return (None,) if len(self.of("disconnect")) > self.seen else None

    def renew(self, token):
        error = self.do("renew", sas=token)
        return {"UnauthorizedError": 5}.get(error["name"], 3) if error else 0

    def publish(self):
        pass

    def report(self):
        self.must("acknowledged")
        return self.of("acknowledged")[0]["acknowledged"]

    def end(self):
        self.__exit__()


class Device(threading.Thread):
    """Renews just before its token ends; when it is cut it tries the token that it has, and then asks for another."""

    def __init__(self, gateway, signer, name):
        super().__init__(daemon=True)
        self.device, self.signer = name, signer
        self.kind, life, self.cohort = name.rsplit("_", 2)
        self.life = int(life)
        version = int(self.kind[-1]) if self.kind != "azure" else 4
        make = {"mqttjs-5": MqttJs, "azure": Azure}.get(self.kind)
        self.link = make(gateway, name) if make else Paho(gateway, name, version, "in_session" in self.kind)
        self.begun, self.stop = threading.Event(), threading.Event()
        self.first, self.uses, self.broken = None, [], None

    def begin(self):
        """With a token that is made now."""
        self.first = self.signer.mint(self.device, self.life)
        self.begun.set()

    def run(self):
        try:
            self.begun.wait()
            self.use(self.first)
            while self.uses[-1].token.expires - self.uses[-1].token.made < LONG - 1:
                use = self.uses[-1]
                closed = self.hold(use.token.expires - MARGIN)
                # What it has at last is to last.
                life = LONG if self.stop.is_set() else self.life
                if closed:
                    self.was_cut(use)
                    self.use(self.signer.mint(self.device, life))
                else:
                    self.renew(life)
        except BaseException as broken:
            self.broken = broken

    def use(self, token):
        code = self.link.connect(token.text)
        assert code == 0, f"{self.device} with a fresh token: {code}, {token}"
        self.uses.append(Use(token, time.time()))

    def renew(self, life):
        use, fresh = self.uses[-1], self.signer.mint(self.device, life)
        use.left = time.time()
        code = self.link.renew(fresh.text)
        use.done = time.time()
        if code == Paho.CLOSED:
            return self.use(fresh)
        assert code == 0, f"{self.device} renews: {code}, {fresh}"
        self.uses.append(Use(fresh, use.done))

    def was_cut(self, use):
        use.cut = self.link.closed
        use.again = self.link.connect(use.token.text)

    def hold(self, until):
        """Publishes until then; whether it was cut."""
        pause = threading.Event()
        while not self.stop.is_set() and time.time() < until and not self.link.closed:
            self.link.publish()
            pause.wait(min(PAUSE, max(until - time.time(), 0.001)))
        return self.link.closed is not None


class Rotations(AtAGateway):
    devices = [*DEVICES, "load", *(f"old-{n}" for n in range(3)), "late", "later"]
    options = {
        "settings": 'profile = "azure"',
        # Not at TRACE: what these devices publish would fill the log that is searched at the end.
        "environment": {"RUST_LOG": "debug"},
        "sections": f'[credentials]\nclock_skew = "{SKEW}s"\n',
        "more": '\n[[policy]]\nname = "site"\nresource = "localhost"\n'
        'primary_key_file = "policy.primary"\nsecondary_key_file = "policy.secondary"\n',
    }

    @classmethod
    def start(cls, folder):
        for slot in ("primary", "secondary"):
            place.write_secret(folder / f"policy.{slot}", tokens.key_of(f"policy site, {slot}"))
        super().start(folder)

    def setUp(self):
        # paho forgets to close a pair of sockets whenever it connects again.
        warnings.simplefilter("ignore", ResourceWarning)

    def test_three_rotations_and_two_at_once_refuse_whom_the_arithmetic_names_and_nobody_else(self):
        signer = Signer(self.gateway)
        load = MqttJs(self.gateway, "load", every=5)
        self.addCleanup(load.end)
        self.assertEqual(load.connect(tokens.sas("load")), 0)
        fleet = [Device(self.gateway, signer, name) for name in DEVICES]
        for device in fleet:
            self.addCleanup(device.link.end)
            device.start()
        self.let_begin(fleet, "between")
        turn = math.ceil(time.time() + PERIOD / 2)
        for cohort in ("first", "second", None):
            wait_for(turn)
            # The worst case: when a rotation is over, and by the key before it.
            signer.rotate(lambda: self.let_begin(fleet, cohort))
            # A period counts from the second in which the signer has heard of it.
            turn = int(time.time()) + PERIOD
            if len(signer.rotations) == 2:
                old = self.of_the_secondary_to_be(signer)
        wait_for(signer.rotations[-1].after + 1)
        for device in fleet:
            device.stop.set()
        for device in fleet:
            device.join(place.PATIENCE * 2)
        broken = [device.broken for device in fleet if device.broken]
        self.assertEqual(broken, [])
        self.exactly_as_predicted(signer, [use for device in fleet for use in device.uses])

        # Who stays has a token that lasts: of the primary, and of the secondary.
        expired_by_old_key = signer.mint("late", 1)
        signer.rotate()
        signer.rotate()
        self.all_are_refused(fleet, old, expired_by_old_key, signer)
        self.assertIsNone(load.closed, "it holds a key of its own")
        self.all_arrived(fleet, load)

    def let_begin(self, fleet, cohort):
        for device in fleet:
            if device.cohort == cohort:
                device.begin()

    def of_the_secondary_to_be(self, signer):
        """Sessions whose tokens the third rotation makes those of the secondary."""
        held = []
        for version in (4, 5, 5):
            name = f"old-{len(held)}"
            token = signer.mint(name, LONG)
            held.append((Paho(self.gateway, name, version, False), token, version))
            self.addCleanup(held[-1][0].end)
            self.assertEqual(held[-1][0].connect(token.text), 0)
        return held

    def exactly_as_predicted(self, signer, uses):
        must, may, named = set(), set(), collections.Counter()
        for use in uses:
            token = use.token
            leaves = signer.rotations[token.key + 1] if token.key + 1 < len(signer.rotations) else None
            if token.expires + SKEW < use.done:
                # Its own end may have been first.
                may |= {refusal(token, "cut", "expired"), refusal(token, "refused", "expired")}
            if leaves is None or use.done < leaves.before:
                self.assertFalse(use.cut and use.cut[0] == 0x87, f"{use}, {leaves}")
                continue
            both = {refusal(token, "cut", "grant_withdrawn"), refusal(token, "refused", "signature_invalid")}
            if use.left > leaves.after and token.expires > leaves.after:
                self.assertGreater(token.expires - int(token.made), PERIOD, use)
                # Whoever was about to renew, and had not seen its end, did not try that token again.
                must |= both if use.cut else {refusal(token, "cut", "grant_withdrawn")}
                named[token.key + 1] += use.cut is not None
                kind = token.device.rsplit("_", 2)[0]
                self.assertIn((use.cut, use.again), (((CUT[kind],), REFUSED[kind]), (None, None)), use)
            else:
                may |= both
        told = refusals(self.gateway)
        self.assertEqual(must - told, set(), "predicted, and let be")
        more = told - must - may
        of_them = [use for use in uses if use.token.device in {device for device, *_ in more}]
        self.assertEqual(more, set(), f"refused or cut for nothing: {of_them}, {signer.rotations}")
        self.assertGreater(named.total(), 0, "somebody was cut: else nothing was seen")

    def all_are_refused(self, fleet, old, late, signer):
        """Every session of the old keys is ended, and every token of them refused as one that no key has signed."""
        for device in fleet:
            place.until(f"{device.device} to be cut", lambda: device.link.closed)
            self.assertEqual(device.link.closed, (CUT[device.kind],))
            self.assertEqual(device.link.connect(device.uses[-1].token.text), REFUSED[device.kind])
        for link, token, version in old:
            place.until("a session of the secondary to be cut", lambda: link.closed)
            self.assertEqual(link.connect(token.text), 0x87 if version == 5 else 5)
        wait_for(late.expires + SKEW + 1)
        self.assertEqual(self.told_once("late", late), 0x87)
        # One of the new key that has ended is another thing.
        later = signer.mint("later", 1)
        wait_for(later.expires + SKEW + 1)
        self.assertEqual(self.told_once("later", later), 0x87)
        told = {}
        for entry in entries(self.gateway):
            if entry["event"] == "refused":
                told[entry["device"]] = (entry["token_id"], entry["azure"])
        for token in [*(device.uses[-1].token for device in fleet), *(token for _, token, _ in old), late]:
            self.assertEqual(told[token.device], (token.id(), 40103))
        self.assertEqual(told["later"], (later.id(), 40105))
        # A token of the new key is taken, from the same address.
        again = signer.mint(fleet[0].device, LONG)
        self.assertEqual(fleet[0].link.connect(again.text), 0)

    def told_once(self, name, token):
        link = Paho(self.gateway, name, 5, False)
        self.addCleanup(link.end)
        return link.connect(token.text)

    def all_arrived(self, fleet, load):
        """What was acknowledged has reached the hub, through all of it."""
        acknowledged = {device.device: set(map(str, device.link.report())) for device in fleet}
        acknowledged["load"] = set(map(str, load.report()))
        arrived = collections.defaultdict(set)

        def missing():
            for message in list(self.hub.messages):
                arrived[message.topic.split("/")[1]].add(message.payload.decode())
            return {name: sorted(sent - arrived[name]) for name, sent in acknowledged.items() if sent - arrived[name]}

        try:
            place.until("everything to arrive", lambda: not missing())
        except AssertionError as late:
            raise AssertionError(f"acknowledged and not with the hub: {missing()}") from late
        self.assertTrue(all(len(sent) >= 10 for sent in acknowledged.values()), acknowledged.keys())
        self.assertGreater(len(acknowledged["load"]), 500)


def refusal(token, event, tag):
    return token.device, token.id(), event, tag, {"signature_invalid": 40103, "expired": 40105}.get(tag)


def refusals(gateway):
    """That a device's own next connection came before its DISCONNECT was read cuts nobody."""
    return {
        (entry["device"], entry["token_id"], entry["event"], entry["tag"],
         entry.get("azure") if entry["tag"] in ("signature_invalid", "expired") else None)
        for entry in entries(gateway) if entry["tag"] != "taken_over"
    }


def entries(gateway):
    status, text = desk(gateway, "/v1/refusals?last=1000")
    assert status == 200, text
    return json.loads(text)["refusals"]


def desk(gateway, path, body=None):
    token = (gateway.folder / "var/admin.token").read_text().strip()
    head = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{gateway.admin_port}{path}", data=body, headers=head)
    with urllib.request.urlopen(request, timeout=place.PATIENCE) as answer:
        return answer.status, answer.read().decode()


def wait_for(moment):
    place.until("the moment", lambda: time.time() >= moment, within=60)


if __name__ == "__main__":
    unittest.main()

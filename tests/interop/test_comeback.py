"""Every client that connects again by itself: its connection is lost in each way there is, and it is back without being told,
with its session. One story a client, transport and version; each cell is a test."""

import concurrent.futures
import subprocess

import place
import tokens
import wire
from case import VERSIONS, AtAGateway, each, expanded
from client import Client, message_of
from relay import Relay
from test_clients import EXPIRY, SILENT_ABOUT_SESSIONS, TRANSPORTS_OF

# mosquitto_sub publishes nothing. It ends where a TLS connection ends without a word, and at every DISCONNECT of 5.0.
LISTENERS = ("mosquitto",)
COMES_BACK_OVER = TRANSPORTS_OF | {"mosquitto": ("tcp",)}
BEHAVIOURS = ("commands_of_the_meantime", "acknowledgements_lost", "publishes_lost", "taken_over", "closed_by_operator")
MOSQUITTO_BEHAVIOURS = ("commands_of_the_meantime", "taken_over", "closed_by_operator")
AT_A_TIME = 6
STORIES = [(name, transport, version) for name, all_ in COMES_BACK_OVER.items() for transport in all_ for version in VERSIONS]


class Comeback:
    """One client's: a loss after the other."""

    def __init__(self, case, name, transport, version):
        self.case, self.hub, self.name, self.transport, self.version = case, case.hub, name, transport, version
        self.device = f"{name}-{transport}-{version}"
        self.events = f"devices/{self.device}/messages/events/"
        self.commands = f"devices/{self.device}/messages/devicebound/"
        self.relay, self.client, self.connects, self.orders, self.heard, self.told = None, None, 0, 0, 0, {}

    def tell(self):
        try:
            for part in (self.begin, self.cut_from_answers, self.cut_from_the_gateway, self.taken_over, self.closed_by_operator):
                part()
        except BaseException as broken:
            for behaviour in BEHAVIOURS:
                self.told.setdefault(behaviour, broken)
        finally:
            if self.client:
                self.client.__exit__()
            if self.relay:
                self.relay.close()
        return self.told

    def begin(self):
        self.relay, self.client = connected(self.case, self.name, self.transport, self.version, self.device, self.commands)
        self.connects = 1

    def cut_from_answers(self):
        """The gateway has what is in flight, and the client does not know: QoS 2 arrives once for all that."""
        at_1, at_2 = self.messages("one", 1), self.messages("two", 2)
        if self.name not in LISTENERS:
            self.relay.hold("down")
            self.order([*at_1, *at_2])
            self.hub.take(f"{self.events}one", len(at_1))
            self.hub.take(f"{self.events}two", len(at_2))
        self.relay.down()
        meantime = [(f"{self.commands}{qos}", f"{self.device}: in the meantime {n}".encode(), qos) for n in range(3) for qos in (1, 2)]
        for message in meantime:
            self.hub.send(*message)
        self.relay.up()
        self.back(present=True)
        self.hear(meantime)
        self.told["commands_of_the_meantime"] = None
        if self.name in LISTENERS:
            return
        self.done([*at_1, *at_2])
        self.passed_once(f"{self.events}two", at_2)
        assert distinct(self.seen(f"{self.events}one")) == [payload for _, payload, _ in at_1], self.seen(f"{self.events}one")
        self.told["acknowledgements_lost"] = None

    def cut_from_the_gateway(self):
        """What it sent never arrived anywhere."""
        if self.name in LISTENERS:
            return
        lost = [*self.messages("lost-1", 1), *self.messages("lost-2", 2)]
        self.relay.hold("up", "down")
        self.order(lost)
        place.until("what is sent into the void", lambda: self.relay.swallowed["up"] > sum(len(payload) for _, payload, _ in lost))
        self.relay.down()
        self.relay.up()
        self.back(present=True)
        self.done(lost)
        for qos in (1, 2):
            self.passed_once(f"{self.events}lost-{qos}", [message for message in lost if message[2] == qos])
        self.told["publishes_lost"] = None

    def taken_over(self):
        """By another of its name, which leaves again."""
        if self.ends_at_disconnect():
            return
        closed = len(self.client.of("closed"))
        connect = wire.Connect(self.version, self.device, self.device, tokens.sas(self.device), clean=False).packet()
        if self.version == 5:
            connect = with_expiry(connect)
        other = wire.Session(self.case.gateway.port, connect)
        kind, body = other.packet()
        assert (kind, body[:2]) == (0x20, b"\1\0"), (kind, body)
        if self.name not in SILENT_ABOUT_CLOSING:
            self.client.wait("closed", closed + 1)
        other.socket.close()
        self.back(present=True, at_least=1)
        self.command("after a take-over")
        self.told["taken_over"] = None

    def closed_by_operator(self):
        """With its session: it subscribes again."""
        if self.ends_at_disconnect():
            return
        subscribed = len(self.client.of("suback"))
        program = [str(place.PROGRAMS / "tollgate"), "sessions", "close", self.device, "--config", "gateway.toml"]
        subprocess.run(program, cwd=self.case.gateway.folder, check=True, capture_output=True, timeout=60)
        self.back(present=False)
        self.client.wait("suback", subscribed + 1)
        self.command("after all was closed")
        self.told["closed_by_operator"] = None

    def ends_at_disconnect(self):
        return self.name == "mosquitto" and self.version == 5

    def messages(self, what, qos):
        return [(f"{self.events}{what}", f"{self.device}: {what} {n}".encode(), qos) for n in range(5)]

    def order(self, messages):
        self.orders += 1
        self.client.publish(messages)

    def done(self, messages):
        """All acknowledged."""
        self.client.wait("done", 1 + self.orders)

    def passed_once(self, topic, messages):
        """Not one more before the next that the client sends."""
        last = (topic, f"{self.device}: and that is all".encode(), 1)
        self.order([last])
        self.done([last])
        assert self.seen(topic, last[1]) == [payload for _, payload, _ in [*messages, last]], self.seen(topic)

    def seen(self, topic, last=None):
        """What the hub has of a topic, when the last is there."""
        there = lambda: [message.payload for message in self.hub.messages if message.topic == topic]
        if last is not None:
            place.until(f"{last} on {topic}", lambda: last in there())
        return there()

    def back(self, present, at_least=None):
        """Connected again, without a word from here."""
        kind = "connack" if self.name in SILENT_ABOUT_SESSIONS else "session"
        self.connects += 1
        said = self.client.wait(kind, self.connects)
        if at_least is not None:
            # It may have met the other more than once.
            self.connects = len(self.client.of(kind))
        if kind == "session":
            assert said[-1] == {"event": "session", "present": present}, self.client.events

    def command(self, text):
        self.hub.send(f"{self.commands}again", f"{self.device}: {text}".encode(), 1)
        self.hear([(f"{self.commands}again", f"{self.device}: {text}".encode(), 1)])

    def hear(self, messages):
        """These next, in the order of each topic, and nothing twice. Some clients tell of QoS 2 at PUBREL only, hence after a
        QoS 1 message that came later."""
        got = [message_of(event)[:2] for event in self.client.wait("message", self.heard + len(messages))[self.heard:]]
        by_topic = lambda pairs: sorted(pairs, key=lambda pair: pair[0])
        assert by_topic(got) == by_topic((topic, payload) for topic, payload, _ in messages), self.client.events
        self.heard += len(messages)


# mosquitto's programs say nothing of a connection that they open again.
SILENT_ABOUT_CLOSING = ("mosquitto",)


def connected(case, name, transport, version, device, commands):
    """A client behind a relay, and at home."""
    goal = {"tcp": case.gateway.port, "ws": case.ws_port, "wss": case.wss_port}.get(transport, case.gateway.tls_port)
    relay = Relay(goal)
    made = Client(
        name, case.gateway, version, device, tokens.sas(device), tls=transport in ("tls-1.2", "tls-1.3", "wss"), stay=True,
        port=relay.port, path="/mqtt" if transport.startswith("ws") else None, reconnect=True, clean=False, expiry=EXPIRY,
        tls_version=transport.partition("-")[2] or None, subscribe=[(f"{commands}#", 2)],
    )
    made.wait("done")
    return relay, made


def distinct(payloads):
    return list(dict.fromkeys(payloads))


def with_expiry(connect):
    """The same CONNECT of 5.0, which has no properties, with a session that stays."""
    body = connect[2:] if connect[1] < 0x80 else connect[3:]
    body = body[:10] + b"\x05\x11" + EXPIRY.to_bytes(4, "big") + body[11:]
    return b"\x10" + wire.varint(len(body)) + body


class AtWebSockets(AtAGateway):
    devices = [f"{name}-{transport}-{version}" for name, transport, version in STORIES]

    @classmethod
    def start(cls, folder):
        cls.ws_port, cls.wss_port = place.free_port(), place.free_port()
        files = f'certificate = "{folder}/server.pem"\nprivate_key = "{folder}/server.key"\n'
        listener = '[[listener]]\nbind = "127.0.0.1:{}"\ntransport = "{}"\n{}'
        cls.options = {"sections": listener.format(cls.ws_port, "ws", "") + listener.format(cls.wss_port, "wss", files)}
        super().start(folder)


@expanded
class Comebacks(AtWebSockets):
    @classmethod
    def start(cls, folder):
        super().start(folder)
        pool = concurrent.futures.ThreadPoolExecutor(AT_A_TIME)
        cls.addClassCleanup(pool.shutdown, cancel_futures=True)
        cls.told = {story: pool.submit(Comeback(cls, *story).tell) for story in STORIES}


def _add(story, behaviour):
    def test(self):
        broken = self.told[story].result()[behaviour]
        if broken is not None:
            raise broken

    name, transport, version = story
    setattr(Comebacks, f"test[story={name} {transport} {version}_{behaviour}]", test)


for _story in STORIES:
    for _behaviour in BEHAVIOURS if _story[0] != "mosquitto" else BEHAVIOURS[:1] if _story[2] == 5 else MOSQUITTO_BEHAVIOURS:
        _add(_story, _behaviour)


@expanded
class Restarts(AtWebSockets):
    """The gateway is killed, and started again, under clients of every kind: first as it stands, then in order."""

    stories = [(name, all_[-1], version) for name, all_ in COMES_BACK_OVER.items() for version in VERSIONS]
    # One that is told that the gateway leaves (5.0).
    stories.remove(("mosquitto", "tcp", 5))

    @classmethod
    def start(cls, folder):
        super().start(folder)
        cls.clients = {}
        for name, transport, version in cls.stories:
            device = f"{name}-{transport}-{version}"
            relay, made = connected(cls, name, transport, version, device, f"devices/{device}/messages/devicebound/")
            cls.addClassCleanup(relay.close)
            cls.addClassCleanup(made.__exit__)
            cls.clients[name, transport, version] = relay, made
        for turn, end in enumerate(("stop", "leave"), 1):
            cls.sent(turn)
            (cls.gateway.program.stop if end == "stop" else cls.gateway.leave)()
            cls.meanwhile(turn)
            cls.gateway.run()
            for (name, _, _), (_, made) in cls.clients.items():
                made.wait("connack", turn + 1)
                made.wait("done", turn + 1)

    @classmethod
    def sent(cls, turn):
        """And never answered."""
        for (name, transport, version), (relay, made) in cls.clients.items():
            if name in LISTENERS:
                continue
            relay.hold("down")
            made.publish(cls.telemetry(name, transport, version, turn))
        for (name, transport, version) in cls.clients:
            for topic in {topic for topic, _, _ in cls.telemetry(name, transport, version, turn)} if name not in LISTENERS else ():
                cls.hub.take(topic, 4)

    @classmethod
    def meanwhile(cls, turn):
        for story, (relay, _) in cls.clients.items():
            relay.passes["down"] = True
            for n in range(3):
                topic, payload = cls.command(story, turn, n)
                cls.hub.send(topic, payload, 1)

    @staticmethod
    def telemetry(name, transport, version, turn):
        device = f"{name}-{transport}-{version}"
        return [(f"devices/{device}/messages/events/{turn}-{qos}", f"{device}: turn {turn}, {n}".encode(), qos)
                for qos in (1, 2) for n in range(4)]

    @staticmethod
    def command(story, turn, n):
        device = "-".join(map(str, story))
        return f"devices/{device}/messages/devicebound/{turn}", f"{device}: while the gateway was away, {turn}, {n}".encode()

    @each(story=stories)
    def test_all_is_there(self, story):
        name = story[0]
        _, made = self.clients[story]
        expected = [self.command(story, turn, n) for turn in (1, 2) for n in range(3)]
        heard = [message_of(event)[:2] for event in made.wait("message", len(expected))]
        self.assertEqual(distinct(heard), expected, made.events)
        if name not in SILENT_ABOUT_SESSIONS:
            self.assertEqual([event["present"] for event in made.wait("session", 3)], [False, True, True])
        if name in LISTENERS:
            return
        made.wait("done", 3)
        for turn in (1, 2):
            for qos in (1, 2):
                sent = [message for message in self.telemetry(*story, turn) if message[2] == qos]
                topic = sent[0][0]
                self.hub.take(topic, len(sent))
                arrived = distinct(message.payload for message in self.hub.messages if message.topic == topic)
                self.assertEqual(arrived, [payload for _, payload, _ in sent])

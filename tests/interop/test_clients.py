"""One table: client × transport × version of MQTT × behaviour. Each cell is a test; the cells of one client on one transport in
one version are one story, and stories are told side by side."""

import concurrent.futures
import os
import signal

import place
import tokens
from case import VERSIONS, AtAGateway, each, expanded
from client import Client, message_of

# What a client can be asked for. mosquitto's programs and gmqtt speak no WebSocket.
ALL = ("tcp", "tls-1.2", "tls-1.3", "ws", "wss")
TRANSPORTS_OF = {
    "paho": ALL,
    "paho2": ALL,
    "aiomqtt": ALL,
    "mqtt.js": ALL,
    "gmqtt": ALL[:3],
    "mosquitto": ALL[:3],
    "rumqttc": ALL,
}
# Seconds; mosquitto's programs and rumqttc take no less than five.
KEEP_ALIVE_OF = dict.fromkeys(TRANSPORTS_OF, 2) | {"mosquitto": 5, "rumqttc": 5}
TAKES_NO_ORDERS = ("mosquitto",)
# Those that do not tell whether the session was there.
SILENT_ABOUT_SESSIONS = ("mosquitto",)
BEHAVIOURS = (
    "qos_0", "qos_1", "qos_2", "order_of_100", "commands", "take_over", "will", "resume", "keep_alive", "reconnect",
)
# Stories at a time: two programs each, and two cores.
AT_A_TIME = 6
EXPIRY = 600


class Story:
    """One client's: a part after the other, each leaves what the next begins with. What broke is kept for its cell."""

    def __init__(self, case, name, transport, version):
        self.case, self.hub, self.name, self.transport, self.version = case, case.hub, name, transport, version
        self.device = f"{name}-{transport}-{version}"
        self.events = f"devices/{self.device}/messages/events/"
        self.commands = f"devices/{self.device}/messages/devicebound/"
        self.clients, self.told = [], {}

    def tell(self):
        try:
            for part in (self.begin, self.take_over, self.will, self.resume, self.keep_alive, self.reconnect):
                part()
        except BaseException as broken:
            for behaviour in BEHAVIOURS:
                self.told.setdefault(behaviour, broken)
        finally:
            for client in self.clients:
                client.__exit__()
        return self.told

    def check(self, behaviour, holds):
        """What is only looked at breaks its own cell alone."""
        try:
            holds()
            self.told[behaviour] = None
        except AssertionError as broken:
            self.told[behaviour] = broken

    def begin(self):
        """Telemetry of each QoS, a hundred messages without waiting, commands."""
        sent = {qos: (f"{self.events}qos-{qos}", f"{self.device}: telemetry at QoS {qos}".encode(), qos) for qos in (0, 1, 2)}
        hundred = [(f"{self.events}order", f"{self.device}: reading {n}".encode(), 1) for n in range(100)]
        first = self.connect(
            clean=False, expiry=EXPIRY, subscribe=[(f"{self.commands}#", 2)], publish=sent.values(), pipelined=hundred
        )
        first.wait("done")
        for qos, (topic, payload, _) in sent.items():
            self.check(f"qos_{qos}", lambda: self.arrived(topic, [payload]))
        self.check("order_of_100", lambda: self.arrived(f"{self.events}order", [payload for _, payload, _ in hundred]))
        down = [(f"{self.commands}{qos}", f"{self.device}: command at QoS {qos}".encode(), qos) for qos in (0, 1, 2)]
        for topic, payload, qos in down:
            self.hub.send(topic, payload, qos)

        def commands():
            got = sorted(message_of(event) for event in first.wait("message", len(down)))
            assert [(topic, payload) for topic, payload, _ in got] == [(topic, payload) for topic, payload, _ in down], got
            assert [qos for _, _, qos in got] == [0, 1, 2], got

        self.check("commands", commands)
        # Until QoS 2 is at its end on both sides: the programs that follow know nothing of what this one has half-way, and
        # rumqttc closes at a PUBREL for what it does not know.
        for turn in range(2 if self.name not in TAKES_NO_ORDERS else 0):
            first.publish([(f"{self.events}end", b"all is answered", 1)])
            first.wait("done", 2 + turn)

    def take_over(self):
        """The newcomer goes on with the session of the one that it ends."""
        [first] = self.clients
        second = self.connect(clean=False, expiry=EXPIRY, will=(f"{self.events}will", b"gone: the second of its name", 1))
        second.wait("done")

        def taken_over():
            first.wait("closed")
            assert all(event["code"] == 0x8E for event in first.of("disconnect")), first.events
            self.assert_present(second, True)

        self.check("take_over", taken_over)

    def will(self):
        """Its connection is lost."""
        second = self.clients[-1]
        os.killpg(second.process.pid, signal.SIGKILL)
        self.check("will", lambda: self.arrived(f"{self.events}will", [b"gone: the second of its name"]))

    def resume(self):
        """What was sent to it meanwhile waits for it."""
        waiting = [(f"{self.commands}away", f"{self.device}: while you were away {n}".encode(), 1) for n in range(5)]
        for message in waiting:
            self.hub.send(*message)
        third = self.connect(
            clean=False, expiry=EXPIRY, keep_alive=KEEP_ALIVE_OF[self.name], will=(f"{self.events}silent", b"gone: no sign of life", 1)
        )
        third.wait("done")

        def resumed():
            got = [message_of(event) for event in third.wait("message", len(waiting))]
            assert got == waiting, third.events
            self.assert_present(third, True)

        self.check("resume", resumed)

    def keep_alive(self):
        """It is stopped as it stands: no PINGREQ, and no end of the connection."""
        third = self.clients[-1]
        os.killpg(third.process.pid, signal.SIGSTOP)
        self.check("keep_alive", lambda: self.arrived(f"{self.events}silent", [b"gone: no sign of life"]))
        os.killpg(third.process.pid, signal.SIGKILL)

    def reconnect(self):
        """A clean start, with nothing of what was before."""
        fourth = self.connect(publish=[(f"{self.events}again", b"here again, and anew", 1)])
        fourth.wait("done")

        def anew():
            self.arrived(f"{self.events}again", [b"here again, and anew"])
            self.assert_present(fourth, False)
            assert not fourth.of("message"), fourth.events

        self.check("reconnect", anew)

    def connect(self, **how):
        ports = {"tcp": self.case.gateway.port, "ws": self.case.ws_port, "wss": self.case.wss_port}
        is_tls = self.transport in ("tls-1.2", "tls-1.3", "wss")
        # mosquitto_sub has to ask for something.
        how.setdefault("subscribe", [(f"{self.commands}#", 2)] if self.name == "mosquitto" and not how.get("publish") else [])
        client = Client(
            self.name, self.case.gateway, self.version, self.device, tokens.sas(self.device), tls=is_tls, stay=True,
            port=ports.get(self.transport), path="/mqtt" if self.transport.startswith("ws") else None,
            tls_version=self.transport.partition("-")[2] or None, **how,
        )
        self.clients.append(client)
        return client

    def arrived(self, topic, payloads):
        got = [message.payload for message in self.hub.take(topic, len(payloads))]
        assert got == payloads, f"{topic}: {got}"

    def assert_present(self, client, present):
        expected = [] if self.name in SILENT_ABOUT_SESSIONS else [{"event": "session", "present": present}]
        assert client.of("session") == expected, client.events


@expanded
class Clients(AtAGateway):
    stories = [(name, transport, version) for name, all_ in TRANSPORTS_OF.items() for transport in all_ for version in VERSIONS]
    devices = [f"{name}-{transport}-{version}" for name, transport, version in stories]

    @classmethod
    def start(cls, folder):
        cls.ws_port, cls.wss_port = place.free_port(), place.free_port()
        files = f'certificate = "{folder}/server.pem"\nprivate_key = "{folder}/server.key"\n'
        listener = '[[listener]]\nbind = "127.0.0.1:{}"\ntransport = "{}"\n{}'
        cls.options = {"sections": listener.format(cls.ws_port, "ws", "") + listener.format(cls.wss_port, "wss", files)}
        super().start(folder)
        pool = concurrent.futures.ThreadPoolExecutor(AT_A_TIME)
        cls.addClassCleanup(pool.shutdown, cancel_futures=True)
        cls.told = {story: pool.submit(Story(cls, *story).tell) for story in cls.stories}

    @each(story=stories, behaviour=BEHAVIOURS)
    def test(self, story, behaviour):
        broken = self.told[story].result()[behaviour]
        if broken is not None:
            raise broken

"""NATS JetStream as the hub: a real nats-server that refuses, fills up, is killed and comes back."""

import json
import os
import random
import threading
import unittest

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

import client
import nats_place
import place
import tokens

ROUNDS = int(os.environ.get("TOLLGATE_NATS_ROUNDS", "8"))
SHORT = 3


class AtANatsHub(unittest.TestCase):
    devices = ()
    hub_options = {}
    sections = ""

    @classmethod
    def options(cls):
        return {}

    @classmethod
    def setUpClass(cls):
        tokens.SECRETS.update({b"nats-password-of-the-gateway", b"nats-token-of-the-gateway"})
        folder = place.new_folder()
        cls.authority = place.Authority(folder)
        cls.hub = nats_place.NatsHub(cls.authority, **cls.hub_options)
        cls.addClassCleanup(cls.hub.stop)
        cls.gateway = place.Gateway(
            cls.authority, cls.hub, cls.devices, upstream=cls.hub.upstream(**cls.options()), sections=cls.sections
        )
        cls.addClassCleanup(cls.gateway.stop)

    def publish(self, device, messages, name="paho", version=5, **what):
        with client.Client(name, self.gateway, version, device, tokens.sas(device), publish=messages, **what) as run:
            return run.outcome()

    def upstream(self):
        token = (self.gateway.folder / "var/admin.token").read_text().strip()
        request = place.urllib.request.Request(
            f"http://127.0.0.1:{self.gateway.admin_port}/v1/upstreams", headers={"Authorization": f"Bearer {token}"}
        )
        with place.urllib.request.urlopen(request, timeout=10) as answer:
            answer = json.load(answer)
        return (answer["upstreams"] if isinstance(answer, dict) else answer)[0]

    def until_connected(self):
        place.until("all connections", lambda: self.gateway.metric("tollgate_upstream_connected") >= 4)

    def until_said(self, what):
        return place.until(f"{what!r}", lambda: what in (self.upstream().get("last_error") or "") and self.upstream())


class Telemetry(AtANatsHub):
    devices = ["dev-1", "pump 17".replace(" ", "."), "other", "many"]

    def test_a_message_is_stored_with_what_the_gateway_says_of_it(self):
        topic = "devices/dev-1/messages/events/Größe/a.b//x y*>"
        events = self.publish("dev-1", [(topic, b"payload of the message, byte for byte \x00\xff", 1)])
        self.assertEqual(len([event for event in events if event["event"] == "puback"]), 1)
        [message] = self.hub.take("devices.dev-1.messages.events.Gr%C3%B6%C3%9Fe.a%2Eb.%.x%20y%2A%3E", 1)
        self.assertEqual(message.data, b"payload of the message, byte for byte \x00\xff")
        headers = message.headers
        self.assertEqual(headers["tollgate-device"], "dev-1")
        self.assertEqual(headers["tollgate-gateway"], "edge-interop")
        self.assertEqual(headers["tollgate-auth"], "sas/primary")
        self.assertRegex(headers["tollgate-received"], r"^20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(headers["Nats-Msg-Id"], headers["tollgate-id"])

    def test_every_topic_has_a_subject_of_its_own(self):
        base = "devices/pump.17/messages/events"
        tails = ["", "a.b", "a/b", "a%2Eb", "%", "*", ">", "$SYS", "a b", "_x", "温度", "a//b", "a/"]
        messages = [(f"{base}/{tail}", f"on {tail}".encode(), qos) for tail in tails for qos in (0, 1)]
        self.publish("pump.17", messages)

        def of_this_device():
            mine = [message for message in self.hub.stored() if (message.headers or {}).get("tollgate-device") == "pump.17"]
            return mine if len(mine) == len(messages) else None

        stored = place.until("all", of_this_device)
        self.assertEqual([message.data for message in stored], [payload for _, payload, _ in messages], "in order")
        self.assertEqual(len({message.subject for message in stored}), len(tails))

    def test_a_device_cannot_say_what_the_server_obeys(self):
        device = mqtt.Client("other", protocol=mqtt.MQTTv5)
        device.username_pw_set("other", tokens.sas("other"))
        device.connect("127.0.0.1", self.gateway.port)
        device.loop_start()
        self.addCleanup(device.loop_stop)
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [
            ("Nats-Rollup", "all"), ("Nats-Msg-Id", "1"), ("a: b", "c: d"),
            ("tollgate-device", "dev-1"), ("colour", "größe 50 %"),
        ]
        properties.ContentType, properties.CorrelationData = "text/plain", b"\x00\xff"
        topic = "devices/other/messages/events/obey"
        for _ in range(2):
            device.publish(topic, b"obey", 1, properties=properties).wait_for_publish(place.PATIENCE)
        device.disconnect()
        stored = self.hub.take("devices.other.messages.events.obey", 2)
        self.assertEqual(len(stored), 2, "neither rolled up nor taken for a duplicate")
        headers = stored[0].headers
        self.assertEqual(headers["mqtt-user-Nats-Rollup"], "all")
        self.assertEqual(headers["tollgate-device"], "other")
        self.assertEqual(headers["mqtt-user-colour"], "gr%C3%B6%C3%9Fe 50 %25")
        self.assertEqual((headers["mqtt-content-type"], headers["mqtt-correlation-data"]), ("text/plain", "AP8="))
        self.assertNotIn("Nats-Rollup", headers)

    def test_commands_reach_their_device(self):
        inbox = "devices/many/messages/devicebound"
        filters = [(f"{inbox}/#", 1), (f"{inbox}/a.b/+", 1)]
        with client.Client("paho", self.gateway, 5, "many", tokens.sas("many"), subscribe=filters, stay=True) as session:
            session.wait("done")
            self.hub.send("devices.many.messages.devicebound", b"on the parent level of the filter")
            self.hub.send("devices.many.messages.devicebound.a%2Eb.%C3%BC", b"on a level that is escaped", {"Priority": "high"})
            self.hub.send("devices.many.messages.devicebound.a b".replace(" ", "%zz"), b"on no topic")
            self.hub.send("devices.many.messages.devicebound.last", b"the last of them all")
            found = [client.message_of(event) for event in session.wait("message", 3)]
            self.assertEqual(
                [(topic, payload) for topic, payload, _ in found],
                [(inbox, b"on the parent level of the filter"), (f"{inbox}/a.b/ü", b"on a level that is escaped"),
                 (f"{inbox}/last", b"the last of them all")],
            )


class OverTls(AtANatsHub):
    devices = ["dev-1"]
    hub_options = {"tls": True}

    def test_telemetry_arrives(self):
        self.publish("dev-1", [("devices/dev-1/messages/events/x", b"over tls", 1)])
        self.assertEqual(len(self.hub.take("devices.dev-1.messages.events.x", 1)), 1)


class WithAToken(AtANatsHub):
    devices = ["dev-1"]
    hub_options = {
        "more": 'authorization { token: "nats-token-of-the-gateway" }\n',
        "observer": {"token": "nats-token-of-the-gateway"},
    }

    @classmethod
    def options(cls):
        place.write_secret(cls.hub.folder / "nats-token", "nats-token-of-the-gateway\n")
        return {"username": None, "password_file": None, "token_file": str(cls.hub.folder / "nats-token")}

    def test_telemetry_arrives(self):
        self.publish("dev-1", [("devices/dev-1/messages/events/x", b"by a token of the gateway", 1)])
        self.assertEqual(len(self.hub.take("devices.dev-1.messages.events.x", 1)), 1)


class Refusals(AtANatsHub):
    """What the stream does not take, and what is one message's own fault."""

    devices = [f"d{n}" for n in range(8)]
    hub_options = {"subjects": ()}

    def setUp(self):
        self.hub.run(self.clean())

    async def clean(self):
        manager = self.hub.client.jetstream()
        for stream in await manager.streams_info():
            await manager.delete_stream(stream.config.name)

    def test_without_its_stream_nothing_is_lost_and_the_operator_is_told(self):
        topic, aside = "devices/d0/messages/events/x", self.upstream()["set_aside"]
        payloads = [f"while there is no stream: {n}".encode() for n in range(20)]
        events = self.publish("d0", [(topic, payload, 1) for payload in payloads])
        self.assertEqual(sum(event["event"] == "puback" for event in events), 20, "from the disk")
        said = self.until_said("the stream TELEMETRY does not exist")
        self.assertEqual(said["set_aside"], aside)
        self.hub.add_stream()
        stored = self.hub.take("devices.d0.messages.events.x", 20)
        self.assertEqual([message.data for message in stored], payloads)

    def test_a_full_stream_is_waited_for_and_order_holds(self):
        self.hub.add_stream(max_msgs=10, discard="new")
        self.until_connected()
        topic, aside = "devices/d1/messages/events/x", self.upstream()["set_aside"]
        payloads = [f"more than the stream takes: {n}".encode() for n in range(30)]
        events = self.publish("d1", [(topic, payload, 1) for payload in payloads])
        self.assertEqual(sum(event["event"] == "puback" for event in events), 30)
        place.until("ten", lambda: self.hub.count() == 10)
        self.until_said("the stream TELEMETRY ")
        self.hub.update_stream(max_msgs=-1)
        stored = self.hub.take("devices.d1.messages.events.x", 30)
        self.assertEqual([message.data for message in stored], payloads)
        self.assertEqual(self.upstream()["set_aside"], aside)

    def test_a_message_that_the_stream_does_not_capture_stops_no_other(self):
        self.hub.add_stream(["devices.d2.>"])
        self.until_connected()
        aside = self.upstream()["set_aside"]
        self.publish("d3", [("devices/d3/messages/events/x", b"of a subject that no stream captures", 1)], stay=False)
        self.publish("d2", [("devices/d2/messages/events/x", b"of a subject that one captures", 1)])
        self.assertEqual(len(self.hub.take("devices.d2.messages.events.x", 1)), 1)
        place.until("the first is set aside", lambda: self.upstream()["set_aside"] == aside + 1)
        self.assertEqual(self.gateway.metric("tollgate_upstream_connected"), 4)


class Forbidden(AtANatsHub):
    devices = ["d0", "d1"]
    hub_options = {
        "more": nats_place.LOGINS.replace('publish: ["devices.>"', 'publish: ["devices.d0.>"')
        .replace(', "devices.*.messages.devicebound.>"', "")
    }

    def test_what_the_login_may_not_publish_is_set_aside_and_stops_no_other(self):
        self.until_connected()
        self.publish("d1", [("devices/d1/messages/events/x", b"what the login may not say", 1)])
        self.publish("d0", [("devices/d0/messages/events/x", b"what the login may say", 1)])
        self.assertEqual(len(self.hub.take("devices.d0.messages.events.x", 1)), 1)
        place.until("the first is set aside", lambda: self.upstream()["set_aside"] == 1)
        self.assertEqual(self.gateway.metric("tollgate_upstream_connected"), 4)

    def test_what_the_login_may_not_subscribe_to_is_refused(self):
        inbox = "devices/d0/messages/devicebound"
        for filter_, code in ((inbox, 0), (f"{inbox}/#", 0x83), (f"{inbox}/a", 0x83)):
            with self.subTest(filter=filter_):
                with client.Client("paho", self.gateway, 5, "d0", tokens.sas("d0"), subscribe=[(filter_, 1)], stay=True) as run:
                    self.assertEqual(run.wait("suback")[0]["codes"], [code])


class WrongPassword(AtANatsHub):
    devices = ["d0"]

    @classmethod
    def options(cls):
        place.write_secret(cls.hub.folder / "nats-wrong", "another-password-of-nobody")
        return {"password_file": str(cls.hub.folder / "nats-wrong")}

    def test_the_operator_is_told_and_the_next_connection_reads_the_file_again(self):
        self.until_said("the server does not accept this login")
        self.publish("d0", [("devices/d0/messages/events/x", b"it waits on the disk", 1)])
        (self.hub.folder / "nats-wrong").write_text("nats-password-of-the-gateway")
        self.assertEqual(len(self.hub.take("devices.d0.messages.events.x", 1)), 1)


class Killed(AtANatsHub):
    """kill -9 of the server under load: what was acknowledged to a device is in the stream, in order, once."""

    devices = [f"d{n}" for n in range(6)]

    def test_nothing_acknowledged_is_lost_and_order_holds(self):
        over, ledgers = threading.Event(), {device: Ledger() for device in self.devices}
        threads = [
            threading.Thread(target=load, args=(self.gateway.port, device, ledger, over), daemon=True)
            for device, ledger in ledgers.items()
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(ROUNDS):
                before = sum(ledger.acknowledged for ledger in ledgers.values())
                wanted = before + random.randrange(50, 400)
                place.until("the load to go on", lambda: sum(l.acknowledged for l in ledgers.values()) >= wanted, 60)
                self.hub.kill()
                gone = sum(ledger.acknowledged for ledger in ledgers.values()) + random.randrange(60)
                place.until("it goes on without the hub", lambda: sum(l.acknowledged for l in ledgers.values()) >= gone, 60)
                self.hub.start()
        finally:
            over.set()
        for thread in threads:
            thread.join(60)
        place.until("all is forwarded", lambda: self.gateway.metric("tollgate_spool_messages") == 0, 60)
        self.assert_all_there(ledgers)

    def assert_all_there(self, ledgers):
        seen = {device: [] for device in self.devices}
        for message in self.hub.stored():
            device = message.headers["tollgate-device"]
            seen[device].append(int(message.data))
        for device, ledger in ledgers.items():
            numbers = seen[device]
            self.assertEqual(numbers, sorted(set(numbers)), f"{device}: in order, and each once")
            self.assertGreater(ledger.acknowledged, 0)
            self.assertGreaterEqual(len(numbers), ledger.acknowledged, f"{device}: acknowledged and lost")
            self.assertEqual(numbers, list(range(len(numbers))), f"{device}: without a gap")


class Ledger:
    acknowledged = 0


def load(port, device, ledger, over):
    """Publishes 0, 1, 2 … with up to 20 unacknowledged."""
    free = threading.Semaphore(20)
    session = mqtt.Client(device, protocol=mqtt.MQTTv5)
    session.username_pw_set(device, tokens.sas(device))
    session.max_inflight_messages_set(20)

    def acknowledged(*_):
        ledger.acknowledged += 1
        free.release()

    session.on_publish = acknowledged
    session.connect("127.0.0.1", port)
    session.loop_start()
    number = 0
    while not over.is_set():
        if free.acquire(timeout=0.1):
            session.publish(f"devices/{device}/messages/events/n", str(number).encode(), 1)
            number += 1
    place.until("all acknowledged", lambda: ledger.acknowledged == number, 60)
    session.disconnect()
    session.loop_stop()


class Restarted(AtANatsHub):
    devices = ["d0"]

    def test_what_waited_on_the_disk_is_stored_once_after_both_were_killed(self):
        topic = "devices/d0/messages/events/x"
        payloads = [f"before and after the restart: {n}".encode() for n in range(60)]
        self.until_connected()
        self.publish("d0", [(topic, payload, 1) for payload in payloads[:10]])
        self.hub.kill()
        place.until("the gateway sees it", lambda: self.gateway.metric("tollgate_upstream_connected") == 0)
        self.publish("d0", [(topic, payload, 1) for payload in payloads[10:]])
        self.gateway.program.stop()
        self.hub.start()
        self.gateway.run()
        stored = self.hub.take("devices.d0.messages.events.x", 60)
        self.assertEqual([message.data for message in stored], payloads)
        self.assertEqual(len({message.headers["Nats-Msg-Id"] for message in stored}), 60)

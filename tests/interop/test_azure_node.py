"""The official Azure IoT device SDK for Node, unmodified but for host, port and CA, over TLS and over WebSocket."""

import base64

import place
import tokens
from case import AtAGateway, each, expanded
from client import CLIENTS, Driven
from relay import Relay
from responder import Responder

TRANSPORTS = ("tls", "websocket")


class Sdk(Driven):
    """clients/azure_client.js: one command after the other."""

    def __init__(self, **how):
        super().__init__(["node", str(CLIENTS / "azure_client.js")])
        self.done = {}
        self.how = how

    def do(self, command, **what):
        """Until it is done; the error, where there is one."""
        failed = len(self.of("error"))
        before = len(self.of("done")) + failed
        self.tell({"do": command, **what})
        with self.changed:
            ended = self.changed.wait_for(
                lambda: len(self.of("done")) + len(self.of("error")) > before or not self.threads[0].is_alive(), place.PATIENCE * 2
            )
        assert ended and self.process.poll() is None, f"{command}: {self.events}, {self.errors[-8:]}"
        errors = [event for event in self.of("error")[failed:] if event["do"] == command]
        return errors[-1] if errors else None

    def must(self, command, **what):
        error = self.do(command, **what)
        assert error is None, f"{command}: {error}, {self.errors[-8:]}"

    def open(self):
        return self.do("open", **self.how)


@expanded
class AzureNodeSdk(AtAGateway):
    devices = [f"{name}-{transport}" for name in ("pump", "valve", "renewing", "cut", "busy") for transport in TRANSPORTS]

    @classmethod
    def start(cls, folder):
        cls.wss_port = place.free_port()
        cls.options = {
            "settings": 'aliases = ["hub.example"]\nprofile = "azure"',
            "more": "".join(
                f'[[module]]\nid = "pump-{transport}/camera"\nprimary_key = "{tokens.key_of(f"camera-{transport}")}"\n'
                for transport in TRANSPORTS
            ),
            "sections": f'[[listener]]\nbind = "127.0.0.1:{cls.wss_port}"\ntransport = "wss"\n'
            f'certificate = "{folder}/server.pem"\nprivate_key = "{folder}/server.key"\n',
        }
        super().start(folder)
        cls.responder = Responder(cls.hub)
        cls.addClassCleanup(cls.responder.stop)

    def sdk(self, transport, device=None, key=None, *, module="", **how):
        if device:
            key = tokens.key_of(key or device)
            how["connection_string"] = f"HostName=localhost;DeviceId={device};{module}SharedAccessKey={key}"
        ports = {8883: self.gateway.tls_port, 443: self.wss_port}
        how = {"transport": transport, "ca": str(self.authority.file), "ports": ports} | how
        return self.enterContext(Sdk(**how))

    def opened(self, *arguments, **how):
        sdk = self.sdk(*arguments, **how)
        self.assertIsNone(sdk.open(), sdk.errors[-8:])
        return sdk

    @each(transport=TRANSPORTS)
    def test_a_message_with_properties_arrives_byte_for_byte(self, transport):
        device = f"pump-{transport}"
        system = {"messageId": "m-1", "correlationId": "c-7", "contentType": "application/json", "contentEncoding": "utf-8"}
        properties = {"alert": "yes/no #1+2 ü"}
        sdk = self.opened(transport, device)
        sdk.must("send", payload=encoded(b'{"t": 21.5}'), system=system, properties=properties)
        said = "%24.mid=m-1&%24.cid=c-7&%24.ct=application%2Fjson&%24.ce=utf-8&alert=yes%2Fno%20%231%2B2%20%C3%BC"
        events = f"devices/{device}/messages/events/"
        [arrived] = place.until("the message", lambda: [m for m in self.hub.messages if m.topic.startswith(events)])
        self.assertEqual(set(arrived.topic.removeprefix(events).split("&")), set(said.split("&")))
        self.assertEqual(arrived.payload, b'{"t": 21.5}')
        stamped = dict(arrived.properties.UserProperty)
        self.assertEqual((stamped["tollgate-device"], stamped["alert"], stamped["$.mid"]), (device, "yes/no #1+2 ü", "m-1"))
        self.assertEqual((arrived.properties.ContentType, arrived.properties.CorrelationData), ("application/json", b"c-7"))

    @each(transport=TRANSPORTS)
    def test_250_kib_arrive(self, transport):
        device = f"valve-{transport}"
        payload = bytes(n % 251 for n in range(250 * 1024))
        sdk = self.opened(transport, device)
        sdk.must("send", payload=encoded(payload), system={"messageId": "large"})
        [arrived] = self.hub.take(f"devices/{device}/messages/events/%24.mid=large", 1)
        self.assertEqual(arrived.payload, payload)

    @each(transport=TRANSPORTS)
    def test_commands_reach_it_with_their_properties(self, transport):
        device = f"valve-{transport}"
        sdk = self.opened(transport, device)
        sdk.must("messages")
        self.until_subscribed(sdk, device)
        commands = f"devices/{device}/messages/devicebound/"
        self.hub.send(f"{commands}%24.mid=c-1&do=open", b"by a bag", 1)
        self.hub.send(commands, b"by properties of MQTT 5.0", 1, user=[("do", "open/close")], content_type="text/plain")
        place.until("the commands", lambda: len(messages(sdk)) == 2)
        by_bag, by_properties = messages(sdk)
        self.assertEqual(
            (by_bag["payload"], by_bag["messageId"], by_bag["properties"]["do"]), (encoded(b"by a bag"), "c-1", "open")
        )
        self.assertEqual((by_properties["properties"]["do"], by_properties["contentType"]), ("open/close", "text/plain"))

    def until_subscribed(self, sdk, device):
        """The SDK does not say when it is: it is when a first command has come through."""
        self.hub.send(f"devices/{device}/messages/devicebound/", b"are you there?", 1, retain=True)
        place.until("the first command", lambda: sdk.of("message"))
        self.hub.send(f"devices/{device}/messages/devicebound/", b"", 1, retain=True)

    @each(transport=TRANSPORTS, module=(False, True))
    def test_twins_and_methods(self, transport, module):
        device = f"pump-{transport}"
        if module:
            who = f"{device}/modules/camera"
            sdk = self.opened(transport, device, f"camera-{transport}", module="ModuleId=camera;")
        else:
            who, sdk = device, self.opened(transport, device)
        self.responder.twin(who)["desired"]["interval"] = 30
        sdk.must("method", name="reboot", status=207)
        sdk.must("twin")
        [twin] = sdk.of("twin")
        self.assertEqual((twin["desired"], twin["reported"]["$version"]), ({"$version": 1, "interval": 30}, 1))
        sdk.must("report", patch={"firmware": "1.4.2"})
        self.assertEqual(self.responder.twin(who)["reported"], {"$version": 2, "firmware": "1.4.2"})
        # The first that the SDK tells of is what it has just got.
        place.until("the subscription", lambda: sdk.of("desired"))
        deltas = lambda: [event["delta"]["interval"] for event in sdk.of("desired")]
        place.until("a patch", lambda: self.responder.desire(who, interval=10) or 10 in deltas())
        self.assertEqual(self.responder.call(who, "reboot", {"in": 5}), (207, {"did": {"in": 5}}))
        sdk.must("send", payload=encoded(b"telemetry goes on"), system={"messageId": "after"})
        self.hub.take(f"devices/{who}/messages/events/%24.mid=after", 1)

    @each(transport=TRANSPORTS)
    def test_commands_arrive_after_renewals_without_another_subscribe(self, transport):
        device = f"renewing-{transport}"
        # It renews each four seconds, by leaving and connecting again, and subscribes once.
        sdk = self.opened(transport, device, ttl=8, margin=4)
        sdk.must("messages")
        self.until_subscribed(sdk, device)
        connects = self.connects()
        place.until("two renewals", lambda: self.connects() >= connects + 2)
        self.hub.send(f"devices/{device}/messages/devicebound/do=open", b"after two renewals", 1)
        place.until("the command", lambda: messages(sdk))
        self.assertEqual(messages(sdk)[0]["payload"], encoded(b"after two renewals"))
        self.assertEqual(sdk.of("disconnect"), [])

    @each(transport=TRANSPORTS)
    def test_commands_sent_while_it_renews_arrive(self, transport):
        device = f"busy-{transport}"
        sdk = self.opened(transport, device, ttl=8, margin=4)
        sdk.must("messages")
        self.until_subscribed(sdk, device)
        connects, sent = self.connects(), []

        def renewed_twice():
            self.command(device, sent)
            return self.connects() >= connects + 2

        place.until("two renewals", renewed_twice)
        for _ in range(5):
            self.command(device, sent)
        place.until("all commands", lambda: distinct(sdk) == sent)

    @each(transport=TRANSPORTS)
    def test_commands_and_telemetry_go_on_after_a_cut(self, transport):
        device = f"cut-{transport}"
        relay = Relay(self.wss_port if transport == "websocket" else self.gateway.tls_port)
        self.addCleanup(relay.close)
        sdk = self.opened(transport, device, ports={8883: relay.port, 443: relay.port}, retries=True)
        sdk.must("messages")
        self.until_subscribed(sdk, device)
        sent = []
        for turn in range(2):
            connects = self.connects()
            relay.down()
            for _ in range(3):
                self.command(device, sent)
            relay.up()
            sdk.must("send", payload=encoded(b"after the cut"), system={"messageId": f"cut-{turn}"})
            place.until("the SDK to come back", lambda: self.connects() > connects)
            self.command(device, sent)
            place.until("all commands", lambda: distinct(sdk) == sent)
            [arrived] = self.hub.take(f"devices/{device}/messages/events/%24.mid=cut-{turn}", 1)
            self.assertEqual(arrived.payload, b"after the cut")

    def command(self, device, sent):
        payload = f"command {len(sent)}".encode()
        sent.append(encoded(payload))
        self.hub.send(f"devices/{device}/messages/devicebound/", payload, 1)

    def connects(self):
        return self.gateway.metric("tollgate_connects_total", 'result="admitted"')

    @each(transport=TRANSPORTS)
    def test_wrong_foreign_and_expired_keys_are_refused(self, transport):
        device = f"pump-{transport}"
        expired = tokens.sas(device, expires_in=-3600)
        for what, sdk, denial in [
            ("wrong", self.sdk(transport, device, "nobody"), "signature_invalid"),
            ("foreign", self.sdk(transport, device, f"valve-{transport}"), "signature_invalid"),
            ("expired", self.sdk(transport, sas=expired), "expired"),
        ]:
            with self.subTest(what):
                error = sdk.open()
                self.assertIsNotNone(error)
                self.assertEqual(error["name"], "UnauthorizedError")
                self.assertGreaterEqual(self.gateway.metric("tollgate_connects_total", f'denial="{denial}"'), 1)


def messages(sdk):
    """But for the first, which asked whether it was there."""
    return [event for event in sdk.of("message") if event["payload"] not in (encoded(b"are you there?"), "")]


def distinct(sdk):
    """At QoS 1 one may come twice, where a new connection came between it and its PUBACK."""
    return list(dict.fromkeys(event["payload"] for event in messages(sdk)))


def encoded(payload):
    return base64.b64encode(payload).decode()

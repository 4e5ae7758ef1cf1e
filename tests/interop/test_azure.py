"""The official Azure IoT device SDK for Python, unmodified but for host and CA, over TLS and over WebSocket."""

import contextlib
import logging
import socket
import threading
import unittest
import unittest.mock
import urllib.parse
import warnings

from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message, MethodResponse
from azure.iot.device import exceptions

import place
import tokens
from case import AtAGateway, each, expanded
from relay import Relay
from responder import Responder

# The SDK speaks to port 8883 and no other: an address of loopback of its own keeps it apart from a gateway that runs here.
ADDRESS = "127.0.0.77"
TRANSPORTS = ("TLS", "WebSocket")
REFUSED = (exceptions.CredentialError, exceptions.ConnectionFailedError)
connect = socket.create_connection


class AtAHubOfAzure(AtAGateway):
    """A gateway with the profile azure, and beside its hub what stands there for twins and methods."""

    devices = [f"{name}-{transport}" for name in ("pump", "valve", "silent", "renewing", "cut", "busy") for transport in TRANSPORTS]

    @classmethod
    def start(cls, folder):
        cls.wss_port = place.free_port()
        modules = "".join(
            f'[[module]]\nid = "pump-{transport}/camera"\nprimary_key = "{tokens.key_of(f"camera-{transport}")}"\n'
            for transport in TRANSPORTS
        )
        cls.options = {
            "tls_bind": f"{ADDRESS}:8883",
            "settings": f'aliases = ["{ADDRESS}", "hub.example"]\nprofile = "azure"',
            "more": modules,
            "sections": f'[[listener]]\nbind = "{ADDRESS}:{cls.wss_port}"\ntransport = "wss"\n'
            f'certificate = "{folder}/server.pem"\nprivate_key = "{folder}/server.key"\n',
        } | cls.options
        super().start(folder)
        cls.responder = Responder(cls.hub)
        cls.addClassCleanup(cls.responder.stop)

    def setUp(self):
        warnings.simplefilter("ignore")
        # The SDK logs what the tests provoke, with a stack each.
        logging.getLogger("azure").setLevel(logging.CRITICAL + 1)
        # Over WebSocket it speaks to port 443 and no other, which is not everybody's to listen on.
        self.enterContext(unittest.mock.patch("socket.create_connection", self.reach))
        self.relays = {}

    def reach(self, address, *arguments, **named):
        goal = (ADDRESS, self.wss_port) if address == (ADDRESS, 443) else address
        relay = self.relays.get(goal)
        return connect(("127.0.0.1", relay.port) if relay else goal, *arguments, **named)

    def relayed(self, transport):
        """What the SDK opens from here on goes through a relay."""
        goal = (ADDRESS, self.wss_port if transport == "WebSocket" else 8883)
        relay = self.relays[goal] = Relay(goal[1], ADDRESS)
        self.addCleanup(relay.close)
        return relay

    def client(self, device, key, **more):
        """For `pump-WebSocket` over WebSocket."""
        made = IoTHubDeviceClient.create_from_symmetric_key(key, ADDRESS, device, **self.how(device), **more)
        self.addCleanup(made.shutdown)
        return made

    def module(self, transport):
        text = f"HostName={ADDRESS};DeviceId=pump-{transport};ModuleId=camera;SharedAccessKey={tokens.key_of(f'camera-{transport}')}"
        made = IoTHubModuleClient.create_from_connection_string(text, **self.how(transport))
        self.addCleanup(made.shutdown)
        return made

    def how(self, name):
        return {"server_verification_cert": self.authority.pem, "websockets": name.endswith("WebSocket")}


@expanded
class AzureSdk(AtAHubOfAzure):
    @each(transport=TRANSPORTS)
    def test_a_message_with_properties_arrives_byte_for_byte(self, transport):
        device = f"pump-{transport}"
        sdk = self.client(device, tokens.key_of(device))
        sdk.connect()
        message = Message(b'{"t": 21.5}', message_id="m-1", content_encoding="utf-8", content_type="application/json")
        message.correlation_id = "c-7"
        message.custom_properties["alert"] = "yes/no #1+2 ü"
        sdk.send_message(message)
        said = "%24.mid=m-1&%24.cid=c-7&%24.ct=application%2Fjson&%24.ce=utf-8&alert=yes%2Fno%20%231%2B2%20%C3%BC"
        [arrived] = self.hub.take(f"devices/{device}/messages/events/{said}", 1)
        self.assertEqual(arrived.payload, b'{"t": 21.5}')
        stamped = dict(arrived.properties.UserProperty)
        self.assertEqual((stamped["tollgate-device"], stamped["tollgate-auth"]), (device, "sas/primary"))
        bag = dict(urllib.parse.parse_qsl(said))
        self.assertEqual({name: stamped[name] for name in bag}, bag)
        self.assertEqual(bag["alert"], "yes/no #1+2 ü")
        self.assertEqual((arrived.properties.ContentType, arrived.properties.CorrelationData), ("application/json", b"c-7"))

    @each(transport=TRANSPORTS)
    def test_250_kib_arrive(self, transport):
        device = f"valve-{transport}"
        payload = bytes(n % 251 for n in range(250 * 1024))
        sdk = self.client(device, tokens.key_of(device))
        sdk.send_message(Message(payload, message_id="large"))
        [arrived] = self.hub.take(f"devices/{device}/messages/events/%24.mid=large", 1)
        self.assertEqual(arrived.payload, payload)

    @each(transport=TRANSPORTS)
    def test_twins_and_methods(self, transport):
        device = f"pump-{transport}"
        sdk = self.client(device, tokens.key_of(device))
        self.responder.twin(device)["desired"]["interval"] = 30
        self.speak_of_twins(sdk, device)

    def speak_of_twins(self, sdk, who):
        sdk.connect()
        twin = sdk.get_twin()
        self.assertEqual(twin["desired"], self.responder.twin(who)["desired"])
        sdk.patch_twin_reported_properties({"firmware": "1.4.2"})
        self.assertEqual(self.responder.twin(who)["reported"], {"$version": 2, "firmware": "1.4.2"})
        self.assertEqual(sdk.get_twin()["reported"]["firmware"], "1.4.2")
        patches, requests = [], []
        sdk.on_twin_desired_properties_patch_received = patches.append
        self.responder.desire(who, interval=10)
        place.until("the patch", lambda: patches)
        self.assertEqual(patches[0], {"interval": 10, "$version": 2})

        def answer(request):
            requests.append(request)
            sdk.send_method_response(MethodResponse.create_from_method_request(request, 207, {"did": request.payload}))

        sdk.on_method_request_received = answer
        self.assertEqual(self.responder.call(who, "reboot", {"in": 5}), (207, {"did": {"in": 5}}))
        self.assertEqual([request.name for request in requests], ["reboot"])

    @each(transport=TRANSPORTS)
    def test_a_module_is_an_identity_of_its_own(self, transport):
        sdk, who = self.module(transport), f"pump-{transport}/modules/camera"
        self.speak_of_twins(sdk, who)
        sdk.send_message(Message("a picture"))
        sdk.send_message_to_output(Message("seen"), "alarms")
        telemetry, output = (self.hub.take(f"devices/{who}/messages/events/{bag}", 1)[0] for bag in ("", "%24.on=alarms"))
        self.assertEqual((telemetry.payload, output.payload), (b"a picture", b"seen"))
        self.assertEqual(dict(output.properties.UserProperty)["tollgate-device"], f"pump-{transport}/camera")

    @each(transport=TRANSPORTS)
    def test_telemetry_goes_on_while_a_twin_is_not_answered(self, transport):
        device = f"silent-{transport}"
        self.responder.silent.add(device)
        sdk = self.client(device, tokens.key_of(device))
        sdk.connect()

        def wait_for_ever():
            with contextlib.suppress(exceptions.ClientError, exceptions.OperationCancelled):
                sdk.get_twin()

        threading.Thread(target=wait_for_ever, daemon=True).start()
        place.until("the question", lambda: (device, "twin/GET") in self.responder.asked)
        for n in range(5):
            sdk.send_message(Message(f"reading {n}"))
        self.hub.take(f"devices/{device}/messages/events/", 5)
        self.assertTrue(sdk.connected)

    @each(transport=TRANSPORTS)
    def test_a_connection_string_with_a_gateway_host_name(self, transport):
        device = f"valve-{transport}"
        text = f"HostName=hub.example;DeviceId={device};SharedAccessKey={tokens.key_of(device)};GatewayHostName={ADDRESS}"
        sdk = IoTHubDeviceClient.create_from_connection_string(text, **self.how(device))
        self.addCleanup(sdk.shutdown)
        sdk.connect()
        for n in range(20):
            sdk.send_message(Message(str(n)))
        arrived = self.hub.take(f"devices/{device}/messages/events/", 20)
        self.assertEqual([message.payload for message in arrived], [str(n).encode() for n in range(20)])

    @each(transport=TRANSPORTS)
    def test_commands_reach_it_with_their_properties(self, transport):
        device = f"valve-{transport}"
        sdk = self.client(device, tokens.key_of(device))
        received = []
        sdk.on_message_received = received.append
        sdk.connect()
        commands = f"devices/{device}/messages/devicebound/"
        self.hub.send(f"{commands}%24.mid=c-1&do=open", b"by a bag", 1)
        self.hub.send(commands, b"by properties of MQTT 5.0", 1, user=[("do", "open/close")], content_type="text/plain")
        place.until("the commands", lambda: len(received) == 2)
        by_bag, by_properties = received
        self.assertEqual((by_bag.data, by_bag.message_id, by_bag.custom_properties), (b"by a bag", "c-1", {"do": "open"}))
        self.assertEqual(by_properties.custom_properties["do"], "open/close")
        self.assertEqual(by_properties.content_type, "text/plain")

    @each(transport=TRANSPORTS)
    def test_commands_arrive_after_a_renewal_without_another_subscribe(self, transport):
        device = f"renewing-{transport}"
        # It renews 120 s before the end, by leaving and connecting again, and subscribes once.
        sdk = self.client(device, tokens.key_of(device), sastoken_ttl=124)
        received = []
        sdk.on_message_received = received.append
        sdk.connect()
        connects = self.connects()
        place.until("the renewal", lambda: self.connects() > connects)
        self.hub.send(f"devices/{device}/messages/devicebound/do=open", b"after the renewal", 1)
        place.until("the command", lambda: received)
        self.assertEqual(received[0].data, b"after the renewal")

    @each(transport=TRANSPORTS)
    def test_commands_sent_while_it_renews_arrive(self, transport):
        device = f"busy-{transport}"
        sdk = self.client(device, tokens.key_of(device), sastoken_ttl=124)
        received = []
        sdk.on_message_received = received.append
        sdk.connect()
        connects, sent = self.connects(), []

        def renewed():
            self.command(device, sent)
            return self.connects() > connects

        place.until("the renewal", renewed)
        for _ in range(5):
            self.command(device, sent)
        place.until("all commands", lambda: len(received) >= len(sent))
        self.assertEqual(distinct(message.data for message in received), sent)

    @each(transport=TRANSPORTS)
    def test_commands_and_telemetry_go_on_after_a_cut(self, transport):
        """Without a DISCONNECT. The SDK subscribes once, and does not look whether the session was there."""
        device = f"cut-{transport}"
        relay = self.relayed(transport)
        sdk = self.client(device, tokens.key_of(device), connection_retry_interval=1)
        received, sent = [], []
        sdk.on_message_received = received.append
        sdk.connect()
        self.command(device, sent)
        for turn in range(2):
            before, relay_was = self.connects(), len(sent)
            relay.down()
            place.until("the SDK to see it", lambda: not sdk.connected)
            for _ in range(3):
                self.command(device, sent)
            telemetry = threading.Thread(target=sdk.send_message, args=(Message(f"of the meantime, {turn}"),), daemon=True)
            telemetry.start()
            relay.up()
            place.until("the SDK to come back", lambda: self.connects() > before)
            self.command(device, sent)
            place.until("all commands", lambda: len(distinct(message.data for message in received)) >= len(sent))
            self.assertEqual(len(sent), relay_was + 4)
            telemetry.join(place.PATIENCE)
            self.assertFalse(telemetry.is_alive())
        # A cut may take an acknowledgement with it: QoS 1 comes again.
        self.assertEqual(distinct(message.data for message in received), sent)
        arrived = self.hub.take(f"devices/{device}/messages/events/", 2)
        self.assertEqual([message.payload for message in arrived], [b"of the meantime, 0", b"of the meantime, 1"])

    def command(self, device, sent):
        sent.append(f"command {len(sent)}".encode())
        self.hub.send(f"devices/{device}/messages/devicebound/", sent[-1], 1)

    def connects(self):
        return self.gateway.metric("tollgate_connects_total", 'result="admitted"')

    @each(transport=TRANSPORTS)
    def test_wrong_foreign_and_expired_keys_are_refused(self, transport):
        device = f"pump-{transport}"
        expired = tokens.sas(device, resource=f"{ADDRESS}/devices/{device}", expires_in=-3600)
        with unittest.mock.patch("azure.iot.device.iothub.abstract_clients.time.time", lambda: 0):
            # The SDK itself would refuse to begin.
            late = IoTHubDeviceClient.create_from_sastoken(expired, connection_retry=False, **self.how(device))
        self.addCleanup(late.shutdown)
        for what, sdk, denial in [
            ("wrong", self.client(device, tokens.key_of("nobody"), connection_retry=False), "signature_invalid"),
            ("foreign", self.client(device, tokens.key_of(f"valve-{transport}"), connection_retry=False), "signature_invalid"),
            ("expired", late, "expired"),
        ]:
            with self.subTest(what):
                refused = self.gateway.metric("tollgate_connects_total", f'denial="{denial}"')
                with self.assertRaises(REFUSED):
                    sdk.connect()
                self.assertFalse(sdk.connected)
                self.assertEqual(self.gateway.metric("tollgate_connects_total", f'denial="{denial}"'), refused + 1)


def distinct(payloads):
    """At QoS 1 one may come twice, where a renewal came between it and its PUBACK."""
    return list(dict.fromkeys(payloads))


if __name__ == "__main__":
    unittest.main()

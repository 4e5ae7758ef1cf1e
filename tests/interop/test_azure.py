"""The official Azure IoT device SDK for Python, unmodified but for host and CA."""

import logging
import unittest
import urllib.parse
import warnings

from azure.iot.device import IoTHubDeviceClient, Message
from azure.iot.device import exceptions

import place
import tokens
from case import AtAGateway

# The SDK speaks to port 8883 and no other: an address of loopback of its own keeps it apart from a gateway that runs here.
ADDRESS = "127.0.0.77"


class AzureSdk(AtAGateway):
    devices = ["pump-17", "pump-18"]
    options = {
        "tls_bind": f"{ADDRESS}:8883",
        "settings": f'aliases = ["{ADDRESS}", "hub.example"]\nprofile = "azure"',
    }

    def setUp(self):
        warnings.simplefilter("ignore")
        # The SDK logs what the tests provoke, with a stack each.
        logging.getLogger("azure").setLevel(logging.CRITICAL + 1)

    def client(self, device, key, **more):
        ca = self.authority.pem
        made = IoTHubDeviceClient.create_from_symmetric_key(key, ADDRESS, device, server_verification_cert=ca, **more)
        self.addCleanup(made.shutdown)
        return made

    def test_a_message_with_properties_arrives_byte_for_byte(self):
        sdk = self.client("pump-17", tokens.key_of("pump-17"))
        sdk.connect()
        message = Message(b'{"t": 21.5}', message_id="m-1", content_encoding="utf-8", content_type="application/json")
        message.custom_properties["alert"] = "yes/no #1"
        sdk.send_message(message)
        topic = "devices/pump-17/messages/events/%24.mid=m-1&%24.ct=application%2Fjson&%24.ce=utf-8&alert=yes%2Fno%20%231"
        [arrived] = self.hub.take(topic, 1)
        self.assertEqual(arrived.payload, b'{"t": 21.5}')
        stamped = dict(arrived.properties.UserProperty)
        self.assertEqual((stamped["tollgate-device"], stamped["tollgate-auth"]), ("pump-17", "sas/primary"))
        bag = dict(urllib.parse.parse_qsl(topic.rsplit("/", 1)[1]))
        self.assertEqual(bag["alert"], "yes/no #1")

    def test_a_connection_string_with_a_gateway_host_name(self):
        text = f"HostName=hub.example;DeviceId=pump-18;SharedAccessKey={tokens.key_of('pump-18')};GatewayHostName={ADDRESS}"
        sdk = IoTHubDeviceClient.create_from_connection_string(text, server_verification_cert=self.authority.pem)
        self.addCleanup(sdk.shutdown)
        sdk.connect()
        for n in range(20):
            sdk.send_message(Message(str(n)))
        arrived = self.hub.take("devices/pump-18/messages/events/", 20)
        self.assertEqual([message.payload for message in arrived], [str(n).encode() for n in range(20)])

    def test_a_command_reaches_it(self):
        sdk = self.client("pump-18", tokens.key_of("pump-18"))
        received = []
        sdk.on_message_received = received.append
        sdk.connect()
        self.hub.send("devices/pump-18/messages/devicebound/%24.mid=c-1&do=open", b"valve", 1)
        place.until("the command", lambda: received)
        self.assertEqual((received[0].data, received[0].custom_properties["do"]), (b"valve", "open"))

    def test_a_wrong_key_is_refused(self):
        sdk = self.client("pump-17", tokens.key_of("another"), connection_retry=False)
        with self.assertRaises((exceptions.CredentialError, exceptions.ConnectionFailedError)):
            sdk.connect()
        self.assertFalse(sdk.connected)


if __name__ == "__main__":
    unittest.main()

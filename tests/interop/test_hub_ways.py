"""rumqttc on the way to a real mosquitto, plain and under TLS, in both versions, also when it is killed. Debian's is built
without WebSocket: `tests/hub_ways.rs` has that way."""

import place
import tokens
from case import VERSIONS, AtAGateway, each, expanded
from client import message_of
from relay import Relay


class OneWay(AtAGateway):
    devices = ["d0"]

    @classmethod
    def start(cls, folder):
        cls.authority = place.Authority(folder)
        cls.hub = place.Hub(cls.authority)
        cls.addClassCleanup(cls.hub.stop)

    def gateway_by(self, url, version):
        """One with this way to the hub."""
        upstream = (
            f'kind = "mqtt"\nurl = "{url}"\nversion = {version}\nclient = "rumqttc"\nusername = "gateway"\n'
            f'password_file = "{self.authority.folder}/hub-credential"\n'
        )
        if url.startswith("mqtts:"):
            upstream += f'ca = "{self.authority.file}"\n'
        gateway = place.Gateway(self.authority, self.hub, self.devices, upstream=upstream)
        self.addCleanup(gateway.stop)
        return gateway


@expanded
class HubWays(OneWay):
    def port(self, way):
        return self.hub.port if way == "TCP" else self.hub.tls_port

    @staticmethod
    def url(way, port):
        return {"TCP": f"mqtt://127.0.0.1:{port}", "TLS": f"mqtts://localhost:{port}"}[way]

    @each(way=("TCP", "TLS"), version=VERSIONS)
    def test_telemetry_goes_up_and_commands_come_down(self, way, version):
        type(self).gateway = self.gateway_by(self.url(way, self.port(way)), version)
        events, commands = "devices/d0/messages/events", "devices/d0/messages/devicebound"
        # Topics of this combination alone: the observer has seen those of others.
        own = f"{events}/{way}-{version}"
        sent = [
            (f"{own}/", b"plain text", 1),
            (f"{own}/bytes", bytes(range(256)), 1),
            (f"{own}/empty", b"", 1),
            (f"{own}/large", b"\xa5" * (250 * 1024), 1),
            (f"{own}/at-most-once", b"\x00\xff", 0),
        ]
        session = self.stay(
            "paho", 5, "d0", tokens.sas("d0"), publish=sent, subscribe=[(f"{commands}/{way}-{version}/#", 1)]
        )
        session.wait("done")
        for topic, payload, qos in sent:
            [arrived] = self.hub.take(topic, 1)
            self.assertEqual((arrived.payload, arrived.qos), (payload, qos), topic)
            if version == 5:
                self.assertEqual(dict(arrived.properties.UserProperty)["tollgate-device"], "d0")
        command = (f"{commands}/{way}-{version}/large", b"\x5a" * (250 * 1024), 1)
        self.hub.send(*command)
        self.assertEqual(message_of(session.wait("message")[0]), command)

    @each(way=("TCP", "TLS"), version=VERSIONS)
    def test_telemetry_goes_on_after_the_hub_was_killed(self, way, version):
        # Back only when the observer is: it must not miss what comes from the disk.
        relay = Relay(self.port(way))
        self.addCleanup(relay.close)
        type(self).gateway = self.gateway_by(self.url(way, relay.port), version)
        place.until("the pool", lambda: self.gateway.metric("tollgate_upstream_connected") >= 1)
        relay.down()
        self.hub.kill()
        place.until("the gateway to see it", lambda: self.gateway.metric("tollgate_upstream_connected") == 0)
        topic = f"devices/d0/messages/events/killed-{way}-{version}"
        events = self.run_client("paho", 5, "d0", tokens.sas("d0"), publish=[(topic, b"from the disk", 1)])
        self.assertEqual([event["code"] in (0, None) for event in events if event["event"] == "puback"], [True], events)
        self.hub.start()
        self.hub.observe_again()
        relay.up()
        self.assertEqual(self.hub.take(topic, 1)[0].payload, b"from the disk")

"""A real hub is killed and started again: what devices subscribed to is there again, and their telemetry goes on."""

import client
import place
import tokens
from case import AtAGateway, each, expanded


@expanded
class HubRestarts(AtAGateway):
    devices = ["stays", "publishes"]

    @each(version=(4, 5))
    def test_commands_and_telemetry_go_on(self, version):
        inbox = "devices/stays/messages/devicebound"
        session = self.stay("paho", version, "stays", tokens.sas("stays"), subscribe=[(f"{inbox}/#", 1)])
        session.wait("done")
        self.hub.kill()
        place.until("the gateway to see it", lambda: self.gateway.metric("tollgate_upstream_connected") == 0)
        self.hub.start()
        self.hub.observe_again()
        topic = f"devices/publishes/messages/events/{version}"
        events = self.run_client("rumqttc", version, "publishes", tokens.sas("publishes"), publish=[(topic, b"again", 1)])
        self.assertIn({"event": "puback", "code": 0}, events)
        self.hub.take(topic, 1)
        # The subscription is placed again by the link of another shard, too.
        place.until("all links", lambda: self.gateway.metric("tollgate_upstream_connected") >= 2)
        self.hub.send(f"{inbox}/again", b"command", 1)
        self.assertEqual(client.message_of(session.wait("message")[0]), (f"{inbox}/again", b"command", 1))
        self.assertEqual(session.of("closed"), [])

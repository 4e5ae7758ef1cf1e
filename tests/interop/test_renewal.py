"""A device renews its token in session with a paho client that knows nothing of it: to the client, they are topics."""

import calendar
import json
import threading
import time

import paho.mqtt.client as mqtt

import place
import tokens
from case import VERSIONS, AtAGateway, each, expanded

# How long the first token is good, and how much longer a session may live by it.
LIFE, SKEW = 6, 1
RENEW, RESULT = "$tollgate/auth/renew", "$tollgate/auth/result"


@expanded
class Renewal(AtAGateway):
    devices = [f"{what}-{version}" for what in ("renews", "lapses", "errs") for version in VERSIONS]
    options = {"sections": f'[credentials]\nclock_skew = "{SKEW}s"\n'}

    @each(version=VERSIONS)
    def test_a_session_outlives_its_first_token(self, version):
        device, other = f"renews-{version}", f"lapses-{version}"
        ends = int(time.time()) + LIFE + SKEW
        renewing = self.enterContext(Session(self.gateway, version, device, tokens.sas(device, expires_in=LIFE)))
        lapsing = self.enterContext(Session(self.gateway, version, other, tokens.sas(other, expires_in=LIFE)))
        topic = f"devices/{device}/messages/events/"
        renewing.publish(topic, b"by the first token", 1)
        renewing.publish(RENEW, tokens.sas(device, expires_in=1800), 1)
        answer = json.loads(renewing.received(RESULT))
        self.assertEqual(answer["result"], "renewed")
        self.assertGreaterEqual(seconds(answer["expires_at"]), ends - LIFE - SKEW + 1800)
        # Who was let in for as long, and has not renewed, is cut.
        lapsing.wait_closed()
        self.assertEqual(lapsing.closed, [0xA0] if version == 5 else [None])
        self.assertGreaterEqual(time.time(), ends)
        renewing.publish(topic, b"by the second", 1)
        renewing.publish(f"{topic}last", b"at most once", 0)
        arrived = [message.payload for message in self.hub.take(topic, 2)]
        self.assertEqual(arrived, [b"by the first token", b"by the second"])
        self.hub.take(f"{topic}last", 1)
        self.assertEqual((renewing.closed, renewing.connects), ([], 1), "one session all along")
        self.assertFalse([m.topic for m in self.hub.messages if m.topic.startswith("$tollgate")])

    @each(version=VERSIONS)
    def test_the_token_of_another_ends_the_session_and_the_device_is_told_why(self, version):
        device = f"errs-{version}"
        with Session(self.gateway, version, device, tokens.sas(device)) as session:
            session.publish(RENEW, tokens.sas(f"renews-{version}"), 0)
            answer = json.loads(session.received(RESULT))
            self.assertEqual(answer, {"result": "refused", "reason": "device_mismatch"})
            session.wait_closed()
            self.assertEqual(session.closed, [0x8C] if version == 5 else [None])


class Session:
    """One connection of a paho client, which does not connect again. It has subscribed to what renewals answer."""

    def __init__(self, gateway, version, device, token):
        self.changed = threading.Condition()
        self.connects, self.subscribed, self.acknowledged = 0, False, set()
        self.messages, self.closed = [], []
        clean = {} if version == 5 else {"clean_session": True}
        self.client = mqtt.Client(device, protocol=mqtt.MQTTv5 if version == 5 else mqtt.MQTTv311, **clean)
        self.client.username_pw_set(device, token)
        self.client.on_connect, self.client.on_subscribe = self._on_connect, self._on_subscribe
        self.client.on_publish, self.client.on_message = self._on_publish, self._on_message
        self.client.on_disconnect = self._on_disconnect
        self.client.connect("127.0.0.1", gateway.port)
        self.client.loop_start()
        self._wait("the subscription", lambda: self.subscribed)

    def publish(self, topic, payload, qos):
        """And waits for the PUBACK, where there is one."""
        sent = self.client.publish(topic, payload, qos)
        assert sent.rc == mqtt.MQTT_ERR_SUCCESS, sent.rc
        self._wait(f"{topic} to be acknowledged", lambda: sent.mid in self.acknowledged)

    def received(self, topic):
        """The first payload that came on a topic."""
        def there():
            return [message for message in self.messages if message.topic == topic]
        self._wait(f"a message on {topic}", there)
        return there()[0].payload

    def wait_closed(self):
        self._wait("the end", lambda: self.closed)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.on_disconnect = None
        self.client.disconnect()
        self.client.loop_stop()

    def _wait(self, what, holds):
        with self.changed:
            if not self.changed.wait_for(holds, place.PATIENCE):
                raise AssertionError(f"waited for {what}; closed: {self.closed}, messages: {len(self.messages)}")

    def _on_connect(self, client, _userdata, _flags, _code, _properties=None):
        with self.changed:
            self.connects += 1
        client.subscribe(RESULT, 1)

    def _on_subscribe(self, _client, _userdata, _id, codes, _properties=None):
        with self.changed:
            self.subscribed = [getattr(code, "value", code) for code in codes] == [1]
            self.changed.notify_all()

    def _on_publish(self, _client, _userdata, mid):
        with self.changed:
            self.acknowledged.add(mid)
            self.changed.notify_all()

    def _on_message(self, _client, _userdata, message):
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()

    def _on_disconnect(self, client, _userdata, code, _properties=None):
        # Else it would connect again.
        client.disconnect()
        with self.changed:
            self.closed.append(getattr(code, "value", None))
            self.changed.notify_all()


def seconds(rfc3339):
    return calendar.timegm(time.strptime(rfc3339, "%Y-%m-%dT%H:%M:%SZ"))

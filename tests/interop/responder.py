"""What stands at the hub for IoT Hub's services: it answers twins, and calls methods, on devices/{id}/iothub/…."""

import itertools
import json
import threading

import paho.mqtt.client as mqtt

import tokens
from place import PATIENCE


class Responder:
    """Keeps a twin for everybody who asks; those in `silent` are never answered."""

    def __init__(self, hub):
        self.twins, self.silent, self.asked, self.answers = {}, set(), [], {}
        self.changed = threading.Condition()
        self.numbers = itertools.count(1)
        self.client = mqtt.Client("responder", protocol=mqtt.MQTTv5)
        self.client.username_pw_set("gateway", "hub-password")
        subscribed = threading.Event()
        everybody = [("devices/+/iothub/#", 1), ("devices/+/modules/+/iothub/#", 1)]
        self.client.on_connect = lambda *_: self.client.subscribe(everybody)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = lambda _client, _userdata, message: self._took(message)
        self.client.connect("127.0.0.1", hub.port)
        self.client.loop_start()
        assert subscribed.wait(PATIENCE), "the responder subscribes"

    def twin(self, who):
        """Of `pump-17`, or of `pump-17/modules/camera`."""
        return self.twins.setdefault(who, {"desired": {"$version": 1}, "reported": {"$version": 1}})

    def desire(self, who, **patch):
        desired = self.twin(who)["desired"]
        version = desired["$version"] + 1
        desired.update(patch, **{"$version": version})
        self._say(who, f"twin/PATCH/properties/desired/?$version={version}", patch | {"$version": version})

    def call(self, who, method, payload):
        """Calls a direct method: status and payload of the answer."""
        number = f"{next(self.numbers):x}"
        self._say(who, f"methods/POST/{method}/?$rid={number}", payload)
        with self.changed:
            if not self.changed.wait_for(lambda: (who, number) in self.answers, PATIENCE):
                raise AssertionError(f"{who} did not answer {method}; {sorted(self.answers)} were answered")
            return self.answers[who, number]

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()

    def _took(self, message):
        who, said = message.topic.removeprefix("devices/").split("/iothub/", 1)
        said, _, query = said.partition("/?")
        number = dict(field.split("=", 1) for field in query.split("&")).get("$rid")
        with self.changed:
            self.asked.append((who, said))
            if said.startswith("methods/res/"):
                self.answers[who, number] = (int(said.rsplit("/", 1)[1]), json.loads(message.payload or b"null"))
            self.changed.notify_all()
        if who in self.silent:
            return
        if said == "twin/GET":
            self._say(who, f"twin/res/200/?$rid={number}", self.twin(who))
        elif said == "twin/PATCH/properties/reported":
            reported = self.twin(who)["reported"]
            reported.update(json.loads(message.payload))
            reported["$version"] += 1
            self._say(who, f"twin/res/204/?$rid={number}&$version={reported['$version']}", None)

    def _say(self, who, topic, value):
        payload = b"" if value is None else json.dumps(value).encode()
        tokens.add(payload)
        self.client.publish(f"devices/{who}/iothub/{topic}", payload, 1)

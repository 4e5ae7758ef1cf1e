"""paho-mqtt, driven as README.md says."""

import base64
import json
import os
import sys
import threading

import paho.mqtt.client as mqtt


def main():
    spec = json.loads(sys.stdin.readline())
    protocol = mqtt.MQTTv5 if spec["version"] == 5 else mqtt.MQTTv311
    clean = {} if spec["version"] == 5 else {"clean_session": True}
    client = mqtt.Client(spec["client_id"], protocol=protocol, transport="websockets" if spec["path"] else "tcp", **clean)
    if spec["path"]:
        client.ws_set_options(spec["path"])
    client.username_pw_set(spec["username"], spec["password"])
    if spec["ca"]:
        client.tls_set(spec["ca"])
    connected, suback, puback = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def on_connect(_client, _userdata, _flags, code, _properties=None):
        say("connack", code=number(code))
        if number(code) != 0:
            leave(1)
        connected.set()

    def on_disconnect(_client, _userdata, code, _properties=None):
        if spec["version"] == 5 and number(code) >= 0x80:
            say("disconnect", code=number(code))
        say("closed")
        leave(1)

    def on_subscribe(_client, _userdata, _id, codes, _properties=None):
        say("suback", codes=[number(code) for code in codes])
        suback.release()

    def on_publish(_client, _userdata, _id):
        puback.release()

    def on_message(_client, _userdata, message):
        say("message", topic=message.topic, payload=base64.b64encode(message.payload).decode(), qos=message.qos)

    client.on_connect, client.on_disconnect = on_connect, on_disconnect
    client.on_subscribe, client.on_publish, client.on_message = on_subscribe, on_publish, on_message
    client.connect(spec["host"], spec["port"], keepalive=60)
    client.loop_start()
    if not connected.wait(20):
        leave(3)
    for wanted in spec["subscribe"]:
        client.subscribe(wanted["filter"], wanted["qos"])
        if not suback.acquire(timeout=20):
            leave(3)
    for message in spec["publish"]:
        payload = base64.b64decode(message["payload"])
        client.publish(message["topic"], payload, message["qos"], message["retain"])
        if not puback.acquire(timeout=20):
            leave(3)
        if message["qos"]:
            say("puback", code=None)
    say("done")
    if spec["stay"]:
        sys.stdin.read()
    client.on_disconnect = None
    client.disconnect()
    client.loop_stop()


def number(code):
    return code if isinstance(code, int) else code.value


def say(event, **fields):
    """One write a line: several threads say something."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def leave(code):
    """From any thread, at once: paho would connect again."""
    sys.stdout.flush()
    os._exit(code)


main()

"""paho-mqtt, 1.x or 2.x, driven as README.md says."""

import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from driver import leave, read_order, read_spec, returned, say, say_message, tls_context

IS_2 = hasattr(mqtt, "CallbackAPIVersion")


def main():
    spec = read_spec()
    is_v5 = spec["version"] == 5
    protocol = mqtt.MQTTv5 if is_v5 else mqtt.MQTTv311
    how = {} if is_v5 else {"clean_session": spec["clean"]}
    if IS_2:
        how["callback_api_version"] = mqtt.CallbackAPIVersion.VERSION2
    client = mqtt.Client(
        client_id=spec["client_id"], protocol=protocol, transport="websockets" if spec["path"] else "tcp", **how
    )
    if spec["path"]:
        client.ws_set_options(spec["path"])
    client.username_pw_set(spec["username"], spec["password"])
    if context := tls_context(spec):
        client.tls_set_context(context)
    if will := spec["will"]:
        client.will_set(will["topic"], will["payload"], will["qos"], will["retain"])
    listen(client, spec, is_v5)
    client.reconnect_delay_set(1, 2)
    connected, answered = client.connected, client.answered
    client.connect(spec["host"], spec["port"], keepalive=spec["keep_alive"], **start(spec, is_v5))
    client.loop_start()
    if not connected.wait(20):
        leave(3)
    for wanted in spec["subscribe"]:
        client.subscribe(wanted["filter"], wanted["qos"])
        wait(client.subscribed)
    for message in spec["publish"]:
        publish(client, message)
        wait(answered)
        if message["qos"]:
            say("puback" if message["qos"] == 1 else "pubcomp", code=None)
    pipeline(client, spec["pipelined"])
    say("done")
    if spec["stay"]:
        while (order := read_order()) is not None:
            pipeline(client, order)
            say("done")
    client.on_disconnect = None
    client.disconnect()
    client.loop_stop()


def start(spec, is_v5):
    if not is_v5:
        return {}
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = spec["expiry"]
    return {"clean_start": spec["clean"], "properties": properties}


def pipeline(client, messages):
    for message in messages:
        publish(client, message)
    for _ in messages:
        wait(client.answered)


def publish(client, message):
    client.publish(message["topic"], message["payload"], message["qos"], message["retain"])


def wait(answered):
    if not answered.acquire(timeout=60):
        leave(3)


def listen(client, spec, is_v5):
    client.connected, client.answered, client.subscribed = threading.Event(), threading.Semaphore(0), threading.Semaphore(0)

    def on_connect(_client, _userdata, flags, code, _properties=None):
        if number(code) == 0:
            present = bool(flags.session_present if IS_2 else flags["session present"])
            say("session", present=present)
            # Again, where the session is lost: paho leaves that to whoever uses it.
            for wanted in spec["subscribe"] if client.connected.is_set() and not present else ():
                client.subscribe(wanted["filter"], wanted["qos"])
        say("connack", code=returned(number(code)) if IS_2 and not is_v5 else number(code))
        if number(code) != 0:
            leave(1)
        client.connected.set()

    def on_disconnect(_client, _userdata, *given):
        # 2.x: flags, code, properties; 1.x: code, properties.
        code = given[1] if IS_2 else given[0]
        if is_v5 and number(code) >= 0x80:
            say("disconnect", code=number(code))
        say("closed")
        if not spec["reconnect"]:
            leave(1)

    def on_subscribe(_client, _userdata, _id, codes, _properties=None):
        say("suback", codes=[number(code) for code in codes])
        client.subscribed.release()

    client.on_connect, client.on_disconnect, client.on_subscribe = on_connect, on_disconnect, on_subscribe
    client.on_publish = lambda *_: client.answered.release()
    client.on_message = lambda _client, _userdata, message: say_message(message.topic, message.payload, message.qos)


def number(code):
    return code if isinstance(code, int) else code.value


main()

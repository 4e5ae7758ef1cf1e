"""gmqtt, driven as README.md says."""

import asyncio

import gmqtt
from gmqtt.mqtt.constants import MQTTv50, MQTTv311

from driver import leave, read_order, read_spec, say, say_message, tls_context

PIPELINE = 20


async def main():
    spec = read_spec()
    will = spec["will"] and gmqtt.Message(
        spec["will"]["topic"], spec["will"]["payload"], qos=spec["will"]["qos"], retain=spec["will"]["retain"]
    )
    expiry = {"session_expiry_interval": spec["expiry"]} if spec["version"] == 5 else {}
    client = gmqtt.Client(spec["client_id"], clean_session=spec["clean"], will_message=will, **expiry)
    client.set_config({"reconnect_retries": -1 if spec["reconnect"] else 0, "reconnect_delay": 1})
    client.set_auth_credentials(spec["username"], spec["password"])
    connected, answers = asyncio.get_running_loop().create_future(), asyncio.Queue()

    def on_connect(_client, flags, code, _properties):
        if code == 0:
            say("session", present=bool(flags))
        say("connack", code=code)
        if not connected.done():
            connected.set_result(code)
        elif not flags:
            # The session is lost: gmqtt leaves that to whoever uses it.
            for wanted in spec["subscribe"]:
                client.subscribe(wanted["filter"], qos=wanted["qos"])

    def on_message(_client, topic, payload, qos, _properties):
        say_message(topic, payload, qos)
        return 0

    def on_subscribe(_client, _id, codes, _properties):
        say("suback", codes=list(codes))
        answers.put_nowait(None)

    def on_disconnect(_client, packet, _error=None):
        if isinstance(packet, (bytes, bytearray)) and packet[:1] >= b"\x80":
            say("disconnect", code=packet[0])
        say("closed")
        if not spec["reconnect"]:
            leave(1)

    client.on_connect, client.on_message = on_connect, on_message
    client.on_subscribe, client.on_disconnect = on_subscribe, on_disconnect
    version = MQTTv50 if spec["version"] == 5 else MQTTv311
    try:
        await client.connect(
            spec["host"], spec["port"], ssl=tls_context(spec) or False, version=version, keepalive=spec["keep_alive"]
        )
    except (ConnectionError, gmqtt.mqtt.handler.MQTTConnectError):
        pass
    if await asyncio.wait_for(connected, 20) != 0:
        leave(1)
    await work(client, spec, answers)
    say("done")
    if spec["stay"]:
        loop = asyncio.get_running_loop()
        while (order := await loop.run_in_executor(None, read_order)) is not None:
            await pipeline(client, order)
            say("done")
    client.on_disconnect = lambda *_: None
    await client.disconnect()


async def work(client, spec, answers):
    for wanted in spec["subscribe"]:
        client.subscribe(wanted["filter"], qos=wanted["qos"])
        await asyncio.wait_for(answers.get(), 20)
    for message in spec["publish"]:
        publish(client, message)
        await until_acknowledged(client)
        if message["qos"]:
            say("puback" if message["qos"] == 1 else "pubcomp", code=None)
    await pipeline(client, spec["pipelined"])


async def pipeline(client, messages):
    for number, message in enumerate(messages, 1):
        publish(client, message)
        # It does not wait for room by itself: beyond Receive Maximum it raises.
        if number % PIPELINE == 0:
            await until_acknowledged(client)
    await until_acknowledged(client)


def publish(client, message):
    client.publish(message["topic"], message["payload"], qos=message["qos"], retain=message["retain"])


async def until_acknowledged(client):
    """It tells nobody, but forgets what it need not send again."""
    await asyncio.wait_for(client._persistent_storage.wait_empty(), 60)


asyncio.run(main())

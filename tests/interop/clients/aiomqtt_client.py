"""aiomqtt, driven as README.md says."""

import asyncio
import selectors

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from driver import leave, read_order, read_spec, returned, say, say_message, tls_context


async def main():
    """As its documentation says: one client, connected again in a loop."""
    spec = read_spec()
    client, working = connection(spec), None
    while True:
        try:
            async with client:
                if working is None:
                    working = asyncio.create_task(work(client, spec))
                else:
                    await subscribe(client, spec)
                receiving = asyncio.create_task(receive(client))
                await asyncio.wait([working, receiving], return_when=asyncio.FIRST_COMPLETED)
                if working.done():
                    working.result()
                    receiving.cancel()
                    return
                receiving.result()
        except aiomqtt.MqttError as error:
            if not spec["reconnect"]:
                fail(error if isinstance(error, aiomqtt.MqttCodeError) else error.__cause__ or error, spec)
            say("closed")
            await asyncio.sleep(0.5)


def connection(spec):
    will = spec["will"] and aiomqtt.Will(
        spec["will"]["topic"], spec["will"]["payload"], spec["will"]["qos"], spec["will"]["retain"]
    )
    how = {"clean_session": spec["clean"]}
    if spec["version"] == 5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = spec["expiry"]
        how = {"clean_start": spec["clean"], "properties": properties}
    return Client(
        spec["host"], spec["port"], username=spec["username"], password=spec["password"], identifier=spec["client_id"],
        protocol=aiomqtt.ProtocolVersion.V5 if spec["version"] == 5 else aiomqtt.ProtocolVersion.V311, will=will,
        keepalive=spec["keep_alive"], timeout=20, tls_context=tls_context(spec), max_concurrent_outgoing_calls=200,
        transport="websockets" if spec["path"] else "tcp", websocket_path=spec["path"], **how,
    )


class Client(aiomqtt.Client):
    """Tells what aiomqtt keeps to itself: whether the session was there, and the code of CONNACK."""

    def _on_connect(self, client, userdata, flags, reason_code, properties=None):
        if reason_code.value == 0:
            say("session", present=bool(flags.session_present))
        is_v5 = client.protocol == aiomqtt.ProtocolVersion.V5.value
        say("connack", code=reason_code.value if is_v5 else returned(reason_code.value))
        super()._on_connect(client, userdata, flags, reason_code, properties)


async def work(client, spec):
    await subscribe(client, spec)
    for message in spec["publish"]:
        await publish(client, message)
        if message["qos"]:
            say("puback" if message["qos"] == 1 else "pubcomp", code=None)
    await pipeline(client, spec["pipelined"])
    say("done")
    if spec["stay"]:
        loop = asyncio.get_running_loop()
        while (order := await loop.run_in_executor(None, read_order)) is not None:
            await pipeline(client, order)
            say("done")


async def subscribe(client, spec):
    for wanted in spec["subscribe"]:
        codes = await client.subscribe(wanted["filter"], wanted["qos"])
        say("suback", codes=[code if isinstance(code, int) else code.value for code in codes])


async def pipeline(client, messages):
    await asyncio.gather(*[publish(client, message) for message in messages])


async def publish(client, message):
    """It waits also over a lost connection: paho, below, sends again."""
    await client.publish(message["topic"], message["payload"], message["qos"], message["retain"], timeout=60)


async def receive(client):
    async for message in client.messages:
        say_message(message.topic, message.payload, message.qos)


def fail(error, spec):
    code = getattr(error, "rc", None)
    code = code if isinstance(code, int) else getattr(code, "value", 0)
    if spec["version"] == 5 and code >= 0x80:
        say("disconnect", code=code)
    say("closed")
    leave(1)


# aiomqtt may leave a descriptor with asyncio when its socket is closed. epoll has forgotten it, and fails at the next socket of
# the same number.
with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.PollSelector())) as runner:
    runner.run(main())

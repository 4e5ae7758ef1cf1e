"""Debian's nats-server as the hub: with JetStream in a folder and on a port of its own, and an observer beside it."""

import asyncio
import json
import shutil
import ssl
import threading

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

from place import PATIENCE, Program, free_port, until, write_secret

STREAM = "TELEMETRY"
OBSERVER = {"user": "observer", "password": "nats-password-of-the-observer"}
LOGINS = """
authorization {
  users = [
    { user: gateway, password: "nats-password-of-the-gateway", permissions: {
        publish: ["devices.>", "elsewhere.>", "$JS.API.STREAM.INFO.*", "_INBOX.>"]
        subscribe: ["_INBOX.>", "devices.*.messages.devicebound", "devices.*.messages.devicebound.>"] } }
    { user: observer, password: "nats-password-of-the-observer" }
  ]
}
"""


class NatsHub:
    """`more`: further lines of its configuration; `subjects`: of the stream, none: no stream; `limits`: of the stream."""

    def __init__(self, authority, *, more=LOGINS, observer=OBSERVER, subjects=("devices.>",), tls=False, **limits):
        self.folder, self.authority, self.tls, self.observer = authority.folder, authority, tls, observer
        self.port = free_port()
        authority.certify("nats", ["127.0.0.1"])
        write_secret(self.folder / "nats-password", "nats-password-of-the-gateway")
        files = f'cert_file: "{self.folder}/nats.pem", key_file: "{self.folder}/nats.key"'
        secure = f'tls {{ {files}, ca_file: "{authority.file}" }}\n' if tls else ""
        (self.folder / "nats.conf").write_text(
            f'host: 127.0.0.1\nport: {self.port}\njetstream {{ store_dir: "{self.folder}/nats" }}\n{secure}{more}'
        )
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.start()
        if subjects:
            self.add_stream(subjects, **limits)

    def upstream(self, **changes):
        """The keys of its [[upstream]]."""
        keys = {
            "kind": "nats",
            "url": f"{'tls' if self.tls else 'nats'}://localhost:{self.port}",
            "stream": STREAM,
            "username": "gateway",
            "password_file": str(self.folder / "nats-password"),
        } | ({"ca": str(self.authority.file)} if self.tls else {}) | changes
        return "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None)

    def start(self):
        """Also again, after `kill`."""
        server = shutil.which("nats-server") or "/usr/sbin/nats-server"
        self.program = Program([server, "-c", self.folder / "nats.conf"], self.folder, "nats-server.log")
        self.client = until("nats-server to listen", self._connected)

    def kill(self):
        """kill -9."""
        self.run(self.client.close())
        self.program.stop()

    def stop(self):
        self.kill()
        self.loop.call_soon_threadsafe(self.loop.stop)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE * 3)

    def add_stream(self, subjects=("devices.>",), **limits):
        self.run(self.client.jetstream().add_stream(name=STREAM, subjects=list(subjects), **limits))

    def update_stream(self, **changes):
        async def update():
            manager = self.client.jetstream()
            config = (await manager.stream_info(STREAM)).config
            await manager.update_stream(config.evolve(**changes))
        self.run(update())

    def delete_stream(self):
        self.run(self.client.jetstream().delete_stream(STREAM))

    def count(self):
        """Messages in the stream."""
        return self.run(self.client.jetstream().stream_info(STREAM)).state.messages

    def stored(self):
        """All that is in the stream, in its order."""
        async def read():
            config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
            subscription = await self.client.jetstream().subscribe(">", stream=STREAM, ordered_consumer=True, config=config)
            count = (await self.client.jetstream().stream_info(STREAM)).state.messages
            messages = [await subscription.next_msg(PATIENCE) for _ in range(count)]
            await subscription.unsubscribe()
            return messages
        return self.run(read())

    def take(self, subject, count):
        """The messages on a subject, when there are `count`."""
        def there():
            found = [message for message in self.stored() if message.subject == subject]
            return found if len(found) >= count else None
        return until(f"{count} messages on {subject}", there)

    def send(self, subject, payload, headers=None):
        """A command."""
        async def publish():
            await self.client.publish(subject, payload, headers=headers)
            await self.client.flush()
        self.run(publish())

    def _connected(self):
        self.program.check()
        options = {"allow_reconnect": False, "error_cb": quiet} | self.observer
        if self.tls:
            options["tls"] = ssl.create_default_context(cafile=self.authority.file)
        try:
            return self.run(nats.connect(f"{'tls' if self.tls else 'nats'}://localhost:{self.port}", **options))
        except (OSError, nats.errors.Error):
            return None


async def quiet(_error):
    """What goes wrong is what the test waits for."""

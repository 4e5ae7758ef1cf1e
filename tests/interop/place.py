"""The gateway, a mosquitto as its hub, an observer on that hub: each in a folder and on ports of its own."""

import base64
import datetime
import ipaddress
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

import ahocorasick
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import tokens

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
PATIENCE = 20


def until(what, holds, within=PATIENCE):
    """Asks again and again; gives what was there in the end."""
    deadline = time.monotonic() + within
    pause = threading.Event()
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {within} s for: {what}")
        pause.wait(0.01)
    return found


def free_port():
    """Below the range of outgoing connections, where loopback can connect to itself."""
    for port in random.sample(range(12000, 30000), 500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise AssertionError("no free port between 12000 and 30000")


class Authority:
    """A CA, certificates that it signed, and an issuer's key for JWTs."""

    def __init__(self, folder):
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "interop CA")])
        usage = x509.KeyUsage(
            digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
            key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
        )
        certificate = (
            self._builder(self.name, self.key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.file = folder / "ca.pem"
        self.file.write_text(self.pem)

    def certify(self, stem, addresses):
        """Writes STEM.pem and STEM.key for localhost and these addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName("localhost")] + [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, stem)]), key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        (self.folder / f"{stem}.pem").write_text(pem)
        write_secret(self.folder / f"{stem}.key", private_pem(key))

    def _builder(self, subject, key):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=2))
        )


class Program:
    """A process, ended by its own id; what it wrote to its log is shown when it ends too early."""

    def __init__(self, command, folder, log, **environment):
        self.log = folder / log
        self.log.parent.mkdir(exist_ok=True)
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                [str(word) for word in command], cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                env=os.environ | environment,
            )

    def stop(self):
        self.process.kill()
        self.process.wait()

    def check(self):
        if self.process.poll() is not None:
            raise AssertionError(f"ended with {self.process.returncode}: {self.log.read_text()[-4000:]}")


class Hub:
    """Debian's mosquitto with a password, TCP and TLS; and an observer that has seen every message."""

    def __init__(self, authority):
        self.folder = authority.folder
        self.port, self.tls_port = free_port(), free_port()
        authority.certify("hub", ["127.0.0.1"])
        passwords = self.folder / "passwords"
        run = ["mosquitto_passwd", "-b", "-c", str(passwords), "gateway", "hub-password"]
        subprocess.run(run, check=True, capture_output=True)
        write_secret(self.folder / "hub-credential", "hub-password")
        # mosquitto gives up root where it has it: it must still be able to read its files.
        user = f"user {os.environ.get('USER') or 'root'}\n" if os.geteuid() == 0 else ""
        (self.folder / "mosquitto.conf").write_text(
            f"{user}allow_anonymous false\npassword_file {passwords}\nmax_queued_messages 0\n"
            f"listener {self.port} 127.0.0.1\n"
            f"listener {self.tls_port} 127.0.0.1\n"
            f"certfile {self.folder}/hub.pem\nkeyfile {self.folder}/hub.key\n"
        )
        self.start()
        self.messages = []
        self.arrived = threading.Condition()
        self.observer = self._observe()

    def start(self):
        """Also again, after `kill`: on the same ports."""
        mosquitto = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        self.program = Program([mosquitto, "-c", self.folder / "mosquitto.conf"], self.folder, "mosquitto.log")

    def kill(self):
        """kill -9."""
        self.program.stop()

    def observe_again(self):
        """After a restart, which forgot the observer's subscription."""
        self.observer.loop_stop()
        self.observer = self._observe()

    def _observe(self):
        client = mqtt.Client("observer", protocol=mqtt.MQTTv5)
        client.username_pw_set("gateway", "hub-password")
        subscribed = threading.Event()
        client.on_connect = lambda *_: client.subscribe("#", 1)
        client.on_subscribe = lambda *_: subscribed.set()
        client.on_message = lambda _client, _userdata, message: self._took(message)

        def connected():
            self.program.check()
            try:
                return client.connect("127.0.0.1", self.port) == mqtt.MQTT_ERR_SUCCESS
            except OSError:
                return False

        until("mosquitto to listen", connected)
        client.loop_start()
        assert subscribed.wait(PATIENCE), "the observer subscribes"
        return client

    def _took(self, message):
        with self.arrived:
            self.messages.append(message)
            self.arrived.notify_all()

    def take(self, topic, count):
        """The first `count` messages of a topic, when they are there."""
        def there():
            return [m for m in self.messages if m.topic == topic]
        with self.arrived:
            if not self.arrived.wait_for(lambda: len(there()) >= count, PATIENCE):
                topics = sorted({m.topic for m in self.messages})
                raise AssertionError(f"{len(there())} of {count} on {topic}; topics seen: {topics[-20:]}")
            return there()[:count]

    def send(self, topic, payload, qos, *, retain=False, user=(), content_type=None):
        """A command from the hub's side."""
        tokens.add(payload)
        properties = Properties(PacketTypes.PUBLISH)
        for pair in user:
            properties.UserProperty = pair
        if content_type:
            properties.ContentType = content_type
        self.observer.publish(topic, payload, qos, retain, properties).wait_for_publish(PATIENCE)

    def stop(self):
        self.observer.disconnect()
        self.observer.loop_stop()
        self.program.stop()


class Gateway:
    """Tollgate, forwarding to a hub of [`Hub`]'s or given kind."""

    def __init__(self, authority, hub, devices, *, hub_version=5, hub_tls=False, tls_bind=None, settings="", more="",
                 sections="", environment=None, upstream=None):
        self.authority, self.folder = authority, authority.folder
        self.port, self.tls_port, self.admin_port = free_port(), free_port(), free_port()
        tls_bind = tls_bind or f"127.0.0.1:{self.tls_port}"
        authority.certify("server", ["127.0.0.1", tls_bind.split(":")[0]])
        self.issuer_key = ec.generate_private_key(ec.SECP256R1())
        public = self.issuer_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (self.folder / "issuer.pem").write_bytes(public)
        write_secret(self.folder / "identities.toml", identities(devices) + more)
        self.revocations = self.folder / "revocations.jsonl"
        self.revocations.write_text("")
        if upstream is None:
            url = f"mqtts://localhost:{hub.tls_port}" if hub_tls else f"mqtt://127.0.0.1:{hub.port}"
            ca = f'ca = "{authority.file}"' if hub_tls else ""
            password = f'username = "gateway"\npassword_file = "{self.folder}/hub-credential"'
            upstream = f'kind = "mqtt"\nurl = "{url}"\nversion = {hub_version}\n{password}\n{ca}'
        (self.folder / "gateway.toml").write_text(f"""
[gateway]
name = "edge-interop"
hostname = "localhost"
{settings}
shards = 2
state_dir = "{self.folder}/var"
identities = "{self.folder}/identities.toml"
revocations = "{self.folder}/revocations.jsonl"
[[listener]]
bind = "127.0.0.1:{self.port}"
transport = "tcp"
[[listener]]
bind = "{tls_bind}"
transport = "tls"
certificate = "{self.folder}/server.pem"
private_key = "{self.folder}/server.key"
[[upstream]]
name = "hub"
{upstream}
[[route]]
from = "devices/{{device}}/#"
upstream = "hub"
[admin]
bind = "127.0.0.1:{self.admin_port}"
{sections}""")
        self.environment = environment or {}
        # At the end they are looked for again: a rotation replaces some.
        remember_files(self.folder)
        self.run()

    def run(self):
        """Also again, after its program was killed."""
        program = PROGRAMS / "tollgate"
        command = [program, "run", "--config", "gateway.toml"]
        # Not beside what the gateway watches: a line about a change would be a change.
        environment = {"RUST_LOG": "trace"} | self.environment
        self.program = Program(command, self.folder, "log/gateway.log", **environment)
        until("the gateway to be ready", self._ready)

    def _ready(self):
        self.program.check()
        try:
            return self.get("/readyz")[0] == 200
        except OSError:
            return False

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode()

    def metric(self, name, *labels):
        """The sum over the series that have all of these labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith((name + " ", name + "{"))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in labels))

    def jwt(self, device, **claims):
        return tokens.json_web_token(device, self.issuer_key, **claims)

    def revoke(self, entry):
        with open(self.revocations, "a") as list_:
            list_.write(json.dumps(entry) + "\n")

    def leave(self):
        """Ends in order, as at a deploy; `run` starts it again."""
        self.program.process.terminate()
        self.program.process.wait(PATIENCE * 2)

    def stop(self):
        """Ends it, and finds no secret of the whole run in what it logged at TRACE."""
        self.program.stop()
        self.search_log()

    def search_log(self):
        self.search(self.program.log)

    def search(self, log):
        """Also what another program wrote to a file."""
        remember_files(self.folder)
        found = secrets_in(log.read_bytes())
        assert not found, f"{log} holds {len(found)} secrets: {[secret[:200] for secret in found[:5]]}"


def remember_files(folder):
    """Keys, slots of keys, secrets and tokens in the files of a gateway, and what it made itself."""
    for kind in ("key", "primary", "secondary", "secret", "token"):
        for file in [*folder.glob(f"*.{kind}"), *folder.glob(f"var/*.{kind}")]:
            text = file.read_text()
            # In PEM the public half stands beside the private one, and may be shown in any other form.
            is_pem = text.startswith("-----")
            for line in text.split():
                tokens.add(line.encode())
                try:
                    is_pem or tokens.remember_key(line)
                except ValueError:
                    pass  # not base64


def secrets_in(log):
    """Which of the secrets that the tests used stand in the log. All at once: there are thousands, and logs are long."""
    if not tokens.SECRETS:
        return []
    # Patterns are text: one character a byte.
    search = ahocorasick.Automaton()
    for secret in tokens.SECRETS:
        search.add_word(secret.decode("latin-1"), secret)
    search.make_automaton()
    return sorted({secret for _, secret in search.iter(log.decode("latin-1"))})


def identities(devices):
    text = """
[defaults.scope]
publish = ["devices/{device}/messages/events/#"]
subscribe = ["devices/{device}/messages/devicebound/#"]

[[issuer]]
name = "factory"
iss = "https://id.example"
audience = ["localhost"]
algorithms = ["ES256"]
require = ["exp", "iat", "jti"]
[[issuer.key]]
kid = "k1"
file = "issuer.pem"

"""
    return text + "".join(f'[[device]]\nid = "{d}"\nprimary_key = "{tokens.key_of(d)}"\n' for d in devices)


def private_pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def write_secret(path, text):
    path.touch(mode=0o600)
    path.write_text(text)


def new_folder():
    """Below the build's own folder, so that `cargo clean` takes it away."""
    parent = PROGRAMS.parent / "tmp"
    parent.mkdir(parents=True, exist_ok=True)
    return pathlib.Path(tempfile.mkdtemp(prefix="interop-", dir=parent))

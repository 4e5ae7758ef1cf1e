"""What the drivers in Python share: the line that says what to do, the lines that say what happened, TLS."""

import base64
import json
import os
import ssl
import sys


def read_spec():
    spec = json.loads(sys.stdin.readline())
    for message in [*spec["publish"], *spec["pipelined"], *filter(None, [spec["will"]])]:
        message["payload"] = base64.b64decode(message["payload"])
    return spec


def read_order():
    """What is to be published beside; None where standard input has ended: the test is done with the client."""
    line = sys.stdin.readline()
    return [message | {"payload": base64.b64decode(message["payload"])} for message in json.loads(line)] if line else None


def tls_context(spec):
    """By the CA of the test alone, and in one version of TLS where the test asks for one; None: plain."""
    if not spec["ca"]:
        return None
    context = ssl.create_default_context(cafile=spec["ca"])
    if spec["tls_version"]:
        version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[spec["tls_version"]]
        context.minimum_version = context.maximum_version = version
    return context


def say(event, **fields):
    """One write a line: several threads say something."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def say_message(topic, payload, qos):
    say("message", topic=str(topic), payload=base64.b64encode(bytes(payload)).decode(), qos=int(qos))


def returned(reason):
    """The return code of a CONNACK of 3.1.1, which paho 2.x translates."""
    return {0x84: 1, 0x85: 2, 0x88: 3, 0x86: 4, 0x87: 5}.get(reason, reason)


def leave(code):
    """From any thread, at once: a library would connect again."""
    sys.stdout.flush()
    os._exit(code)

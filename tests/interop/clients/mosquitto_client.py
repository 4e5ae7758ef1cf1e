"""mosquitto_pub and mosquitto_sub (Debian), driven as README.md says: one program run a message, one for what is pipelined, and
then one for all filters. The will, and a session that stays, are the subscriber's."""

import base64
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading


def main():
    spec = json.loads(sys.stdin.readline())
    common = ["-h", spec["host"], "-p", str(spec["port"]), "-V", "mqttv5" if spec["version"] == 5 else "mqttv311"]
    common += ["-i", spec["client_id"], "-u", spec["username"], "-P", spec["password"], "-d"]
    if spec["ca"]:
        common += ["--cafile", spec["ca"]]
    if spec["tls_version"]:
        common += ["--tls-version", f"tlsv{spec['tls_version']}"]
    for message in spec["publish"]:
        if not publish(common, message):
            sys.exit(1)
    if spec["pipelined"]:
        pipeline(common, spec["pipelined"])
    if spec["subscribe"]:
        subscribe(common, spec)
    if not spec["subscribe"] and not spec["publish"]:
        # There is no program that only connects: an unsubscribe of nothing comes nearest.
        publish(common, None)
    say("done")


def publish(common, message):
    with tempfile.NamedTemporaryFile() as file:
        if message is None:
            what = ["-t", "x", "-n", "-q", "0"]
        else:
            file.write(base64.b64decode(message["payload"]))
            file.flush()
            empty = not message["payload"]
            what = ["-t", message["topic"], "-q", str(message["qos"])] + (["-n"] if empty else ["-f", file.name])
            what += ["-r"] if message["retain"] else []
        run = subprocess.run(["mosquitto_pub", *common, *what], capture_output=True, text=True, timeout=30)
    for line in (run.stdout + run.stderr).splitlines():
        answer(line)
    return run.returncode == 0


def pipeline(common, messages):
    """A line a message: of one topic and one QoS."""
    [(topic, qos)] = {(message["topic"], message["qos"]) for message in messages}
    lines = b"".join(base64.b64decode(message["payload"]) + b"\n" for message in messages)
    command = ["mosquitto_pub", *common, "-t", topic, "-q", str(qos), "-l"]
    subprocess.run(command, input=lines, capture_output=True, timeout=30, check=True)


def subscribe(common, spec):
    arguments = ["mosquitto_sub", *common, "-F", "MESSAGE %q %t %x", "-k", str(spec["keep_alive"])]
    if not spec["clean"]:
        arguments += ["-c"]
        if spec["version"] == 5:
            arguments += ["-x", str(spec["expiry"])]
    if will := spec["will"]:
        payload = base64.b64decode(will["payload"]).decode()
        arguments += ["--will-topic", will["topic"], "--will-payload", payload, "--will-qos", str(will["qos"])]
    for wanted in spec["subscribe"]:
        arguments += ["-t", wanted["filter"], "-q", str(wanted["qos"])]
    # stdbuf: the -d lines go through stdio.
    run = subprocess.Popen(
        ["stdbuf", "-oL", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    told = threading.Event()

    def until_told():
        sys.stdin.read()
        told.set()
        run.send_signal(signal.SIGINT)

    threading.Thread(target=until_told, daemon=True).start()
    connects = 0
    for line in run.stdout:
        answer(line.strip())
        if line.startswith("Subscribed"):
            say("done")
        # It connects again by itself: what comes then is of another connection.
        connects += "sending CONNECT" in line
        if connects > 1 and not told.is_set() and not spec["reconnect"]:
            break
    say("closed")
    run.kill()
    sys.exit(0)


def answer(line):
    if found := re.search(r"received CONNACK \((\d+)\)", line):
        say("connack", code=int(found[1]))
    elif found := re.search(r"received PUB(ACK|COMP) \(Mid: \d+, RC:(\d+)\)", line):
        say(f"pub{found[1].lower()}", code=int(found[2]))
    elif found := re.match(r"Subscribed \(mid: \d+\): ([\d, ]+)", line):
        say("suback", codes=[int(code) for code in found[1].split(",")])
    elif found := re.match(r"MESSAGE (\d) (\S+) ?([0-9a-f]*)$", line):
        say("message", topic=found[2], payload=base64.b64encode(bytes.fromhex(found[3])).decode(), qos=int(found[1]))
    elif found := re.search(r"received DISCONNECT \((\d+)\)", line):
        say("disconnect", code=int(found[1]))


def say(event, **fields):
    """One write a line: several threads say something."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


main()

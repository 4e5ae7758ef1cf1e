"""CONNECT as bytes, and what it is answered: nothing between the test and the socket."""

import dataclasses
import socket
import struct

PATIENCE = 20
CLOSED = "closed"


@dataclasses.dataclass
class Connect:
    """What CONNECT says; text is UTF-8, bytes go as they are, None leaves a field out."""

    version: int
    client_id: object
    user_name: object = None
    password: object = None
    clean: bool = True
    keep_alive: int = 60
    will_topic: object = None
    will_qos: int = 0
    will_retain: bool = False
    method: object = None
    data: object = None
    flags: int = 0

    def packet(self):
        will = self.will_topic is not None
        flags = (
            (self.clean << 1) | (will << 2) | (self.will_qos << 3) | (self.will_retain << 5)
            | ((self.password is not None) << 6) | ((self.user_name is not None) << 7) | self.flags
        )
        body = field("MQTT") + bytes([self.version, flags]) + struct.pack(">H", self.keep_alive)
        if self.version == 5:
            properties = b""
            if self.method is not None:
                properties += b"\x15" + field(self.method)
            if self.data is not None:
                properties += b"\x16" + field(self.data)
            body += varint(len(properties)) + properties
        body += field(self.client_id)
        if will:
            body += (b"\x00" if self.version == 5 else b"") + field(self.will_topic) + field(b"will")
        for value in (self.user_name, self.password):
            body += b"" if value is None else field(value)
        return b"\x10" + varint(len(body)) + body


class Session:
    """A connection on which CONNECT was sent; leaves by closing."""

    def __init__(self, port, packet):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        self.socket.settimeout(PATIENCE)
        self.peer = "127.0.0.1:%d" % self.socket.getsockname()[1]
        try:
            self.socket.sendall(packet)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it may be closed before all is sent

    def code(self):
        """Return or reason code of CONNACK, or CLOSED."""
        try:
            kind, body = self.packet()
        except (EOFError, ConnectionResetError):
            return CLOSED
        assert kind >> 4 == 2, f"no CONNACK: {kind:#x} {body!r}"
        return body[1]

    def packet(self):
        """First byte and body of the next packet."""
        kind = self._read(1)[0]
        length, shift = 0, 0
        while True:
            byte = self._read(1)[0]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return kind, self._read(length)

    def send(self, packet):
        self.socket.sendall(packet)

    def _read(self, count):
        got = b""
        while len(got) < count:
            part = self.socket.recv(count - len(got))
            if not part:
                raise EOFError
            got += part
        return got

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()


def field(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def varint(number):
    out = b""
    while True:
        number, low = divmod(number, 128)
        out += bytes([low | (0x80 if number else 0)])
        if not number:
            return out

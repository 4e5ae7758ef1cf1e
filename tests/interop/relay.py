"""A relay on loopback between a client and the gateway: bytes pass as they are, until a test cuts the connections, holds
answers back, or lets nobody through."""

import contextlib
import socket
import threading

# As it is here: test_azure.py leads that of the SDK through the relay.
connect = socket.create_connection


class Relay:
    """Listens on a port of its own; whoever comes is connected to `port`."""

    def __init__(self, port, host="127.0.0.1"):
        self.goal = (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.pairs, self.is_up = [], True
        self.passes = {"up": True, "down": True}
        self.swallowed = dict.fromkeys(self.passes, 0)
        threading.Thread(target=self._accept, daemon=True).start()

    def hold(self, *directions):
        """What goes `up` to the gateway, or `down` to the client, is swallowed from here on, and the connection stays."""
        self.swallowed = dict.fromkeys(self.passes, 0)
        for direction in directions:
            self.passes[direction] = False

    def down(self):
        """Ends what connections there are, without a word in MQTT; whoever comes is closed at once."""
        with self.lock:
            self.is_up = False
            pairs, self.pairs = self.pairs, []
        for pair in pairs:
            _end(*pair)

    def up(self):
        """Lets clients through again, and everything that they say."""
        with self.lock:
            self.passes.update(up=True, down=True)
            self.is_up = True

    def close(self):
        """For good."""
        self.down()
        # Closing alone would leave the thread in `accept`, and the port with it.
        _end(self.listener)

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                gateway = connect(self.goal)
            except OSError:
                _end(client)
                continue
            for end in (client, gateway):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                if not self.is_up:
                    _end(client, gateway)
                    continue
                self.pairs.append((client, gateway))
            for direction, source, sink in (("up", client, gateway), ("down", gateway, client)):
                threading.Thread(target=self._copy, args=(direction, source, sink), daemon=True).start()

    def _copy(self, direction, source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self.passes[direction]:
                    sink.sendall(data)
                else:
                    self.swallowed[direction] += len(data)
        _end(source, sink)


def _end(*ends):
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()

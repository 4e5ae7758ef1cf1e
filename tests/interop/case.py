"""What the test cases share: one hub and one gateway a class, and a test a combination, so that the count is true."""

import itertools
import unittest

import client
import place
import tokens

VERSIONS = {4: "3.1.1", 5: "5.0"}
TRANSPORTS = {False: "TCP", True: "TLS"}


class AtAGateway(unittest.TestCase):
    """Starts both for the class; `devices` and `options` say how."""

    devices = ()
    options = {}

    @classmethod
    def setUpClass(cls):
        cls.start(place.new_folder())

    @classmethod
    def start(cls, folder):
        cls.authority = place.Authority(folder)
        cls.hub = place.Hub(cls.authority)
        cls.addClassCleanup(cls.hub.stop)
        cls.gateway = place.Gateway(cls.authority, cls.hub, cls.devices, **cls.options)
        cls.addClassCleanup(cls.gateway.stop)

    def run_client(self, name, version, device, token, **what):
        """Runs it to its end; all of its events."""
        with client.Client(name, self.gateway, version, device, token, **what) as run:
            return run.outcome()

    def stay(self, name, version, device, token, **what):
        """A client that stays until the test ends."""
        return self.enterContext(client.Client(name, self.gateway, version, device, token, stay=True, **what))

    def token(self, kind, device):
        return tokens.sas(device) if kind == "SAS" else self.gateway.jwt(device)


def each(**axes):
    """One test method a combination of the axes' values."""

    def expand(function):
        function.axes = axes
        return function

    return expand


def expanded(cls):
    """Replaces the methods marked by `each`."""
    for name, function in list(vars(cls).items()):
        axes = getattr(function, "axes", None)
        if axes is None:
            continue
        delattr(cls, name)
        for values in itertools.product(*axes.values()):
            said = "_".join(_said(axis, value) for axis, value in zip(axes, values))
            setattr(cls, f"{name}[{said}]", _bound(function, values))
    return cls


def _bound(function, values):
    return lambda self: function(self, *values)


def _said(axis, value):
    if isinstance(value, tuple):
        return " ".join(str(part) for part in value)
    return {"version": VERSIONS, "tls": TRANSPORTS}.get(axis, {}).get(value, str(value))

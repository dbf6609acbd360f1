"""QEMU's machine protocol, as far as saving, restoring and protecting a machine needs it."""

import json
import socket
import time

from programs import BenchError

TIMEOUT_S = 30


class Qmp:
    """A connection to the socket of `-qmp unix:PATH,server=on,wait=off`."""

    def __init__(self, path):
        self.events = []  # of (name, seconds since 1970, by QEMU)
        self.socket = self.connect(path)
        self.socket.settimeout(TIMEOUT_S)
        self.lines = self.socket.makefile("r")
        self.receive()  # the greeting
        self.call("qmp_capabilities")

    @staticmethod
    def connect(path):
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError as wrong:
                connection.close()
                if time.monotonic() > deadline:
                    raise BenchError(f"QEMU does not listen on its control socket: {wrong}") from None
                time.sleep(0.002)

    def receive(self):
        line = self.lines.readline()
        if not line:
            raise BenchError("QEMU closed its control socket")
        return json.loads(line)

    def call(self, command, **arguments):
        """The answer; events that come before it are kept."""
        request = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            said = self.receive()
            if "event" in said:
                stamp = said["timestamp"]
                self.events.append((said["event"], stamp["seconds"] + stamp["microseconds"] / 1e6))
            elif "return" in said:
                return said["return"]
            else:
                raise BenchError(f"QEMU refuses {command}: {said['error']['desc']}")

    def times(self, name):
        """When the events of this name came, as far as they were met by `call`."""
        return [when for event, when in self.events if event == name]

    def save(self, path):
        """Stops the machine and writes it to a file, as fast as QEMU can. Seconds."""
        started = time.monotonic()
        self.call("stop")
        self.call("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.call("migrate", uri=f"file:{path}")
        while True:
            state = self.call("query-migrate")
            if state.get("status") == "completed":
                return time.monotonic() - started
            if state.get("status") == "failed":
                raise BenchError(f"QEMU cannot save its machine: {state.get('error-desc')}")
            time.sleep(0.001)

    def run_restored(self):
        """Lets a machine go on that was saved standing still, as soon as it is whole again."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.call("query-status")["status"] != "paused":
            if time.monotonic() > deadline:
                raise BenchError("QEMU does not restore its machine")
            time.sleep(0.001)
        self.call("cont")

"""A protected machine: a primary and a backup, both live on this host."""

import contextlib
import json
import time

from programs import BenchError, Running, free_port, json_of, run_to_end

JOIN_S = 60
# A busy host is no failed one: nothing fails here, and a takeover would spoil the figures.
DETECTION_FLOOR_MS = 3000
MODES = ("replay", "hybrid", "checkpoint")


class Pair:
    """Started when it is entered; ends with its block. The guest's console is that of `primary`, a
    `Running`. `forward` is the guest's port to be reached at `port` of this host."""

    def __init__(self, bench, mode, guest, forward=None, disk=None, more=()):
        self.bench = bench
        self.folder = bench.folder("pair").parent
        self.port = free_port() if forward else None
        self.listens = {node: f"127.0.0.1:{free_port()}" for node in "ab"}
        self.words = [*guest, "--name", self.folder.name, "--mode", mode, "--keys", keys(bench)]
        self.words += ["--arbiter", f"lock:{self.folder / 'arbiter'}", *more]
        self.words += ["--detection-floor-ms", DETECTION_FLOOR_MS]
        self.forward, self.disk = forward, disk
        self.primary = self.backup = None
        self.running = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as running:
            self.primary = running.enter_context(Running(self.command("primary", "a")))
            self.running = running.pop_all()
        return self

    def join(self):
        """Starts the backup."""
        command = [*self.command("backup", "b"), "--peer", self.listens["a"]]
        self.backup = self.running.enter_context(Running(command))

    def join_and_wait(self):
        self.join()
        self.wait_protected()

    def command(self, role, node):
        words = [role, *self.words, "--node", node, "--listen", self.listens[node]]
        words += ["--control", self.control(node), "--timeline", self.timeline(node)]
        if self.forward:
            # The backup's port is another: both are on this host.
            words += ["--forward", f"{self.port if node == 'a' else free_port()}:{self.forward}"]
        if self.disk:
            words += ["--disk", f"{self.disk},snapshot"]
        return self.bench.secondwind(*words)

    def control(self, node):
        return self.folder / f"{node}.sock"

    def timeline(self, node):
        return self.folder / f"{node}.timeline"

    def pids(self):
        return [self.primary.process.pid, self.backup.process.pid]

    def status(self, node="a"):
        answers = json_of(self.bench.secondwind("status", "--json", "--control", self.control(node)))
        if not answers:
            side = self.primary if node == "a" else self.backup
            raise BenchError(f"{side.name()} says nothing of itself; its last words: {side.last_words()}")
        return answers[0]

    def wait_protected(self):
        """Until the primary's timeline says that the backup counts."""
        deadline = time.monotonic() + JOIN_S
        while self.event_s("protected") is None:
            for side in (self.primary, self.backup):
                if side.process.poll() is not None:
                    raise BenchError(f"{side.name()} ended before the pair was protected: {side.last_words()}")
            if time.monotonic() > deadline:
                raise BenchError(f"no protection within {JOIN_S} s; the backup's last words: {self.backup.last_words()}")
            time.sleep(0.01)

    def event_s(self, name):
        """When an event of the primary's timeline came first, in seconds since 1970, or None."""
        with contextlib.suppress(OSError):
            for line in self.timeline("a").read_text().splitlines():
                with contextlib.suppress(ValueError):  # a line half written
                    event = json.loads(line)
                    if event["event"] == name:
                        return event["unix_ns"] / 1e9
        return None

    def __exit__(self, *_):
        # The backup first, or it would take over.
        for side in (self.backup, self.primary):
            if side:
                side.interrupt()
        self.running.close()


def keys(bench):
    """Keys for both nodes, made once."""

    def make():
        folder = bench.folder("keys")
        run_to_end(bench.secondwind("keygen", folder, "a", "b"), JOIN_S)
        return folder

    return bench.once("keys", make)

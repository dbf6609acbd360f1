#!/usr/bin/env python3
"""QEMU's own fault tolerance, COLO, beside which checkpoint mode is measured.

Two QEMUs run the Debian guest, without disk and network; each --delay-ms the secondary is
brought level by a checkpoint, and after --seconds the primary is killed and the secondary told
so: COLO has no failure detector. Prints one line of JSON:

  enter_s             until COLO mode is entered: the first copy of all memory
  pause_p50_ms, pause_max_ms
                      how long the primary stands still for a checkpoint
  checkpoints_per_s   that it reached
  running_percent     of the time that the guest ran
  checkpoint_bytes    over the link, on average
  takeover_ms         from the kill until the secondary runs alone; without any detection
  alive               whether the guest printed on after that

Its network comparison (colo-compare), which would hold output back, is not part of it.

examples:
  bench/colo.py                                   an idle guest, a checkpoint each second
  bench/colo.py --load dirty:4:160:full --delay-ms 25
"""

import argparse
import json
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent))
from programs import Bench, BenchError, Running, debian_guest, find_qemu, free_port  # noqa: E402
from qmp import Qmp  # noqa: E402

BOOT_S, ENTER_S, TAKEOVER_S, ALIVE_S = 120, 120, 10, 5
UNLIMITED_BYTES_PER_S = 10**11
FIRST_WORDS = {"tick": "TICK", "dirty": "DIRTY"}


class CountingProxy:
    """Carries one TCP connection to `port` and counts the bytes of its forward direction."""

    def __init__(self, port):
        self.target, self.forward_bytes = port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.ends = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return  # closed, or QEMU has ended
            self.ends += [near, far]
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.carry, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self.carry, args=(far, near, False), daemon=True).start()

    def carry(self, source, sink, forward):
        try:
            while data := source.recv(1 << 18):
                if forward:
                    self.forward_bytes += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # an end was killed

    def close(self):
        for end in [self.listener, *self.ends]:
            end.close()


class Side:
    """One of the two QEMUs."""

    def __init__(self, bench, job, folder, name, *more):
        path = f"{folder}/{name}.qmp"
        self.program = Running(bench.qemu(job, "-qmp", f"unix:{path},server=on,wait=off", *more))
        self.qmp = Qmp(path)

    def set_up(self, delay_ms):
        capabilities = [{"capability": name, "state": True} for name in ("x-colo", "return-path", "events")]
        self.qmp.call("migrate-set-capabilities", capabilities=capabilities)
        parameters = {"x-checkpoint-delay": delay_ms, "max-bandwidth": UNLIMITED_BYTES_PER_S}
        self.qmp.call("migrate-set-parameters", **parameters)

    def colo_mode(self):
        return self.qmp.call("query-colo-status")["mode"]

    def runs_alone(self):
        return self.colo_mode() == "none" and self.qmp.call("query-status")["running"]

    def end(self):
        self.program.__exit__()


def measure(bench, job="tick", delay_ms=1000, seconds=15):
    """COLO's figures under one load, a job of the Debian guest's init."""
    with tempfile.TemporaryDirectory(prefix="colo-") as folder:
        sides, proxy = [], None
        try:
            primary = Side(bench, job, folder, "primary")
            sides.append(primary)
            incoming = free_port()
            secondary = Side(bench, job, folder, "secondary", "-incoming", "defer")
            sides.append(secondary)
            primary.program.wait_for(FIRST_WORDS[job.split(":")[0]], BOOT_S)
            for side in sides:
                side.set_up(delay_ms)
            secondary.qmp.call("migrate-incoming", uri=f"tcp:127.0.0.1:{incoming}")
            proxy = CountingProxy(incoming)
            figures = {"load": job, "delay_ms": delay_ms, "enter_s": enter(primary, proxy)}
            return figures | checkpoints(primary, proxy, seconds) | take_over(primary, secondary)
        finally:
            for side in sides:
                side.end()
            if proxy:
                proxy.close()


def enter(primary, proxy):
    """Copies all memory for the first time; seconds."""
    started = time.monotonic()
    primary.qmp.call("migrate", uri=f"tcp:127.0.0.1:{proxy.port}")
    while primary.colo_mode() != "primary":
        if primary.qmp.call("query-migrate").get("status") == "failed":
            raise BenchError("QEMU failed to enter COLO mode; measure without the peer: --no-peer")
        if time.monotonic() > started + ENTER_S:
            raise BenchError(f"QEMU did not enter COLO mode in {ENTER_S} s; measure without the peer: --no-peer")
        time.sleep(0.05)
    return round(time.monotonic() - started, 2)


def checkpoints(primary, proxy, seconds):
    """Watches the primary stop and go on for so long."""
    primary.qmp.events.clear()
    carried, started = proxy.forward_bytes, time.monotonic()
    time.sleep(seconds)
    primary.qmp.call("query-status")  # meets the events until now
    took_s = time.monotonic() - started
    stops, resumes = primary.qmp.times("STOP"), primary.qmp.times("RESUME")
    resumes = [when for when in resumes if stops and when > stops[0]]
    pauses_ms = [(resume - stop) * 1000 for stop, resume in zip(stops, resumes)]
    if not pauses_ms:
        raise BenchError(f"COLO took no checkpoint in {seconds} s; give it more --seconds")
    return {
        "checkpoints": len(pauses_ms),
        "checkpoints_per_s": round(len(pauses_ms) / took_s, 2),
        "running_percent": round(100 - sum(pauses_ms) / 10 / took_s, 1),
        "pause_p50_ms": round(statistics.median(pauses_ms), 2),
        "pause_max_ms": round(max(pauses_ms), 2),
        "checkpoint_bytes": round((proxy.forward_bytes - carried) / len(pauses_ms)),
    }


def take_over(primary, secondary):
    """Kills the primary and tells the secondary at once."""
    primary.program.process.kill()
    killed = time.monotonic()
    secondary.qmp.call("x-colo-lost-heartbeat")
    while not secondary.runs_alone():
        if time.monotonic() > killed + TAKEOVER_S:
            return {"takeover_ms": None, "alive": False}
        time.sleep(0.002)
    took_over = time.monotonic()
    printed = len(secondary.program.lines)
    while len(secondary.program.lines) == printed and time.monotonic() < took_over + ALIVE_S:
        time.sleep(0.01)
    return {
        "takeover_ms": round((took_over - killed) * 1000, 1),
        "alive": len(secondary.program.lines) > printed,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", default="tick", metavar="JOB", help="tick, or dirty:MIB:MIB_PER_S:full|sparse (default: %(default)s)")
    parser.add_argument("--delay-ms", type=int, default=1000, metavar="MS", help="between checkpoints (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, metavar="S", help="to stay in COLO mode (default: %(default)s)")
    parser.add_argument("--debian", type=Path, metavar="DIR", help="what guest/debian/build made there")
    parser.add_argument("--qemu", metavar="PROGRAM", help="a qemu-system-riscv64 (default: bench/qemu)")
    args = parser.parse_args()
    if args.load.split(":")[0] not in FIRST_WORDS:
        parser.error(f"--load {args.load} is neither tick nor dirty:...")
    if args.delay_ms < 1 or args.seconds <= 0:
        parser.error("--delay-ms and --seconds must be positive")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that both QEMUs are ended
    try:
        # What a Bench has of the guest and QEMU, without building Secondwind.
        bench = SimpleNamespace(guest=debian_guest(args.debian), qemu_path=find_qemu(args.qemu))
        bench.qemu = lambda *words, **options: Bench.qemu(bench, *words, **options)
        print(json.dumps(measure(bench, args.load, args.delay_ms, args.seconds)))
    except BenchError as wrong:
        sys.exit(f"bench/colo.py: {wrong}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

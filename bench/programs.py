"""Programs under measurement: Secondwind, QEMU, and what both boot.

A program's console is read as it comes, each line with the time of its arrival, so that the
host's clock measures what the guest prints, whatever the guest's own clock says.
"""

import contextlib
import json
import os
import queue
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent


class BenchError(Exception):
    """Why something cannot be measured, in one line, with what to do."""


class Running:
    """A program that runs, with the lines it has printed so far as (seconds, text)."""

    def __init__(self, command):
        self.command = [str(word) for word in command]
        self.lines = []
        self.arrived = queue.Queue()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for raw in self.process.stdout:
            line = (time.monotonic() - self.started, raw.decode(errors="replace").rstrip())
            self.lines.append(line)
            self.arrived.put(line)
        self.arrived.put(None)

    def wait_for(self, pattern, timeout_s=120):
        """Waits for a line that matches; returns its time and the match."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self.arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise BenchError(f"{self.name()} printed nothing like {pattern!r} in {timeout_s} s") from None
            if line is None:
                raise BenchError(f"{self.name()} ended before {pattern!r}; its last words: {self.last_words()}")
            match = re.search(pattern, line[1])
            if match:
                return line[0], match

    def wait(self, timeout_s):
        """Waits for the end; returns how long the program ran, in seconds."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name()} did not end in {timeout_s} s") from None
        wall_s = time.monotonic() - self.started
        if status:
            raise BenchError(f"{self.name()} ended with status {status}: {self.last_words()}")
        return wall_s

    def interrupt(self, timeout_s=30):
        """Ends the program as Ctrl-C does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)

    def stand_still(self, seconds):
        """Takes the processors from the program for a while."""
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)

    def name(self):
        return " ".join([Path(self.command[0]).name, *self.command[1:2]])

    def last_words(self):
        return " | ".join(text for _, text in self.lines[-3:])

    def at(self, pattern):
        """When the first line came that matches, or None."""
        return next((when for when, text in list(self.lines) if re.search(pattern, text)), None)

    def memory_peak_bytes(self):
        """The most memory that was resident so far (VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass
class Ended:
    """A program that ran to its end."""

    program: Running
    wall_s: float
    cpu_s: float  # user and system time of all its threads


def run_to_end(command, timeout_s):
    """Runs a program to its end, while no other child of this process ends."""
    before = children_cpu_s()
    with Running(command) as program:
        wall_s = program.wait(timeout_s)
    return Ended(program, wall_s, children_cpu_s() - before)


def children_cpu_s():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Bench:
    """What a set of measures works with."""

    errors = (BenchError, OSError, subprocess.TimeoutExpired)

    def __init__(self, args, scratch):
        self.args = args
        self.scratch = Path(scratch)
        self.secondwind_path = args.secondwind or build_secondwind()
        self.guest = debian_guest(args.debian)
        self.qemu_path = None if args.no_peer else find_qemu(args.qemu)
        self.memo = {}
        self.growths = []  # of the measure at hand

    def once(self, key, make):
        """The result of `make`, made only once per run of the benchmark."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def folder(self, name):
        """A folder that does not exist yet."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch)) / name

    def say(self, message):
        print(f"bench: {message}", file=sys.stderr, flush=True)

    def secondwind(self, *words):
        return [self.secondwind_path, *words]

    def has_option(self, command, option):
        """Whether the program's command knows an option."""
        help_text = self.once(
            f"help-{command}", lambda: subprocess.run(self.secondwind(command, "--help"), capture_output=True, text=True)
        )
        return option in help_text.stdout

    def debian(self, job, initramfs="base", more=""):
        """The words of a command that boots the Debian guest in Secondwind; `more` is for the kernel."""
        append = f"console=ttyS0 secondwind.run={job}{more}"
        image = self.guest / f"initramfs-{initramfs}.cpio.gz"
        return ["--kernel", self.guest / "Image", "--initrd", image, "--append", append, "--memory", "256M"]

    def qemu(self, job, *extra, initramfs="base", harts=1, more=""):
        """A command that boots the same guest in QEMU, its console on standard output."""
        image = self.guest / f"initramfs-{initramfs}.cpio.gz"
        append = f"console=ttyS0 secondwind.run={job}{more}"
        words = ["-kernel", self.guest / "Image", "-initrd", image, "-append", append]
        return [*self.qemu_board("256M", harts), *words, *extra]

    def qemu_board(self, memory, harts=1):
        """QEMU without a kernel, its console on standard output."""
        command = [self.qemu_path, "-M", "virt", "-smp", str(harts), "-m", memory, "-display", "none"]
        return [*command, "-monitor", "none", "-no-reboot", "-nic", "none", "-serial", "stdio"]


def build_secondwind():
    """The release build of this source tree."""
    print("bench: cargo build --release", file=sys.stderr, flush=True)
    command = ["cargo", "build", "--release", "--quiet", "--package", "secondwind"]
    try:
        done = subprocess.run(command, cwd=PROJECT)
    except FileNotFoundError:
        raise BenchError("cargo not found: install Rust (rustup.rs), or name a built binary with --secondwind") from None
    if done.returncode:
        raise BenchError("cargo build --release failed")
    return cargo_target() / "release/secondwind"


def cargo_target():
    """The folder that cargo builds into."""
    return Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target"))


def cargo_tests(names, qemu_path, build_only=False):
    """Builds, or builds and runs, these tests of the tests crate, as tests/run does."""
    command = ["cargo", "test", "--quiet", "--package", "secondwind-tests"]
    command += [word for name in names for word in ("--test", name)] + ["--no-run"] * build_only
    environment = os.environ | ({"SECONDWIND_QEMU": qemu_path} if qemu_path else {})
    done = subprocess.run(command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed: {done.stdout.strip()[-300:]}")


def debian_guest(given):
    """The folder of the Debian guest, built if need be."""
    if given:
        if not (given / "Image").exists():
            raise BenchError(f"no Debian guest in {given}: make one with guest/debian/build --out {given}")
        return given
    done = subprocess.run([PROJECT / "guest/debian/build"], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise BenchError("the Debian guest cannot be built (see above); --debian DIR names one that is there")
    return Path(re.search(r"(\S+)/Image$", done.stdout, re.MULTILINE)[1])


def find_qemu(given):
    """QEMU's path: the one given, or that of bench/qemu."""
    if given:
        found = shutil.which(given)
        if not found:
            raise BenchError(f"no program {given}: give --qemu another, or leave it out to fetch one")
        return found
    fetch = load_script(HERE / "qemu")
    try:
        return str(fetch.obtain(fetch.packages.cache_folder("qemu")))
    except fetch.PackageError as wrong:
        raise BenchError(f"QEMU cannot be fetched: {wrong}; or give --qemu PROGRAM, or --no-peer") from None


def load_script(path):
    """Imports a script that has no .py at its end."""
    loader = SourceFileLoader(f"bench_{path.name}", str(path))
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def folder_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def json_of(command, timeout_s=600):
    """Runs a program that prints JSON."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=timeout_s)
    try:
        return json.loads(done.stdout)
    except ValueError:
        said = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise BenchError(f"{Path(str(command[0])).name} {command[1]} gave no JSON: {said}") from None

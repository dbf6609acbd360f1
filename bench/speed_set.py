"""Whole workloads, each against QEMU in the same run, alternating: what the machine reaches
unprotected, recorded, replayed and in each protection mode; what it takes of the host; and how that
grows."""

import json
import re
import shutil
import time
from dataclasses import dataclass

import growth
import modes_set
import services
from figures import Bar, Figure, Measure, Outcome, median, ratio
from main_set import time_of
from pair import MODES, Pair
from programs import PROJECT, BenchError, Running, run_to_end
from resources import busy_percent, memory_of

SCALE = 4
RUN_LIMIT_S = 300
INTEGER = ("sieve", "matrix", "crc")
PARTS = (*INTEGER, "chase", "chase8", "float", "syscalls", "fork")
# Where the guest's own output begins to be counted, and what is not a part.
BEGIN, BETWEEN = "BENCH start", ("made",)
IDLE_SETTLE_S, IDLE_RECORDED_S, IDLE_WATCHED_S = 10, 40, 30
PEER_IDLE_S = 10
GUEST_BYTES = 256 << 20
HOST = "the host itself"
PEERS = ("QEMU", "QEMU, icount", "QEMU, rr=record", "QEMU, rr=replay")


@dataclass
class Run:
    """One boot and one pass through the parts, timed by the host."""

    boot_s: float | None
    parts_s: dict
    sums: str | None
    cpu_s: float | None = None  # of the whole program

    def of(self, names):
        """None where not all of these parts were run."""
        return sum(self.parts_s[name] for name in names) if set(names) <= set(self.parts_s) else None


# --- computing ----------------------------------------------------------------------------


def runs_of(bench):
    return bench.once("speed-runs", lambda: make_runs(bench))


def make_runs(bench):
    """Every subject in turn, again and again, so that a slow spell of the host meets all of them."""
    runs = {}
    for number in range(bench.args.runs):
        for subject, take in subjects(bench):
            bench.say(f"round {number + 1}: computing, {subject}")
            runs.setdefault(subject, []).append(take())
    if len({run.sums for taken in runs.values() for run in taken} - {None}) != 1:
        raise BenchError("the checksums differ between machines: one of them computes wrongly")
    return runs


def subjects(bench):
    """Names, and functions that take one run of each. A replay is of the recording before it."""
    job, recording = f"speed:{SCALE}", bench.folder("speed")
    vm = [*bench.debian(job), "--net", "none"]
    rr_log = bench.scratch / "speed.rr"

    def ended(command):
        return lambda: timed(run_to_end(command, RUN_LIMIT_S))

    found = [("unprotected", ended(bench.secondwind("run", *vm)))]
    if bench.has_option("run", "--engine"):
        found.append(("unprotected, interpreter", ended(bench.secondwind("run", "--engine", "interpreter", *vm))))
    found.append(("recording", ended(bench.secondwind("record", recording, *vm))))
    found.append(("replaying", ended(bench.secondwind("replay", recording, "--console"))))
    found += [(f"protected, {mode}", lambda mode=mode: protected(bench, mode, vm)) for mode in MODES]
    if bench.qemu_path:
        icount = {"QEMU, icount": "shift=auto"}
        icount |= {f"QEMU, rr={way}": f"shift=auto,rr={way},rrfile={rr_log}" for way in ("record", "replay")}
        found.append(("QEMU", ended(bench.qemu(job))))
        found += [(name, ended(bench.qemu(job, "-icount", words))) for name, words in icount.items()]
    if shutil.which("cc"):
        found.append((HOST, lambda: native(bench)))
    return found


def native(bench):
    """The guest's own programs, compiled for the host: what there is to be had of it."""
    parts_s = {}
    for program in bench.once("native", lambda: compiled(bench)):
        said = "\n".join(text for _, text in run_to_end([program, SCALE], RUN_LIMIT_S).program.lines)
        found = re.findall(r"BENCH (\w+) sum=\w+ ns=(\d+)", said)
        parts_s |= {name: int(ns) / 1e9 for name, ns in found if name not in BETWEEN}
    return Run(None, parts_s, None)


def compiled(bench):
    programs = []
    for name in ("bench", "system"):
        programs.append(bench.folder("native").parent / name)
        source = PROJECT / "guest/debian/src" / f"{name}.c"
        run_to_end(["cc", "-O2", "-o", programs[-1], source], RUN_LIMIT_S)
    return programs


def protected(bench, mode, vm):
    with Pair(bench, mode, vm) as pair:
        pair.join_and_wait()
        if pair.primary.at(BEGIN) is not None:
            raise BenchError(f"the pair in mode {mode} was not protected before the guest began to compute")
        pair.primary.wait_for("SPEED-DONE", RUN_LIMIT_S)
        return passes(pair.primary)


def timed(ended):
    run = passes(ended.program)
    run.cpu_s = ended.cpu_s
    return run


def passes(program):
    """The time of each part, between its console line and the one before."""
    before = time_of(program, BEGIN)
    parts_s, sums = {}, []
    for when, text in list(program.lines):
        match = re.search(r"BENCH (\w+) sum=(\w+)|(FLOAT) rounds=\d+ sum=(\w+)", text)
        if match:
            name, total = (match[1], match[2]) if match[1] else ("float", match[4])
            if name not in BETWEEN:
                parts_s[name] = when - before
            sums.append(total)
            before = when
    if not set(PARTS) <= set(parts_s):
        raise BenchError(f"{program.name()} did not run all parts; its last words: {program.last_words()}")
    return Run(time_of(program, "INIT-START"), parts_s, " ".join(sums))


def against_peer(runs, seconds):
    """The ratio to QEMU, round by round, of everything that was run."""
    if "QEMU" not in runs:
        raise BenchError("needs QEMU to compare with: leave out --no-peer")
    peer = [seconds(run) for run in runs["QEMU"]]
    bars = []
    for subject, taken in runs.items():
        if None not in map(seconds, taken):
            values = [peer_s / seconds(run) for peer_s, run in zip(peer, taken)]
            bars.append(Bar(subject, values, "x", subject in PEERS))
    ours, host = ([seconds(run) for run in runs.get(subject, [])] for subject in ("unprotected", HOST))
    note = f"{median(ours):.2f} s; QEMU {median(peer):.2f} s"
    if host and None not in host:
        note += f"; {HOST} {median(host):.2f} s"
    outcome = ratio(peer, ours, note, peer=1)
    outcome.bars = bars
    return outcome


def boot(bench):
    return {"boot": against_peer(runs_of(bench), lambda run: run.boot_s)}


def computing(bench):
    runs = runs_of(bench)
    names = {"integer": INTEGER} | {part: (part,) for part in PARTS if part not in INTEGER}
    return {name: against_peer(runs, lambda run, parts=parts: run.of(parts)) for name, parts in names.items()}


def recording(bench):
    """Of processor time, of the cheapest run of each: neighbours on the host only ever add."""
    runs = runs_of(bench)

    def gain(above, below):
        if above not in runs:
            return None
        return min(run.cpu_s for run in runs[above]) / min(run.cpu_s for run in runs[below])

    return {
        "recording": Outcome(gain("unprotected", "recording"), gain("QEMU", "QEMU, rr=record"), "of processor time"),
        "replaying": Outcome(
            gain("recording", "replaying"), gain("QEMU, rr=record", "QEMU, rr=replay"), "of processor time"
        ),
    }


def engines(bench):
    """The translator against the interpreter, and the time it takes to translate."""
    if not bench.has_option("run", "--engine"):
        skipped = Outcome(None, note="skipped: this program has no --engine", is_skipped=True)
        return {"engine": skipped, "translation": skipped}
    runs = runs_of(bench)
    slow, fast = ([run.of(INTEGER) for run in runs[f"unprotected{more}"]] for more in (", interpreter", ""))
    report = bench.folder("engine").parent / "report.json"
    command = bench.secondwind("run", *bench.debian("off"), "--net", "none", "--report", report)
    run_to_end(command, RUN_LIMIT_S)
    figures = json.loads(report.read_text())
    if figures.get("translation_s") is None:
        translation = Outcome(None, note="skipped: this program does not report it", is_skipped=True)
    else:
        counts = [f"{figures[key]} {word}" for key, word in TRANSLATED.items() if key in figures]
        translation = Outcome(figures["translation_s"], note=", ".join(["of a boot", *counts]))
    return {"engine": ratio(slow, fast, "sieve + matrix + crc"), "translation": translation}


TRANSLATED = {"translated_blocks": "blocks", "translated_bytes": "bytes of code"}


# --- idle ---------------------------------------------------------------------------------


def replaying_idle(bench):
    """A recording of nothing but idling, from a checkpoint of a booted machine: no boot is in it."""
    folder = bench.folder("idle").parent
    name, file, recording = folder.name, folder / "idle.swc", folder / "recording"
    with Running(bench.secondwind("run", "--name", name, *bench.debian("idle"), "--net", "none")) as program:
        program.wait_for("IDLE", RUN_LIMIT_S)
        time.sleep(3)
        run_to_end(bench.secondwind("checkpoint", name, file, "--stop"), RUN_LIMIT_S)
        program.wait(RUN_LIMIT_S)
    bench.say(f"an idle guest, recorded for {IDLE_RECORDED_S} s")
    restore = ["restore", file, "--record", recording, "--net", "none", "--for", IDLE_RECORDED_S]
    recorded_s = run_to_end(bench.secondwind(*restore), RUN_LIMIT_S).wall_s
    replays = [run_to_end(bench.secondwind("replay", recording), RUN_LIMIT_S).wall_s for _ in range(bench.args.runs)]
    values = [recorded_s / replayed_s for replayed_s in replays]
    note = f"{recorded_s:.0f} s recorded, {median(replays):.2f} s replayed"
    return {"replaying-idle": Outcome(median(values), replaying_idle_peer(bench), note, values)}


def replaying_idle_peer(bench):
    """With its boot, which makes little of a difference: it waits as long as it recorded."""
    if not bench.qemu_path:
        return None
    job, log = f"sleep:{PEER_IDLE_S}", bench.scratch / "idle.rr"

    def wall_s(way):
        return run_to_end(bench.qemu(job, "-icount", f"shift=auto,rr={way},rrfile={log}"), RUN_LIMIT_S).wall_s

    return wall_s("record") / wall_s("replay")


def idle_cost(bench):
    """Processor time of both agents of an idle Debian with its network up."""
    with Pair(bench, "replay", bench.debian("idle"), forward=6379) as pair:
        pair.join_and_wait()
        pair.primary.wait_for("IDLE", RUN_LIMIT_S)
        bench.say(f"an idle pair for {IDLE_SETTLE_S + IDLE_WATCHED_S} s")
        time.sleep(IDLE_SETTLE_S)
        busy = busy_percent(pair.pids(), IDLE_WATCHED_S)
    note = f"primary {busy[0]:.2f} %, backup {busy[1]:.2f} % of a core"
    bars = [Bar(side, [percent], "%") for side, percent in zip(("primary", "backup"), busy)]
    return {"idle-cost": Outcome(max(busy), peer_idle_percent(bench), note, bars=bars)}


def peer_idle_percent(bench):
    """QEMU's own, of one process."""
    if not bench.qemu_path:
        return None
    with Running(bench.qemu("idle", *services.qemu_network(), initramfs="base")) as program:
        program.wait_for("IDLE", RUN_LIMIT_S)
        time.sleep(IDLE_SETTLE_S)
        return busy_percent([program.process.pid], IDLE_WATCHED_S)[0]


# --- memory -------------------------------------------------------------------------------


def memory(bench):
    """What a machine takes beyond its guest's memory, after a boot and some requests."""
    vm = bench.debian("redis", "redis")
    port = services.free_port()
    found = {}
    with Running(bench.secondwind("run", *vm, "--forward", f"{port}:6379")) as program:
        program.wait_for("REDIS-READY", RUN_LIMIT_S)
        services.redis_requests(port, 2000)
        found["unprotected"] = memory_of(program.process.pid, GUEST_BYTES)
    with Pair(bench, "replay", vm, forward=6379) as pair:
        pair.join_and_wait()
        pair.primary.wait_for("REDIS-READY", RUN_LIMIT_S)
        services.redis_requests(pair.port, 2000)
        for side, pid in zip(("primary", "backup"), pair.pids()):
            found[side] = memory_of(pid, GUEST_BYTES)
    if bench.qemu_path:
        port = services.free_port()
        with Running(bench.qemu("redis", *services.qemu_network(port), initramfs="redis")) as program:
            program.wait_for("REDIS-READY", RUN_LIMIT_S)
            services.redis_requests(port, 2000)
            found["QEMU"] = memory_of(program.process.pid, GUEST_BYTES)
    return {"memory": memory_outcome(found, ["unprotected"]), "memory-pair": memory_outcome(found, ["primary", "backup"])}


def memory_outcome(found, names):
    beyond = {name: memory.beyond for name, memory in found.items()}
    touched = ", ".join(f"{name} {found[name].guest:.0f}" for name in names)
    bars = [Bar(name, [value], "MiB", name == "QEMU") for name, value in beyond.items()]
    note = f"of the guest's 256 MiB are there: {touched} MiB"
    return Outcome(max(beyond[name] for name in names), beyond.get("QEMU"), note, bars=bars)


# --- the set ------------------------------------------------------------------------------


def at_least(name, what, limit=None):
    return Figure(name, what, "x", limit, at_least=True)


def delay(bench):
    """As bench/run modes measures it."""
    return modes_set.delay("replay")(bench)


MEASURES = [
    Measure([at_least("boot", "Debian boot to init, QEMU's time / ours", 1.3)], boot),
    Measure(
        [
            at_least("integer", "sieve + matrix + crc, QEMU's time / ours", 1.6),
            at_least("float", "floating point, QEMU's time / ours", 2),
            at_least("chase", "pointer chase in 1 MiB, QEMU's time / ours", 8),
            at_least("chase8", "pointer chase in 8 MiB, QEMU's time / ours", 6),
            at_least("syscalls", "system calls, QEMU's time / ours"),
            at_least("fork", "fork and wait, QEMU's time / ours"),
        ],
        computing,
    ),
    Measure(
        [
            at_least("recording", "unprotected / recording", 0.98),
            at_least("replaying", "recording / replaying", 1),
        ],
        recording,
    ),
    Measure(
        [
            at_least("engine", "interpreter's time / translator's"),
            Figure("translation", "time spent translating", "s"),
        ],
        engines,
    ),
    Measure([at_least("replaying-idle", "recorded idle time / replayed", 20)], replaying_idle),
    Measure(
        [
            at_least("redis-set", "Redis SET, our requests per second / QEMU's", 1.5),
            at_least("redis-get", "Redis GET, our requests per second / QEMU's", 1.5),
            at_least("redis-protected-set", "SET in replay mode with a live backup / QEMU's", 1),
            at_least("redis-protected-get", "GET in replay mode with a live backup / QEMU's", 1),
        ],
        services.redis,
    ),
    Measure([at_least("redis-replay", "Redis load, recorded time / replayed")], services.redis_replay),
    Measure([at_least("sqlite", "SQLite, QEMU's time / ours")], services.sqlite),
    Measure(
        [
            Figure("delay-replay-p50", "added response delay, p50, replay", "us", 150),
            Figure("delay-replay-p99", "added response delay, p99, replay", "us"),
        ],
        delay,
    ),
    Measure([Figure("idle-cost", "an idle protected Debian, the busier side", "% of a core", 1)], idle_cost),
    Measure(
        [
            Figure("memory", "host memory beyond the guest's, unprotected", "MiB", 30),
            Figure("memory-pair", "the same of a pair, the larger side", "MiB", 30),
        ],
        memory,
    ),
    Measure([Figure("grow-memory", "checkpoint pause at 8 GiB / at 64 MiB", "x")], growth.memory),
    Measure([Figure("grow-dirty", "pause of an increment at 160 MiB/s", "ms")], growth.dirty),
    Measure([at_least("grow-harts", "throughput of 8 harts / of 1")], growth.harts),
    Measure([Figure("grow-vms", "64 idle machines, processor time", "% of a core")], growth.machines),
]

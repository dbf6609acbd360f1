"""The figures of the machine itself: its speed against an earlier state, what digests and
checkpoints cost, its clock, and how long its proof takes."""

import json
import os
import time

import before
import guest_clock
from figures import Figure, Measure, Outcome
from main_set import INTEGER_PARTS, bench_part_times
from programs import PROJECT, BenchError, Running, cargo_tests, free_port, json_of, run_to_end
from qmp import Qmp

BENCH_SCALE = 4
RUN_LIMIT_S = 300
CLOCK_QUESTIONS = 300
CLOCK_PAUSE_S = 0.05
# An answer that took longer says more about the host's scheduler than about the clock.
CLOCK_ROUND_TRIP_MAX_MS = 5
AWAY_S = 3600
CLOCK_SETTLE_S = {"idle": 3, "busy": 8}
IDLE_SETTLE_S = 5
# Two runs of one program on a shared host differ by this much.
REPEATABILITY = 0.97
# The guest's clock moves in steps of up to 8 ms under load: each part must take much longer.
SPEED_SCALE = 4 * BENCH_SCALE


# --- speed, before and now ----------------------------------------------------------------


def speed(bench):
    """Both programs in turn, so that a slow spell of the host meets both. The least time of
    each part counts: neighbours only ever add."""
    programs = {"before": before.program_of(bench.args.before, bench.say), "now": bench.secondwind_path}
    times = {name: [] for name in programs}
    boots = {name: [] for name in programs}
    for _ in range(bench.args.runs):
        for name, program in programs.items():
            bench.say(f"bench and boot, {name}")
            command = bench.secondwind("run", *bench.debian(f"bench:{SPEED_SCALE}"), "--net", "none")[1:]
            times[name].append(bench_part_times([program, *command]))
            command = bench.secondwind("run", *bench.debian("off"), "--net", "none")[1:]
            boots[name].append(run_to_end([program, *command], RUN_LIMIT_S).cpu_s)
    if len({run["sums"] for runs in times.values() for run in runs}) != 1:
        raise BenchError("the checksums of bench differ between before and now")

    def of_parts(name, parts):
        return sum(min(run[part] for run in times[name]) for part in parts)

    def gain(was_s, is_s):
        return Outcome(was_s / is_s, note=f"{was_s:.2f} s before, {is_s:.2f} s now, the least of {bench.args.runs}")

    return {
        "speed-integer": gain(*(of_parts(name, INTEGER_PARTS) for name in programs)),
        "speed-chase": gain(*(of_parts(name, ["chase"]) for name in programs)),
        "speed-boot": gain(*(min(boots[name]) for name in programs)),
    }


# --- digests ------------------------------------------------------------------------------


def digests(bench):
    """Processor time per instruction of a recording with and without digests: of computing, and of
    a guest that builds, forks and writes memory all over."""
    modes = {"with": [], "without": ["--no-digests"]}
    loads = {"computing": (f"bench:{BENCH_SCALE}", "base"), "building": ("build:12:1", "redis")}
    least = {}  # ns of processor time per instruction
    for _ in range(bench.args.runs + 1):
        for load, (job, initramfs) in loads.items():
            for mode, words in modes.items():
                bench.say(f"{load}, {mode} digests")
                cost = recorded_ns(bench, job, initramfs, words)
                least[load, mode] = min(cost, least.get((load, mode), cost))
    costs = {load: 100 * (least[load, "with"] / least[load, "without"] - 1) for load in loads}
    note = ", ".join(f"{load} {cost:+.2f} %" for load, cost in costs.items())
    return {"digest-cost": Outcome(max(costs.values()), note=f"the larger of {note}", runs=list(costs.values()))}


def recorded_ns(bench, job, initramfs, words):
    folder = bench.folder("digests")
    report = folder.parent / "report.json"
    command = ["record", folder, *bench.debian(job, initramfs), "--net", "none", "--report", report, *words]
    run_to_end(bench.secondwind(*command), RUN_LIMIT_S)
    figures = json.loads(report.read_text())
    return 1e9 * figures["cpu_s"] / figures["instructions"]


# --- checkpoints --------------------------------------------------------------------------


def checkpoints(bench):
    """An idle Debian to a file and back, again and again; QEMU's to a file beside it. All times
    are the least: of a file that the host has in memory."""
    folder = bench.folder("checkpoint").parent
    ours = [checkpoint_and_restore(bench, folder, run) for run in range(bench.args.runs)]
    peers = [peer_checkpoint(bench, folder, run) for run in range(bench.args.runs)] if bench.qemu_path else []

    def least(name):
        peer = min(run[name] for run in peers) if peers and name in peers[0] else None
        values = [run[name] for run in ours]
        return Outcome(min(values), peer, "the least", values)

    return {f"checkpoint-{name}": least(name) for name in ("size", "time", "pause")} | {"restore": least("restore")}


def checkpoint_and_restore(bench, folder, run):
    name, file, report = f"bench-{os.getpid()}-{run}", folder / f"{run}.swc", folder / f"{run}.json"
    command = bench.secondwind("run", "--name", name, *bench.debian("idle"), "--net", "none")
    with Running(command) as program:
        program.wait_for("IDLE", RUN_LIMIT_S)
        time.sleep(IDLE_SETTLE_S)
        written = json_of(bench.secondwind("checkpoint", name, file, "--json"))
        program.interrupt()
    run_to_end(bench.secondwind("restore", file, "--net", "none", "--for", "1", "--report", report), RUN_LIMIT_S)
    return {
        "size": written["bytes"] / 1e6,
        "time": written["seconds"],
        "pause": written["pause_ns"] / 1e6,
        "restore": json.loads(report.read_text())["first_instruction_s"],
    }


def peer_checkpoint(bench, folder, run):
    """QEMU's `migrate` to a file, and from it: until its machine runs."""
    file, control = folder / f"{run}.qemu", folder / f"{run}.qmp"
    words = ["-qmp", f"unix:{control},server=on,wait=off"]
    with Running(bench.qemu("idle", *words)) as program:
        program.wait_for("IDLE", RUN_LIMIT_S)
        time.sleep(IDLE_SETTLE_S)
        saved_s = Qmp(control).save(file)
    control.unlink(missing_ok=True)
    with Running(bench.qemu("idle", *words, "-incoming", f"file:{file}")) as program:
        Qmp(control).run_restored()
        restored_s = time.monotonic() - program.started
    size = file.stat().st_size / 1e6
    file.unlink()
    # Its machine stands still until all is written.
    return {"size": size, "time": saved_s, "pause": 1000 * saved_s, "restore": restored_s}


# --- the guest's clock --------------------------------------------------------------------


def clock(load):
    def measure(bench):
        port = free_port()
        command = bench.secondwind("run", *bench.debian(f"clock:{load}"), "--forward", f"{port}:{guest_clock.GUEST_PORT}")
        with Running([*command, "--harts", "2"]) as program:
            program.wait_for("CLOCK-READY", RUN_LIMIT_S)
            time.sleep(CLOCK_SETTLE_S[load])
            bench.say(f"asking {load} Debian for its time")
            found = guest_clock.measure(port, CLOCK_QUESTIONS, CLOCK_PAUSE_S, CLOCK_ROUND_TRIP_MAX_MS)
            program.interrupt()
        return {f"clock-{load}": Outcome(abs(found.worst_ms), note=found.note())}

    return measure


def clock_stop(bench):
    """The process stands still for a while, as by SIGSTOP; the guest's clock a second later."""
    port, stop_s = free_port(), 20
    command = bench.secondwind("run", *bench.debian("clock:idle"), "--forward", f"{port}:{guest_clock.GUEST_PORT}")
    with Running(command) as program:
        program.wait_for("CLOCK-READY", RUN_LIMIT_S)
        time.sleep(CLOCK_SETTLE_S["idle"])
        bench.say(f"a machine that stands still for {stop_s} s")
        program.stand_still(stop_s)
        time.sleep(1)
        found = guest_clock.measure(port, 40, CLOCK_PAUSE_S, CLOCK_ROUND_TRIP_MAX_MS)
        program.interrupt()
    return {"clock-stop": Outcome(abs(found.worst_ms), note=f"after {stop_s} s; {found.note()}")}


def clock_restore(bench):
    """A machine goes on from a checkpoint as if an hour had passed. Its clock must then be an hour and
    the time since its first instruction past the moment of the checkpoint."""
    name, port = f"bench-clock-{os.getpid()}", free_port()
    folder = bench.folder("clock").parent
    file, report = folder / "clock.swc", folder / "restored.json"
    forward = ["--forward", f"{port}:{guest_clock.GUEST_PORT}"]
    with Running(bench.secondwind("run", "--name", name, *bench.debian("clock:idle"), *forward)) as program:
        program.wait_for("CLOCK-READY", RUN_LIMIT_S)
        time.sleep(CLOCK_SETTLE_S["idle"])
        taken = json_of(bench.secondwind("checkpoint", name, file, "--stop", "--json"))
        program.wait(RUN_LIMIT_S)
    bench.say("a machine that goes on an hour later")
    started_ns = time.time_ns()
    with Running(bench.secondwind("restore", file, "--away", AWAY_S, *forward, "--report", report)) as program:
        time.sleep(1)
        found = guest_clock.measure(port, 40, CLOCK_PAUSE_S, CLOCK_ROUND_TRIP_MAX_MS)
        program.interrupt()
    first_ms = 1000 * json.loads(report.read_text())["first_instruction_s"]
    expected_ms = 1000 * AWAY_S + (taken["taken_unix_ns"] - started_ns) / 1e6 - first_ms
    note = f"after {AWAY_S} s; known to about 10 ms, the start of a process"
    return {"clock-restore": Outcome(abs(found.median_ms - expected_ms), note=note)}


# --- proof --------------------------------------------------------------------------------


def proof(bench):
    """The tests that CI runs; building them is not counted."""
    found = sorted((PROJECT / "tests/tests").glob("*.rs"))
    names = [path.stem for path in found if path.stem.startswith(("differential", "isa_", "conformance", "smp_"))]
    bench.say(f"the tests {', '.join(names)}")
    cargo_tests(names, bench.qemu_path, build_only=True)
    started = time.monotonic()
    cargo_tests(names, bench.qemu_path)
    return {"proof": Outcome(time.monotonic() - started, note=", ".join(names))}


# --- the set ------------------------------------------------------------------------------

MEASURES = [
    Measure(
        [
            Figure("speed-integer", "sieve + matrix + crc, against the state before", "x", REPEATABILITY, at_least=True),
            Figure("speed-chase", "pointer chase in 1 MiB, against the state before", "x", REPEATABILITY, at_least=True),
            Figure("speed-boot", "Debian boot, processor time, against the state before", "x", REPEATABILITY, at_least=True),
        ],
        speed,
    ),
    Measure([Figure("digest-cost", "slow-down of a recording by its digests", "%", 2)], digests),
    Measure(
        [
            Figure("checkpoint-size", "checkpoint file of an idle Debian of 256 MiB", "MB", 20),
            Figure("checkpoint-time", "time to write it", "s", 0.3),
            Figure("checkpoint-pause", "pause of the guest meanwhile", "ms"),
            Figure("restore", "restore, from its start to the first instruction", "s", 0.15),
        ],
        checkpoints,
    ),
    Measure([Figure("clock-idle", "largest error of the guest's clock, idle", "ms", 10)], clock("idle")),
    Measure([Figure("clock-busy", "largest error of the guest's clock, under load", "ms", 10)], clock("busy")),
    Measure([Figure("clock-stop", "the same, 1 s after the process stood still", "ms", 10)], clock_stop),
    Measure([Figure("clock-restore", "the same, 1 s after a restore an hour later", "ms", 1000)], clock_restore),
    Measure([Figure("proof", "differential and conformance tests", "s", 600)], proof),
]

"""What grows with the guest's memory, with the rate at which it writes, with its harts and with the
number of machines on this host."""

import contextlib
import json
import time

from figures import Bar, Growth, Outcome
from main_set import time_of
from pair import Pair
from programs import PROJECT, BenchError, Running, json_of, run_to_end
from resources import busy_percent, memory_of, size_bytes
from services import qemu_network

LEDGER = PROJECT / "guest/ledger/ledger.elf"
START_S, RUN_LIMIT_S = 60, 300
MEMORY_SIZES = ("64M", "256M", "1G", "4G", "8G")
# What the guest of each size keeps writing to.
WORKING_SET = "dirty=32:8:sparse"
DIRTY_RATES, DIRTY_SET_MIB = (0, 10, 40, 160), 64
DIRTY_SETTLE_S, DIRTY_WATCHED_S = 2, 4
HARTS, HARTS_SCALE = (1, 2, 4, 8), 2
MACHINES, MACHINE_MEMORY = (1, 4, 16, 64), "64M"
IDLE_SETTLE_S, IDLE_WATCHED_S = 3, 8


def ledger(memory, words=""):
    append = ["--append", words] if words else []
    return ["--kernel", LEDGER, "--memory", memory, "--net", "none", *append]


# --- the guest's memory -------------------------------------------------------------------


def memory(bench):
    rows = []
    for size in MEMORY_SIZES:
        bench.say(f"a guest of {size}")
        rows.append([size, *checkpoint_pauses(bench, size), *join(bench, size)])
    columns = ["guest memory", "first pause, ms", "later pause, ms", "join, s", "primary beyond guest, MiB", "backup, MiB"]
    note = (
        "The ledger, of which 32 MiB are written to, 8 MiB of pages each second. Pauses of `secondwind checkpoint` "
        "of a recorded machine; the join is of a backup in mode checkpoint."
    )
    bench.growths.append(Growth("Guest memory", columns, rows, note))
    first, last = rows[0][2], rows[-1][2]
    bars = [Bar(row[0], [row[2]], "ms") for row in rows]
    return {"grow-memory": Outcome(last / first, note=f"{first:.2f} ms and {last:.2f} ms", bars=bars)}


def checkpoint_pauses(bench, size):
    """Of a first checkpoint and of a second one, in ms."""
    folder = bench.folder("grow").parent
    name = folder.name
    command = bench.secondwind("record", folder / "recording", "--name", name, *ledger(size, WORKING_SET))
    with Running(command) as program:
        program.wait_for("LEDGER ready", START_S)
        time.sleep(1)
        taken = []
        for number in range(2):
            file = folder / f"{number}.swc"
            taken.append(json_of(bench.secondwind("checkpoint", name, file, "--json"))["pause_ns"] / 1e6)
            file.unlink()
            time.sleep(0.5)
        program.interrupt()
    return taken


def join(bench, size):
    """How long a backup takes to be counted on, and what both sides then take."""
    with Pair(bench, "checkpoint", ledger(size, WORKING_SET)) as pair:
        pair.primary.wait_for("LEDGER ready", START_S)
        time.sleep(1)
        pair.join_and_wait()
        took_s = pair.event_s("protected") - pair.event_s("joining")
        time.sleep(1)
        beyond = [memory_of(pid, size_bytes(size)).beyond for pid in pair.pids()]
    return [took_s, *beyond]


# --- the rate of writing ------------------------------------------------------------------


def dirty(bench):
    rows = []
    for mode in ("replay", "checkpoint"):
        for rate in DIRTY_RATES:
            bench.say(f"a guest that writes {rate} MiB/s, in mode {mode}")
            rows.append([mode, rate, *under_writes(bench, mode, rate)])
    columns = ["mode", "written, MiB/s", "sent, kB/s", "increments/s", "pause, ms", "primary, % of a core", "backup, %"]
    note = f"64 bytes of each page, round and round in {DIRTY_SET_MIB} MiB; increments as often as they pay, at most 100/s."
    bench.growths.append(Growth("Rate of writing", columns, rows, note))
    bars = [Bar(f"{mode}, {rate} MiB/s", [percent], "% of a core") for mode, rate, *_, percent, _ in rows]
    return {"grow-dirty": Outcome(rows[-1][4], note="mode checkpoint; drawn: the primary's processor time", bars=bars)}


def under_writes(bench, mode, rate):
    load = f"dirty={DIRTY_SET_MIB}:{rate}:sparse" if rate else ""
    with Pair(bench, mode, ledger("256M", load)) as pair:
        pair.primary.wait_for("LEDGER ready", START_S)
        pair.join_and_wait()
        time.sleep(DIRTY_SETTLE_S)
        before, started = pair.status(), time.monotonic()
        busy = busy_percent(pair.pids(), DIRTY_WATCHED_S)
        after, took_s = pair.status(), time.monotonic() - started
    sent_kb, increments = ((after[key] - before[key]) / took_s for key in ("sent_bytes", "increments"))
    pause_us = after["checkpoint_pause_us"]
    return [sent_kb / 1000, increments, "-" if pause_us is None or not increments else pause_us / 1000, *busy]


# --- harts --------------------------------------------------------------------------------


def harts(bench):
    rows, job = [], f"parallel:{HARTS_SCALE}"
    for count in HARTS:
        bench.say(f"computing on {count} harts")
        words = [*bench.debian(job), "--net", "none", "--harts", count]
        row = [count, *parallel(bench.secondwind("run", *words))]
        if bench.qemu_path:
            row += parallel(bench.qemu(job, harts=count))
        rows.append(row)
    # A copy of bench per hart: throughput in copies per second, 1 being that of one hart.
    rows = [[row[0], row[1], row[0] * rows[0][2] / row[2], *peer_cells(row, rows[0])] for row in rows]
    columns = ["harts", "boot, s", "throughput, x"] + ["QEMU: boot, s", "throughput, x"] * bool(bench.qemu_path)
    note = f"bench:{HARTS_SCALE} on every hart at once; all harts of a machine share one thread, QEMU's have one each."
    bench.growths.append(Growth("Harts", columns, rows, note))
    bars = [Bar(f"{row[0]} harts", [row[2]], "x") for row in rows]
    bars += [Bar(f"QEMU, {row[0]} harts", [row[4]], "x", True) for row in rows if len(row) > 3]
    return {"grow-harts": Outcome(rows[-1][2], rows[-1][4] if bench.qemu_path else None, bars=bars)}


def peer_cells(row, first):
    return [row[3], row[0] * first[4] / row[4]] if len(row) > 3 else []


def parallel(command):
    """Seconds to boot, and to compute on all harts."""
    program = run_to_end(command, RUN_LIMIT_S).program
    return [time_of(program, "INIT-START"), time_of(program, "PARALLEL-DONE") - time_of(program, "PARALLEL-START")]


# --- machines on one host -----------------------------------------------------------------


def machines(bench):
    rows, peers = [], bool(bench.qemu_path)
    for count in MACHINES:
        bench.say(f"{count} machines")
        row = [count, *crowd(bench, count, False)]
        rows.append(row + (crowd(bench, count, True) if peers else []))
    cells = ["idle, % of a core", "memory each, MiB", "throughput, M instructions/s"]
    columns = ["machines", *cells] + [f"QEMU: {cell}" for cell in cells] * peers
    note = (
        f"The ledger in {MACHINE_MEMORY} each, with nobody on its network, unprotected. Memory with the guest's own, shared "
        "pages counted once; throughput of bench=1 in all of them at once, with their start."
    )
    bench.growths.append(Growth("Machines on one host", columns, rows, note))
    bars = [Bar(f"{row[0]} machines", [row[1]], "% of a core") for row in rows]
    bars += [Bar(f"QEMU, {row[0]} machines", [row[4]], "% of a core", True) for row in rows if peers]
    return {"grow-vms": Outcome(rows[-1][1], rows[-1][4] if peers else None, bars=bars)}


def bench_instructions(bench):
    """Those of bench=1 of the ledger, as a machine counts them."""

    def count():
        report = bench.folder("count").parent / "report.json"
        run_to_end(bench.secondwind("run", *ledger(MACHINE_MEMORY, "bench=1"), "--report", report), RUN_LIMIT_S)
        return json.loads(report.read_text())["instructions"]

    return bench.once("ledger-bench-instructions", count)


def crowd(bench, count, is_peer):
    """Idle cost, memory of each, and throughput of machines that run at once."""
    with contextlib.ExitStack() as running:
        programs = [running.enter_context(Running(one(bench, is_peer, ""))) for _ in range(count)]
        for program in programs:
            program.wait_for("LEDGER ready", START_S)
        time.sleep(IDLE_SETTLE_S)
        pids = [program.process.pid for program in programs]
        idle = sum(busy_percent(pids, IDLE_WATCHED_S))
        took = [memory_of(pid, size_bytes(MACHINE_MEMORY)) for pid in pids]
    with contextlib.ExitStack() as running:
        started = time.monotonic()
        programs = [running.enter_context(Running(one(bench, is_peer, "bench=1"))) for _ in range(count)]
        for program in programs:
            program.wait(RUN_LIMIT_S)
        took_s = time.monotonic() - started
    for program in programs:
        if program.at("BENCH chase") is None:
            raise BenchError(f"{program.name()} did not run bench; its last words: {program.last_words()}")
    memory_mib = sum(memory.guest + memory.beyond for memory in took) / count
    return [idle, memory_mib, count * bench_instructions(bench) / 1e6 / took_s]


def one(bench, is_peer, words):
    if is_peer:
        modern = ["-global", "virtio-mmio.force-legacy=false", *qemu_network()]
        command = [*bench.qemu_board(MACHINE_MEMORY), *modern, "-kernel", LEDGER]
        return [*command, "-append", words] if words else command
    # Each has a name of its own, and with it a control socket.
    name = bench.folder("vm").parent.name
    return bench.secondwind("run", "--name", name, *ledger(MACHINE_MEMORY, words))

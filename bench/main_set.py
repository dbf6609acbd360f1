"""The figures of the first release: what a machine costs, and what its protection does."""

import json
import re
import time

from figures import Figure, Measure, Outcome, median
from programs import BenchError, Running, folder_bytes, free_port, json_of, run_to_end

BENCH_SCALE = 8
INTEGER_PARTS = ("sieve", "matrix", "crc")
PARTS = (*INTEGER_PARTS, "chase")
RUN_LIMIT_S = 300
IDLE_SETTLE_S = 15
IDLE_WINDOW_S = 40
DRILL_LIMIT_S = 120
KILL_LIMIT_S = 60


# --- boot ---------------------------------------------------------------------------------


def boot(bench):
    """From the start of the program to the first line of the guest's init."""
    ours, peer = [], []
    for _ in range(bench.args.runs):
        command = bench.secondwind("run", *bench.debian("off"), "--net", "none")
        ours.append(time_of(run_to_end(command, RUN_LIMIT_S).program, "INIT-START"))
        if bench.qemu_path:
            peer.append(time_of(run_to_end(bench.qemu("off"), RUN_LIMIT_S).program, "INIT-START"))
    return {"boot": Outcome(median(ours), median(peer) if peer else None, "median", ours)}


def time_of(program, pattern):
    when = program.at(pattern)
    if when is None:
        raise BenchError(f"{program.name()} printed no {pattern}; its last words: {program.last_words()}")
    return when


# --- speed, recording, replay -------------------------------------------------------------


def speed(bench):
    """Instructions are counted by QEMU, once; time is the host's, between console lines."""
    runs = bench_runs(bench)
    counts, ours, peer = runs["counts"], runs["run"], runs["qemu"]

    def mips(parts, times):
        return sum(counts[part] for part in parts) / 1e6 / sum(times[part] for part in parts)

    def outcome(parts):
        values = [mips(parts, run) for run in ours]
        return Outcome(median(values), median([mips(parts, run) for run in peer]), "median", values)

    return {"mips-integer": outcome(INTEGER_PARTS), "mips-chase": outcome(["chase"])}


def recording(bench):
    """Of the processor time, in all threads and with the boot, of the cheapest run of each:
    what neighbours on the host take away is not the recording's cost."""
    runs = bench_runs(bench)

    def cost(recorded, bare):
        return 100 * (least_cpu_s(runs[recorded]) / least_cpu_s(runs[bare]) - 1)

    note = f"of {least_cpu_s(runs['run']):.2f} s of processor time"
    return {"recording-cost": Outcome(cost("record", "run"), cost("qemu-record", "qemu-icount"), note)}


def replay(bench):
    runs = bench_runs(bench)

    def gain(recorded, replayed):
        return least_cpu_s(runs[recorded]) / least_cpu_s(runs[replayed])

    recorded_s, replayed_s = (min(run["wall_s"] for run in runs[mode]) for mode in ("record", "replay"))
    note = f"of processor time; recorded in {recorded_s:.1f} s, replayed in {replayed_s:.1f} s"
    return {"replay-speed": Outcome(gain("record", "replay"), gain("qemu-record", "qemu-replay"), note)}


def least_cpu_s(runs):
    return min(run["cpu_s"] for run in runs)


def bench_runs(bench):
    return bench.once("bench-runs", lambda: make_bench_runs(bench))


def make_bench_runs(bench):
    """Runs bench in each mode in turn, so that a slow spell of the host meets all of them."""
    if not bench.qemu_path:
        raise BenchError("needs QEMU to count instructions: leave out --no-peer")
    job = f"bench:{BENCH_SCALE}"
    counted = bench_part_times(bench.qemu(job, "-icount", "shift=0,sleep=off"))
    runs, sums = {"counts": counted["counts"]}, {counted["sums"]}
    log = bench.scratch / "qemu.rr"

    def take(mode, command):
        bench.say(f"bench in mode {mode}")
        runs.setdefault(mode, []).append(bench_part_times(command))
        sums.add(runs[mode][-1]["sums"])

    for _ in range(bench.args.runs):
        recording = bench.folder("bench")
        take("run", bench.secondwind("run", *bench.debian(job), "--net", "none"))
        take("record", bench.secondwind("record", recording, *bench.debian(job), "--net", "none"))
        take("replay", bench.secondwind("replay", recording, "--console"))
        take("qemu", bench.qemu(job))
        take("qemu-icount", bench.qemu(job, "-icount", "shift=auto"))
        take("qemu-record", bench.qemu(job, "-icount", f"shift=auto,rr=record,rrfile={log}"))
        take("qemu-replay", bench.qemu(job, "-icount", f"shift=auto,rr=replay,rrfile={log}"))
    if len(sums) != 1:
        raise BenchError(f"the checksums of bench differ between machines: {sorted(sums)}")
    return runs


def bench_part_times(command):
    """Runs bench to the end: seconds of each part by the host's clock, its checksums, the
    guest's own count, and what the whole run took."""
    ended = run_to_end(command, RUN_LIMIT_S)
    program = ended.program
    before = time_of(program, "BENCH start")
    times, sums, counts = {}, [], {}
    for when, text in program.lines:
        match = re.search(r"BENCH (\w+) sum=(\w+) ns=\d+ cpu=(\d+)", text)
        if match:
            times[match[1]], counts[match[1]] = when - before, int(match[3])
            sums.append(match[2])
            before = when
    if not set(PARTS) <= set(times):
        raise BenchError(f"{program.name()} did not run all of bench; its last words: {program.last_words()}")
    return times | {"sums": " ".join(sums), "counts": counts, "wall_s": ended.wall_s, "cpu_s": ended.cpu_s}


# --- idle ---------------------------------------------------------------------------------


def idle(bench):
    """Bytes of log per second of an idle Debian with its network up, and its replay."""
    recording = bench.folder("idle")
    network = ["--forward", f"{free_port()}:6379"]
    command = bench.secondwind("record", recording, *bench.debian("idle"), *network)
    with Running(command) as program:
        program.wait_for("IDLE", 60)
        rate = idle_growth(bench, lambda: folder_bytes(recording))
        program.interrupt()
        recorded_s = time.monotonic() - program.started
    replayed_s = run_to_end(bench.secondwind("replay", recording), RUN_LIMIT_S).wall_s
    stat = json_of(bench.secondwind("log", "stat", recording, "--json"))
    note = f"{stat['bytes']} bytes in {stat['guest_seconds']:.0f} s of the guest with its boot"
    peer_rate, peer_replay = idle_peer(bench) if bench.qemu_path else (None, None)
    return {
        "idle-log": Outcome(rate, peer_rate, note),
        "idle-replay": Outcome(
            replayed_s / recorded_s, peer_replay, f"{recorded_s:.0f} s recorded, {replayed_s:.1f} s replayed"
        ),
    }


def idle_growth(bench, size_bytes):
    """Bytes per second over a window, after a while to settle."""
    bench.say(f"an idle guest for {IDLE_SETTLE_S + IDLE_WINDOW_S} s")
    time.sleep(IDLE_SETTLE_S)
    before, started = size_bytes(), time.monotonic()
    time.sleep(IDLE_WINDOW_S)
    return (size_bytes() - before) / (time.monotonic() - started)


def idle_peer(bench):
    log = bench.scratch / "qemu-idle.rr"
    job = f"sleep:{IDLE_SETTLE_S + IDLE_WINDOW_S + 5}"
    with Running(bench.qemu(job, "-icount", f"shift=auto,rr=record,rrfile={log}")) as program:
        program.wait_for("INIT-READY", 60)
        rate = idle_growth(bench, lambda: log.stat().st_size)
        recorded_s = program.wait(60)
    replayed = run_to_end(bench.qemu(job, "-icount", f"shift=auto,rr=replay,rrfile={log}"), RUN_LIMIT_S)
    return rate, replayed.wall_s / recorded_s


# --- protection ---------------------------------------------------------------------------


def kills_ledger(bench):
    report = drill(bench, "ledger", bench.args.kills_ledger)
    measures = report["measures"]
    outcomes = kills(report, "ledger")
    outcomes["blackout"] = blackout(report)
    for percentile in ("p50", "p99"):
        bare = measures[f"unprotected_{percentile}_us"]
        note = f"{bare:.0f} us unprotected" if bare is not None else "the drill did not measure it"
        outcomes[f"delay-{percentile}"] = Outcome(measures[f"added_{percentile}_us"], note=note)
    return outcomes


def blackout(report):
    """Of each kill, what came on top of its detection; the worst counts."""
    rounds = [kill for kill in report["rounds"] if kill["blackout_ms"] is not None and kill["detection_ms"] is not None]
    if not rounds:
        return Outcome(None, note="the drill measured no blackout")
    beyond = [kill["blackout_ms"] - kill["detection_ms"] for kill in rounds]
    whole = [kill["blackout_ms"] for kill in rounds]
    note = f"the worst of {len(rounds)}, median {median(beyond):.1f}; the whole blackout {median(whole):.0f} ms in the median"
    return Outcome(max(beyond), note=note, runs=beyond)


def kills_debian(bench):
    report = drill(bench, "debian", bench.args.kills_debian)
    return kills(report, "debian") | {"memory-debian": memory(report["measures"])}


def join(bench):
    """A backup joins a running machine of 1 GiB, again after each of a few kills."""
    measures = drill(bench, "ledger", 3, "--memory", "1G")["measures"]
    return {
        "join-pause": Outcome(measures["checkpoint_pause_ms"], note="the longest"),
        "memory-ledger": memory(measures),
    }


def memory(measures):
    return Outcome(measures["memory_overhead_mib"], note="peak, the largest of all sides")


def drill(bench, guest, repeat, *words):
    """The report of `repeat` kills in a row; its checks may have failed."""
    bench.say(f"{repeat} kills of a {guest} machine")
    path = bench.scratch / f"drill-{guest}-{repeat}.json"
    command = bench.secondwind("drill", "--guest", guest, "--repeat", repeat, "--json", path, *words)
    with Running(command) as program:
        program.process.wait(DRILL_LIMIT_S + repeat * KILL_LIMIT_S)
    if not path.exists():
        raise BenchError(f"{program.name()} wrote no report; its last words: {program.last_words()}")
    return json.loads(path.read_text())


def kills(report, guest):
    failed = [f"{check['what']}: {check['found']}" for check in report["checks"] if not check["held"]]
    note = "; ".join(failed) or f"{report['measures']['acknowledged']} requests acknowledged, seed {report['seed']}"
    return {f"kills-{guest}": Outcome(None if failed else len(report["rounds"]), note=note)}


# --- the set ------------------------------------------------------------------------------

MEASURES = [
    Measure([Figure("boot", "Debian boot to init", "s", 6)], boot),
    Measure(
        [
            Figure("mips-integer", "sieve + matrix + crc", "MIPS", 300, at_least=True),
            Figure("mips-chase", "pointer chase in 1 MiB", "MIPS", 200, at_least=True),
        ],
        speed,
    ),
    Measure([Figure("recording-cost", "slow-down by recording", "%", 3)], recording),
    Measure([Figure("replay-speed", "time to record / time to replay", "x", 1, at_least=True)], replay),
    Measure(
        [
            Figure("idle-log", "log of an idle Debian", "bytes/s", 100),
            Figure("idle-replay", "replayed time / recorded idle time", "x", 0.25),
        ],
        idle,
    ),
    Measure(
        [
            Figure("join-pause", "checkpoint pause for a join at 1 GiB", "ms", 5),
            Figure("memory-ledger", "host memory beyond the guest's, ledger in 1 GiB", "MiB", 64),
        ],
        join,
    ),
    Measure(
        [
            Figure("kills-ledger", "kills in a row, ledger, all checks held", "kills", 500, at_least=True),
            Figure("blackout", "blackout beyond detection", "ms", 100),
            Figure("delay-p50", "added response delay, p50", "us", 400),
            Figure("delay-p99", "added response delay, p99", "us", 2000),
        ],
        kills_ledger,
    ),
    Measure(
        [
            Figure("kills-debian", "kills in a row, Debian and Redis, all held", "kills", 50, at_least=True),
            Figure("memory-debian", "host memory beyond the guest's, Debian", "MiB", 64),
        ],
        kills_debian,
    ),
]

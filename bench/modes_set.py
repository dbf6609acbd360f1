"""The figures of the protection modes: what increments cost the guest, what each mode adds to an
answer's delay, how long a takeover takes in each, what QEMU's COLO does beside them, and kills in a row."""

import json
import secrets
import socket
import subprocess
import threading
import time

import colo
import main_set
from figures import Figure, Measure, Outcome, median
from programs import PROJECT, BenchError, Running, cargo_target, free_port, json_of, run_to_end

MODES = ("replay", "hybrid", "checkpoint")
PER_SECOND = 40
EPOCH_MS = 1000 / PER_SECOND
# An acknowledgement over loopback, with the threads that it wakes.
LINK_MS = 1
# Within which a hybrid backup is to be live.
HYBRID_TAKEOVER_MS = 200
OPTIONS = {
    "hybrid": ["--takeover-within-ms", str(HYBRID_TAKEOVER_MS)],
    # Not adapted to a delay: the limit is of this rate.
    "checkpoint": ["--checkpoint-rate", str(PER_SECOND), "--checkpoint-rate-min", str(PER_SECOND)],
}
MEASURED_S = 20
BENCH_SCALE = 4
RUN_LIMIT_S = 300
COLO_S = 15
DRILL_LIMIT_S = 180
LEDGER_PORT = 7000
LOAD_S = 8
LOAD_CONNECTIONS = 8
# So many pages in each epoch: a set that is rewritten round and round, and MiB of it each second. A busy
# host lets the guest write less than it wants, so it wants somewhat more.
DIRTY = {1000: "16:176:sparse", 10000: "40:1760:sparse"}
# Beside the thousand pages the guest computes; ten thousand are all that it can do.
LOADS = {1000: f"dirty={DIRTY[1000]} burn=100", 10000: f"dirty={DIRTY[10000]}"}
DIRTY_MIN = 0.9

SCENARIO = """
name = "modes-{mode}"
description = "SIGKILL to the primary in mode {mode}."
guest = "{guest}"

[agents]
options = {options}

[[step]]
kill = "a"

[[step]]
wait-for = "b live"

[[step]]
wait-for = "answered"

[expect]
takeovers = 1
live = "b"
protected = false
digests = {digests}
"""


# --- increments ---------------------------------------------------------------------------


def increments(bench, *words):
    """What the measuring aid says of a guest with or without increments."""
    program = bench.args.increments or bench.once("increments", build_increments)
    ended = run_to_end([program, *words], RUN_LIMIT_S)
    try:
        return json.loads(ended.program.lines[-1][1])
    except (IndexError, ValueError):
        raise BenchError(f"increments gave no JSON; its last words: {ended.program.last_words()}") from None


def build_increments():
    command = ["cargo", "build", "--release", "--quiet", "--package", "primary", "--example", "increments"]
    if subprocess.run(command, cwd=PROJECT).returncode:
        raise BenchError("the example increments of the package primary does not build")
    return cargo_target() / "release/examples/increments"


def ledger(load):
    return [PROJECT / "guest/ledger/ledger.elf", "--net", "--append", load, "--after", "LEDGER ready"]


def pause(pages):
    """How long the guest stands still when an increment begins, the first one counted, too: it
    also holds what was written since the last digest."""

    def measure(bench):
        bench.say(f"{PER_SECOND} increments per second of {pages} pages")
        found = increments(bench, *ledger(LOADS[pages]), "--per-second", PER_SECOND, "--for", MEASURED_S)
        dirty, pauses, cpu = found["dirty_units"], found["pause_us"], found["pause_cpu_us"]
        if dirty["p50"] < DIRTY_MIN * pages:
            raise BenchError(f"the host is too busy: the guest wrote {dirty['p50']:.0f} of {pages} pages in an epoch")
        note = (
            f"p50 {pauses['p50']:.0f} us; of processor time p99 {cpu['p99']:.0f} us; {found['increments']} increments "
            f"of {dirty['p50']:.0f} units in the median, {found['late']} late"
        )
        return {f"pause-{pages}": Outcome(pauses["p99"] / 1000, note=note)}

    return measure


def slow_down(bench):
    """Processor time of the machine's thread per instruction of the integer parts of bench, with a
    thousand pages written beside them in each epoch: with increments against without."""
    guest = ["--initrd", bench.guest / "initramfs-base.cpio.gz", "--after", "INIT-READY"]
    job = f"console=ttyS0 secondwind.run=bench-dirty:{BENCH_SCALE}:{DIRTY[1000]}"
    least, units = {}, None
    for _ in range(bench.args.runs):
        for name, rate in (("without", 0), ("with", PER_SECOND)):
            bench.say(f"bench {name} increments")
            found = increments(bench, bench.guest / "Image", *guest, "--append", job, "--per-second", rate)
            cost = 1e9 * found["cpu_seconds"] / found["instructions"]
            least[name] = min(cost, least.get(name, cost))
            units = found["dirty_units"] or units
    note = (
        f"{least['without']:.2f} ns per instruction without, {least['with']:.2f} with, the least of "
        f"{bench.args.runs}; {units['p50']:.0f} units in the median increment"
    )
    return {"slow-down": Outcome(100 * (1 - least["without"] / least["with"]), note=note)}


# --- the log ------------------------------------------------------------------------------


def log_ratio(bench):
    """Bytes of a pair's log, as it is shipped, for each byte of frames that the guest got, under load."""
    log, port, listen = bench.folder("log"), free_port(), f"127.0.0.1:{free_port()}"
    common = ["--guest", "ledger", "--memory", "64M", "--insecure", "--name", log.parent.name]
    common += ["--arbiter", f"lock:{log.parent / 'record'}"]
    first = ["primary", *common, "--node", "a", "--forward", f"{port}:{LEDGER_PORT}", "--listen", listen]
    first += ["--log-dir", log, "--control", log.parent / "a"]
    second = ["backup", *common, "--node", "b", "--net", "none", "--primary", listen, "--listen", "127.0.0.1:0"]
    with Running(bench.secondwind(*first)) as primary, Running(bench.secondwind(*second, "--control", log.parent / "b")):
        primary.wait_for("LEDGER ready", RUN_LIMIT_S)
        wait_until_protected(bench, log.parent / "a")
        bench.say(f"{LOAD_CONNECTIONS} clients of a pair for {LOAD_S} s")
        answered = load(port)
        primary.interrupt()
    stat = json_of(bench.secondwind("log", "stat", log, "--json"))
    came = stat["events"]["network_in_bytes"]
    note = f"{stat['bytes']} bytes of log, {came} bytes of {stat['events']['network_in']} frames, {answered} requests"
    return {"log-ratio": Outcome(stat["bytes"] / came, note=note)}


def wait_until_protected(bench, control):
    ends = time.monotonic() + RUN_LIMIT_S
    while not json_of(bench.secondwind("status", "--control", control, "--json"))[0].get("protected"):
        if time.monotonic() > ends:
            raise BenchError("the pair does not come into step")
        time.sleep(0.1)


def load(port):
    """Requests, one after the other on each connection. How many were answered."""
    ends, answered = time.monotonic() + LOAD_S, [0] * LOAD_CONNECTIONS

    def client(number):
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            answers = connection.makefile("rb")
            while time.monotonic() < ends:
                # Nothing that zstd could make smaller than it is worth.
                connection.sendall(f"PUT key{number} {secrets.token_urlsafe(96)}\n".encode())
                if not answers.readline().startswith(b"OK"):
                    return
                answered[number] += 1

    clients = [threading.Thread(target=client, args=(number,)) for number in range(LOAD_CONNECTIONS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    if min(answered) == 0:
        raise BenchError("a client of the ledger got no answer")
    return sum(answered)


# --- delay and takeover -------------------------------------------------------------------


def drills(bench, mode, guest):
    """The measures of some kills of a guest in a mode, each on a fresh pair."""

    def make():
        bench.say(f"{bench.args.runs} kills of a {guest} machine in mode {mode}")
        scenario = bench.folder("modes").parent / f"modes-{mode}-{guest}.toml"
        # A hybrid backup executes nothing before it takes over.
        digests = "false" if mode == "hybrid" else "true"
        # A list of words is the same in JSON and in TOML.
        options = json.dumps(["--mode", mode, *OPTIONS.get(mode, [])])
        scenario.write_text(SCENARIO.format(mode=mode, guest=guest, options=options, digests=digests))
        report = scenario.with_suffix(".json")
        command = bench.secondwind("drill", scenario, "--repeat", bench.args.runs, "--json", report, "--quiet")
        with Running(command) as program:
            program.process.wait(DRILL_LIMIT_S * bench.args.runs)
        if not report.exists():
            raise BenchError(f"{program.name()} wrote no report; its last words: {program.last_words()}")
        played = json.loads(report.read_text())
        failed = [f"{play['name']}: {reason}" for play in played["scenarios"] for reason in play["reasons"]]
        if failed:
            raise BenchError("; ".join(failed))
        return [play["report"]["measures"] for play in played["scenarios"]]

    return bench.once(f"drills-{mode}-{guest}", make)


def delay(mode):
    """Medians over the drills: what the mode adds to an answer's delay."""

    def measure(bench):
        plays = drills(bench, mode, "ledger")
        outcomes = {}
        for percentile in ("p50", "p99"):
            bare = median([play[f"unprotected_{percentile}_us"] for play in plays])
            values = [play[f"protected_{percentile}_us"] - bare for play in plays]
            note = f"{bare:.0f} us unprotected; the median of {len(plays)} drills"
            outcomes[f"delay-{mode}-{percentile}"] = Outcome(median(values), note=note, runs=values)
        return outcomes

    return measure


def blackout(mode):
    """What came on top of the detection; the worst counts."""

    def measure(bench):
        plays = drills(bench, mode, "debian")
        beyond = [play["blackout_ms"] - play["detection_ms"] for play in plays]
        whole = median([play["blackout_ms"] for play in plays])
        # COLO detects nothing: its takeover begins when it is told.
        peer = colo_figures(bench) if mode == "checkpoint" else None
        note = f"the worst of {len(plays)}, median {median(beyond):.0f}; the whole blackout {whole:.0f} ms in the median"
        return {f"blackout-{mode}": Outcome(max(beyond), peer and peer["takeover_ms"], note, beyond)}

    return measure


# --- beside COLO --------------------------------------------------------------------------


def beside_colo(bench):
    """An idle Debian, checkpointed each second: pause and bytes, ours beside COLO's."""
    guest = ["--initrd", bench.guest / "initramfs-base.cpio.gz", "--after", "TICK"]
    job = "console=ttyS0 secondwind.run=tick"
    bench.say("increments of an idle Debian, one per second")
    words = [bench.guest / "Image", *guest, "--append", job, "--per-second", 1, "--for", COLO_S]
    found = increments(bench, *words)
    packed = sum(packed_bytes for _, packed_bytes in found["encodings"].values())
    peer = colo_figures(bench)
    units = f"{found['increments']} increments of {found['dirty_units']['p50']:.0f} pages in the median"
    return {
        "pause-idle": Outcome(found["pause_us"]["p50"] / 1000, peer and peer["pause_p50_ms"], "p50; the peer is COLO"),
        "bytes-idle": Outcome(packed / found["increments"] / 1000, peer and peer["checkpoint_bytes"] / 1000, units),
    }


def colo_figures(bench):
    """COLO's figures of the same guest; `None` without a peer."""
    if bench.args.no_peer:
        return None
    return bench.once("colo", lambda: colo.measure(bench, "tick", 1000, COLO_S))


# --- kills in a row -----------------------------------------------------------------------


def kills_ledger(bench):
    return main_set.kills(main_set.drill(bench, "ledger", bench.args.kills_ledger), "ledger")


def kills_debian_disk(bench):
    """Redis keeps everything on a disk of the machine."""
    report = main_set.drill(bench, "debian", bench.args.kills_debian, "--disk", "64M")
    return main_set.kills(report, "debian")


# --- the set ------------------------------------------------------------------------------

DELAY_LIMITS_US = {
    "replay": {"p50": 300, "p99": 1000},
    "hybrid": {"p50": 300, "p99": 1000},
    "checkpoint": {"p50": 1000 * (EPOCH_MS + LINK_MS), "p99": 1000 * (EPOCH_MS + LINK_MS)},
}
BLACKOUT_LIMITS_MS = {"replay": 50, "hybrid": HYBRID_TAKEOVER_MS + 50, "checkpoint": 100}

MEASURES = [
    Measure([Figure("pause-1000", f"pause, p99, {PER_SECOND}/s, 1 000 dirty pages", "ms", 1)], pause(1000)),
    Measure([Figure("pause-10000", f"pause, p99, {PER_SECOND}/s, 10 000 dirty pages", "ms", 3)], pause(10000)),
    Measure([Figure("slow-down", f"of bench by {PER_SECOND}/s, 1 000 dirty pages", "%", 20)], slow_down),
    Measure(
        [
            Figure("pause-idle", "pause of an idle Debian, a checkpoint each second", "ms"),
            Figure("bytes-idle", "the same, bytes per checkpoint", "kB"),
        ],
        beside_colo,
    ),
    Measure([Figure("log-ratio", "log / network input, under load", "x", 1.1)], log_ratio),
    *(
        Measure(
            [
                Figure(f"delay-{mode}-{percentile}", f"added response delay, {percentile}, {mode}", "us", limit)
                for percentile, limit in DELAY_LIMITS_US[mode].items()
            ],
            delay(mode),
        )
        for mode in MODES
    ),
    *(
        Measure(
            [Figure(f"blackout-{mode}", f"blackout beyond detection, Debian, {mode}", "ms", BLACKOUT_LIMITS_MS[mode])],
            blackout(mode),
        )
        for mode in MODES
    ),
    Measure([Figure("kills-ledger", "kills in a row, ledger, all checks held", "kills", 1000, at_least=True)], kills_ledger),
    Measure(
        [Figure("kills-debian", "kills in a row, Debian, Redis on a disk, all held", "kills", 200, at_least=True)],
        kills_debian_disk,
    ),
]

"""Services in the guest, and clients outside: Redis under redis-benchmark, SQLite on a disk."""

import csv
import shutil
import subprocess

from figures import Bar, Outcome, median, ratio
from main_set import time_of
from pair import MODES, Pair
from programs import BenchError, Running, free_port, run_to_end

READY, PORT = "REDIS-READY", 6379
BOOT_S, LOAD_LIMIT_S, END_S = 120, 120, 60
CLIENTS = 10
REQUESTS = 10000
# Where answers wait for a checkpoint, or for QEMU's rr, fewer say as much.
FEW_REQUESTS = 1000
# QEMU's replay of a load with network traffic is ended then: of 30,000 requests it reaches no end.
PEER_REPLAY_LIMIT_S = 60
TESTS = ("set", "get")
SQLITE_ROUNDS = 2
SQLITE_LIMIT_S = 300


# --- redis --------------------------------------------------------------------------------


def redis_requests(port, requests, limit_s=LOAD_LIMIT_S):
    """Requests per second of each kind, by redis-benchmark on this host."""
    if not shutil.which("redis-benchmark"):
        raise BenchError("redis-benchmark not found (Debian: redis-tools)")
    command = ["redis-benchmark", "-p", port, "-t", ",".join(TESTS), "-n", requests, "--csv", "-c", CLIENTS, "-P", 1]
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise BenchError(f"redis-benchmark did not end {requests} requests in {limit_s} s") from None
    rates = {row["test"].lower(): float(row["rps"]) for row in csv.DictReader(done.stdout.splitlines())}
    if set(rates) != set(TESTS):
        raise BenchError(f"redis-benchmark gave no figures: {(done.stderr or done.stdout).strip()[-200:]}")
    return rates


def redis_runs(bench):
    return bench.once("redis-runs", lambda: make_redis_runs(bench))


def make_redis_runs(bench):
    """Every subject in turn. What cannot keep up is left out with a line, but not our own."""
    rates, times = {}, {}
    for number in range(bench.args.runs):
        folder = bench.folder("redis")
        for subject, take in redis_subjects(bench, folder):
            bench.say(f"round {number + 1}: Redis, {subject}")
            try:
                taken, wall_s = take()
            except BenchError as wrong:
                if not subject.startswith("QEMU, "):
                    raise
                bench.say(f"{subject} is left out: {wrong}")
                continue
            rates.setdefault(subject, []).append(taken)
            times.setdefault(subject, []).append(wall_s)
        replay = run_to_end(bench.secondwind("replay", folder), LOAD_LIMIT_S)
        times.setdefault("replaying", []).append(replay.wall_s)
    return {"rates": rates, "times": times}


def redis_subjects(bench, folder):
    vm = bench.debian("redis", "redis")
    found = [("unprotected", lambda: live(bench, ["run"], vm)), ("recording", lambda: live(bench, ["record", folder], vm))]
    found += [(f"protected, {mode}", lambda mode=mode: protected(bench, mode, vm)) for mode in MODES]
    if bench.qemu_path:
        rr = f"shift=auto,rr=record,rrfile={bench.scratch / 'redis.rr'}"
        filtered = ["-object", "filter-replay,id=replay,netdev=net"]
        found.append(("QEMU", lambda: peer(bench, REQUESTS)))
        found.append(("QEMU, icount", lambda: peer(bench, REQUESTS, "-icount", "shift=auto")))
        found.append(("QEMU, rr=record", lambda: peer(bench, FEW_REQUESTS, *filtered, "-icount", rr)))
    return found


def live(bench, command, vm):
    port = free_port()
    with Running(bench.secondwind(*command, *vm, "--forward", f"{port}:{PORT}")) as program:
        return load_to_end(program, port, REQUESTS)


def protected(bench, mode, vm):
    requests = FEW_REQUESTS if mode == "checkpoint" else REQUESTS
    with Pair(bench, mode, vm, forward=PORT) as pair:
        pair.join_and_wait()
        return load_to_end(pair.primary, pair.port, requests)


def peer(bench, requests, *more):
    port = free_port()
    with Running(bench.qemu("redis", *qemu_network(port), *more, initramfs="redis")) as program:
        return load_to_end(program, port, requests)


def load_to_end(program, port, requests):
    """The rates, and how long the guest ran until it was told to power off."""
    program.wait_for(READY, BOOT_S)
    rates = redis_requests(port, requests)
    subprocess.run(["redis-cli", "-p", str(port), "shutdown", "nosave"], capture_output=True, timeout=END_S)
    return rates, program.wait(END_S)


def qemu_network(port=None):
    """QEMU's user-mode network, with the guest's Redis at a port of this host."""
    forward = f",hostfwd=tcp:127.0.0.1:{port}-:{PORT}" if port else ""
    return ["-netdev", f"user,id=net{forward}", "-device", "virtio-net-device,netdev=net"]


def redis(bench):
    rates = redis_runs(bench)["rates"]
    if "QEMU" not in rates:
        raise BenchError("needs QEMU to compare with: leave out --no-peer")
    outcomes = {}
    for test in TESTS:
        of = {subject: [taken[test] for taken in runs] for subject, runs in rates.items()}
        bars = [Bar(name, values, "requests/s", name.startswith("QEMU")) for name, values in of.items()]
        for name, subject in (("redis", "unprotected"), ("redis-protected", "protected, replay")):
            note = f"{median(of[subject]):.0f} requests/s; QEMU {median(of['QEMU']):.0f}"
            outcome = ratio(of[subject], of["QEMU"], note, peer=1)
            outcome.bars = bars if subject == "unprotected" else []
            outcomes[f"{name}-{test}"] = outcome
    return outcomes


def redis_replay(bench):
    times = redis_runs(bench)["times"]
    note = f"{median(times['recording']):.1f} s recorded, {median(times['replaying']):.1f} s replayed"
    reached, said = redis_peer_replay(bench, times)
    outcome = ratio(times["recording"], times["replaying"], "; ".join(filter(None, (note, said))))
    outcome.peer = reached
    return {"redis-replay": outcome}


def redis_peer_replay(bench, times):
    """QEMU replays its last recording, if it ends in time."""
    if not bench.qemu_path:
        return None, ""
    if "QEMU, rr=record" not in times:
        return None, f"QEMU's rr=record did not answer {FEW_REQUESTS} requests in {LOAD_LIMIT_S} s"
    rr = f"shift=auto,rr=replay,rrfile={bench.scratch / 'redis.rr'}"
    words = [*qemu_network(), "-object", "filter-replay,id=replay,netdev=net", "-icount", rr]
    bench.say(f"QEMU replays {len(TESTS) * FEW_REQUESTS} requests, for at most {PEER_REPLAY_LIMIT_S} s")
    with Running(bench.qemu("redis", *words, initramfs="redis")) as program:
        try:
            replayed_s = program.wait(PEER_REPLAY_LIMIT_S)
        except BenchError:
            return None, f"QEMU's replay of {len(TESTS) * FEW_REQUESTS} requests did not end in {PEER_REPLAY_LIMIT_S} s"
    return times["QEMU, rr=record"][-1] / replayed_s, f"QEMU's of {len(TESTS) * FEW_REQUESTS} requests"


# --- sqlite -------------------------------------------------------------------------------


def sqlite(bench):
    """Transactions on the root disk, each flushed: from the first round to the verdict."""
    times, verdicts = {}, set()
    for number in range(bench.args.runs):
        for subject, take in sqlite_subjects(bench):
            bench.say(f"round {number + 1}: SQLite, {subject}")
            taken_s, verdict = take()
            times.setdefault(subject, []).append(taken_s)
            verdicts.add(verdict)
    if len(verdicts) != 1:
        raise BenchError(f"the databases differ between machines: {sorted(verdicts)}")
    if "QEMU" not in times:
        return {"sqlite": Outcome(None, note="needs QEMU to compare with: leave out --no-peer")}
    note = f"{median(times['unprotected']):.2f} s; QEMU {median(times['QEMU']):.2f} s"
    outcome = ratio(times["QEMU"], times["unprotected"], note, peer=1)
    for subject, values in times.items():
        runs = [peer_s / own_s for peer_s, own_s in zip(times["QEMU"], values)]
        outcome.bars.append(Bar(subject, runs, "x", subject.startswith("QEMU")))
    return {"sqlite": outcome}


def sqlite_subjects(bench):
    disk, job, root = bench.guest / "debian-root.img", f"sqlite:{SQLITE_ROUNDS}", " secondwind.root=/dev/vda"
    vm = [*bench.debian(job, more=root), "--net", "none"]
    drive = ["--disk", f"{disk},snapshot"]

    def ended(command):
        return lambda: sqlite_time(run_to_end(command, SQLITE_LIMIT_S).program)

    def pair(mode):
        with Pair(bench, mode, vm, disk=disk) as both:
            both.join_and_wait()
            both.primary.wait_for("SQLITE rows", SQLITE_LIMIT_S)
            return sqlite_time(both.primary)

    found = [("unprotected", ended(bench.secondwind("run", *vm, *drive)))]
    found.append(("recording", ended(bench.secondwind("record", bench.folder("sqlite"), *vm, *drive))))
    found += [(f"protected, {mode}", lambda mode=mode: pair(mode)) for mode in MODES]
    if bench.qemu_path:
        image = f"file={disk},format=raw,if=none,id=disk,snapshot=on"
        device = ["-drive", image, "-device", "virtio-blk-device,drive=disk"]
        found.append(("QEMU", ended(bench.qemu(job, *device, more=root))))
        found.append(("QEMU, icount", ended(bench.qemu(job, *device, "-icount", "shift=auto", more=root))))
    return found


def sqlite_time(program):
    started, ended = time_of(program, r"INIT-READY.*run=sqlite"), time_of(program, "SQLITE rows")
    verdict = next(text for _, text in program.lines if "SQLITE rows" in text)
    # What the file system trimmed depends on when it wrote.
    return ended - started, verdict[verdict.index("SQLITE rows") :].partition(" trimmed")[0]

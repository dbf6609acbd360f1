"""What running processes take of the host: memory and processor time."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from programs import BenchError

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MIB = 1 << 20


@dataclass
class Memory:
    """Of a process that runs a machine, in MiB: proportional shares (PSS), so that what processes
    share counts once."""

    guest: float  # what there is of the guest's own
    beyond: float  # everything else


def memory_of(pid, guest_bytes):
    """The guest's own memory is the writable mapping, not executable, whose size is nearest above. By how much it
    is larger, the kernel merged neighbours into it: all of that counts as if it were there, and not as the guest's.
    """
    try:
        mappings = Path(f"/proc/{pid}/smaps").read_text()
    except OSError as wrong:
        raise BenchError(f"a program ended while its memory was measured: {wrong}") from None
    total_kib, candidates = 0, []
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", mappings, flags=re.MULTILINE)[1:]:
        size_kib, pss_kib = (int(re.search(rf"^{name}:\s+(\d+) kB", entry, re.MULTILINE)[1]) for name in ("Size", "Pss"))
        total_kib += pss_kib
        if entry.split()[1].startswith("rw-") and size_kib * 1024 >= guest_bytes:
            candidates.append((size_kib, pss_kib))
    if not candidates:
        raise BenchError(f"process {pid} has no mapping that could hold a guest of {guest_bytes} bytes")
    size_kib, pss_kib = min(candidates)
    guest_kib = max(0, pss_kib - (size_kib - guest_bytes // 1024))
    return Memory(guest_kib / 1024, (total_kib - guest_kib) / 1024)


def cpu_s(pid):
    """Processor time so far, of all threads."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError as wrong:
        raise BenchError(f"a program ended while it was watched: {wrong}") from None
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def busy_percent(pids, seconds):
    """Processor time of each process over a while, in percent of one core."""
    before, started = [cpu_s(pid) for pid in pids], time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - started
    return [100 * (cpu_s(pid) - was_s) / took_s for pid, was_s in zip(pids, before)]


def size_bytes(text):
    """Of 64M or 8G."""
    return int(text[:-1]) << {"M": 20, "G": 30}[text[-1]]

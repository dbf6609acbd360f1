"""The guest's clock, seen from outside: the job `clock` of the Debian guest answers each byte
with its time in nanoseconds since 1970.

The guest read its clock at some moment between question and answer. Half the time between
them is the measurement's own uncertainty, so of many questions those count that were answered
quickly.
"""

import socket
import time
from dataclasses import dataclass

from programs import BenchError

GUEST_PORT = 7070
TIMEOUT_S = 20


@dataclass
class ClockError:
    """Guest time minus the host's."""

    worst_ms: float  # the largest, with its sign, of the questions that count
    median_ms: float
    round_trip_ms: float  # the slowest of the questions that count
    counted: int
    asked: int

    def note(self):
        return (
            f"median {self.median_ms:+.2f} ms; {self.counted} of {self.asked} questions were answered "
            f"within {self.round_trip_ms:.1f} ms"
        )


def measure(port, questions, pause_s, round_trip_max_ms):
    """Asks the guest behind a forwarded port of this host for its time, again and again."""
    samples = []  # of (round trip, guest time minus the middle of it), in ms
    with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = connection.makefile("rb")
        for _ in range(questions):
            asked_ns = time.time_ns()
            connection.sendall(b"?")
            line = answers.readline()
            answered_ns = time.time_ns()
            if not line.strip().isdigit():
                raise BenchError(f"the guest's clock answered {line!r}")
            middle_ns = (asked_ns + answered_ns) / 2
            samples.append(((answered_ns - asked_ns) / 1e6, (int(line) - middle_ns) / 1e6))
            time.sleep(pause_s)
    counted = [sample for sample in samples if sample[0] <= round_trip_max_ms]
    if len(counted) < questions / 4:
        raise BenchError(
            f"only {len(counted)} of {questions} questions were answered within {round_trip_max_ms} ms: the host is too busy"
        )
    errors = sorted(error for _, error in counted)
    return ClockError(
        worst_ms=max(errors, key=abs),
        median_ms=errors[len(errors) // 2],
        round_trip_ms=max(trip for trip, _ in counted),
        counted=len(counted),
        asked=questions,
    )

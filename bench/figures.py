"""Figures with their limits, and how they are shown."""

import json
import statistics
import sys
from dataclasses import asdict, dataclass, field


@dataclass
class Figure:
    """A number that must keep a limit."""

    name: str  # for --only, lower case with hyphens
    what: str
    unit: str
    limit: float | None = None
    at_least: bool = False  # the value must reach the limit; else must not exceed it

    def holds(self, value):
        if self.limit is None:
            return True
        return value >= self.limit if self.at_least else value <= self.limit

    def limit_text(self):
        if self.limit is None:
            return "-"
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass
class Bar:
    """One of several things that a figure compares."""

    label: str
    runs: list  # of one value per run
    unit: str
    is_peer: bool = False


@dataclass
class Outcome:
    """What was measured of a figure."""

    value: float | None
    peer: float | None = None  # QEMU's, measured in the same run
    note: str = ""
    runs: list = field(default_factory=list)  # the values that `value` summarises
    bars: list = field(default_factory=list)  # what there is to draw beside it
    is_skipped: bool = False  # this program has nothing of the kind


@dataclass
class Growth:
    """How several things grow with one: a small table."""

    title: str
    columns: list  # with units; the first is what they grow with
    rows: list  # of numbers and words
    note: str = ""


@dataclass
class Measure:
    """A function that gives the outcomes of some figures at once: bench -> {name: Outcome}."""

    figures: list
    function: object


def median(values):
    return statistics.median(values)


def ratio(above, below, note="", peer=None):
    """Of each pair of runs of one round; the median counts."""
    runs = [numerator / denominator for numerator, denominator in zip(above, below)]
    return Outcome(median(runs), peer, note, runs)


class Table:
    """The outcomes so far, as text and as JSON."""

    COLUMNS = ("figure", "value", "spread", "unit", "limit", "verdict", "QEMU", "note")
    NUMBERS = (1, 6)

    def __init__(self):
        self.rows = []  # of (figure, outcome)
        self.growths = []

    def add(self, figure, outcome):
        self.rows.append((figure, outcome))

    def passed(self):
        return all(verdict(figure, outcome) != "FAIL" for figure, outcome in self.rows)

    def text(self):
        cells = [self.COLUMNS] + [self.cells(figure, outcome) for figure, outcome in self.rows]
        parts = [aligned(cells, self.NUMBERS)]
        for growth in self.growths:
            rows = [[number(cell) if not isinstance(cell, str) else cell for cell in row] for row in growth.rows]
            table = aligned([growth.columns, *rows], range(len(growth.columns)))
            parts.append("\n".join(filter(None, (growth.title, table, growth.note))))
        return "\n\n".join(parts)

    def cells(self, figure, outcome):
        word = verdict(figure, outcome)
        what = f"{figure.name}: {figure.what}"
        measured = (number(outcome.value), spread(outcome.runs), figure.unit)
        return (what, *measured, figure.limit_text(), word, number(outcome.peer), outcome.note)

    def json(self, head):
        rows = [
            asdict(figure) | asdict(outcome) | {"verdict": verdict(figure, outcome)} for figure, outcome in self.rows
        ]
        growths = [asdict(growth) for growth in self.growths]
        return json.dumps(head | {"passed": self.passed(), "figures": rows, "growth": growths}, indent=2) + "\n"


def aligned(cells, numbers):
    """Rows of words as lines, those of the columns `numbers` to the right."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def spread(values):
    """The least and the largest, of more than one."""
    return f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""


def verdict(figure, outcome):
    if outcome.value is None:
        return "-" if outcome.is_skipped else "FAIL"
    if figure.limit is None:
        return "-"
    return "pass" if figure.holds(outcome.value) else "FAIL"


def number(value):
    if value is None:
        return "-"
    if isinstance(value, int) or float(value).is_integer() or abs(value) >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}"


def measure_all(bench, measures, wanted):
    """Runs the measures that give a wanted figure. What cannot be measured fails."""
    table = Table()
    for measure in measures:
        figures = [figure for figure in measure.figures if wanted(figure.name)]
        if not figures:
            continue
        names = ", ".join(figure.name for figure in figures)
        print(f"bench: measuring {names}", file=sys.stderr, flush=True)
        try:
            outcomes = measure.function(bench)
        except bench.errors as wrong:
            print(f"bench: {names}: {wrong}", file=sys.stderr, flush=True)
            outcomes = {figure.name: Outcome(None, note=f"not measured: {wrong}") for figure in figures}
        table.growths += bench.growths
        bench.growths = []
        for figure in figures:
            table.add(figure, outcomes[figure.name])
            print(f"bench: {'  '.join(table.cells(*table.rows[-1]))}", file=sys.stderr, flush=True)
    return table

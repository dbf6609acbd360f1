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
class Outcome:
    """What was measured of a figure."""

    value: float | None
    peer: float | None = None  # QEMU's, measured in the same run
    note: str = ""
    runs: list = field(default_factory=list)  # the values that `value` summarises


@dataclass
class Measure:
    """A function that gives the outcomes of some figures at once: bench -> {name: Outcome}."""

    figures: list
    function: object


def median(values):
    return statistics.median(values)


class Table:
    """The outcomes so far, as text and as JSON."""

    COLUMNS = ("figure", "value", "unit", "limit", "verdict", "QEMU", "note")

    def __init__(self):
        self.rows = []  # of (figure, outcome)

    def add(self, figure, outcome):
        self.rows.append((figure, outcome))

    def passed(self):
        return all(verdict(figure, outcome) != "FAIL" for figure, outcome in self.rows)

    def text(self):
        cells = [self.COLUMNS] + [self.cells(figure, outcome) for figure, outcome in self.rows]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.COLUMNS))]
        numbers = (1, 5)
        lines = []
        for row in cells:
            padded = [
                cell.rjust(width) if column in numbers else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(row, widths))
            ]
            lines.append("  ".join(padded).rstrip())
        return "\n".join(lines)

    def cells(self, figure, outcome):
        word = verdict(figure, outcome)
        what = f"{figure.name}: {figure.what}"
        return (what, number(outcome.value), figure.unit, figure.limit_text(), word, number(outcome.peer), outcome.note)

    def json(self, head):
        rows = [
            asdict(figure) | asdict(outcome) | {"verdict": verdict(figure, outcome)} for figure, outcome in self.rows
        ]
        return json.dumps(head | {"passed": self.passed(), "figures": rows}, indent=2) + "\n"


def verdict(figure, outcome):
    if outcome.value is None:
        return "FAIL"
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
        for figure in figures:
            table.add(figure, outcomes[figure.name])
            print(f"bench: {'  '.join(table.cells(*table.rows[-1]))}", file=sys.stderr, flush=True)
    return table

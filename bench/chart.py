"""The figures as one HTML page that needs nothing else: verdicts, and drawn bars with their spread."""

from html import escape

from figures import Bar, median, number, spread, verdict

ROW, BAR, LABEL, PLOT, VALUE = 24, 14, 230, 420, 190
WIDTH = LABEL + PLOT + VALUE
AXIS = 20

STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1c2024; --quiet: #60656d; --rule: #dfe2e6;
  --ours: #2166c8; --peer: #9aa1aa; --limit: #b3261e; --pass: #1a7f37; --fail: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --text: #e6e8eb; --quiet: #9aa1aa; --rule: #333940;
  --ours: #6ba3f5; --peer: #6b737d; --limit: #ff8a80; --pass: #5ccb7a; --fail: #ff8a80; } }
body { background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 900px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .2rem; }
p { color: var(--quiet); margin: .2rem 0 .6rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--rule); padding: .25rem .6rem; text-align: right; vertical-align: top; }
th { color: var(--quiet); font-weight: 500; }
th:first-child, td:first-child, .words { text-align: left; }
.pass { color: var(--pass); } .FAIL { color: var(--fail); font-weight: 600; }
a { color: inherit; }
svg { display: block; width: 100%; min-width: 560px; height: auto; }
svg text { fill: var(--text); font: 12px system-ui, sans-serif; }
svg .quiet { fill: var(--quiet); }
.ours { fill: var(--ours); } .peer { fill: var(--peer); }
.whisker { stroke: var(--text); stroke-width: 1.5; } .base { stroke: var(--rule); }
.limit { stroke: var(--limit); stroke-dasharray: 4 3; stroke-width: 1.5; } svg .limit-text { fill: var(--limit); }
"""


def page(head, table):
    """The whole page; `head` says what the figures depend on."""
    title = f"Secondwind: bench/run {head['set']}"
    facts = ", ".join(f"{key} {value}" for key, value in head.items() if key != "set" and value is not None)
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{escape(facts)}</p>", summary(table)]
    parts += [section(figure, outcome) for figure, outcome in table.rows]
    parts += [grown(growth) for growth in table.growths]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def summary(table):
    rows = []
    for figure, outcome in table.rows:
        word = verdict(figure, outcome)
        cells = [number(outcome.value), spread(outcome.runs), figure.unit, figure.limit_text(), number(outcome.peer)]
        shown = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        what = f'<a href="#{figure.name}">{escape(figure.what)}</a>'
        rows.append(f'<tr><td>{what}</td>{shown}<td class="{word}">{word}</td></tr>')
    titles = ("figure", "value", "least to largest", "unit", "limit", "QEMU", "verdict")
    header = "".join(f"<th>{title}</th>" for title in titles)
    return f'<div class="wide"><table><tr>{header}</tr>{"".join(rows)}</table></div>'


def section(figure, outcome):
    text = escape(outcome.note) or "&nbsp;"
    bars = outcome.bars or plain_bars(figure, outcome)
    # A limit belongs to the axis only where the bars measure what the figure does.
    limit = figure.limit if bars and bars[0].unit == figure.unit else None
    drawing = f'<div class="wide">{drawn(figure.what, bars, limit)}</div>' if bars else ""
    return f'<section id="{figure.name}"><h2>{escape(figure.what)}</h2><p>{text}</p>{drawing}</section>'


def plain_bars(figure, outcome):
    """Of a figure that says no more than its value and the peer's."""
    bars = []
    if outcome.value is not None:
        bars.append(Bar("Secondwind", outcome.runs or [outcome.value], figure.unit))
    if outcome.peer is not None:
        bars.append(Bar("QEMU", [outcome.peer], figure.unit, True))
    return bars


def drawn(title, bars, limit):
    """Bars from zero to the median, a line from the least to the largest."""
    largest = max([abs(value) for bar in bars for value in bar.runs] + [limit or 0]) or 1
    height = ROW * len(bars) + AXIS

    def x(value):
        return LABEL + PLOT * max(value, 0) / largest

    lines = [f'<line class="base" x1="{LABEL}" x2="{LABEL}" y1="0" y2="{height - AXIS}"/>']
    for row, bar in enumerate(bars):
        lines += one_bar(bar, ROW * row, x)
    if limit is not None:
        at = f"{x(limit):.1f}"
        lines.append(f'<line class="limit" x1="{at}" x2="{at}" y1="0" y2="{height - AXIS}"/>')
        lines.append(f'<text class="limit-text" x="{at}" y="{height - 6}" text-anchor="middle">limit {number(limit)}</text>')
    box = f'viewBox="0 0 {WIDTH} {height}"'
    return f'<svg {box} role="img" aria-label="{escape(title)}">{"".join(lines)}</svg>'


def one_bar(bar, top, x):
    middle, value = top + ROW / 2, median(bar.runs)
    kind = "peer" if bar.is_peer else "ours"
    least, largest = min(bar.runs), max(bar.runs)
    said = f"{number(value)} {bar.unit}" + (f" ({spread(bar.runs)})" if len(bar.runs) > 1 else "")
    lines = [
        f'<text x="{LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(bar.label)}</text>',
        f'<rect class="{kind}" x="{LABEL}" y="{middle - BAR / 2}" width="{max(x(value) - LABEL, 1):.1f}" height="{BAR}" rx="2"/>',
    ]
    if largest > least:
        lines.append(f'<line class="whisker" x1="{x(least):.1f}" x2="{x(largest):.1f}" y1="{middle}" y2="{middle}"/>')
    lines.append(f'<text class="quiet" x="{x(largest) + 8:.1f}" y="{middle + 4}">{escape(said)}</text>')
    return lines


def grown(growth):
    header = "".join(f"<th>{escape(column)}</th>" for column in growth.columns)
    rows = []
    for row in growth.rows:
        cells = [cell if isinstance(cell, str) else number(cell) for cell in row]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    table = f'<div class="wide"><table><tr>{header}</tr>{"".join(rows)}</table></div>'
    return f"<section><h2>{escape(growth.title)}</h2><p>{escape(growth.note)}</p>{table}</section>"

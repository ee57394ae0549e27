"""Charts as inline SVG: box plots of scores, and curves over a run.

How they look on light and dark ground is left to the page's style sheet.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from markupsafe import Markup

from attcl_cli.errors import counted, visible
from attcl_cli.report.pictures import Array
from attcl_cli.report.rounding import DASH, number
from attcl_cli.report.sections import Curve, Distribution

# In pixels; a chart takes a column of the page, or, if that is too narrow, all three.
_PLOT_WIDTH, _WIDE_PLOT_WIDTH, _PLOT_HEIGHT = 360, 1104, 236
_TOP, _RIGHT, _BOTTOM = 26, 8, 40
_LEAST_SLOT = 46  # a group is no narrower
_LETTER = 6.6  # the width of a label's letter
_INTERVALS = 6  # the most on an axis
MOST_DOTS = 30  # of more values in a group, only the outliers are drawn one by one
_LINE_KINDS = 6  # the style sheet has so many colours of lines
_MOST_POINTS = 600  # of a line: more than its pixels


def box_plot(distribution: Distribution, name: str) -> Markup:
    """Return one box plot: a figure with an inline SVG, or a line that says that there is no finite value.

    Args:
        distribution: the values.
        name: unique on the page, for the ids of the title and the description.
    """
    groups = list(dict.fromkeys([*distribution.groups, *distribution.baseline]))
    synthetic = {group: _finite(distribution.groups.get(group, ())) for group in groups}
    copies = {group: _finite(distribution.baseline.get(group, ())) for group in groups}
    values = np.concatenate([np.empty(0), *synthetic.values(), *copies.values()])
    caption = f"<figcaption>{_escape(distribution.title)}</figcaption>"
    without_value = _without_value(distribution)
    if not values.size:
        return Markup(f"<figure>{caption}<p>no values</p>{without_value}</figure>")

    low, high = _reach(values)
    ticks = _ticks(low, high)
    left = 12 + _LETTER * max(len(label) for label in ticks.values())
    needed = math.ceil(left + _RIGHT + _LEAST_SLOT * len(groups))
    wide = needed > _PLOT_WIDTH
    width = max(needed, _WIDE_PLOT_WIDTH if wide else _PLOT_WIDTH)
    slot = (width - left - _RIGHT) / len(groups)
    bottom = _PLOT_HEIGHT - _BOTTOM

    def height(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    parts = _vertical_axis(ticks, height, left, width, distribution.unit)
    paired = bool(distribution.baseline)
    breadth = min(slot * (0.34 if paired else 0.46), 40)
    half = breadth * 0.62 if paired else 0.0
    for index, group in enumerate(groups):
        centre = left + slot * (index + 0.5)
        parts.append(_box(copies[group], centre + half, breadth, height, "copy"))
        parts.append(_box(synthetic[group], centre - half, breadth, height, "made"))
        label = f"<title>{_escape(group)}</title>{_escape(_short(group, slot - 4))}"
        parts.append(f'<text x="{centre:.1f}" y="{bottom + 18}" class="group">{label}</text>')
        count = f"n {synthetic[group].size}"
        parts.append(f'<text x="{centre:.1f}" y="{bottom + 33}" class="n">{count}</text>')
    medians = "; ".join(
        f"{group}: median {_median(synthetic[group])} of {synthetic[group].size}"
        + (f", copy {_median(copies[group])}" if copies[group].size else "")
        for group in groups
    )
    return _figure(distribution.title, name, parts, width, described=medians, after=without_value)


def _box(
    values: Array, centre: float, breadth: float, height: Callable[[float], float], kind: str
) -> str:
    """Return box, whiskers and dots of one group's finite values; "" if there is none."""
    if not values.size:
        return ""
    lower, median, upper = (float(each) for each in np.percentile(values, (25, 50, 75)))
    reach = 1.5 * (upper - lower)
    inside = values[(values >= lower - reach) & (values <= upper + reach)]
    left, right = centre - breadth / 2, centre + breadth / 2
    cap = breadth / 4
    lines = [f"M{left:.1f} {height(median):.1f}H{right:.1f}"]
    # An interpolated quartile may lie beyond the last value inside: the whisker has no length then.
    ends = float(inside.min(initial=lower)), float(inside.max(initial=upper))
    for edge, end in zip((lower, upper), ends, strict=True):
        lines.append(f"M{centre:.1f} {height(edge):.1f}V{height(end):.1f}")
        lines.append(f"M{centre - cap:.1f} {height(end):.1f}h{2 * cap:.1f}")
    top, base = height(upper), height(lower)
    dots = []
    each_a_dot = kind == "made" and values.size <= MOST_DOTS
    for place, value in enumerate(values):
        if each_a_dot or not lower - reach <= value <= upper + reach:
            # The golden ratio spreads many dots evenly, and the same way each time.
            side = (place * 0.618034 % 1 - 0.5) * breadth * 0.7 if each_a_dot else 0.0
            dots.append(f'<circle cx="{centre + side:.1f}" cy="{height(value):.1f}" r="2.2"/>')
    return (
        f'<g class="{kind}"><rect x="{left:.1f}" y="{top:.1f}" width="{breadth:.1f}" '
        f'height="{base - top:.1f}"/><path d="{"".join(lines)}"/>{"".join(dots)}</g>'
    )


def _finite(values: Sequence[float]) -> Array:
    array = np.asarray(values, dtype=float)
    value: Array = array[np.isfinite(array)]
    return value


def _without_value(distribution: Distribution) -> str:
    counts = [
        sum(len(values) - _finite(values).size for values in groups.values())
        for groups in (distribution.groups, distribution.baseline)
    ]
    parts = [f"{counts[0]} without value"] if counts[0] else []
    parts += [f"{counted(counts[1], 'copy', 'copies')} without value"] if counts[1] else []
    return f'<p class="hint">{", ".join(parts)}</p>' if parts else ""


def _median(values: Array) -> str:
    return number(float(np.median(values))) if values.size else DASH


def curve_plot(curve: Curve, name: str) -> Markup:
    """Return lines over a run: a figure with an inline SVG, or words if there is no finite value, or none to compare.

    Args:
        curve: the lines.
        name: unique on the page, for the ids of the title and the description.
    """
    lines = {label: np.array(points, float).reshape(-1, 2) for label, points in curve.lines.items()}
    finite = {label: points[np.isfinite(points).all(1)] for label, points in lines.items()}
    points = np.concatenate([np.empty((0, 2)), *finite.values()])
    ends = "; ".join(
        f"{label}: {number(each[-1, 1])} at {each[-1, 0]:.12g}"
        for label, each in finite.items()
        if len(each)
    )
    if len(np.unique(points[:, 0])) < 2:  # noqa: PLR2004 - a single step is no curve
        caption = f"<figcaption>{_escape(curve.title)}</figcaption>"
        levels = "".join(f"; {label}: {number(value)}" for label, value in curve.level.items())
        words = f"{ends} ({curve.horizontal}){levels}" if ends else "no values"
        return Markup(f"<figure>{caption}<p>{_escape(words)}</p></figure>")
    low, high = _reach(np.concatenate([points[:, 1], [*curve.level.values()]]))
    first, last = float(points[:, 0].min()), float(points[:, 0].max())
    ticks = _ticks(low, high)
    left = 12 + _LETTER * max(len(label) for label in ticks.values())
    right, bottom = _PLOT_WIDTH - _RIGHT - 6, _PLOT_HEIGHT - _BOTTOM

    def height(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - _TOP)

    def across(value: float) -> float:
        return left + (value - first) / (last - first) * (right - left)

    parts = _vertical_axis(ticks, height, left, _PLOT_WIDTH, curve.unit)
    for tick, label in _ticks(first, last).items():
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 16}" class="n">{label}</text>')
    parts.append(
        f'<text x="{right:.1f}" y="{bottom + 33}" class="tick">{_escape(curve.horizontal)}</text>'
    )
    for label, value in curve.level.items():
        y = height(value)
        parts.append(
            f'<g class="level"><title>{_escape(label)}</title>'
            f'<path d="M{left:.1f} {y:.1f}H{right:.1f}"/></g>'
        )
    for place, (label, path) in enumerate(lines.items()):
        drawn = _line(path, across, height)
        parts.append(
            f'<g class="line line-{place % _LINE_KINDS}"><title>{_escape(label)}</title>{drawn}</g>'
        )
    return _figure(curve.title, name, parts, _PLOT_WIDTH, described=ends, after=_legend(curve))


def _line(points: Array, across: Callable[[float], float], height: Callable[[float], float]) -> str:
    """Return the path of a line, which ends where a value is missing, and the dot of its last point."""
    step = math.ceil(len(points) / _MOST_POINTS)
    # Every step-th point, counted from the last: where the run stands is always shown.
    thinned = points[::-step][::-1]
    path, pen = [], "M"
    for x, y in thinned:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        path.append(f"{pen}{across(x):.1f} {height(y):.1f}")
        pen = "L"
    finite = points[np.isfinite(points).all(1)]
    if not len(finite):
        return ""
    x, y = finite[-1]
    dot = f'<circle cx="{across(x):.1f}" cy="{height(y):.1f}" r="2.6"/>'
    return f'<path d="{"".join(path)}"/>{dot}'


def _legend(curve: Curve) -> str:
    """Return what each line is and where it ends; "" if there is one line and nothing else."""
    if len(curve.lines) + len(curve.level) < 2:  # noqa: PLR2004 - the title says what one line is
        return ""
    keys = [
        f'<i class="line-{place % _LINE_KINDS}"></i>{_escape(label)}'
        for place, label in enumerate(curve.lines)
    ]
    keys += [
        f'<i class="level"></i>{_escape(label)} {number(value)}'
        for label, value in curve.level.items()
    ]
    spans = "".join(f"<span>{key}</span>" for key in keys)
    return f'<p class="hint key">{spans}</p>'


# --- What all charts have -------------------------------------------------------------------------


def _figure(
    title: str, name: str, parts: Sequence[str], width: int, *, described: str, after: str = ""
) -> Markup:
    """Return a chart with its caption, and in words what it shows.

    Args:
        title: the caption.
        name: unique on the page.
        parts: SVG elements.
        width: in pixels; a chart that is wider than a column takes all of them.
        described: the values in words, for those who do not see the chart.
        after: HTML under the chart.
    """
    wide = width > _PLOT_WIDTH
    return Markup(
        f'<figure class="{"wide" if wide else "plain"}">'
        f'<figcaption>{_escape(title)}</figcaption><div class="across">'
        f'<svg viewBox="0 0 {width} {_PLOT_HEIGHT}"'
        + (f' style="min-width:{width}px"' if wide else "")
        + f' role="img" aria-labelledby="{name}" aria-describedby="{name}-values">'
        f'<title id="{name}">{_escape(title)}</title>'
        f'<desc id="{name}-values">{_escape(described)}</desc>'
        f"{''.join(parts)}</svg></div>{after}</figure>"
    )


def _vertical_axis(
    ticks: Mapping[float, str],
    height: Callable[[float], float],
    left: float,
    width: int,
    unit: str,
) -> list[str]:
    """Return a rule and a number per tick, and the unit above them."""
    parts = [f'<text x="2" y="11">{_escape(_short(unit, width))}</text>']
    for tick, label in ticks.items():
        y = height(tick)
        parts.append(f'<path class="rule" d="M{left:.1f} {y:.1f}H{width - _RIGHT}"/>')
        parts.append(f'<text x="{left - 6:.1f}" y="{y + 4:.1f}" class="tick">{label}</text>')
    return parts


def _reach(values: Array) -> tuple[float, float]:
    """Return the ends of an axis: somewhat beyond the values, and never equal."""
    low, high = float(values.min()), float(values.max())
    room = 0.04 * (high - low) or 0.05 * abs(low) or 0.5
    return low - room, high + room


def _ticks(low: float, high: float) -> dict[float, str]:
    """Return the round values from `low` to `high`, 1, 2 or 5 times a power of ten apart, and their labels."""
    least = (high - low) / _INTERVALS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
    decimals = max(0, -math.floor(math.log10(step * 1.001)))
    form = f".{decimals}f" if 1e-4 <= step < 1e6 else "g"  # noqa: PLR2004
    places = range(math.ceil(low / step), math.floor(high / step) + 1)
    return {place * step: format(place * step, form) for place in places}


def _short(text: str, room: float) -> str:
    """Shorten with an ellipsis what is wider than `room` pixels."""
    letters = max(int(room / _LETTER), 2)
    return text if len(text) <= letters else text[: letters - 1] + "\u2026"


def _escape(text: str) -> str:
    return html.escape(visible(text), quote=True)

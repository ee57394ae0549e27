"""What a page can show: tables, plots, curves, pictures, patterns of missing modalities, text, and viewers.

Records alone: how they look is left to `page`, `plots` and the templates. Each section names its template, and the
attribute (`content`) without which it is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from attcl_cli.report.pictures import Panel
from attcl_cli.report.viewers import NIIVUE

Cell: TypeAlias = str | float | None
"""A cell of a table: words, or a number that is rounded for people; None and NaN are a dash."""


@dataclass(frozen=True)
class Table:
    """A short table.

    Attributes:
        heading: above it.
        rows: column -> cell; the columns are all keys, in order.
        hint: a line below it.
    """

    template: ClassVar[str] = "table.html"
    content: ClassVar[str] = "rows"
    heading: str
    rows: Sequence[Mapping[str, Cell]]
    hint: str = ""


@dataclass(frozen=True)
class CaseTable:
    """A table that sorts. A row with the `case`, `source` and `modality` (target) of a panel shows it in the viewer.

    Attributes:
        rows: column -> cell; the columns are all keys, in order.
        heading: above it.
    """

    template: ClassVar[str] = "cases.html"
    content: ClassVar[str] = "rows"
    rows: Sequence[Mapping[str, Cell]]
    heading: str = "Cases"


@dataclass(frozen=True)
class Distribution:
    """The values of one score in some groups, for a box plot.

    Attributes:
        title: the score and its region.
        unit: the label of the axis; may be empty.
        groups: name -> values; NaN and infinity are left out and counted.
        baseline: the same names -> the values of a copy of the most similar source.
    """

    title: str
    unit: str
    groups: Mapping[str, Sequence[float]]
    baseline: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class BoxPlots:
    """Box plots, in this order."""

    template: ClassVar[str] = "boxes.html"
    content: ClassVar[str] = "distributions"
    distributions: Sequence[Distribution]


@dataclass(frozen=True)
class Curve:
    """A figure that changes over a run, such as a loss or the SSIM of the validation cases.

    Attributes:
        title: what it is, with its region.
        unit: the label of the vertical axis; may be empty.
        lines: name -> points (x, y), x ascending; points that are not finite break the line.
        horizontal: the label of the horizontal axis.
        level: name -> a height that a horizontal line marks, such as that of a copy of the source.
    """

    title: str
    unit: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    horizontal: str = "step"
    level: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """Curves, in this order, and a line about them."""

    template: ClassVar[str] = "curves.html"
    content: ClassVar[str] = "curves"
    heading: str
    curves: Sequence[Curve]
    hint: str = ""


@dataclass(frozen=True)
class Viewer:
    """The slice viewer; one per page.

    Attributes:
        panels: the volumes, in this order; without any there is no viewer.
        order: what their order means, "worst first"; shown beside the position of a panel without a role.
        hint: a line above it, for example if only some of the volumes have pictures.
        lower_is_better: the names of those scores of the panels in which less is better.
    """

    template: ClassVar[str] = "viewer.html"
    content: ClassVar[str] = "panels"
    panels: Sequence[Panel]
    order: str = ""
    hint: str = ""
    lower_is_better: Collection[str] = ()


@dataclass(frozen=True)
class WholeVolumes:
    """Whole volumes of the first panels in NiiVue, which the page embeds; one per page.

    Attributes:
        panels: as those of the slice viewer; the first few are shown (`niivue.document`), without their difference.
        order: what their order means, "worst first".
    """

    template: ClassVar[str] = "niivue.html"
    content: ClassVar[str] = "panels"
    panels: Sequence[Panel]
    order: str = ""


@dataclass(frozen=True)
class Patterns:
    """Which modalities are there together, and in how many cases.

    Attributes:
        modalities: the columns.
        counts: the modalities that are there -> the number of such cases, in this order.
        heading: above it.
        hint: a line below it.
    """

    template: ClassVar[str] = "patterns.html"
    content: ClassVar[str] = "counts"
    modalities: Sequence[str]
    counts: Mapping[tuple[str, ...], int]
    heading: str = "Missing modalities"
    hint: str = ""


def patterns_of(
    present: Iterable[Collection[str]], modalities: Sequence[str], *, heading: str, hint: str = ""
) -> Patterns:
    """Return which modalities cases have together, the most frequent pattern first.

    Args:
        present: the modalities that are there, per case.
        modalities: the columns.
        heading: above it.
        hint: a line below it.
    """
    counts = Counter(tuple(name for name in modalities if name in names) for names in present)
    ordered = sorted(counts.items(), key=lambda it: (-it[1], it[0]))
    return Patterns(modalities, dict(ordered), heading, hint)


@dataclass(frozen=True)
class Images:
    """Pictures as they are.

    Attributes:
        heading: above them.
        images: caption -> a PNG.
        hint: a line below them.
    """

    template: ClassVar[str] = "images.html"
    content: ClassVar[str] = "images"
    heading: str
    images: Mapping[str, bytes]
    hint: str = ""


@dataclass(frozen=True)
class Text:
    """Paragraphs.

    Attributes:
        heading: above them.
        paragraphs: in this order.
        folded: what is shown when the reader opens it: preformatted text, such as settings; title -> text.
    """

    template: ClassVar[str] = "text.html"
    content: ClassVar[str] = "heading"
    heading: str
    paragraphs: Sequence[str] = ()
    folded: Mapping[str, str] = field(default_factory=dict)


Section: TypeAlias = (
    Table | CaseTable | BoxPlots | Curves | Viewer | WholeVolumes | Patterns | Images | Text
)


def viewers(slices: Viewer, name: str) -> list[Section]:
    """Return the viewers of a page: slices always, and below them what `name` adds.

    Args:
        slices: the slice viewer.
        name: one of `viewers.VIEWERS`.
    """
    return [slices, WholeVolumes(slices.panels, slices.order)] if name == NIIVUE else [slices]

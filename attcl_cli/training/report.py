"""The page of `attcl train` and its progress in words: `report.html`, made of what lies in the run's folder.

How a page looks is left to `attcl_cli.report`, what a terminal shows to the command line. Nothing here changes a run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from attcl_cli import __version__
from attcl_cli.errors import AttclError, InterruptedRun, counted, quoted
from attcl_cli.methods import METHODS
from attcl_cli.methods.citations import references
from attcl_cli.methods.settings import Settings, dump, title_of, variant_of
from attcl_cli.methods.weights import WEIGHTS_FILE
from attcl_cli.progress import SILENT, Progress, duration
from attcl_cli.report.page import REPORT_FILE, Page, write_page
from attcl_cli.report.sections import Curve, Curves, Images, Patterns, Section, Text
from attcl_cli.training.stats import STATS_FILE, numbers_in, stats_lines
from attcl_cli.training.trainer import VALIDATION_SSIM

REFRESH_SECONDS = 30
SAMPLES_FOLDER = "samples"
COPY_SSIM = "copy_ssim"  # in run.json, below `validation`
KEPT_SSIM = "ssim"  # likewise: of the weights that were kept

_FIGURE = "in-brain SSIM"
_SECONDS = "seconds_a_step"  # in stats.jsonl
_MOST_LINES = 600  # lines of stats.jsonl that are read for curves: more than a chart has pixels
_MOST_IN_A_CHART = 6  # lines, each of its own colour
_TELLING = "Those that say most"
_FINISHED = "done, "  # how the status of a finished run begins


@dataclass(frozen=True)
class Statistics:
    """What a page shows of `stats.jsonl`.

    Attributes:
        validation: (step, SSIM) of every validation.
        losses: name -> (step, value); of a long run every so many lines, and always the last one.
        seconds_per_step: median of these lines; None without any.
    """

    validation: Sequence[tuple[float, float]] = ()
    losses: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    seconds_per_step: float | None = None

    @property
    def best(self) -> tuple[float, float] | None:
        """The step that scores best, the first of equal ones, and its SSIM; None without validation."""
        return max(self.validation, key=lambda point: point[1], default=None)

    def at(self, step: int) -> float | None:
        """Return the SSIM of the weights of a step; None if they were not validated."""
        return dict(self.validation).get(step)


def read_statistics(folder: Path) -> Statistics:
    """Return the statistics of a run; what cannot be read of them is left out."""
    path = folder / STATS_FILE
    mark = f'"{VALIDATION_SSIM}"'.encode()
    judged: list[bytes] = []
    logged: list[bytes] = []
    for line in stats_lines(path):
        (judged if mark in line else logged).append(line)
    # counted from the last: where the run stands is always shown
    thinned = logged[:: -max(1, math.ceil(len(logged) / _MOST_LINES))][::-1]
    losses: dict[str, list[tuple[float, float]]] = {}
    seconds: list[float] = []
    for record in filter(None, map(numbers_in, thinned)):
        for name, value in record.items():
            if name == _SECONDS:
                seconds.append(value)
            elif name != "step":
                losses.setdefault(name, []).append((record["step"], value))
    return Statistics(
        [
            (record["step"], record[VALIDATION_SSIM])
            for record in map(numbers_in, judged)
            if VALIDATION_SSIM in record
        ],
        losses,
        median(seconds) if seconds else None,
    )


# --- The page -------------------------------------------------------------------------------------


@dataclass
class RunPage:
    """The page of one run, written anew whenever there is something new to see.

    Attributes:
        folder: of the run.
        settings: of the run, as planned now.
        facts: keys of its `run.json`: device, precision, trained_on, present, validation, simulated.
        progress: hears, once, that a page could not be written while the run goes on.
    """

    folder: Path
    settings: Settings
    facts: Mapping[str, Any]
    progress: Progress = SILENT
    _warned: bool = False

    def running(self, step: int, seconds_left: float | None = None) -> None:
        """Write the page of a run that goes on; if that fails, the run continues.

        Args:
            step: the steps done.
            seconds_left: to the end; None: not known.
        """
        left = f", about {duration(seconds_left)} left" if seconds_left is not None else ""
        status = f"running, step {step:,} of {self.settings.steps:,}{left}"
        self._try(status, refresh_seconds=REFRESH_SECONDS)

    def broken_off(self, error: AttclError) -> None:
        """Write the page of a run that was stopped or failed; that it fails, too, is not reported beside the error."""
        status = "interrupted" if isinstance(error, InterruptedRun) else f"failed: {error.message}"
        self.progress = SILENT
        self._try(f"{status}; resume with: attcl train --resume {quoted(self.folder)}")

    def done(self) -> None:
        """Write the page of a run that reached its last step.

        Raises:
            AttclError: the page cannot be written.
        """
        status = f"{_FINISHED}{counted(self.settings.steps, 'step')}"
        write_page(self.folder / REPORT_FILE, self.page(status))

    def is_done(self) -> bool:
        """Return whether the page in the folder is that of a finished run."""
        path = self.folder / REPORT_FILE
        status = f"<dd>{_FINISHED}{counted(self.settings.steps, 'step')}</dd>"
        return path.is_file() and status.encode() in path.read_bytes()

    def _try(self, status: str, *, refresh_seconds: int = 0) -> None:
        try:
            page = self.page(status, refresh_seconds=refresh_seconds)
            write_page(self.folder / REPORT_FILE, page)
        except (AttclError, OSError) as error:
            if not self._warned:
                self.progress.say(f"note: no page for now, the training continues ({error})")
            self._warned = True

    def page(self, status: str, *, refresh_seconds: int = 0) -> Page:
        """Return the page of what lies in the folder now.

        Args:
            status: how the run stands.
            refresh_seconds: see `Page`.
        """
        statistics = read_statistics(self.folder)
        finished = status.startswith(_FINISHED)
        facts = {"status": status, **self._facts(statistics)}
        if refresh_seconds:
            facts["page written"] = f"{time.strftime('%H:%M:%S')}, anew at each checkpoint"
        files = (WEIGHTS_FILE, "config.toml", STATS_FILE, "run.json")
        return Page(
            f"Training of {title_of(self.settings)}",
            verdict=self._verdict(statistics, finished=finished),
            facts=facts,
            sections=[
                _samples(self.folder),
                *self._curves(statistics),
                self._patterns(),
                *self._texts(statistics, finished=finished),
            ],
            notes=self._notes(),
            files=[name for name in files if (self.folder / name).exists()],
            refresh_seconds=refresh_seconds,
        )

    @property
    def _copy(self) -> float | None:
        value = (self.facts.get("validation") or {}).get(COPY_SSIM)
        return float(value) if isinstance(value, int | float) else None

    @property
    def _trained_on(self) -> int:
        return len(self.facts.get("trained_on") or ())

    @property
    def _validated_on(self) -> int:
        return int((self.facts.get("validation") or {}).get("cases") or 0)

    def _verdict(self, statistics: Statistics, *, finished: bool) -> str:
        if not statistics.validation or statistics.best is None:
            return (
                "No validation yet: the first checkpoint brings it."
                if self._validated_on
                else "Not validated: there is no validation case with two modalities; judge by the pictures."
            )
        (step, last), (best_step, best) = statistics.validation[-1], statistics.best
        text = f"In-brain SSIM on the validation cases {last:.3f} at step {step:,}"
        if best_step != step:
            text += f", best {best:.3f} at step {best_step:,}"
        else:
            text += ", the best of the run" if finished else ", the best so far"
        if self._copy is None:
            return f"{text}."
        return f"{text}; a copy of the source reaches {self._copy:.3f}."

    def _facts(self, statistics: Statistics) -> dict[str, str]:
        s, seconds = self.settings, statistics.seconds_per_step
        processes = int(self.facts.get("processes") or 1)
        facts = {
            "method": title_of(s),
            "slices": f"{s.side} \u00d7 {s.side} pixels",
            "device": str(self.facts.get("device") or "")
            + (f", {processes} processes" if processes > 1 else ""),
            "precision": str(self.facts.get("precision") or ""),
            "trained on": counted(self._trained_on, "case") if self._trained_on else "",
            "validated on": counted(self._validated_on, "case") if self._validated_on else "none",
            "seconds per step": f"{seconds:.3g}" if seconds is not None else "",
            "attcl": __version__,
        }
        return {name: value for name, value in facts.items() if value}

    def _curves(self, statistics: Statistics) -> list[Section]:
        level = {"copy of the source": self._copy} if self._copy is not None else {}
        best = statistics.best
        hint = f"Best: {best[1]:.3f} at step {best[0]:,}." if best is not None else ""
        if best is not None and self.settings.keep == "best":
            hint += " These weights are kept."
        validation = Curve(
            f"{_FIGURE} on the validation cases", "", {_FIGURE: statistics.validation}, level=level
        )
        losses = statistics.losses
        telling = [name for name in METHODS[self.settings.method].shown if name in losses]
        charts = {_TELLING: telling} if telling else {}
        charts |= grouped(list(losses))
        return [
            Curves("Validation", [validation] if statistics.validation else [], hint),
            Curves(
                "Losses",
                [
                    Curve(title, "", {name: losses[name] for name in names})
                    for title, names in charts.items()
                ],
                "Losses of an adversary need not fall: judge by the validation figure and the pictures.",
            ),
        ]

    def _patterns(self) -> Patterns:
        counts = {
            tuple(item["modalities"]): int(item["cases"])
            for item in self.facts.get("present") or ()
        }
        modalities = list(dict.fromkeys(name for names in counts for name in names))
        return Patterns(modalities, counts, heading="Modalities of the training cases")

    def _texts(self, statistics: Statistics, *, finished: bool) -> list[Section]:
        cited = references(self.settings.method, variant_of(self.settings))
        texts: list[Section] = [
            Text("Settings", folded={"config.toml": dump(self.settings)}),
        ]
        if finished:
            texts.append(Text("Methods, for a paper", [self._methods(statistics)]))
        if cited:
            texts.append(Text("How to cite", cited))
        return texts

    def _methods(self, statistics: Statistics) -> str:
        """Return a paragraph for a paper: what was trained, on what, and how its weights were chosen."""
        s = self.settings
        trained = counted(self._trained_on, "case") if self._trained_on else "packed slices"
        if self.facts.get("simulated"):
            trained = trained.replace("case", "simulated case")
        text = (
            f"{title_of(s)} was trained with attcl {__version__} on {trained} for "
            f"{counted(s.steps, 'step')} with batches of {counted(s.batch_size, 'slice')} of {s.side} \u00d7 {s.side} "
            f"pixels, a learning rate of {s.learning_rate:g} and seed {s.seed}, "
            f"in {self.facts.get('precision') or 'fp32'}."
        )
        best = statistics.best
        if best is None:
            return text
        cases = counted(self._validated_on, "validation case")
        copy = f"; a copy of the source reached {self._copy:.3f}" if self._copy is not None else ""
        if s.keep == "best":
            return (
                f"{text} Of all checkpoints, the weights with the highest structural similarity inside the brain on "
                f"{cases} were kept ({best[1]:.3f}, step {best[0]:,}{copy})."
            )
        return (
            f"{text} The last weights were kept; their structural similarity inside the brain on {cases} was "
            f"{statistics.validation[-1][1]:.3f}{copy}."
        )

    def _notes(self) -> list[str]:
        notes = []
        if self.facts.get("simulated"):
            notes.append("Trained on simulated phantoms: these weights are of no use on patients.")
        if self._validated_on:
            notes.append(
                "Validation: mean SSIM inside the brain over blocks of neighbouring slices at the networks' own size, "
                "by the functions of attcl score, but not of whole volumes. Held-out volumes are never used."
            )
        return notes


def _samples(folder: Path) -> Images:
    """Return the newest sample picture, and the first one beside it."""
    pictures: dict[int, Path] = {}
    for path in (folder / SAMPLES_FOLDER).glob("step-*.png"):
        number = path.stem.removeprefix("step-")
        if number.isdecimal():
            pictures[int(number)] = path
    steps = sorted(pictures)
    chosen = dict.fromkeys([*steps[-1:], *steps[:1]])
    return Images(
        "Pictures",
        {
            f"step {step:,}" + (", the newest" if step == steps[-1] else ", the first"): pictures[
                step
            ].read_bytes()
            for step in chosen
        },
        "Slices of training cases. Columns named synthetic were made by the network; the others are sources, "
        "or real slices.",
    )


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the losses in charts of at most six lines: title -> names, by what their names begin with."""
    charts: dict[str, list[str]] = {}
    for title, group in _split(list(names), 1):
        for start in range(0, len(group), _MOST_IN_A_CHART):
            part = f" ({start // _MOST_IN_A_CHART + 1})" if len(group) > _MOST_IN_A_CHART else ""
            charts[f"{title}{part}"] = group[start : start + _MOST_IN_A_CHART]
    return charts


def _split(names: list[str], depth: int) -> list[tuple[str, list[str]]]:
    """Return (title, names) by the first words of names; a group that is too large is split by one word more."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("_".join(name.split("_")[:depth]), []).append(name)
    result = []
    for title, group in groups.items():
        longest = max(name.count("_") for name in group) + 1
        if len(group) > _MOST_IN_A_CHART and depth < longest - 1:
            result += _split(group, depth + 1)
        else:
            result.append((title, group))
    return result


# --- Progress in words ----------------------------------------------------------------------------


@dataclass
class Words:
    """Says in words what a run is doing: its phases, and each validation.

    Attributes:
        steps: of the whole run.
        phases: (the step after which it begins, what happens in it), the first from 0.
        first: the step that the run continues from.
        best: (step, SSIM) so far; None: none.
        copy: the SSIM of a copy of the source; None: not known.
        clock: in seconds.
    """

    steps: int
    phases: Sequence[tuple[int, str]] = ()
    first: int = 0
    best: tuple[float, float] | None = None
    copy: float | None = None
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        """Begin to measure time now."""
        self._mark = (self.first, self.clock())
        self._pace: float | None = None

    def phase(self, step: int) -> str:
        """Return what begins after a step, `true pairs alone teach until step 540`; "" if nothing does."""
        begins = [begin for begin, _ in self.phases]
        if step == self.first:
            place = max((i for i, begin in enumerate(begins) if begin <= step), default=-1)
        else:
            place = begins.index(step) if step in begins else -1
        if place < 0:
            return ""
        text = f"step {step:,}: {self.phases[place][1]}"
        if place + 1 == len(self.phases):
            return text
        begin, then = self.phases[place + 1]
        return f"{text} until step {begin:,}; then {then}"

    def seconds_left(self, step: int) -> float | None:
        """Return how long the run still takes at the pace since the last mark, validation included."""
        then, clock = self._mark
        if step > then:
            self._pace = (self.clock() - clock) / (step - then)
        return self._pace * (self.steps - step) if self._pace is not None else None

    def mark(self, step: int) -> None:
        """Measure the pace from this step on."""
        self._mark = (step, self.clock())

    def validated(self, step: int, ssim: float, left: float | None) -> str:
        """Return a validation in one line, and remember it if it is the best.

        Args:
            step: the steps done.
            ssim: the figure.
            left: seconds to the end; None: not known.
        """
        if self.best is None or ssim > self.best[1]:
            self.best = (step, ssim)
        best_step, best = self.best
        known = (
            "the best so far" if best_step == step else f"best {best:.3f} at step {best_step:,.0f}"
        )
        parts = [f"{_FIGURE} on validation {ssim:.3f}, {known}"]
        if self.copy is not None:
            parts.append(f"copy {self.copy:.3f}")
        if left is not None and step < self.steps:
            parts.append(f"{duration(left)} left")
        return f"step {step:,} of {self.steps:,}: {'; '.join(parts)}"


def phases_of(settings: Settings) -> list[tuple[int, str]]:
    """Return (the step after which a phase begins, what happens in it) of a run; empty if its method names none."""
    phases = METHODS[settings.method].phases_in_words(settings)
    begins = [(round(share * settings.steps), words) for share, words in phases]
    return [(begin, words) for begin, words in begins if begin < settings.steps]

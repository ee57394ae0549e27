"""What the figures of volumes must be: of one, of two of a case, of all of a modality.

Pure functions of what `voxels` and `alignment` measure. What is made of a verdict is left to `preconditions`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

from attcl_cli.data.alignment import FEWEST_VOXELS, PairRecord
from attcl_cli.data.label_maps import LabelRecord
from attcl_cli.data.voxels import LEAST_SIDE, LEVELS, VolumeRecord
from attcl_cli.errors import AttclError, counted

# Figures of the 24 prepared patients that these bounds were set on are in docs/guides/data.md.
MOST_BRAIN_ML = 2200.0  # the largest brains have about 2000 ml with their fluid; 1614 was the most, a raw head 2579
MOST_TISSUE_ML = (
    2000.0  # the same without what is nearly background, such as the ringing of interpolation
)
LEAST_HEAD_ML = 1000.0  # of a rim that is looked at; smaller objects are no heads
LEAST_RIM = 0.7  # 0.91 was the least of a brain, 0.60 the most of a raw head
MOST_SHIFT_MM = 3.0  # 2.2 was the most
LEAST_GAIN = 1.1  # of mutual information by that shift; 1.04 was the most
LEAST_ALIGNED = (
    0.005  # mutual information after that shift; 0.009 was the least: below it, noise decides
)
CLEAR_GAIN = 1.5  # by a shift that explains why two images look unrelated
LEAST_MIRRORED_GAIN = (
    1.1  # of mutual information by mirroring; 1 was never reached, 1.17 the least of a mirrored one
)
LEAST_MIRRORED_OVERLAP = 0.95  # Dice then; 0.946 was the most of two brains
LEAST_OUT_OF_ORDER = (
    2  # slices of the sample; 0 was the most, slabs of 10 mm exchanged have 2 or more
)
LEAST_OVERLAP = 0.9  # Dice of two masks; 0.99 was the least; half a head has 0.67, cut beside its middle up to 0.8
LEAST_UNLIKE = (
    0.002  # of percentiles over their range, and of smoothness, between two images of one mask
)
MOST_ALIKE = 0.95  # rank correlation of two modalities, of either sign; 0.89 was the most
MOST_HOLE = 0.02  # of the inner brain, that is background in another volume; 0.004 was the most
MOST_APART = 0.15  # of the length along an axis, between the ends of two masks of which one lies in the other; 0.00
LEAST_SHARED = 0.75  # Dice of two masks below which what lies in them is not asked
SAME_MASK = 0.97  # Dice of two masks of one brain; 0.99 was the least, 0.95 the most of two brains
LEAST_INFORMATION = 0.016  # with another mask: 0.013 was the most of two brains
MOST_FACTOR = 100.0  # between a volume's range and the others' of its modality; 35 was the most
MOST_FACTOR_OF_FLOATS = 20.0  # the same between floats and integers
MOST_OF_ONE_VALUE = 0.5  # of the brain; 0.05 was the most
LEAST_SMOOTHNESS = 0.3  # of neighbours, a correlation; 0.78 was the least, 0.01 the most of noise
MOST_JUMPS = 0.02  # of neighbours; 0.007 was the most, 0.025 the least of images that wrapped around to their middle
MOST_FINE_MM = 1.5  # edge of voxels whose jumps are judged: between larger ones, tissue changes
MOST_HEAD_ML = 8000.0  # with neck and coil; 2579 was the most
LEAST_FIELD_MM = 50.0  # the longest side of a field of view of many voxels; 180 was the least
MOST_FIELD_MM = 1000.0  # 250 was the most
FEWEST_ACROSS_A_HEAD = 64  # voxels; a shorter field may be a part, or a picture
MOST_LABELS_OFF = 0.1  # of the labelled voxels; 0.000 was the most
FEWEST_LABELLED = 100  # voxels of a label map of which it is asked

_NEARLY_ALL = LEVELS.index(95.0)
_TURNS = ("as a head is shaken", "as a head is tilted to the shoulder", "as a head is nodded")
_AXES = ("foot to head", "front to back", "side to side")
_LEAST_FIELD_ML = 500.0
_STRIP = "strip the skull (HD-BET, SynthStrip) and set the background to 0"
_REGISTER = "co-register the case's volumes (ANTs, FSL FLIRT, elastix)"
_MASK = "mask all volumes of the case with one brain mask (HD-BET, SynthStrip)"
_SORT = "convert it anew from its DICOM (dcm2niix), or sort its slices"
_MIRROR = "convert it anew from its DICOM (dcm2niix), or mirror its voxels back"
_ANYWAY = "or take the data as they are: --force"


@dataclass(frozen=True)
class Examined:
    """A volume with its figures.

    Attributes:
        case: id of its case.
        modality: its modality.
        path: its first file.
        record: the figures.
    """

    case: str
    modality: str
    path: Path
    record: VolumeRecord


def judge_volume(volume: Examined) -> AttclError | None:
    """Return what is wrong with a volume on its own, the first problem that explains the others; None if nothing is."""
    size = _size(volume)
    if size is not None or is_small(volume.record):
        return size
    return _skull(volume) or _around_the_brain(volume) or _in_the_brain(volume) or _damaged(volume)


def _size(volume: Examined) -> AttclError | None:
    """Return the error about a field of view, or a head, that no person has."""
    record = volume.record
    if record.spacing_mm is None:
        return None
    edges = record.spacing_mm[::-1]
    field = [edge * count for edge, count in zip(edges, record.shape[::-1], strict=True)]
    found = f"a field of view of {_sides(field)} mm"
    small = max(record.shape) >= FEWEST_ACROSS_A_HEAD and max(field) < LEAST_FIELD_MM
    if small:
        expected = f"a head ({LEAST_FIELD_MM:.0f} mm at least)"
    elif max(field) > MOST_FIELD_MM:
        expected = f"a head ({MOST_FIELD_MM:.0f} mm at most)"
    elif _has_background(record) and (record.volume_ml or 0) > MOST_HEAD_ML:
        found += f", and {record.volume_ml:.0f} ml that are not background"
        expected = f"a head ({MOST_HEAD_ML:.0f} ml at most)"
    else:
        return None
    return AttclError(
        f"{volume.path}: voxels of {_sides(edges)} mm make {found}, expected {expected}",
        f"is the affine in millimetres, and of this image? convert it anew from its DICOM (dcm2niix); {_ANYWAY}",
        code="voxel-size-implausible",
    )


def _skull(volume: Examined) -> AttclError | None:
    record = volume.record
    filled, tissue = record.volume_ml or 0, record.tissue_ml or 0
    large = _has_background(record) and filled > MOST_BRAIN_ML and tissue > MOST_TISSUE_ML
    head = record.tissue_ml is None or record.tissue_ml >= LEAST_HEAD_ML
    dark = record.rim is not None and record.rim < LEAST_RIM and head
    if not large and not dark:
        return None
    figure = (
        f"{filled:.0f} ml are not background (voxels of {_sides(record.spacing_mm[::-1])} mm)"
        if large and record.spacing_mm
        else f"{percent(1 - (record.rim or 0))} darker below its surface, as a skull is"
    )
    return AttclError(
        f"{volume.path}: {figure}, expected a skull-stripped brain ({MOST_BRAIN_ML:.0f} ml at most, no dark skull)",
        f"{_STRIP}{', or correct the voxel size if it is wrong' if large else ''}; {_ANYWAY}",
        code="skull-present",
    )


def _around_the_brain(volume: Examined) -> AttclError | None:
    """Return the error about a border that is no background."""
    record = volume.record
    if record.background == "noise":
        return AttclError(
            f"{volume.path}: {percent(record.noise)} of the border is noise around {record.border:.4g}, "
            "expected one background value around a skull-stripped brain",
            f"{_STRIP}; {_ANYWAY}",
            code="background-noisy",
        )
    if record.background == "none":
        return AttclError(
            f"{volume.path}: the border holds many values (median {record.border:.4g}), "
            "expected one background value around a skull-stripped brain",
            f"{_STRIP}; name it with --background VALUE; {_ANYWAY}",
            code="background-missing",
        )
    return None


def _in_the_brain(volume: Examined) -> AttclError | None:
    """Return the error about intensities that are no image's."""
    record = volume.record
    if record.percentiles[_NEARLY_ALL] < 0:
        return AttclError(
            f"{volume.path}: nearly all of its image is darker than the background {record.value:.4g}, "
            "expected a brain that is brighter",
            f"an inverted image? multiply it by -1, or name its background with --background VALUE; {_ANYWAY}",
            code="image-inverted",
        )
    if record.commonest > MOST_OF_ONE_VALUE:
        return AttclError(
            f"{volume.path}: {percent(record.commonest)} of the voxels that are not background have one value, "
            f"expected an image ({percent(MOST_OF_ONE_VALUE)} at most)",
            f"a label map, or a saturated image? replace or remove it; {_ANYWAY}",
            code="volume-of-one-value",
        )
    return None


def _damaged(volume: Examined) -> AttclError | None:
    """Return the error about voxels that show no image, or a part of one."""
    record = volume.record
    if record.smoothness < LEAST_SMOOTHNESS:
        return AttclError(
            f"{volume.path}: its voxels have little in common with their neighbours (a correlation of "
            f"{record.smoothness:.2f}), expected an image (at least {LEAST_SMOOTHNESS})",
            f"noise, or a damaged image? replace or remove it; {_ANYWAY}",
            code="volume-of-noise",
        )
    fine = record.spacing_mm is not None and max(record.spacing_mm[1:]) <= MOST_FINE_MM
    if fine and record.jumps > MOST_JUMPS:
        return AttclError(
            f"{volume.path}: {percent(record.jumps)} of neighbouring voxels differ by more than half of its range, "
            f"expected an image ({percent(MOST_JUMPS)} at most)",
            "did values wrap around when they were stored in a smaller type (300 as 44 in 8 bits)? "
            f"convert it anew from its source; {_ANYWAY}",
            code="values-wrapped",
        )
    return None


def judge_gaps(volume: Examined) -> AttclError | None:
    """Return that slices within a brain are empty; None if none are.

    Asked when the volumes of a case lie on each other: slices in another order have gaps, too.
    """
    record = volume.record
    if is_small(record) or not _has_background(record):
        return None
    lost = max(record.empty)
    if not lost:
        return None
    return AttclError(
        f"{volume.path}: {counted(lost, 'slice', 'slices')} within the brain "
        f"{'is' if lost == 1 else 'are'} empty ({_AXES[record.empty.index(lost)]}), "
        "expected an image in each slice between the first and the last",
        f"a part lost in conversion? convert it anew from its source; {_ANYWAY}",
        code="slices-empty",
    )


def judge_pair(first: Examined, second: Examined, pair: PairRecord) -> AttclError | None:
    """Return what is wrong with how the second volume lies on the first one; None if nothing is."""
    between = f"{second.path}: {{}} against {first.modality} ({first.path.name}), expected {{}}"
    disagree = _disagree(first, second, pair) or _hollow(first, second, pair)
    if pair.voxels < FEWEST_VOXELS:
        return disagree
    rearranged = _rearranged(between, pair)
    alone = pair.overlap < LEAST_SHARED or _within(pair)  # then nothing else is asked
    if disagree and alone and not rearranged:
        return disagree
    return rearranged or _turned(between, pair) or _unlike_or_shifted(between, pair) or disagree


def _unlike_or_shifted(between: str, pair: PairRecord) -> AttclError | None:
    """Return that two volumes share no information, or share it after a shift; None if neither.

    Args:
        between: the message, without what was found and what is expected.
        pair: how the volumes lie on each other.
    """
    shift = max(pair.shift_mm, key=abs)
    aligned = pair.information * pair.gain  # mutual information after that shift
    found_shift = abs(shift) >= MOST_SHIFT_MM and pair.gain >= LEAST_GAIN
    shifted = found_shift and aligned >= LEAST_ALIGNED
    unlike = pair.overlap < SAME_MASK and pair.information < LEAST_INFORMATION
    if unlike and not (shifted and aligned >= LEAST_INFORMATION and pair.gain >= CLEAR_GAIN):
        found = f"unrelated ({pair.information:.3f} of mutual information, masks overlap by {pair.overlap:.2f})"
        return AttclError(
            between.format(found, "images of one brain"),
            f"is it of this patient? otherwise {_REGISTER}; {_ANYWAY}",
            code="images-unrelated",
        )
    if not shifted:
        return None
    found = f"shifted by about {abs(shift):.0f} mm ({_AXES[pair.shift_mm.index(shift)]})"
    return AttclError(
        between.format(found, f"less than {MOST_SHIFT_MM:.0f} mm"),
        f"{_REGISTER}; {_ANYWAY}",
        code="volumes-not-registered",
    )


def _rearranged(between: str, pair: PairRecord) -> AttclError | None:
    """Return that the second volume is mirrored, or has its slices in another order; None if neither.

    Args:
        between: the message, without what was found and what is expected.
        pair: how the volumes lie on each other.
    """
    fits = pair.mirrored and pair.mirrored_overlap >= LEAST_MIRRORED_OVERLAP
    least = max(LEAST_MIRRORED_GAIN * pair.information * pair.gain, LEAST_ALIGNED)
    if fits and pair.mirrored_information >= least:
        axes = " and ".join(_AXES[axis] for axis in pair.mirrored)
        found = (
            f"mirrored ({axes}; mutual information {pair.mirrored_information:.3f} mirrored back, "
            f"{pair.information:.3f} as stored)"
        )
        return AttclError(
            between.format(found, "volumes of one orientation"),
            f"{_MIRROR}; {_ANYWAY}",
            code="volume-mirrored",
        )
    moved = max(pair.out_of_order)
    if moved >= LEAST_OUT_OF_ORDER:
        axis = _AXES[pair.out_of_order.index(moved)]
        found = f"slices in another order ({axis}, at least {moved} slices of a sample)"
        return AttclError(
            between.format(found, "slices in one order"),
            f"{_SORT}; {_ANYWAY}",
            code="slices-out-of-order",
        )
    return None


def _turned(between: str, pair: PairRecord) -> AttclError | None:
    """Return that the second volume is turned against the first one; None if a shift explains as much.

    Args:
        between: the message, without what was found and what is expected.
        pair: how the volumes lie on each other.
    """
    best = pair.information * pair.gain  # of the shifts
    unlike = (
        best < LEAST_INFORMATION
    )  # a clear gain alone tells a turned image from that of another patient
    least = (CLEAR_GAIN if unlike else LEAST_GAIN) * best
    if pair.turned_information < max(least, LEAST_INFORMATION):
        return None
    degrees = max(pair.turned_degrees, key=abs)
    axis = _TURNS[pair.turned_degrees.index(degrees)]
    return AttclError(
        between.format(f"turned by about {abs(degrees):.0f} degrees ({axis})", "one orientation"),
        f"{_REGISTER}; {_ANYWAY}",
        code="volumes-not-registered",
    )


def _hollow(first: Examined, second: Examined, pair: PairRecord) -> AttclError | None:
    """Return that a part within one brain is background in the other one; None if none is."""
    lost = max(pair.hole)
    if lost <= MOST_HOLE:
        return None
    empty, other = (second, first) if pair.hole[0] == lost else (first, second)
    return AttclError(
        f"{empty.path}: {percent(lost)} of the inner brain of {other.modality} ({other.path.name}) is background here, "
        f"expected {percent(MOST_HOLE)} at most",
        f"a part was masked, or lost? replace it by the whole image; {_ANYWAY}",
        code="brain-incomplete",
    )


def _disagree(first: Examined, second: Examined, pair: PairRecord) -> AttclError | None:
    """Return that the masks of two volumes are not those of one brain; None if they are."""
    apart = max(pair.apart)
    cut = apart > MOST_APART and _within(pair)
    if pair.overlap >= LEAST_OVERLAP and not cut:
        return None
    lost, more = (1 - share for share in pair.covered)
    where = f", they end {percent(apart)} of their length apart ({_AXES[pair.apart.index(apart)]})"
    part = "is a part of the other volume empty?" if more > lost else "is a part of it empty?"
    return AttclError(
        f"{second.path}: masks overlap by {pair.overlap:.2f} (Dice) against {first.modality} ({first.path.name}), "
        f"{percent(lost)} of that brain is background here, {percent(more)} of this one there"
        f"{where if cut else ''}; expected an overlap of at least {LEAST_OVERLAP}, "
        f"and ends at most {percent(MOST_APART)} apart",
        f"{part} {_MASK}, or {_REGISTER}; {_ANYWAY}",
        code="masks-disagree",
    )


def _within(pair: PairRecord) -> bool:
    """Return whether one mask lies within the other: both are of one brain, of which one may lack a part."""
    return max(pair.covered) >= SAME_MASK


def judge_units(volumes: Sequence[Examined]) -> list[tuple[Examined, AttclError]]:
    """Return the volumes whose percentiles say that they are in other units than the others of their modality."""
    by_modality: dict[str, list[Examined]] = defaultdict(list)
    by_case: dict[str, list[Examined]] = defaultdict(list)
    for volume in volumes:
        if _range(volume.record) > 0:
            by_modality[volume.modality].append(volume)
            by_case[volume.case].append(volume)
    strange = []
    for modality, members in by_modality.items():
        if len(members) == 2:  # noqa: PLR2004 - which one is unusual, the others of its case show
            members.sort(key=lambda it: _unlike(it, by_case[it.case]))
            usual = _range(members[0].record)
        else:
            usual = median(_range(member.record) for member in members)
        floats = median(member.record.floating for member in members)
        for member in members:
            own = _range(member.record)
            factor = max(own / usual, usual / own)
            most = MOST_FACTOR if member.record.floating == floats else MOST_FACTOR_OF_FLOATS
            if factor > most:
                low, high = member.record.percentiles[0], member.record.percentiles[-1]
                problem = AttclError(
                    f"{member.path}: intensities from {low:.3g} to {high:.3g}, a range {factor:.0f} times "
                    f"{'less' if own < usual else 'more'} than usual for {modality} here ({usual:.3g}), "
                    "expected the units of the others",
                    f"convert it, or all volumes, to the same units; {_ANYWAY}",
                    code="units-differ",
                )
                strange.append((member, problem))
    return strange


def _unlike(volume: Examined, case: Sequence[Examined]) -> float:
    """Return by which factor, as a logarithm, the range of a volume is off those of its case's other volumes.

    0 if that is no more than modalities differ by: of two cases in different units, the second is named as a whole.
    """
    others = [_range(it.record) for it in case if it is not volume]
    unlike = abs(math.log(_range(volume.record) / median(others))) if others else 0.0
    return unlike if unlike > math.log(MOST_FACTOR_OF_FLOATS) else 0.0


def judge_labels(path: Path, record: LabelRecord) -> AttclError | None:
    """Return that a label map lies off the brain, unless it is tiny; None if it does not."""
    if record.labelled < FEWEST_LABELLED or record.outside <= MOST_LABELS_OFF * record.labelled:
        return None
    return AttclError(
        f"{path}: {percent(record.outside / record.labelled)} of its {record.labelled} labelled voxels lie off "
        f"the brain, expected {percent(MOST_LABELS_OFF)} at most",
        "is it of this patient, and in the orientation of the images? replace it, or move it away; "
        f"{_ANYWAY}",
        code="labels-off-brain",
    )


def find_copies(volumes: Sequence[Examined]) -> list[AttclError]:
    """Return which volumes of a case have the very figures of another one: they are one image under two names."""
    return [
        AttclError(
            f"{second.path}: the same image as {first.modality} ({first.path.name}), expected another modality",
            f"replace one of the two by its own image, or move it away; {_ANYWAY}",
            code="images-identical",
        )
        for first, second in combinations(volumes, 2)
        if first.record == second.record and first.record.sides >= LEAST_SIDE
    ]


def find_recoloured(
    volumes: Mapping[str, Examined], correlations: Mapping[frozenset[str], float]
) -> list[AttclError]:
    """Return which volumes of a case are another one of it in other intensities: scaled, inverted, with some noise.

    Args:
        volumes: modality -> volume.
        correlations: two modalities -> rank correlation.
    """
    problems = []
    for first, second in combinations(volumes.values(), 2):
        alike = correlations.get(frozenset((first.modality, second.modality)), 0.0)
        if abs(alike) > MOST_ALIKE:
            problems.append(
                AttclError(
                    f"{second.path}: {first.modality} ({first.path.name}) in other intensities (a rank correlation of "
                    f"{alike:.3f}), expected another modality ({MOST_ALIKE} at most)",
                    f"replace one of the two by its own image, or move it away; {_ANYWAY}",
                    code="images-identical",
                )
            )
    return problems


def find_repeated(volumes: Iterable[Examined]) -> list[tuple[Examined, AttclError]]:
    """Return which volumes are one of another case, in whatever units; an error for each two cases.

    A patient under two names may be trained on and tested on. The same patient in another crop or preparation is not
    found.
    """
    seen: dict[tuple[object, ...], list[Examined]] = defaultdict(list)
    repeated: dict[tuple[str, str], list[tuple[Examined, Examined]]] = defaultdict(list)
    for volume in volumes:
        record = volume.record
        if record.sides < LEAST_SIDE:
            continue
        mask = (
            record.shape,
            record.volume_ml or record,
        )  # that of the same brain has as many voxels
        first = next((it for it in seen[mask] if _same_image(it.record, record)), None)
        if first is None:
            seen[mask].append(volume)
        elif first.case != volume.case:
            repeated[first.case, volume.case].append((first, volume))
    return [(members[0][1], _repeated(members)) for members in repeated.values()]


def _same_image(first: VolumeRecord, second: VolumeRecord) -> bool:
    """Return whether the figures of two volumes are those of one image, but for a factor and an offset."""
    figures = (
        (*_shares(first), first.smoothness, first.commonest),
        (*_shares(second), second.smoothness, second.commonest),
    )
    return all(abs(one - other) <= LEAST_UNLIKE for one, other in zip(*figures, strict=True))


def _shares(record: VolumeRecord) -> list[float]:
    """Return where the percentiles lie between the lowest and the highest, 0 to 1."""
    low, width = record.percentiles[0], _range(record) or 1.0
    return [(level - low) / width for level in record.percentiles]


def _repeated(members: Sequence[tuple[Examined, Examined]]) -> AttclError:
    """Return the error about volumes of a case, each after the one of another case that it repeats."""
    first, second = members[0]
    more = len(members) - 1
    others = f"; so {'is' if more == 1 else 'are'} {more} more of {second.case}" if more else ""
    return AttclError(
        f"{second.path}: the same image as {first.path} of {first.case}{others}, expected images of its own",
        f"one patient under two names? move one of the two cases away, or replace its images; {_ANYWAY}",
        code="images-repeated",
    )


def is_small(record: VolumeRecord) -> bool:
    """Return whether a volume has no room for a brain."""
    return record.sides < LEAST_SIDE or (record.field_ml or _LEAST_FIELD_ML) < _LEAST_FIELD_ML


def _has_background(record: VolumeRecord) -> bool:
    return record.background not in {"noise", "none"}


def _sides(lengths: Iterable[float]) -> str:
    return " x ".join(f"{length:.3g}" for length in lengths)


def _range(record: VolumeRecord) -> float:
    return record.percentiles[-1] - record.percentiles[0]


def percent(share: float) -> str:
    """Return a share as a text, such as 12 % or 1.5 %."""
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"  # noqa: PLR2004

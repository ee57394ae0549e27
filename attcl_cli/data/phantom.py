"""Brain-tumour cases made from anatomy and MR physics: four modalities and their segmentation.

Writing them in a dataset's layout, and choosing how many to make, is left to others.

The anatomy is a set of functions of position in millimetres (depth below a surface, distance to a
sulcus), so a head is the same at every voxel size. Patients differ by scale, tilt, smooth warps,
folding, atrophy, tissue values, protocol and tumour. A voxel holds fractions of tissues, and its
signal is the sum of theirs, as in BrainWeb (Kwan 1999).

Sources of the tissue values, all for 1.5 T:
    Kwan RKS, Evans AC, Pike GB. MRI simulation-based evaluation of image-processing and
        classification methods. IEEE Trans Med Imaging 18:1085, 1999: T1, T2, PD of white and grey
        matter, T2 of CSF (an effective one: flow shortens it).
    Rooney WD et al. Magnetic field and tissue dependencies of human brain longitudinal 1H2O
        relaxation in vivo. Magn Reson Med 57:308, 2007: T1 of CSF, 4.3 s at any field strength.
    Stanisz GJ et al. T1, T2 relaxation and magnetization transfer in tissue at 3T. Magn Reson Med
        54:507, 2005: T1 and T2 of blood at 1.5 T.
    de Blank P et al. Magnetic resonance fingerprinting to characterize childhood and young adult
        brain tumors. Pediatr Neurosurg 54:310, 2019: tumour over contralateral white matter, T1 1.5
        (low grade) to 2.0 (high grade), T2 1.6 to 2.4; peritumoral T1 1.35 +- 0.4, T2 1.7 +- 1.3.
    Szomolanyi P et al. Comparison of the relaxivities of macrocyclic gadolinium-based contrast
        agents in human plasma at 1.5, 3, and 7 T. Invest Radiol 54:559, 2019: r1 of gadobutrol.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from attcl_cli.data.labels import CONVENTIONS

Floats = NDArray[np.floating[Any]]  # float32, for speed
Rng = np.random.Generator
Triple = tuple[float, float, float]

MODALITIES = ("flair", "t1", "t1ce", "t2")

FIELD_MM = (240.0, 240.0, 155.0)
"""What a BraTS volume covers: right to left, anterior to posterior, inferior to superior."""

HEAD_ORIGIN_MM = (119.0, 131.0, 72.0)
"""Where the head frame begins in the field. It has the field's directions; all places below are
in it: mm to the patient's left, to posterior, to superior."""

BOX_MM = (78.0, 92.0, 80.0)
"""No brain reaches further from the origin, to either side."""

SLAB_POINTS = 60_000
"""Points worked on at once, few enough for the processor's cache."""

LOW_GRADE_SHARE = 0.15
MOSTLY = 0.5
_, NCR, ED, ET = CONVENTIONS["2021"].values


@dataclass(frozen=True)
class Tissue:
    """Relaxation at 1.5 T, proton density, and contrast agent taken up minutes after injection."""

    t1_ms: float
    t2_ms: float
    pd: float
    uptake_mmol_l: float = 0.0


TISSUES = {
    "csf": Tissue(4300, 329, 1.0),
    "gm": Tissue(833, 83, 0.86, 0.02),
    "wm": Tissue(500, 70, 0.77, 0.01),
    # Pallidum and, partly, putamen: iron shortens T2; T1 lies between grey and white matter.
    "iron": Tissue(640, 62, 0.80, 0.01),
    "blood": Tissue(1441, 290, 0.85, 1.2),
    # Tumour: chosen within the ratios of de Blank 2019; liquid necrosis goes on towards CSF.
    "oedema": Tissue(870, 135, 0.88, 0.02),
    "rim": Tissue(1000, 125, 0.88, 0.95),
    "solid": Tissue(960, 125, 0.88, 0.05),
    "necrosis": Tissue(2500, 270, 0.95, 0.04),
}
CSF, GM, WM, IRON, BLOOD, OEDEMA, RIM, SOLID, NECROSIS = range(len(TISSUES))

R1_L_PER_MMOL_S = 4.78
"""Gadobutrol in plasma, 37 C, 1.5 T."""

TR_TE_MS = {"flair": (9000, 105), "t1": (540, 12), "t1ce": (580, 12), "t2": (5500, 112)}
"""Spin echoes; FLAIR adds an inversion at the time that nulls CSF, 2.5 s before."""

FLOW = {"flair": 0.2, "t1": 0.5, "t1ce": 0.8, "t2": 0.25}
"""What vessels keep of their signal: blood has left the slice before it is refocused."""


@dataclass(frozen=True)
class PhantomCase:
    """One patient.

    Attributes:
        id: `Phantom_00000`.
        images: Modality -> (X, Y, Z) int16 scanner units, x to the patient's left, y to posterior,
            z to superior; 0 outside the brain, positive inside.
        segmentation: (X, Y, Z) uint8: 1 necrotic or non-enhancing core, 2 oedema, 4 enhancing.
        affine: (4, 4) float64, from voxels to RAS+ millimetres.
    """

    id: str
    images: dict[str, NDArray[np.int16]]
    segmentation: NDArray[np.uint8]
    affine: NDArray[np.float64]


@dataclass(frozen=True)
class _Tumour:
    centre: Triple
    radius: float
    rim: float  # thickness of the enhancing rim; 0: low grade
    oedema: float  # how far oedema reaches from the core within white matter
    push: float  # mass effect: how far the core's surface has moved


@dataclass(frozen=True)
class _Patient:
    to_head: NDArray[np.float64]  # (3, 3) rotation and scale
    ventricles: float  # radius over the average
    sulcus: float  # half width
    cortex: float  # thickness
    tumour: _Tumour | None


def make_case(
    index: int,
    *,
    seed: int = 0,
    shape: tuple[int, int, int] | None = None,
    voxel_mm: float = 1.0,
    tumour: bool = True,
) -> PhantomCase:
    """Make patient `index` of cohort `seed`; the same arguments give the same bytes.

    Args:
        index: Number of the patient, from 0. Patients do not depend on each other.
        seed: Number of the cohort, from 0.
        shape: Voxels; None covers 240 x 240 x 155 mm. Any other shows the middle of that field.
        voxel_mm: Edge of the cubic voxels. Larger ones show the same head, coarser.
        tumour: False makes the same patient healthy.

    Raises:
        ValueError: `index`, `seed`, `shape` or `voxel_mm` is out of range.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index {index}, seed {seed}: both must be 0 or more")
    if not voxel_mm > 0:
        raise ValueError(f"voxel_mm {voxel_mm}: must be above 0")
    size = shape or tuple(math.ceil(f / voxel_mm) for f in FIELD_MM)
    if len(size) != len(FIELD_MM) or min(size) < 1:
        raise ValueError(f"shape {shape}: must be three numbers of 1 or more")

    # A stream a purpose: the voxel size, which changes how much noise is drawn, changes no anatomy.
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence([seed, index]).spawn(4)]
    patient = _draw_patient(streams[0])
    if not tumour:
        patient = replace(patient, tumour=None)
    fields = _draw_fields(streams[1])

    # Centre of the first voxel, in mm from that of a BraTS volume's first voxel.
    first = [(f - 1 - (n - 1) * voxel_mm) / 2 for f, n in zip(FIELD_MM, size, strict=True)]
    axes = [
        (first[i] + voxel_mm * np.arange(size[i]) - HEAD_ORIGIN_MM[i]).astype(np.float32)
        for i in range(3)
    ]
    inside, fractions, labels = _anatomy(patient, fields, axes, voxel_mm)
    images = _scan(fractions, inside, fields, axes, voxel_mm, streams[2], streams[3])
    segmentation = np.zeros(size, np.uint8)
    segmentation[inside] = labels
    affine = np.diag([-voxel_mm, -voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = -first[0], FIELD_MM[1] - 1 - first[1], first[2]
    return PhantomCase(f"Phantom_{index:05d}", images, segmentation, affine)


def spin_echo(tissue: Tissue, *, tr_ms: float, te_ms: float) -> float:
    """Signal of a spin echo with TE far below TR: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    recovered = 1 - math.exp(-tr_ms / tissue.t1_ms)
    return tissue.pd * recovered * math.exp(-te_ms / tissue.t2_ms)


def inversion_recovery(tissue: Tissue, *, tr_ms: float, te_ms: float, ti_ms: float) -> float:
    """Signal of the spin echo `ti_ms` after an inversion, negative before the null."""
    recovered = 1 - 2 * math.exp(-ti_ms / tissue.t1_ms) + math.exp(-tr_ms / tissue.t1_ms)
    return tissue.pd * recovered * math.exp(-te_ms / tissue.t2_ms)


def null_ti_ms(tissue: Tissue, *, tr_ms: float) -> float:
    """The inversion time at which `inversion_recovery` is zero."""
    return tissue.t1_ms * (math.log(2) - math.log1p(math.exp(-tr_ms / tissue.t1_ms)))


def enhanced(tissue: Tissue) -> Tissue:
    """The tissue after contrast: 1/T1' = 1/T1 + r1 C."""
    rate = 1 / tissue.t1_ms + R1_L_PER_MMOL_S / 1000 * tissue.uptake_mmol_l
    return replace(tissue, t1_ms=1 / rate)


# The patient


def _draw_patient(rng: Rng) -> _Patient:
    scale = rng.normal(0.985, 0.022) * rng.normal(1, 0.015, 3)
    a, b, c = rng.normal(0, 0.025, 3)  # radians: BraTS volumes are registered, so nearly upright
    rotation = np.array([[1, -c, b], [c, 1, -a], [-b, a, 1]])
    atrophy = rng.uniform(0, 1)
    side = float(rng.choice([-1, 1]))
    radius = rng.uniform(9, 26)
    centre = (side * rng.uniform(24, 44), rng.uniform(-48, 48), rng.uniform(-12, 36))
    rim, oedema = rng.uniform(3, 8), rng.uniform(8, 30)
    push = rng.uniform(0, 0.28) * radius
    if rng.uniform() < LOW_GRADE_SHARE:
        rim, oedema = 0.0, oedema / 3
    return _Patient(
        to_head=rotation / scale[:, None],
        ventricles=0.8 + 0.5 * atrophy + rng.normal(0, 0.07),
        sulcus=0.25 + 0.42 * atrophy,
        cortex=rng.normal(2.8, 0.12),
        tumour=_Tumour(centre, radius, rim, oedema, push),
    )


@dataclass(frozen=True)
class _Field:
    """A smooth random function, on a lattice of its own, coarse but the same at any voxel size."""

    values: Floats
    step_mm: float

    def at(self, p: Sequence[Floats] | Floats) -> Floats:
        """Values at N points, (3, N) mm, linear between the nodes."""
        where = [self._index(p[i], i) for i in range(3)]
        return ndimage.map_coordinates(self.values, where, order=1, mode="nearest")

    def on_grid(self, axes: Sequence[Floats]) -> Floats:
        """The same (X, Y, Z) where three axes meet, at a fraction of the cost."""
        out = self.values
        for i, axis in enumerate(axes):
            where = np.clip(self._index(axis, i), 0, out.shape[i] - 1.001)
            low = where.astype(np.intp)
            part = (where - low.astype(np.float32)).reshape([-1 if j == i else 1 for j in range(3)])
            out = out.take(low, i) * (1 - part) + out.take(low + 1, i) * part
        return out

    def _index(self, mm: Floats, axis: int) -> Floats:
        return (mm + np.float32(HEAD_ORIGIN_MM[axis] + 10)) / np.float32(self.step_mm)


def _draw_fields(rng: Rng) -> dict[str, _Field]:
    waves = {"warp_x": 70, "warp_y": 70, "warp_z": 70, "wide": 40, "veins": 30, "tracts": 24}
    waves |= {"wiggle_y": 20, "wiggle_z": 20, "fingers": 14, "texture": 9}
    waves |= dict.fromkeys(MODALITIES, 130)
    fields = {name: _noise(rng, wave, max(3, wave / 6)) for name, wave in waves.items()}

    # Sulci are the zero surfaces of noise; value over slope is the signed distance to them, mm.
    # The hemispheres fold alike but not equally: a mirrored part and a free one.
    alike, free, fine = (_noise(rng, wave, 3).values for wave in (27, 27, 15))
    middle = round((HEAD_ORIGIN_MM[0] + 10) / 3)
    count = min(middle, len(alike) - middle - 1)
    alike[middle + 1 : middle + 1 + count] = alike[middle - count : middle][::-1]
    folds = alike + np.float32(0.45) * free + np.float32(0.38) * fine
    slope = np.sqrt(sum(g * g for g in np.gradient(folds, 3.0)))
    fields["folds"] = _Field((folds / (slope + 0.05)).astype(np.float32), 3)
    return fields


def _noise(rng: Rng, wave_mm: float, step_mm: float) -> _Field:
    """Gaussian noise of wavelengths around `wave_mm`, variance 1."""
    shape = [math.ceil((f + 20) / step_mm) + 1 for f in FIELD_MM]
    spectrum = fft.rfftn(rng.standard_normal(shape, np.float32))
    along = [fft.fftfreq(n, step_mm) for n in shape[:2]] + [fft.rfftfreq(shape[2], step_mm)]
    kx, ky, kz = np.meshgrid(*along, indexing="ij", sparse=True)
    waves = wave_mm * np.sqrt(kx**2 + ky**2 + kz**2)
    band = np.exp(-0.5 * ((waves - 1) / 0.35) ** 2).astype(np.float32)
    values = fft.irfftn(spectrum * band, shape)
    return _Field((values / values.std()).astype(np.float32), step_mm)


# The anatomy: points are p (3, N), depths are mm below a surface and negative outside


def _anatomy(
    patient: _Patient, fields: dict[str, _Field], axes: list[Floats], voxel_mm: float
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.uint8]]:
    """Brain mask (X, Y, Z); tissue fractions (tissues, N) and labels (N,) of its N voxels."""
    edge = 1.2 * voxel_mm  # width over which one tissue gives way to the next
    inside = np.zeros([len(a) for a in axes], bool)
    xs, ys, zs = (np.flatnonzero(np.abs(a) < b) for a, b in zip(axes, BOX_MM, strict=True))
    planes = max(1, SLAB_POINTS // max(1, len(ys) * len(zs)))
    fractions, labels, kept = [], [], []
    for start in range(0, len(xs), planes):
        box = xs[start : start + planes], ys, zs
        grid = [a[n] for a, n in zip(axes, box, strict=True)]
        x, y, z = np.meshgrid(*grid, indexing="ij", sparse=True)
        p = np.stack(
            [
                np.float32(a) * x
                + np.float32(b) * y
                + np.float32(c) * z
                + np.float32(1.3) * fields[warp].on_grid(grid)
                for (a, b, c), warp in zip(
                    patient.to_head, ("warp_x", "warp_y", "warp_z"), strict=True
                )
            ]
        )
        hull = _hull(p)
        keep = hull > 0
        inside[np.ix_(*box)] = keep
        p, hull = p[:, keep], hull[keep]
        part = _healthy(patient, fields, _before_growth(p, patient.tumour), hull, edge)
        labels.append(_add_tumour(part, patient.tumour, fields, p, edge))
        fractions.append(part)
        kept.append(np.clip(0.55 + 0.35 * hull + 0.35 * fields["fingers"].at(p), 0.05, 1))
    # Skull stripping leaves shreds of dura and bone, without signal, in the outermost voxels.
    deep = ndimage.binary_erosion(inside, iterations=max(1, round(2 / voxel_mm)))
    share = np.where(deep[inside], np.float32(1), np.concatenate(kept))
    return inside, np.concatenate(fractions, 1) * share, np.concatenate(labels)


def _hull(p: Floats) -> Floats:
    cerebrum, cerebellum, stem = _lobes(p)
    cistern = _ellipsoid(p, (0, 5, -20), (19, 23, 13))  # behind the midbrain
    return _smooth_max(
        _smooth_max(cerebrum, cerebellum, 5), np.maximum(stem, cistern), 6
    ) + np.float32(0.3)


def _lobes(p: Floats) -> tuple[Floats, Floats, Floats]:
    """Depth in cerebrum, cerebellum and brainstem."""
    x, y, z = p
    back = _step((y - 14) / 8)
    tentorium = 13 * back * (1 - np.exp(-((x / 26) ** 2) - ((y - 14) / 24) ** 2))
    floor = 0.25 * np.maximum(-y - 40, 0) - 17 - tentorium
    tapered = np.stack([x * (1 - np.float32(0.0012) * y), y, z])
    upper = _ellipsoid(tapered, (0, -1, 0), (66.5, 78.5, 64), boxy=0.25)
    upper = -_smooth_max(-upper, floor - z, 14)
    folded = np.stack([np.abs(x), y, z])
    cerebrum = _smooth_max(upper, _ellipsoid(folded, (41, -8, -23), (23, 39, 21)), 4)
    tilted = np.stack([x, y - np.float32(0.15) * (z + 42), z])
    cerebellum = _ellipsoid(tilted, (0, 34, -43), (51, 36, 23))
    cerebellum = _smooth_max(cerebellum, _ellipsoid(p, (0, 24, -28), (11, 20, 13)), 6)  # vermis
    cerebellum -= 6 * np.exp(-((x / 7) ** 2)) * _step((y - 52) / 5)
    stem = _tube(p, _STEM, (16, 15, 9, 7), flat=0.85)
    return cerebrum, cerebellum, stem


def _healthy(
    patient: _Patient, fields: dict[str, _Field], p: Floats, hull: Floats, edge: float
) -> Floats:
    """Tissue fractions (tissues, N) of a healthy brain, painted from the outside in."""
    cerebrum, cerebellum, stem = _lobes(p)
    x, y, z = p
    folded = np.stack([np.abs(x), y, z])
    wide, texture = fields["wide"].at(p), fields["texture"].at(p)
    f = np.zeros((len(TISSUES), p.shape[1]), np.float32)
    f[CSF] = 1

    surface, pial = _cortex(fields, p, folded, cerebrum, wide)
    pial = np.minimum(pial, (cerebrum - cerebellum) / 2)
    # Sulci gape at the surface, close with depth, and differ from place to place.
    gape = np.clip(1.4 - surface / 11, 0.3, 1.1) * np.clip(0.8 + 0.6 * wide, 0.1, 1.8)
    grey = pial - patient.sulcus * gape
    _paint(f, {GM: 1}, _cover(grey, edge))
    _paint(f, {WM: 1}, _cover(grey - patient.cortex, edge + 0.6))

    # Cerebellum: folia in shells around the brainstem.
    shell = np.sqrt((0.8 * x) ** 2 + (y + 6) ** 2 + (1.2 * (z + 36)) ** 2)
    phase = (shell + 2 * wide + 0.8 * texture) / 4.4
    own = np.minimum(cerebellum, (cerebellum - cerebrum) / 2)
    leaf = np.hypot(4.4 * np.abs(phase % 1 - 0.5), np.maximum(own - 21, 0))
    leaf = np.minimum(own, leaf)
    _paint(f, {GM: 1}, np.minimum(_cover(leaf + 0.4, edge + 0.5), _cover(own, edge)))
    _paint(f, {WM: 1}, _cover(leaf - 1.6, edge + 0.8))
    _paint(f, {WM: 0.65, GM: 0.35}, _cover(stem - 1.2, edge))

    for mixture, centre, radii in _NUCLEI:
        turned = np.stack([folded[0] - np.float32(0.25) * (y - centre[1]), y, z])
        _paint(f, mixture, _cover(_ellipsoid(turned, centre, radii), 2 + edge))
    _paint(f, {GM: 0.85, IRON: 0.15}, _cover(_tube(folded, _CAUDATE, (6, 5, 3, 2)), 1 + edge))

    # White matter is not uniform: fibres lie denser in some tracts than in others.
    sparse = np.clip(0.14 + 0.09 * fields["tracts"].at(p) + 0.05 * texture, 0, 0.5)
    f[GM] += sparse * f[WM]
    f[WM] *= 1 - sparse

    wet = _ventricles(folded, patient.ventricles)
    caps = 0.25 * np.exp(np.minimum(wet, 0) / 1.5)  # a little fluid seeps into the wall
    _paint(f, {OEDEMA: 1}, np.where(f[WM] > MOSTLY, caps, 0))
    _paint(f, {CSF: 1}, _cover(wet, edge))
    plexus = _tube(folded, _PLEXUS, (1, 1.5, 2.5, 1))
    _paint(f, {BLOOD: 0.6, CSF: 0.4}, _cover(np.minimum(plexus, wet), edge))

    # Vessels: the sagittal sinus, and veins where a second field crosses the sulci.
    sinus = 2.2 - np.hypot(x, hull - 2.5)
    _paint(f, {BLOOD: 1}, _cover(np.minimum(sinus, np.minimum(z + 10, (y + z) / 2 + 40)), edge))
    veins = 0.8 - np.hypot(pial, 9 * fields["veins"].at(p))
    _paint(f, {BLOOD: 1}, _cover(veins, edge))
    return f


def _cortex(
    fields: dict[str, _Field], p: Floats, folded: Floats, cerebrum: Floats, wide: Floats
) -> tuple[Floats, Floats]:
    """Depth below the hemisphere's smooth surface, and below the pia that lines its sulci."""
    x, y, z = folded
    wiggle_y, wiggle_z = fields["wiggle_y"].at(p), fields["wiggle_z"].at(p)
    # The fissure between the hemispheres ends at the corpus callosum and what lies below.
    flat = np.stack([np.zeros_like(x), y, z])
    fissure = np.hypot(x, np.maximum(_ellipsoid(flat, (0, -10, 0), (1e3, 38, 24)), 0))
    surface = np.minimum(cerebrum, fissure - np.float32(0.1))

    # Sylvian fissure: a rising cleft that opens onto the insula, a patch parallel to the surface.
    rise = 0.93 * (z + 8 - 0.4 * (y + 40)) + 2 * wiggle_y
    cleft = np.sqrt(rise**2 + np.maximum(41 - x, 0) ** 2 + np.maximum(np.abs(y + 12) - 32, 0) ** 2)
    bowl = x - 40 + 0.12 * np.abs(y + 16) + 1.5 * wiggle_y
    insula = np.hypot(bowl, np.maximum(np.abs(rise) - 10, 0))
    insula = np.hypot(insula, np.maximum(np.abs(y + 16) - 24, 0))
    sylvian = np.minimum(cleft, insula) - np.float32(0.3)

    # Sulci run straight inwards: the folds are looked up where the ray from the hemisphere's
    # centre through the point comes near the surface.
    centre = np.array([[26], [-2], [-2]], np.float32)
    ray = folded - centre
    radius = np.sqrt(((ray / np.array([[40], [76], [62]], np.float32)) ** 2).sum(0)) + 0.05
    there = ray * (0.25 + 0.75 / radius) + centre
    there[0] *= np.sign(p[0])
    there[1] += 1.8 * wiggle_y
    there[2] += 1.8 * wiggle_z
    folds = fields["folds"].at(there) * np.minimum(radius, 1.2)
    reach = 17 + 4 * wide - 6 * _step((-18 - z) / 4)  # shallower in the temporal lobe
    below = np.maximum(np.maximum(surface - reach, 60 * (0.56 - radius)), 0)
    return surface, np.minimum(np.minimum(surface, sylvian), np.hypot(folds, below))


def _ventricles(folded: Floats, size: float) -> Floats:
    wet = _ellipsoid(folded, (0, -14, -4), (2.4 * size, 15, 9))  # third
    wet = np.maximum(wet, _ellipsoid(folded, (0, 14, -36), (5 * size, 4 * size, 9)))  # fourth
    for nodes, radii in _LATERAL:
        tube = _tube(folded, nodes, [size * r for r in radii], flat=1.4)
        wet = np.maximum(wet, tube)
    return wet


def _before_growth(p: Floats, tumour: _Tumour | None) -> Floats:
    """Where the tissue now at each point lay before the tumour pushed it away."""
    if tumour is None:
        return p
    away = p - np.array(tumour.centre, np.float32)[:, None]
    distance = np.sqrt((away * away).sum(0)) + np.float32(1e-3)
    t = distance / np.float32(tumour.radius)
    moved = tumour.push * np.minimum(t, 1) * np.exp(-np.maximum(t - 1, 0))
    return p - away * (moved / distance)


def _add_tumour(
    fractions: Floats, tumour: _Tumour | None, fields: dict[str, _Field], p: Floats, edge: float
) -> NDArray[np.uint8]:
    """Paint the tumour over the fractions and return the labels (N,)."""
    labels = np.zeros(p.shape[1], np.uint8)
    if tumour is None:
        return labels
    away = p - np.array(tumour.centre, np.float32)[:, None]
    distance = np.sqrt((away * away).sum(0))
    near = np.flatnonzero(distance < 1.6 * tumour.radius + 2.2 * tumour.oedema + 12)
    if not near.size:
        return labels
    p, f = p[:, near], fractions[:, near]
    lumps, fingers, texture = (fields[name].at(p) for name in ("wide", "fingers", "texture"))
    brain = np.clip(1 - f[CSF] - f[BLOOD], 0, 1)

    # The core is lumpy, and hardly crosses the fissure or leaves the cerebrum.
    cerebrum, cerebellum, stem = _lobes(p)
    beyond = 1.5 * np.maximum(-math.copysign(1, tumour.centre[0]) * p[0], 0)
    core = tumour.radius * (1 + 0.18 * lumps) + 0.9 * fingers - distance[near] - beyond
    core = np.minimum(core, cerebrum - np.maximum(cerebellum, stem))
    filled = _cover(core, edge) * np.clip(1.5 * brain, 0, 1)

    # Oedema runs in fingers along white matter and spares most of the cortex.
    reach = tumour.oedema * (0.8 + 0.2 * lumps) + 3 * fingers
    reach -= 6 * (1 - f[WM]) * (1 - f[OEDEMA]) + beyond
    wet = _cover(core + np.maximum(reach, -3), 6) * brain
    uptake = f[WM] + 0.55 * f[GM] + 0.4 * f[IRON]
    _paint(f, {OEDEMA: 1}, wet * uptake * np.clip(0.85 + 0.1 * texture + 0.1 * lumps, 0, 1))
    labels[near[(wet > MOSTLY) & (f[OEDEMA] > 0.6 * MOSTLY)]] = ED

    if tumour.rim > 0:
        strong = np.clip(0.8 + 0.25 * texture, 0.2, 1)
        _paint(f, {RIM: strong, SOLID: 1 - strong}, filled)
        thickness = np.maximum(tumour.rim * (1 + 0.55 * fingers), 0.6)
        dead = filled * _cover(core - thickness, edge)
        liquid = np.clip(0.6 + 0.3 * lumps, 0, 1)
        _paint(f, {NECROSIS: liquid, SOLID: 1 - liquid}, dead)
        labels[near[filled > MOSTLY]] = ET
        labels[near[dead > MOSTLY]] = NCR
    else:
        dense = np.clip(0.6 + 0.25 * texture, 0, 1)
        _paint(f, {SOLID: dense, OEDEMA: 1 - dense}, filled)
        labels[near[filled > MOSTLY]] = NCR
    fractions[:, near] = f
    return labels


# The scanner


def _scan(
    fractions: Floats,
    inside: NDArray[np.bool_],
    fields: dict[str, _Field],
    axes: list[Floats],
    voxel_mm: float,
    protocol: Rng,
    noise: Rng,
) -> dict[str, NDArray[np.int16]]:
    """Signal, coil shading, slice profile, noise and scanner units of each modality."""
    tissues = [
        Tissue(
            t.t1_ms * protocol.normal(1, 0.03),
            t.t2_ms * protocol.normal(1, 0.03),
            t.pd,
            t.uptake_mmol_l * protocol.uniform(0.7, 1.3),
        )
        for t in TISSUES.values()
    ]
    gain = 900 * math.exp(protocol.normal(0, 0.7))
    box = ndimage.find_objects(inside.astype(np.uint8))[0] if inside.any() else (slice(0),) * 3
    within = inside[box]
    images = {}
    for modality in MODALITIES:
        signals = _signals(modality, tissues, protocol)
        white = signals[WM]
        shading = fields[modality].on_grid([a[s] for a, s in zip(axes, box, strict=True)])
        blur_mm = 0.45 + np.abs(protocol.normal(0, 0.2, 3))
        blur_mm[2] += protocol.uniform(0, 1.2)  # slices are thicker than pixels are wide
        sd = np.float32(protocol.uniform(0.012, 0.035) * white)
        units = gain * math.exp(protocol.normal(0, 0.5)) / white

        volume = np.zeros(within.shape, np.float32)
        # Not a matrix product: BLAS may round differently with another number of threads.
        volume[within] = sum(np.float32(s) * f for s, f in zip(signals, fractions, strict=True))
        volume *= np.exp(np.float32(0.07) * shading)
        volume = ndimage.gaussian_filter(volume, blur_mm / voxel_mm, truncate=3)
        # The magnitude of a complex signal with Gaussian noise is Rician.
        real, imaginary = noise.standard_normal((2, *within.shape), np.float32) * sd
        volume = np.hypot(volume + real, imaginary)
        image = np.zeros(inside.shape, np.int16)
        image[box] = np.where(within, np.clip(np.rint(volume * units), 1, 32767), 0)
        images[modality] = image
    return images


def _signals(modality: str, tissues: list[Tissue], protocol: Rng) -> list[float]:
    """Signal of every tissue with this site's variant of the protocol."""
    tr_ms, te_ms = TR_TE_MS[modality] * protocol.uniform(0.9, 1.1, 2)
    # Sites set the inversion for a textbook CSF, and rather early than late.
    ti_ms = null_ti_ms(TISSUES["csf"], tr_ms=tr_ms) * protocol.uniform(0.92, 1)
    if modality == "t1ce":
        tissues = [enhanced(t) for t in tissues]
    if modality == "flair":
        signals = [
            abs(inversion_recovery(t, tr_ms=tr_ms, te_ms=te_ms, ti_ms=ti_ms)) for t in tissues
        ]
    else:
        signals = [spin_echo(t, tr_ms=tr_ms, te_ms=te_ms) for t in tissues]
    signals[BLOOD] *= FLOW[modality]
    return signals


# Shapes

_STEM = ((0, -10, -14), (0, -4, -36), (0, 3, -56), (0, 6, -80))
_CAUDATE = ((14, -44, 0), (16, -36, 10), (19, -10, 20), (24, 8, 18))
_PLEXUS = ((9, -8, 12), (16, 8, 12), (25, 20, 2), (33, 8, -13))
_LATERAL = (
    # frontal horn, body and trigone; occipital horn; temporal horn
    (((14, -47, 5), (7, -33, 9), (9, -13, 14), (15, 3, 13), (25, 20, 6)), (2.5, 4.5, 4, 4, 4.6)),
    (((25, 22, 6), (27, 44, 0)), (5, 1.5)),
    (((26, 20, 4), (34, 6, -14), (32, -16, -24)), (2.2, 1.8, 1.5)),
)
_NUCLEI = (
    ({GM: 0.6, WM: 0.4}, (11, -6, 2), (9, 16, 10)),  # thalamus
    ({GM: 0.7, IRON: 0.3}, (27, -27, -4), (5, 19, 12)),  # putamen
    ({IRON: 1}, (20, -22, -5), (4.5, 10, 7)),  # pallidum
)


def _ellipsoid(p: Floats, centre: Triple, radii: Triple, *, boxy: float = 0.0) -> Floats:
    """Depth in an ellipsoid, true near its surface; `boxy` makes it more of a cushion."""
    a, b, c = (((p[i] - np.float32(centre[i])) / np.float32(radii[i])) ** 2 for i in range(3))
    k = np.sqrt(a + b + c)
    slope = np.sqrt(a / radii[0] ** 2 + b / radii[1] ** 2 + c / radii[2] ** 2) + np.float32(1e-6)
    if boxy:
        k = (1 - boxy) * k + boxy * np.sqrt(np.sqrt(a * a + b * b + c * c))
    return k * (1 - k) / slope


def _tube(
    p: Floats, nodes: Sequence[Triple], radii: Sequence[float], *, flat: float = 1.0
) -> Floats:
    """Depth in a chain of round cones; `flat` above 1 squeezes it from the sides."""
    depth = np.full(p.shape[1:], -1e3, np.float32)
    for a, b, r_a, r_b in zip(nodes, nodes[1:], radii, radii[1:], strict=False):
        along = [b[i] - a[i] for i in range(3)]
        d = [p[i] - np.float32(a[i]) for i in range(3)]
        t = sum(e * v for e, v in zip(along, d, strict=True)) / sum(e * e for e in along)
        t = np.clip(t, 0, 1)
        dx, dy, dz = (v - t * e for e, v in zip(along, d, strict=True))
        gap = np.sqrt(flat**2 * dx * dx + dy * dy + dz * dz)
        depth = np.maximum(depth, r_a + (r_b - r_a) * t - gap)
    return depth


def _smooth_max(a: Floats, b: Floats, width: float) -> Floats:
    """Maximum with a seam rounded over `width` mm: the union of two depths."""
    h = np.maximum(width - np.abs(a - b), 0)
    return np.maximum(a, b) + h * h / (4 * width)


def _step(t: Floats) -> Floats:
    return 1 / (1 + np.exp(-t))


def _cover(depth: Floats, width: float) -> Floats:
    """Share of a voxel inside a surface at this depth."""
    return np.clip(0.5 + depth / width, 0, 1)


def _paint(f: Floats, mixture: Mapping[int, float | Floats], cover: Floats) -> None:
    """Let a mixture of tissues take the share `cover` (N,) of every voxel, in place."""
    touched = np.flatnonzero(cover > 0)
    share = cover[touched]
    f[:, touched] *= 1 - share
    for tissue, part in mixture.items():
        f[tissue, touched] += share * (part[touched] if isinstance(part, np.ndarray) else part)

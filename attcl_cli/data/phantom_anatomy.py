"""Anatomy of the phantoms: patients with their tumours, as fractions of tissues and labels at every voxel.

The anatomy is a set of functions of position in millimetres (depth below a surface, distance to a sulcus), so a head is
the same at every voxel size. Patients differ by scale, tilt, smooth warps, folding, atrophy and tumour. How the tissues
look is left to `phantom_scanner`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from attcl_cli.data.labels import CONVENTIONS
from attcl_cli.data.phantom_scanner import (
    BLOOD,
    CSF,
    GM,
    IRON,
    MODALITIES,
    NECROSIS,
    OEDEMA,
    RIM,
    SOLID,
    TISSUES,
    WM,
    Floats,
    Rng,
)
from attcl_cli.data.phantom_shapes import (
    Triple,
    cover,
    ellipsoid,
    paint,
    smooth_max,
    step,
    tube,
)

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


@dataclass(frozen=True)
class Tumour:
    """A tumour, in mm of the head frame.

    Attributes:
        centre: the middle of its core.
        radius: that of the core.
        rim: thickness of the enhancing rim; 0: low grade.
        oedema: how far oedema reaches from the core within white matter.
        push: mass effect: how far the core's surface has moved.
    """

    centre: Triple
    radius: float
    rim: float
    oedema: float
    push: float


@dataclass(frozen=True)
class Patient:
    """What makes a patient different from others, besides the random fields.

    Attributes:
        to_head: (3, 3) rotation and scale.
        ventricles: their radius over the average.
        sulcus: half the width of the sulci, mm.
        cortex: its thickness, mm.
        tumour: the tumour, or None.
    """

    to_head: NDArray[np.float64]
    ventricles: float
    sulcus: float
    cortex: float
    tumour: Tumour | None


def draw_patient(rng: Rng) -> Patient:
    """Draw a patient with a tumour."""
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
    return Patient(
        to_head=rotation / scale[:, None],
        ventricles=0.8 + 0.5 * atrophy + rng.normal(0, 0.07),
        sulcus=0.25 + 0.42 * atrophy,
        cortex=rng.normal(2.8, 0.12),
        tumour=Tumour(centre, radius, rim, oedema, push),
    )


@dataclass(frozen=True)
class Field:
    """A smooth random function, on a lattice of its own, coarse but the same at any voxel size."""

    values: Floats
    step_mm: float

    def at(self, p: Sequence[Floats] | Floats) -> Floats:
        """Return the values at N points, (3, N) mm, linear between the nodes."""
        positions = [self._index(p[i], i) for i in range(3)]
        value: Floats = ndimage.map_coordinates(self.values, positions, order=1, mode="nearest")
        return value

    def on_grid(self, axes: Sequence[Floats]) -> Floats:
        """Return the values (X, Y, Z) where three axes meet, as `at` does at a multiple of the cost."""
        out = self.values
        for i, axis in enumerate(axes):
            position = np.clip(self._index(axis, i), 0, out.shape[i] - 1.001)
            low = position.astype(np.intp)
            part = (position - low.astype(np.float32)).reshape(
                [-1 if j == i else 1 for j in range(3)]
            )
            out = out.take(low, i) * (1 - part) + out.take(low + 1, i) * part
        return out

    def _index(self, mm: Floats, axis: int) -> Floats:
        return (mm + np.float32(HEAD_ORIGIN_MM[axis] + 10)) / np.float32(self.step_mm)


def draw_fields(rng: Rng) -> dict[str, Field]:
    """Draw the random fields of a patient: warps, folds, textures, and the coil shading of each modality."""
    waves = {"warp_x": 70, "warp_y": 70, "warp_z": 70, "wide": 40, "veins": 30, "tracts": 24}
    waves |= {"wiggle_y": 20, "wiggle_z": 20, "fingers": 14, "texture": 9}
    waves |= dict.fromkeys(MODALITIES, 130)
    fields = {name: _noise(rng, wave, max(3, wave / 6)) for name, wave in waves.items()}

    # Sulci are the zero surfaces of noise; value over slope is the signed distance to them, mm.
    # The hemispheres fold similarly but not equally: a mirrored part and a free one.
    mirrored, free, fine = (_noise(rng, wave, 3).values for wave in (27, 27, 15))
    middle = round((HEAD_ORIGIN_MM[0] + 10) / 3)
    count = min(middle, len(mirrored) - middle - 1)
    mirrored[middle + 1 : middle + 1 + count] = mirrored[middle - count : middle][::-1]
    folds = mirrored + np.float32(0.45) * free + np.float32(0.38) * fine
    slope = np.sqrt(sum(g * g for g in np.gradient(folds, 3.0)))
    fields["folds"] = Field((folds / (slope + 0.05)).astype(np.float32), 3)
    return fields


def _noise(rng: Rng, wave_mm: float, step_mm: float) -> Field:
    """Draw Gaussian noise of wavelengths around `wave_mm`, variance 1."""
    shape = [math.ceil((f + 20) / step_mm) + 1 for f in FIELD_MM]
    spectrum = fft.rfftn(rng.standard_normal(shape, np.float32))
    along = [fft.fftfreq(n, step_mm) for n in shape[:2]] + [fft.rfftfreq(shape[2], step_mm)]
    kx, ky, kz = np.meshgrid(*along, indexing="ij", sparse=True)
    waves = wave_mm * np.sqrt(kx**2 + ky**2 + kz**2)
    band = np.exp(-0.5 * ((waves - 1) / 0.35) ** 2).astype(np.float32)
    values = fft.irfftn(spectrum * band, shape)
    return Field((values / values.std()).astype(np.float32), step_mm)


# Points are p (3, N), depths are mm below a surface and negative outside.


def anatomy(
    patient: Patient, fields: dict[str, Field], axes: list[Floats], voxel_mm: float
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.uint8]]:
    """Return the brain mask (X, Y, Z), and the tissue fractions (tissues, N) and labels (N,) of its N voxels."""
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
    cistern = ellipsoid(p, (0, 5, -20), (19, 23, 13))  # behind the midbrain
    return smooth_max(
        smooth_max(cerebrum, cerebellum, 5), np.maximum(stem, cistern), 6
    ) + np.float32(0.3)


def _lobes(p: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the depths in cerebrum, cerebellum and brainstem."""
    x, y, z = p
    back = step((y - 14) / 8)
    tentorium = 13 * back * (1 - np.exp(-((x / 26) ** 2) - ((y - 14) / 24) ** 2))
    floor = 0.25 * np.maximum(-y - 40, 0) - 17 - tentorium
    tapered = np.stack([x * (1 - np.float32(0.0012) * y), y, z])
    upper = ellipsoid(tapered, (0, -1, 0), (66.5, 78.5, 64), boxy=0.25)
    upper = -smooth_max(-upper, floor - z, 14)
    folded = np.stack([np.abs(x), y, z])
    cerebrum = smooth_max(upper, ellipsoid(folded, (41, -8, -23), (23, 39, 21)), 4)
    tilted = np.stack([x, y - np.float32(0.15) * (z + 42), z])
    cerebellum = ellipsoid(tilted, (0, 34, -43), (51, 36, 23))
    cerebellum = smooth_max(cerebellum, ellipsoid(p, (0, 24, -28), (11, 20, 13)), 6)  # vermis
    cerebellum -= 6 * np.exp(-((x / 7) ** 2)) * step((y - 52) / 5)
    stem = tube(p, _STEM, (16, 15, 9, 7), flat=0.85)
    return cerebrum, cerebellum, stem


def _healthy(
    patient: Patient, fields: dict[str, Field], p: Floats, hull: Floats, edge: float
) -> Floats:
    """Return the tissue fractions (tissues, N) of a healthy brain, painted from the outside in."""
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
    paint(f, {GM: 1}, cover(grey, edge))
    paint(f, {WM: 1}, cover(grey - patient.cortex, edge + 0.6))

    # Cerebellum: folia in shells around the brainstem.
    shell = np.sqrt((0.8 * x) ** 2 + (y + 6) ** 2 + (1.2 * (z + 36)) ** 2)
    phase = (shell + 2 * wide + 0.8 * texture) / 4.4
    folium = np.minimum(cerebellum, (cerebellum - cerebrum) / 2)
    leaf = np.hypot(4.4 * np.abs(phase % 1 - 0.5), np.maximum(folium - 21, 0))
    leaf = np.minimum(folium, leaf)
    paint(f, {GM: 1}, np.minimum(cover(leaf + 0.4, edge + 0.5), cover(folium, edge)))
    paint(f, {WM: 1}, cover(leaf - 1.6, edge + 0.8))
    paint(f, {WM: 0.65, GM: 0.35}, cover(stem - 1.2, edge))

    for mixture, centre, radii in _NUCLEI:
        turned = np.stack([folded[0] - np.float32(0.25) * (y - centre[1]), y, z])
        paint(f, mixture, cover(ellipsoid(turned, centre, radii), 2 + edge))
    paint(f, {GM: 0.85, IRON: 0.15}, cover(tube(folded, _CAUDATE, (6, 5, 3, 2)), 1 + edge))

    # White matter is not uniform: fibres lie denser in some tracts than in others.
    sparse = np.clip(0.14 + 0.09 * fields["tracts"].at(p) + 0.05 * texture, 0, 0.5)
    f[GM] += sparse * f[WM]
    f[WM] *= 1 - sparse

    wet = _ventricles(folded, patient.ventricles)
    caps = 0.25 * np.exp(np.minimum(wet, 0) / 1.5)  # a little fluid seeps into the wall
    paint(f, {OEDEMA: 1}, np.where(f[WM] > MOSTLY, caps, 0))
    paint(f, {CSF: 1}, cover(wet, edge))
    plexus = tube(folded, _PLEXUS, (1, 1.5, 2.5, 1))
    paint(f, {BLOOD: 0.6, CSF: 0.4}, cover(np.minimum(plexus, wet), edge))

    # Vessels: the sagittal sinus, and veins where a second field crosses the sulci.
    sinus = 2.2 - np.hypot(x, hull - 2.5)
    paint(f, {BLOOD: 1}, cover(np.minimum(sinus, np.minimum(z + 10, (y + z) / 2 + 40)), edge))
    veins = 0.8 - np.hypot(pial, 9 * fields["veins"].at(p))
    paint(f, {BLOOD: 1}, cover(veins, edge))
    return f


def _cortex(
    fields: dict[str, Field], p: Floats, folded: Floats, cerebrum: Floats, wide: Floats
) -> tuple[Floats, Floats]:
    """Return the depths below the hemisphere's smooth surface, and below the pia that lines its sulci."""
    x, y, z = folded
    wiggle_y, wiggle_z = fields["wiggle_y"].at(p), fields["wiggle_z"].at(p)
    # The fissure between the hemispheres ends at the corpus callosum and what lies below.
    flat = np.stack([np.zeros_like(x), y, z])
    fissure = np.hypot(x, np.maximum(ellipsoid(flat, (0, -10, 0), (1e3, 38, 24)), 0))
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
    reach = 17 + 4 * wide - 6 * step((-18 - z) / 4)  # shallower in the temporal lobe
    below = np.maximum(np.maximum(surface - reach, 60 * (0.56 - radius)), 0)
    return surface, np.minimum(np.minimum(surface, sylvian), np.hypot(folds, below))


def _ventricles(folded: Floats, size: float) -> Floats:
    wet = ellipsoid(folded, (0, -14, -4), (2.4 * size, 15, 9))  # third
    wet = np.maximum(wet, ellipsoid(folded, (0, 14, -36), (5 * size, 4 * size, 9)))  # fourth
    for nodes, radii in _LATERAL:
        horn = tube(folded, nodes, [size * r for r in radii], flat=1.4)
        wet = np.maximum(wet, horn)
    return wet


def _before_growth(p: Floats, tumour: Tumour | None) -> Floats:
    """Return the points where the tissue now at each point lay before the tumour pushed it away."""
    if tumour is None:
        return p
    away = p - np.array(tumour.centre, np.float32)[:, None]
    distance = np.sqrt((away * away).sum(0)) + np.float32(1e-3)
    t = distance / np.float32(tumour.radius)
    moved = tumour.push * np.minimum(t, 1) * np.exp(-np.maximum(t - 1, 0))
    value: Floats = p - away * (moved / distance)
    return value


def _add_tumour(
    fractions: Floats, tumour: Tumour | None, fields: dict[str, Field], p: Floats, edge: float
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
    filled = cover(core, edge) * np.clip(1.5 * brain, 0, 1)

    # Oedema runs in fingers along white matter and spares most of the cortex.
    reach = tumour.oedema * (0.8 + 0.2 * lumps) + 3 * fingers
    reach -= 6 * (1 - f[WM]) * (1 - f[OEDEMA]) + beyond
    wet = cover(core + np.maximum(reach, -3), 6) * brain
    uptake = f[WM] + 0.55 * f[GM] + 0.4 * f[IRON]
    paint(f, {OEDEMA: 1}, wet * uptake * np.clip(0.85 + 0.1 * texture + 0.1 * lumps, 0, 1))
    labels[near[(wet > MOSTLY) & (f[OEDEMA] > 0.6 * MOSTLY)]] = ED

    if tumour.rim > 0:
        strong = np.clip(0.8 + 0.25 * texture, 0.2, 1)
        paint(f, {RIM: strong, SOLID: 1 - strong}, filled)
        thickness = np.maximum(tumour.rim * (1 + 0.55 * fingers), 0.6)
        dead = filled * cover(core - thickness, edge)
        liquid = np.clip(0.6 + 0.3 * lumps, 0, 1)
        paint(f, {NECROSIS: liquid, SOLID: 1 - liquid}, dead)
        labels[near[filled > MOSTLY]] = ET
        labels[near[dead > MOSTLY]] = NCR
    else:
        dense = np.clip(0.6 + 0.25 * texture, 0, 1)
        paint(f, {SOLID: dense, OEDEMA: 1 - dense}, filled)
        labels[near[filled > MOSTLY]] = NCR
    fractions[:, near] = f
    return labels

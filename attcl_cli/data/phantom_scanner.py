"""MR physics of the phantoms: tissues, signal equations, and what a scanner makes of fractions of tissues.

Where which tissue lies is left to `phantom_anatomy`.

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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.floating[Any]]  # float32, for speed
Rng = np.random.Generator

MODALITIES = ("flair", "t1", "t1ce", "t2")


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


class Shading(Protocol):
    """Varies smoothly over the field of view."""

    def on_grid(self, axes: Sequence[Floats]) -> Floats:
        """Return the values (X, Y, Z) where three axes meet, mm."""


def spin_echo(tissue: Tissue, *, tr_ms: float, te_ms: float) -> float:
    """Return the signal of a spin echo with TE far below TR: PD (1 - exp(-TR/T1)) exp(-TE/T2)."""
    recovered = 1 - math.exp(-tr_ms / tissue.t1_ms)
    return tissue.pd * recovered * math.exp(-te_ms / tissue.t2_ms)


def inversion_recovery(tissue: Tissue, *, tr_ms: float, te_ms: float, ti_ms: float) -> float:
    """Return the signal of the spin echo `ti_ms` after an inversion, negative before the null."""
    recovered = 1 - 2 * math.exp(-ti_ms / tissue.t1_ms) + math.exp(-tr_ms / tissue.t1_ms)
    return tissue.pd * recovered * math.exp(-te_ms / tissue.t2_ms)


def null_ti_ms(tissue: Tissue, *, tr_ms: float) -> float:
    """Return the inversion time at which `inversion_recovery` is zero."""
    return tissue.t1_ms * (math.log(2) - math.log1p(math.exp(-tr_ms / tissue.t1_ms)))


def enhanced(tissue: Tissue) -> Tissue:
    """Return the tissue after contrast: 1/T1' = 1/T1 + r1 C."""
    rate = 1 / tissue.t1_ms + R1_L_PER_MMOL_S / 1000 * tissue.uptake_mmol_l
    return replace(tissue, t1_ms=1 / rate)


def scan(
    fractions: Floats,
    inside: NDArray[np.bool_],
    fields: Mapping[str, Shading],
    axes: list[Floats],
    voxel_mm: float,
    protocol: Rng,
    noise: Rng,
) -> dict[str, NDArray[np.int16]]:
    """Return the image of each modality (X, Y, Z): signal, coil shading, slice profile, noise and scanner units.

    Args:
        fractions: (tissues, N) of the N voxels of the brain.
        inside: (X, Y, Z), the brain.
        fields: the shading of each modality.
        axes: the positions of the voxels along each axis, mm.
        voxel_mm: edge of the voxels.
        protocol: draws what differs between sites.
        noise: draws the noise.
    """
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
    """Return the signal of every tissue with this site's variant of the protocol."""
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

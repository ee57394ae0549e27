"""The metrics: what each is called, how its values are read, and the function that computes it.

A new metric is one record in `METRICS` and its formula; flags, tables, pages and files read the record. What a function
computes with is in `formulas`, loaded when it is called: `attcl --help` reads this file. The metrics of segmentations
are in `attcl_cli.segmentation.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, Protocol

from attcl_cli.errors import UsageError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Masks = Mapping[str, NDArray[np.bool_] | None]  # region -> its voxels; None: all

BRAIN, TUMOUR, HEALTHY, WHOLE = "brain", "tumour", "healthy", "whole"
SLICES = "slices"  # the region of what feature networks are shown

FID_NETWORKS = ("inception", "effnet-lite0")  # the first is the standard one
KERNEL_IMAGES = 5_000  # drawn of each side of KID if there are more
DIVERSITY_STEP = 8  # every n-th of the slices is sampled
# The length of Inception's features: the covariance of fewer slices is singular.
FEW_SLICES = 2048

_WINDOW = "each volume scaled by its own 0.5 and 99.5 percentiles in the brain (non-zero truth)"
_REGIONS = (
    f"{_WINDOW}; only region whole sees what is drawn outside the brain; empty region: undefined"
)
_SLICES = f"slices at 20 to 80 % of the height, whole, 8 bit; {_WINDOW}"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: in files, on a terminal and in Python.
        title: in tables and plots of a page.
        description: one sentence, the help of its flag.
        policy: how it is measured, and what an empty region counts.
        function: computes it; what it is called with depends on `sees`.
        unit: "1" if there is none.
        higher_is_better: the direction.
        sees: what the function is called with, and what it returns:
            "volume": a `VolumePair` and masks by region; returns region -> value, NaN if undefined;
            "slices": a `Perceptual` network and what it embedded of the real and of the predicted slices; the value;
            "samples": a `Perceptual` network and what it embedded of each sample of some slices; the value;
            "sets": the `FeatureSet` of real slices and that of predicted ones; the value.
        network: the feature network that it needs; "" if none. Metrics without are scored by default.
        regions: those that a terminal shows, and in which missing volumes are counted; files and pages have all.
        flag: the command line's flag that asks for it, if not its name.
        short: the heading of its column on a terminal, if not its name.
        few: with fewer slices than this, the value depends on their number.
    """

    name: str
    title: str
    description: str
    policy: str
    function: Callable[..., Any]
    unit: str = "1"
    higher_is_better: bool = False
    sees: Literal["volume", "slices", "samples", "sets"] = "volume"
    network: str = ""
    regions: tuple[str, ...] = (BRAIN,)
    flag: str = ""
    short: str = ""
    few: int = 0

    def label(self, region: str) -> str:
        """Return the name of its values in a region, as pages show it: `PSNR brain (dB)`."""
        place = f" {region}" if self.sees == "volume" else ""
        return f"{self.title}{place}" + (f" ({self.unit})" if self.unit != "1" else "")

    def heading(self, region: str) -> str:
        """Return the heading of its column on a terminal; the region is named if there are several."""
        unit = f" {self.unit}" if self.unit != "1" else ""
        place = f" {region}" if len(self.regions) > 1 else ""
        return f"{self.short or self.name}{place}{unit}"


@dataclass(frozen=True, eq=False)
class VolumePair:
    """A predicted volume and the true one, (D, H, W) each (`windows`).

    Attributes:
        image: the prediction scaled to [0, 1] by its own window, 0 outside the brain; float32.
        truth: likewise, of the truth.
        raw: the prediction's intensities.
        raw_truth: the truth's intensities.
        whole: the prediction in its own window with what it holds outside the brain; None: nothing.
    """

    image: Array
    truth: Array
    raw: Array
    raw_truth: Array
    whole: Array | None = None

    @property
    def shown(self) -> Array:
        """The prediction as it is: what is drawn outside the brain, too."""
        return self.image if self.whole is None else self.whole

    def image_for(self, region: str) -> Array:
        """Return the prediction as a region sees it: `whole` sees everything, the others 0 outside the brain."""
        return self.shown if region == WHOLE else self.image


class FeatureSet(Protocol):
    """The features of a set of slices (`feature_store.FeatureSet`)."""

    @property
    def dim(self) -> int:
        """The length of a slice's features."""

    def __len__(self) -> int:
        """Return the number of slices."""

    def moments(self) -> Any:
        """Return mean and covariance of all features, a `formulas.Moments`."""

    def drawn(self, most: int) -> Array:
        """Return all features, (N, dim), or `most` of them."""


# --- The functions ------------------------------------------------------------------------------------------------


def _ssim(pair: VolumePair, masks: Masks) -> dict[str, float]:
    of_regions = _formulas().ssim_of_regions
    if pair.shown is pair.image:
        values: dict[str, float] = of_regions(pair.image, pair.truth, masks, data_range=1.0)
        return values
    values = {}
    for whole in (True, False):
        seen = {region: mask for region, mask in masks.items() if (region == WHOLE) == whole}
        image = pair.shown if whole else pair.image
        values |= of_regions(image, pair.truth, seen, data_range=1.0) if seen else {}
    return {region: values[region] for region in masks}


def _psnr(pair: VolumePair, masks: Masks) -> dict[str, float]:
    psnr = _formulas().psnr
    return {
        region: psnr(pair.image_for(region), pair.truth, data_range=1.0, mask=mask)
        for region, mask in masks.items()
    }


def _nmse(pair: VolumePair, masks: Masks) -> dict[str, float]:
    nmse = _formulas().nmse
    return {
        region: nmse(pair.image_for(region), pair.truth, mask=mask)
        for region, mask in masks.items()
    }


def _gms(pair: VolumePair, masks: Masks) -> dict[str, float]:
    # In the whole volume most voxels are background, which is 1.
    inside = {region: mask for region, mask in masks.items() if mask is not None}
    value: dict[str, float] = _formulas().gms_of_regions(pair.image, pair.truth, inside)
    return value


def _ssim_brasyn(pair: VolumePair, masks: Masks) -> dict[str, float]:
    tumour = masks.get(TUMOUR)
    if tumour is None:
        return {}
    values = _formulas().ssim_brasyn(pair.raw, pair.raw_truth, tumour)
    return dict(zip((TUMOUR, HEALTHY), values, strict=True))


def _lpips(network: Any, real: Sequence[Any], predicted: Sequence[Any]) -> float:
    value: float = _formulas().mean_distance(network, real, predicted)
    return value


def _lpips_diversity(network: Any, samples: Sequence[Sequence[Any]]) -> float:
    """Return the mean pairwise LPIPS of the samples of a slice (StarGAN v2, Section 4)."""
    mean_distance = _formulas().mean_distance
    return fmean(mean_distance(network, one, other) for one, other in combinations(samples, 2))


def _frechet_distance(real: FeatureSet, predicted: FeatureSet) -> float:
    formulas, most = _formulas(), real.dim
    value: float = (
        formulas.frechet_distance_of_few(real.drawn(most), predicted.drawn(most))
        if max(len(real), len(predicted)) <= most
        else formulas.frechet_distance(real.moments(), predicted.moments())
    )
    return value


def _kernel_distance(real: FeatureSet, predicted: FeatureSet) -> float:
    value: float = _formulas().kernel_distance(
        real.drawn(KERNEL_IMAGES), predicted.drawn(KERNEL_IMAGES)
    )
    return value


def _formulas() -> Any:
    from attcl_cli.scoring import formulas  # noqa: PLC0415 - loads scipy

    return formulas


# --- The records --------------------------------------------------------------------------------------------------

LPIPS_MIN_SIDE = 31  # pixels; of less, AlexNet's second pooling leaves nothing

METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            name="ssim",
            title="SSIM",
            description="Structural similarity by region, and the challenge's.",
            policy=f"3-D, Gaussian 1.5, window 11, mean over the region; {_REGIONS}",
            function=_ssim,
            higher_is_better=True,
        ),
        Metric(
            name="psnr",
            title="PSNR",
            description="Peak signal-to-noise ratio, dB.",
            policy=f"data range 1; {_REGIONS}",
            function=_psnr,
            unit="dB",
            higher_is_better=True,
        ),
        Metric(
            name="nmse",
            title="NMSE",
            description="Squared error over squared truth; lower is better.",
            policy=f"squared error over squared truth; {_REGIONS}",
            function=_nmse,
        ),
        Metric(
            name="gms",
            title="GMS",
            description="Gradient magnitude similarity, lower for blurred images.",
            policy="gradient magnitude similarity (Xue et al. 2014) of axial slices at full size, Prewitt gradients, "
            f"c = 0.0026, mean over the region; {_WINDOW}; empty region: undefined",
            function=_gms,
            higher_is_better=True,
        ),
        Metric(
            name="ssim-brasyn",
            title="SSIM (BraSyn)",
            description="Structural similarity as the BraSyn challenge computes it.",
            policy="the BraSyn challenge's, of raw intensities: each volume clipped at its own 0.5 (at least 0) "
            "and 99.5 percentiles of all voxels, times the mask, mean over the whole volume; a factor of the "
            "intensities changes nothing, an offset or negative values do; most is background, so zeros score 0.8 "
            "(healthy) and 0.98 (tumour): compare with the baselines only; no tumour: undefined",
            function=_ssim_brasyn,
            higher_is_better=True,
            regions=(TUMOUR, HEALTHY),
            flag="ssim",
            short="brasyn",
        ),
        Metric(
            name="lpips",
            title="LPIPS",
            description="Perceptual distance to the real slice; lower is better.",
            policy=f"mean over slices; {_SLICES}",
            function=_lpips,
            sees="slices",
            network="alexnet",
            regions=(SLICES,),
        ),
        Metric(
            name="lpips-diversity",
            title="LPIPS diversity",
            description="Distance between samples of one source; higher is better.",
            policy=f"mean pairwise LPIPS of the samples of a slice, every {DIVERSITY_STEP}th slice; all samples of a "
            "modality in the one window of training",
            function=_lpips_diversity,
            higher_is_better=True,
            sees="samples",
            network="alexnet",
            regions=(SLICES,),
            short="diversity",
        ),
        Metric(
            name="fid",
            title="FID",
            description="Frechet Inception distance, real against synthetic.",
            policy=f"real against generated slices; {_SLICES}",
            function=_frechet_distance,
            sees="sets",
            network="inception",
            regions=(SLICES,),
            few=FEW_SLICES,
        ),
        Metric(
            name="fd-effnet",
            title="FD (EfficientNet)",
            description="Frechet distance of EfficientNet-Lite0 features.",
            policy=f"Frechet distance of EfficientNet-Lite0 features, not FID; {_SLICES}",
            function=_frechet_distance,
            sees="sets",
            network="effnet-lite0",
            regions=(SLICES,),
            flag="fid",
            few=FEW_SLICES,
        ),
        Metric(
            name="kid",
            title="KID",
            description="Kernel Inception distance; also reliable for few slices.",
            policy=f"cubic kernel, unbiased, at most {KERNEL_IMAGES} slices per side; {_SLICES}",
            function=_kernel_distance,
            sees="sets",
            network="inception",
            regions=(SLICES,),
        ),
        Metric(
            name="kd-effnet",
            title="KD (EfficientNet)",
            description="Kernel distance of EfficientNet-Lite0 features.",
            policy="kernel distance of EfficientNet-Lite0 features, not KID; cubic kernel, unbiased, "
            f"at most {KERNEL_IMAGES} slices per side; {_SLICES}",
            function=_kernel_distance,
            sees="sets",
            network="effnet-lite0",
            regions=(SLICES,),
            flag="kid",
        ),
    )
}


def require_fid_network(name: str) -> None:
    """Raise a `UsageError` if this is none of `FID_NETWORKS`."""
    if name not in FID_NETWORKS:
        raise UsageError(
            f"--fid-network: {name!r}, expected one of {', '.join(FID_NETWORKS)}",
            "--fid-network effnet-lite0 needs no download",
            code="unknown-fid-network",
        )


def default_metrics() -> tuple[str, ...]:
    """Return the names of the metrics that need no network; these are scored if none is asked for."""
    return tuple(name for name, metric in METRICS.items() if not metric.network)


def flags() -> dict[str, str]:
    """Return the flags that ask for metrics, without dashes, and the help of each."""
    described: dict[str, str] = {}
    for metric in METRICS.values():
        described.setdefault(metric.flag or metric.name, metric.description)
    return described


def select(asked: Sequence[str], *, fid_network: str = FID_NETWORKS[0]) -> tuple[str, ...]:
    """Return the names of the metrics that are asked for, in the order of `METRICS`.

    Args:
        asked: flags without dashes, or names; a flag may ask for several metrics. Empty: `default_metrics`.
        fid_network: one of `FID_NETWORKS`; flags ask for the metrics of this network.

    Raises:
        UsageError: there is no metric, or no network, of that name.
    """
    require_fid_network(fid_network)
    if not asked:
        return default_metrics()
    others = set(FID_NETWORKS) - {fid_network}
    offered = {
        name: metric.flag or name
        for name, metric in METRICS.items()
        if metric.network not in others
    }
    known = {*offered, *offered.values()}
    for name in asked:
        if name not in known:
            raise UsageError(
                f"metrics: {name!r}, expected one of {', '.join(sorted(known))}",
                nearest(name, known),
                code="unknown-metric",
            )
    return tuple(name for name, flag in offered.items() if name in asked or flag in asked)

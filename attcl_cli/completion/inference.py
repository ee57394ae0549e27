"""Slices of a case through networks: calls of one shape, passes over the same voxels, their mean.

Knows prepared arrays and methods; which case they belong to, and where results go, is left to the caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import nn

from attcl_cli import devices
from attcl_cli.completion.even_slices import even_out
from attcl_cli.completion.guided import Guidance, sharpen
from attcl_cli.completion.jobs import Manner
from attcl_cli.completion.preparation import AXIAL, SAGITTAL, THREE_PLANES, Prepared, prepare
from attcl_cli.data import intensities
from attcl_cli.data.intensities import Array, Scale
from attcl_cli.data.volumes import Volume
from attcl_cli.errors import AttclError
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import Weights, WeightsInfo


def translate(
    method: Method,
    slices: Mapping[str, torch.Tensor],
    targets: Sequence[str],
    *,
    sample: int | None = None,
) -> dict[str, torch.Tensor]:
    """Translate up to `slices_per_call` slices, and bring them back to their own size.

    Args:
        method: with weights.
        slices: source -> (B, 1 + 2 * context, h, w) float32 in [-1, 1], padded and averaged down (`preparation.fit`),
            on the method's device.
        targets: the modalities to make.
        sample: draw the style of each target with this number instead of taking the reference's.

    Returns:
        target -> (B, 1, h * factor, w * factor), clipped to [-1, 1]; factor = canvas / image_size.
    """
    settings = method.settings
    count, *shape = next(iter(slices.values())).shape
    filled = {}
    for source, x in slices.items():
        lacking = slices_per_call(_side(settings, x.shape), x.device) - count
        whole = torch.cat([x, x.new_full((lacking, *shape), -1.0)]) if lacking > 0 else x
        filled[source] = whole.contiguous(memory_format=torch.channels_last)
    factor = settings.canvas // settings.image_size
    fakes = method.synthesise(filled, targets, sample=sample)
    if factor > 1:
        fakes = {
            target: nn.functional.interpolate(
                fake, scale_factor=factor, mode="bicubic", align_corners=False
            )
            for target, fake in fakes.items()
        }
    return {target: fake[:count].clamp(-1, 1) for target, fake in fakes.items()}


def slices_per_call(side: int, device: torch.device) -> int:
    """Return how many slices go through the network in every call, the last call filled up.

    Convolution kernels round differently for different batch shapes; a shape that depends on nothing but the weights,
    the case's box and the kind of device is what makes results independent of batch size, parts and order, to the bit.
    A CPU is fastest if the features of a call fit its cache (256 pixels: 8 at once take 1.4 times as long as 2).

    Args:
        side: of the square that the network sees, in pixels; of a box, the side of a square of its area.
        device: where the network runs.
    """
    return 16 if device.type != "cpu" else max(2, min(8, 512 // side))


def to_device(slices: Array, device: torch.device) -> torch.Tensor:
    """Return slices on the device; on a CPU without a copy."""
    return torch.from_numpy(slices).to(device, non_blocking=True)


def from_device(images: torch.Tensor) -> Array:
    """Return images as an array, when the device has made them; on a CPU without a copy."""
    fetched: Array = images.cpu().numpy()
    return fetched


@dataclass(frozen=True)
class Network:
    """Translates the slices of a case, some of them at once.

    Attributes:
        method: with weights, on `device`.
        device: where it runs.
        batch_size: slices moved to the device at once; changes memory, never results.
    """

    method: Method
    device: torch.device
    batch_size: int

    def styles(
        self,
        prepared: Prepared,
        targets: Sequence[str],
        samples: Sequence[int | None],
        *,
        mirrored: bool = False,
    ) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """Translate all slices, block by block.

        Args:
            prepared: the slices.
            targets: the modalities to make.
            samples: the numbers of the styles to draw; None stands for the reference's.
            mirrored: the network sees the slices mirrored left to right, and what it makes is mirrored back.

        Yields:
            Rows of `Prepared.indices`, and target -> (samples, B, H, W) in [-1, 1] of them.
        """
        shape = next(iter(prepared.small.values())).shape
        call = slices_per_call(_side(self.method.settings, shape), self.device)
        at_once = max(self.batch_size // call, 1) * call

        def calls() -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
            for start in range(0, len(prepared.indices), at_once):
                block = {
                    name: to_device(small[start : start + at_once], self.device)
                    for name, small in prepared.small.items()
                }
                count = min(at_once, len(prepared.indices) - start)
                for offset in range(0, count, call):
                    rows = slice(start + offset, start + min(offset + call, count))
                    yield rows, {name: it[offset : offset + call] for name, it in block.items()}

        def translated(
            item: tuple[slice, dict[str, torch.Tensor]],
        ) -> tuple[slice, dict[str, torch.Tensor]]:
            rows, slices = item
            if mirrored:
                slices = {name: x.flip(-1) for name, x in slices.items()}
            drawn = [translate(self.method, slices, targets, sample=sample) for sample in samples]
            styles = {name: torch.stack([fakes[name][:, 0] for fakes in drawn]) for name in targets}
            if mirrored:
                styles = {name: images.flip(-1) for name, images in styles.items()}
            return rows, styles

        yield from devices.in_turn(translated, calls(), self.device)


@dataclass(frozen=True)
class Pass:
    """One way in which a model looks at a case.

    Attributes:
        model: SHA-256 of its weights.
        prepared: the slices.
        mirrored: they are mirrored left to right before, and back after.
        share: of this pass in the mean of all.
    """

    model: str
    prepared: Prepared
    mirrored: bool
    share: float


@dataclass(frozen=True)
class Made:
    """A volume that was made, at its voxels (V,), in the order of the mask of the axial volume.

    Attributes:
        mean: of all passes and samples, float32 in [-1, 1].
        deviation: of the samples, the mean of all passes, in the same unit; None if it was not asked for.
        disagreement: mean absolute difference of two passes, as a share of the window; None of a single pass.
    """

    mean: Array
    deviation: Array | None
    disagreement: float | None


def passes_of(
    model: str,
    method: Method,
    sources: Mapping[str, Array],
    shown: Array,
    inside: Array,
    brain: Array,
    scales: Mapping[str, Scale],
    *,
    mirror: bool,
    planes: str = AXIAL,
    share: float = 1.0,
) -> list[Pass]:
    """Prepare the passes of one model over a case.

    Every plane counts the same, and within a plane the mirrored pass as much as the other. Sagittal slices are not
    mirrored: left and right are no direction in them, and the network would see the same slices again.

    Args:
        model: SHA-256 of the weights.
        method: with these weights.
        sources: modality -> (D, H, W) intensities.
        shown: (D, H, W) bool, where any source is not 0.
        inside: (D, H, W) bool, the voxels to be made.
        brain: (D, H, W) bool, non-zero in any modality of the case.
        scales: modality -> the intensities that become -1 and 1.
        mirror: add the mirrored passes.
        planes: `axial`, or `three`.
        share: of the model in the mean of all.
    """
    passes = []
    chosen = (AXIAL,) if planes == AXIAL else THREE_PLANES
    for plane in chosen:
        prepared = prepare(sources, shown, inside, brain, scales, method, plane=plane)
        ways = (False, True) if mirror and plane != SAGITTAL else (False,)
        part = share / (len(chosen) * len(ways))
        passes += [Pass(model, prepared, mirrored, part) for mirrored in ways]
    return passes


def make(
    passes: Sequence[Pass],
    networks: Mapping[str, Network],
    targets: Sequence[str],
    samples: Sequence[int | None],
    *,
    deviation: bool = False,
) -> dict[str, Made]:
    """Send a case through the networks, pass by pass, and average.

    Args:
        passes: all over the same voxels; their shares add up to 1.
        networks: SHA-256 of the weights -> the network.
        targets: the modalities to make.
        samples: the numbers of the styles whose mean is taken; None stands for the reference's.
        deviation: also return the standard deviation of the samples.
    """
    means: dict[str, list[Array]] = {target: [] for target in targets}
    deviations: dict[str, list[Array]] = {target: [] for target in targets}
    for item in passes:
        prepared = item.prepared
        parts: dict[str, list[tuple[Array, Array | None]]] = {target: [] for target in targets}
        blocks = networks[item.model].styles(prepared, targets, samples, mirrored=item.mirrored)
        for rows, styles in blocks:
            mask = prepared.mask(rows)
            for target in targets:
                mean = styles[target].mean(dim=0)
                spread = styles[target].std(dim=0) if deviation else None
                parts[target].append(
                    (
                        _voxels(mean, prepared, mask),
                        None if spread is None else _voxels(spread, prepared, mask),
                    )
                )
        for target in targets:
            means[target].append(_joined([mean for mean, _ in parts[target]], prepared))
            spreads = [spread for _, spread in parts[target] if spread is not None]
            if deviation:
                deviations[target].append(_joined(spreads, prepared))
    shares = [item.share for item in passes]
    return {
        target: Made(
            _weighted(means[target], shares),
            _weighted(deviations[target], shares) if deviation else None,
            _disagreement(means[target]),
        )
        for target in targets
    }


def intensities_of(
    values: Array,
    inside: Array,
    info: WeightsInfo,
    target: str,
    *,
    even: bool = False,
    asked: str,
    guidance: Guidance | None = None,
    scale: Scale | None = None,
) -> Array:
    """Return the voxels of a volume that was made, (V,), as intensities in the scale of its modality.

    Args:
        values: (V,) in [-1, 1], of the voxels `inside`.
        inside: (D, H, W) bool.
        info: the weights', with their scales, and the quantiles unless `network` is asked for.
        target: the modality.
        even: even out the steps between slices first.
        asked: what is done to the intensities then: `network`, `stretched` or `matched` (`Manner.intensities`). The
            quantiles of the modality were measured on the slices that training uses, and so are the volume's own, if
            it has any of these.
        guidance: sharpen the volume in the end by these modalities of its case; matching quantiles once more would
            undo a part of it.
        scale: the intensities that -1 and 1 become; None: those of the weights.
    """
    if even:
        values = even_out(values, inside)
    if asked != "network" and values.size:
        span = intensities.training_slices(len(inside))
        ends = np.cumsum([0, *inside.sum(axis=(1, 2))])
        middle = values[ends[span.start] : ends[min(span.stop, len(inside))]]
        goal = info.quantiles[target]
        measured = middle if middle.size else values
        if asked == "matched":
            own = intensities.quantiles(measured, len(goal))
            values = intensities.match_quantiles(values, own, goal)
        else:
            values = intensities.stretch_tails(values, measured, goal)
    if guidance is not None:
        values = sharpen(values, inside, guidance)
    return intensities.denormalise(values, scale or info.scales[target])


@dataclass(frozen=True)
class InMemory:
    """Completes volumes in memory and writes nothing: for scores of what is not on disk.

    Attributes:
        method: with `weights`, on `device`.
        weights: their scales bring intensities back.
        device: where the method runs.
        batch_size: slices moved to the device at once.
    """

    method: Method
    weights: Weights
    device: torch.device
    batch_size: int = 64

    def volumes(
        self,
        sources: Mapping[str, Volume],
        brain: Array,
        targets: Sequence[str],
        *,
        sample: int | None = None,
    ) -> dict[str, Array]:
        """Return a case in each target modality, made as a completion without options makes it, but never sharpened.

        Args:
            sources: modality -> volume, in the order of preference; of these the method takes those that it needs.
            brain: (D, H, W) bool, non-zero in any modality of the case.
            targets: the modalities to make.
            sample: draw the style of each target with this number instead of taking the reference's.

        Returns:
            target -> (D, H, W) float32, intensities as a completion would write them before rounding.
        """
        rule, info, manner = self.weights.info.rule, self.weights.info, Manner()
        together: dict[tuple[str, ...], list[str]] = {}
        for target in targets:
            together.setdefault(rule.sources_for(target, tuple(sources)) or (), []).append(target)
        volumes: dict[str, Array] = {}
        for names, made_together in together.items():
            taken = {name: sources[name].data for name in names}
            inside = intensities.brain_of(list(taken.values()))
            made = self._make(self._passes(taken, inside, brain), made_together, sample)
            for target in made_together:
                values = intensities_of(
                    made[target].mean,
                    inside,
                    info,
                    target,
                    even=manner.evens(info),
                    asked=manner.intensities_for(info, target),
                )
                volumes[target] = intensities.volume_of(values, inside)
        return volumes

    def samples(
        self,
        sources: Mapping[str, Volume],
        brain: Array,
        target: str,
        indices: Array,
        *,
        count: int,
    ) -> list[Array]:
        """Return `count` style samples of some slices, each (N, H, W) float32 in [0, 1]; arguments as of `volumes`."""
        names = self.weights.info.rule.sources_for(target, tuple(sources)) or ()
        taken = {name: sources[name].data for name in names}
        inside = np.zeros_like(brain)
        inside[indices] = intensities.brain_of([data[indices] for data in taken.values()])
        passes = self._passes(taken, inside, brain)
        drawn = (self._make(passes, [target], number)[target] for number in range(count))
        return [intensities.volume_of((made.mean + 1) / 2, inside)[indices] for made in drawn]

    def _passes(self, sources: Mapping[str, Array], inside: Array, brain: Array) -> list[Pass]:
        scales: dict[str, Scale] = {}
        for name, data in sources.items():
            scale = intensities.intensity_scale(data, brain)
            if scale is None:
                raise AttclError(
                    f"{name}: 99 % of the brain has one value, expected contrast in a source",
                    "remove this file, so that the modality counts as missing",
                    code="volume-without-contrast",
                )
            scales[name] = scale
        return passes_of(
            self.weights.sha256,
            self.method,
            sources,
            intensities.brain_of(list(sources.values())),
            inside,
            brain,
            scales,
            mirror=Manner().mirrors(self.weights.info),
        )

    def _make(
        self, passes: Sequence[Pass], targets: Sequence[str], sample: int | None
    ) -> dict[str, Made]:
        network = Network(self.method, self.device, self.batch_size)
        return make(passes, {self.weights.sha256: network}, targets, [sample])


def _side(settings: Settings, shape: Sequence[int]) -> int:
    """Return the side that decides about the slices per call: the weights', or that of a case's box."""
    return math.isqrt(shape[-2] * shape[-1]) if settings.crop else settings.image_size


def _voxels(images: torch.Tensor, prepared: Prepared, mask: Array) -> Array:
    """Return the pixels to be made, (n,), of images (B, H, W) of the padded size."""
    picked: Array = intensities.crop(from_device(images), prepared.size)[mask]
    return picked


def _joined(parts: Sequence[Array], prepared: Prepared) -> Array:
    whole = np.concatenate(parts) if parts else np.empty(0, np.float32)
    return prepared.in_axial_order(whole)


def _weighted(volumes: Sequence[Array], shares: Sequence[float]) -> Array:
    """Return the weighted mean, in the order of the passes."""
    total: Array = volumes[0] * np.float32(shares[0])
    for volume, share in zip(volumes[1:], shares[1:], strict=True):
        total = total + volume * np.float32(share)
    return total


def _disagreement(volumes: Sequence[Array]) -> float | None:
    """Return the mean absolute difference of all pairs of passes, as a share of the window; None without any."""
    pairs = list(combinations(volumes, 2))
    if not pairs or not volumes[0].size:
        return None
    return float(np.mean([np.abs(one - other).mean(dtype=np.float64) / 2 for one, other in pairs]))

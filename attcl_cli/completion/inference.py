"""Slices through a network and back: fitted to its size, in calls of one shape, spread over the volume again.

Knows arrays and weights; which case they belong to, and where results go, is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from attcl_cli.data import intensities
from attcl_cli.data.intensities import Array, Scale
from attcl_cli.data.volumes import Grid, Volume
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.weights import Weights


@dataclass(frozen=True)
class Prepared:
    """A case, read and ready for the network: only what is needed from here on is kept.

    Attributes:
        small: source -> (N, 1 + 2 * context, h, w) float32 in [-1, 1]: the slices that show any source, each with its
            neighbours.
        indices: (N,), where they belong.
        inside: (D, H, W) bool, where any source is not 0.
        grid: of the case.
    """

    small: Mapping[str, Array]
    indices: Array
    inside: Array
    grid: Grid

    def spread(self, slices: Array) -> Array:
        """Return the whole volume: (N, H, W), the slices of `indices` -> (D, H, W) float32, 0 where all sources are."""
        data = np.zeros(self.inside.shape, dtype=np.float32)
        data[self.indices] = slices
        data[~self.inside] = 0
        return data


def prepare(
    sources: Mapping[str, Volume],
    inside: Array,
    brain: Array,
    scales: Mapping[str, Scale],
    method: Method,
) -> Prepared:
    """Normalise the sources of a case, and fit their slices to the network.

    Args:
        sources: modality -> volume.
        inside: (D, H, W) bool, the voxels that are to be synthesised.
        brain: (D, H, W) bool, non-zero in any modality of the case.
        scales: modality -> the intensities that become -1 and 1.
        method: whose networks will see the slices.
    """
    indices = np.flatnonzero(inside.any(axis=(1, 2)))
    windows = indices[:, None] + np.arange(-method.context, method.context + 1)
    exists = (windows >= 0) & (windows < len(inside))
    rows = np.unique(windows[exists])
    small = {}
    for name, source in sources.items():
        normalised = intensities.normalise(source.data[rows], brain[rows], scales[name])
        fitted = fit(normalised, method.settings, stride=method.stride)
        if method.context:
            stacked = np.full((*windows.shape, *fitted.shape[1:]), -1, dtype=np.float32)
            stacked[exists] = fitted[np.searchsorted(rows, windows[exists])]
            small[name] = stacked
        else:
            small[name] = fitted[:, None]
    return Prepared(small, indices, inside, next(iter(sources.values())).grid)


def fit(slices: Array, settings: Settings, *, stride: int) -> Array:
    """Pad slices (N, H, W) to the canvas or beyond, to a size that the network takes, and average them down.

    Args:
        slices: in [-1, 1].
        settings: the canvas, and how far it is averaged down.
        stride: the number that height and width of the result are multiples of.
    """
    factor = settings.canvas // settings.image_size
    step = factor * stride
    height, width = (-(-max(settings.canvas, side) // step) * step for side in slices.shape[-2:])
    return intensities.shrink(intensities.pad(slices, (height, width)), factor)


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
        slices: source -> (B, 1 + 2 * context, h, w) float32 in [-1, 1], padded and averaged down (`fit`), on the
            method's device.
        targets: the modalities to make.
        sample: draw the style of each target with this number instead of taking the reference's.

    Returns:
        target -> (B, 1, h * factor, w * factor), clipped to [-1, 1]; factor = canvas / image_size.
    """
    settings = method.settings
    count, *shape = next(iter(slices.values())).shape
    filled = {}
    for source, x in slices.items():
        lacking = slices_per_call(settings.image_size, x.device) - count
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


def slices_per_call(image_size: int, device: torch.device) -> int:
    """Return how many slices go through the network in every call, the last call filled up.

    Convolution kernels round differently for different batch shapes; a shape that depends on nothing but the weights
    and the kind of device is what makes results independent of batch size, parts and order, to the bit. A CPU is
    fastest if the features of a call fit its cache (256 pixels: 8 at once take 1.4 times as long as 2).
    """
    return 16 if device.type != "cpu" else max(2, min(8, 512 // image_size))


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
    ) -> Iterator[tuple[slice, dict[str, torch.Tensor]]]:
        """Translate all slices, block by block.

        Yields:
            Rows of `Prepared.indices`, and target -> (samples, B, H, W) in [-1, 1] of them.
        """
        call = slices_per_call(self.method.settings.image_size, self.device)
        at_once = max(self.batch_size // call, 1) * call
        for start in range(0, len(prepared.indices), at_once):
            block = {
                name: torch.from_numpy(small[start : start + at_once]).to(
                    self.device, non_blocking=True
                )
                for name, small in prepared.small.items()
            }
            count = min(at_once, len(prepared.indices) - start)
            for offset in range(0, count, call):
                chunk = {name: whole[offset : offset + call] for name, whole in block.items()}
                drawn = [
                    translate(self.method, chunk, targets, sample=sample) for sample in samples
                ]
                rows = slice(start + offset, start + min(offset + call, count))
                yield (
                    rows,
                    {name: torch.stack([fakes[name][:, 0] for fakes in drawn]) for name in targets},
                )


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
        self, source: Volume, brain: Array, name: str, targets: Sequence[str]
    ) -> dict[str, Array]:
        """Return a source volume in each target modality.

        Args:
            source: the source.
            brain: (D, H, W) bool, non-zero in any modality of the case.
            name: the source's modality.
            targets: the modalities to make.

        Returns:
            target -> (D, H, W) float32, intensities as a completion would write them before rounding.
        """
        prepared = self._prepare(source, source.data != 0, brain, name)
        scales = self.weights.info.scales
        images = self._images(prepared, targets, [None])[0]
        return {
            target: prepared.spread(intensities.denormalise(images[target], scales[target]))
            for target in targets
        }

    def samples(
        self, source: Volume, brain: Array, name: str, target: str, indices: Array, *, count: int
    ) -> list[Array]:
        """Return `count` style samples of some slices, each (N, H, W) float32 in [0, 1]."""
        inside = np.zeros_like(brain)
        inside[indices] = source.data[indices] != 0
        prepared = self._prepare(source, inside, brain, name)
        drawn = self._images(prepared, [target], range(count))
        return [
            np.where(inside, (prepared.spread(images[target]) + 1) / 2, 0)[indices]
            for images in drawn
        ]

    def _prepare(self, source: Volume, inside: Array, brain: Array, name: str) -> Prepared:
        scale = intensities.intensity_scale(source.data, brain)
        assert scale is not None  # a source without contrast is refused when it is read
        return prepare({name: source}, inside, brain, {name: scale}, self.method)

    def _images(
        self, prepared: Prepared, targets: Sequence[str], samples: Sequence[int | None]
    ) -> list[dict[str, Array]]:
        """Return for each sample target -> (N, H, W) in [-1, 1], the slices of `prepared.indices`."""
        size = prepared.grid.axial_shape[1:]
        parts: list[dict[str, list[Array]]] = [{target: [] for target in targets} for _ in samples]
        network = Network(self.method, self.device, self.batch_size)
        for _, styles in network.styles(prepared, targets, samples):
            for target in targets:
                for part, style in zip(parts, styles[target].cpu().numpy(), strict=True):
                    part[target].append(intensities.crop(style, size))
        return [{target: np.concatenate(part[target]) for target in targets} for part in parts]

"""How good a method is while it trains: SSIM in the brain, as `score` computes it, of blocks of validation slices.

Knows slices at the networks' own size, no volume; whole volumes are left to `scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attcl_cli.data.crops import brain_box
from attcl_cli.data.intensities import Array, in_own_window
from attcl_cli.data.slices import Entry, SliceStore
from attcl_cli.methods.sources import SourceRule, takes_one
from attcl_cli.scoring import formulas

BLOCK = 12  # neighbouring slices, so that SSIM sees all three dimensions and a window is that of a volume
_BLOCKS_PER_DIRECTION = 1
_BLOCKS_PER_TARGET = 3  # as many as the directions that lead to it have together
_PIXELS_AT_ONCE = 2**19  # of the slices of a call; changes memory, never results


@dataclass(frozen=True)
class _Block:
    """Neighbouring slices of one case: rows of the store."""

    sources: Mapping[str, Array]  # modality -> (n,)
    truth: Array  # (n,)


class Judged(Protocol):
    """What validation needs of a method."""

    @property
    def context(self) -> int:
        """Neighbouring slices seen on each side."""

    @property
    def stride(self) -> int:
        """The number that height and width of an image must be multiples of."""

    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """Translate slices (see `Method`)."""


@dataclass(frozen=True)
class CopyOfSource:
    """Answers with the first source: what a method must be better than. It sees what the method sees."""

    context: int
    stride: int

    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str]
    ) -> Mapping[str, Tensor]:
        """Return the middle slices of the first source, (B, 1, H, W), as every target."""
        source = next(iter(sources.values()))
        return dict.fromkeys(targets, source[:, self.context : self.context + 1])


def make_validation(
    store: SliceStore,
    rule: SourceRule,
    device: torch.device,
    *,
    seed: int = 0,
    boxed: bool = False,
    depth: int | None = BLOCK,
) -> Callable[[Judged], float] | None:
    """Return a validation function: mean SSIM in the brain of what a method makes of true pairs.

    A method of one source is judged by every direction that the store has pairs for, another one by every target, made
    from what the rule takes of all other modalities of its case. Only volumes that the prepared split holds are used,
    never held-out ones. SSIM is that of `score`, by the same functions: in 3-D, synthetic and true slices each in the
    window of their own percentiles. Of whole volumes at full size both give one figure, but for voxels at the brain's
    edge (`_brain`). What validation looks at is cheaper: blocks of slices instead of volumes, at the networks' own
    size, and one pass without completion's mirroring, stretched tails or matched quantiles.

    Args:
        store: slices of the validation cases.
        rule: what the method makes from what.
        device: of the method.
        seed: chooses the blocks, once.
        boxed: show the networks the brain's box alone, as completion does after training on squares.
        depth: neighbouring slices that are compared at once; None: all that the store has of a volume.

    Returns:
        The function (higher is better): mean over blocks, then over directions or targets; None if no case allows it.
    """
    rng = np.random.default_rng(seed)
    one = takes_one(rule, store.modalities)
    groups = _directions(store, rng, depth) if one else _targets(store, rule, rng, depth)
    if not groups:
        return None

    def validate(method: Judged) -> float:
        scores = []
        for target, blocks in groups:
            by_sources: dict[tuple[str, ...], list[_Block]] = {}
            for block in blocks:
                by_sources.setdefault(tuple(block.sources), []).append(block)
            values: list[float] = []
            for sources, alike in by_sources.items():
                rows = {name: np.concatenate([b.sources[name] for b in alike]) for name in sources}
                images = {name: store.read(of, context=method.context) for name, of in rows.items()}
                truth = store.read(np.concatenate([b.truth for b in alike]))
                if boxed:
                    box = brain_box([*images.values(), truth], stride=method.stride)
                    images = {name: image[..., *box] for name, image in images.items()}
                    truth = truth[..., *box]
                synthetic = _synthesise(method, images, target, device)
                own = [image[:, image.shape[1] // 2, None] for image in images.values()]
                inside = _brain(torch.cat([truth, *own], dim=1))  # neighbours may show more
                values += _similarities(
                    synthetic, truth[:, 0], inside, [len(b.truth) for b in alike]
                )
            scores.append(mean(values))
        return mean(scores)

    return validate


def _directions(
    store: SliceStore, rng: np.random.Generator, depth: int | None
) -> list[tuple[str, list[_Block]]]:
    """Return (target, blocks) of each direction that any case has both modalities of."""
    candidates: dict[tuple[str, str], list[tuple[Mapping[str, Entry], Entry]]] = {}
    for volumes in store.volumes_by_case().values():
        for source, entry in volumes.items():
            for target, truth in volumes.items():
                if target != source:
                    candidates.setdefault((source, target), []).append(({source: entry}, truth))
    return [
        (target, blocks)
        for (_, target), cases in sorted(candidates.items())
        if (blocks := _draw(store, cases, _BLOCKS_PER_DIRECTION, rng, depth))
    ]


def _targets(
    store: SliceStore, rule: SourceRule, rng: np.random.Generator, depth: int | None
) -> list[tuple[str, list[_Block]]]:
    """Return (target, blocks) of each target that any case can be judged by."""
    groups: list[tuple[str, list[_Block]]] = []
    cases = store.volumes_by_case()
    for target in sorted(rule.targets):
        candidates = []
        for volumes in cases.values():
            others = [name for name in store.modalities if name in volumes and name != target]
            sources = rule.sources_for(target, others) if target in volumes else None
            if sources:
                candidates.append(({name: volumes[name] for name in sources}, volumes[target]))
        blocks = _draw(store, candidates, _BLOCKS_PER_TARGET, rng, depth)
        if blocks:
            groups.append((target, blocks))
    return groups


def _draw(
    store: SliceStore,
    candidates: Sequence[tuple[Mapping[str, Entry], Entry]],
    count: int,
    rng: np.random.Generator,
    depth: int | None,
) -> list[_Block]:
    """Draw blocks of slices that show brain, from as many cases as there are; none if no case has such slices."""
    blocks: list[_Block] = []
    fitting = []
    for sources, truth in candidates:
        filled = np.flatnonzero(store.filled[truth.start : truth.start + truth.count])
        if len(filled):
            fitting.append((sources, truth, int(filled[0]), int(filled[-1]) + 1))
    for index in [*rng.permutation(len(fitting))] * count if fitting else []:
        if len(blocks) == count:
            break
        sources, truth, first, stop = fitting[int(index)]
        if depth is None:
            first, stop = 0, truth.count
        length = min(depth or truth.count, stop - first)
        offsets = int(rng.integers(first, stop - length + 1)) + np.arange(length)
        blocks.append(
            _Block(
                {name: entry.start + offsets for name, entry in sources.items()},
                truth.start + offsets,
            )
        )
    return blocks


def _synthesise(
    method: Judged, images: Mapping[str, Tensor], target: str, device: torch.device
) -> Tensor:
    """Return what the method makes of sources (N, C, H, W): (N, H, W), on the CPU, clipped to [-1, 1]."""
    count, _, height, width = next(iter(images.values())).shape
    at_once = max(_PIXELS_AT_ONCE // (height * width), 1)
    made = []
    for start in range(0, count, at_once):
        part = {name: image[start : start + at_once].to(device) for name, image in images.items()}
        made.append(method.synthesise(part, [target])[target][:, 0].float().clamp(-1, 1).cpu())
    return torch.cat(made)


def _brain(images: Tensor) -> Tensor:
    """Return the brain in slices (N, C, H, W) of one case: (N, H, W) bool.

    The darkest 0.005 of a volume's brain is -1 as the background is (`intensities.normalise`). Most of it shows brain
    in another of the images; what is left are single pixels, which a morphological closing brings back.
    """
    shown = (images.amax(dim=1, keepdim=True) > -1).float()
    grown = functional.max_pool2d(shown, 3, stride=1, padding=1)
    return functional.max_pool2d(-grown, 3, stride=1, padding=1)[:, 0] < 0


def _similarities(
    synthetic: Tensor, truth: Tensor, inside: Tensor, lengths: Sequence[int]
) -> list[float]:
    """Return the SSIM in the brain of each block; all (N, H, W), N being the sum of the blocks' lengths."""
    values = []
    blocks = zip(*(item.split(list(lengths)) for item in (synthetic, truth, inside)), strict=True)
    for fake, real, brain in blocks:
        mask = brain.numpy()
        values.append(
            formulas.ssim(
                in_own_window(fake.numpy(), mask),
                in_own_window(real.numpy(), mask),
                data_range=1,
                mask=mask,
            )
        )
    return values

"""Unpaired batches of two modalities, a pair of modalities at a time.

A batch is a function of (seed, step). Which pair is trained when is asked of the caller (`turn`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attcl_cli.data.crops import Crops
from attcl_cli.data.intensities import Array
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import AttclError

# What follows (seed, step) in the seeds of this sampler's generators; `sampling` and `crops` have 1 to 5.
_OF_LISTS, _OF_MIRRORS, _OF_PLACES = 6, 7, 8


@dataclass(frozen=True)
class Turn:
    """Which pair a step trains, and how often it was trained before.

    Attributes:
        pair: (hub, spoke), indices of modalities.
        count: of the steps before this one that trained the pair.
    """

    pair: tuple[int, int]
    count: int


@dataclass(frozen=True)
class Truth:
    """What some slices should become.

    Attributes:
        images: (B, 1, S, S) float32 in [-1, 1], the same places in the other modality of the pair; -1 everywhere if the
            case lacks it.
        known: (B,) bool, whether it has it.
        share: of known ones in the batch that this is a part of; None: this is the whole.
    """

    images: Tensor
    known: Tensor
    share: float | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Truth:
        """Return it with every tensor changed."""
        return replace(self, images=change(self.images), known=change(self.known))

    def part(self, chosen: slice) -> Truth:
        """Return that of some of the slices, as a part."""
        share = float(self.known.float().mean()) if self.share is None else self.share
        return replace(self.each(lambda value: value[chosen]), share=share)


@dataclass(frozen=True)
class CoupleBatch:
    """Slices of two modalities that have nothing to do with each other: row i of one side is not that of the other.

    Attributes:
        a: (B, 1, S, S) float32 in [-1, 1], of the hub.
        b: (B, 1, S, S), of the spoke.
        pair: (hub, spoke), indices of modalities.
        true_of_a, true_of_b: what they should become; None: it was not asked for.
    """

    a: Tensor
    b: Tensor
    pair: tuple[int, int]
    true_of_a: Truth | None = None
    true_of_b: Truth | None = None

    def __len__(self) -> int:
        """Return the number of slices of each side."""
        return len(self.a)

    def to(self, device: torch.device) -> CoupleBatch:
        """Return the batch on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def pin_memory(self) -> CoupleBatch:
        """Return the batch in memory that a GPU fetches by itself; torch's `DataLoader` asks for it."""
        return self._each(Tensor.pin_memory)

    def part(self, chosen: slice) -> CoupleBatch:
        """Return some of the slices."""
        true_of_a, true_of_b = (
            None if truth is None else truth.part(chosen)
            for truth in (self.true_of_a, self.true_of_b)
        )
        return CoupleBatch(self.a[chosen], self.b[chosen], self.pair, true_of_a, true_of_b)

    def _each(self, change: Callable[[Tensor], Tensor]) -> CoupleBatch:
        true_of_a, true_of_b = (
            None if truth is None else truth.each(change)
            for truth in (self.true_of_a, self.true_of_b)
        )
        return CoupleBatch(change(self.a), change(self.b), self.pair, true_of_a, true_of_b)


class CoupleSampler:
    """Draws both sides of a pair from lists that are shuffled independently, so that a shared index means nothing.

    Slices of a case lie at the same place in all its modalities: drawn by one index, they would be pairs, and training
    would be supervised. Each list is gone through as a whole and shuffled anew; the shorter one comes round more often.
    """

    def __init__(
        self,
        store: SliceStore,
        pairs: Sequence[tuple[int, int]],
        turn: Callable[[int], Turn],
        *,
        batch_size: int,
        seed: int,
        mirror: float = 0.0,
        crop: int = 0,
        warp: float = 0.0,
        jitter: float = 0.0,
        paired: bool = False,
    ) -> None:
        """Prepare to draw.

        Args:
            store: the training slices.
            pairs: (hub, spoke), indices of the store's modalities.
            turn: step -> the pair that it trains.
            batch_size: slices of each side per batch.
            seed: of all that is drawn.
            mirror: share of slices mirrored left to right.
            crop: side of the squares that slices are cut to, in pixels (`Crops`). 0: whole slices.
            warp: share of slices that are turned, resized and bent (`augment.warp_grids`).
            jitter: slices are enlarged by this share of their side, and a random square of the old size is cut out.
            paired: also read what each slice should become, if its case has that.

        Raises:
            AttclError: a modality has no slice that shows any brain.
        """
        self.store, self.turn = store, turn
        self.batch_size, self.seed = batch_size, seed
        self.mirror, self.crop, self.warp, self.jitter = mirror, crop, warp, jitter
        self.paired = paired
        self._pairs = tuple(pairs)
        self._starts = store.starts()
        self._partner_starts = store.partner_starts()
        self._rows: dict[int, Array] = {}
        for modality in sorted({index for pair in pairs for index in pair}):
            name = store.modalities[modality]
            rows = [
                np.arange(entry.start, entry.start + entry.count)
                for entry in store.entries
                if entry.modality == name
            ]
            pool = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
            self._rows[modality] = pool[store.filled[pool]]
            if not len(self._rows[modality]):
                raise AttclError(
                    f"training slices: none of {name} shows any brain, expected slices of both modalities of a pair",
                    "train on cases that have it",
                    code="nothing-to-learn-from",
                )

    @property
    def size(self) -> int:
        """See `Sampler`: every pair goes over the longer one of its lists."""
        return sum(max(len(self._rows[index]) for index in pair) for pair in self._pairs)

    def rows(self, step: int) -> tuple[Array, Array]:
        """Return the rows of both sides of a step's batch, (B,) int64 each, before any pixel is read."""
        turn = self.turn(step)
        first, second = (self._listed(turn, side) for side in range(2))
        return first, second

    def batch(self, step: int) -> CoupleBatch:
        """Return the batch of a step."""
        crops = Crops(self.store, self.crop, (self.seed, step), warp=self.warp)
        flips = np.random.default_rng((self.seed, step, _OF_MIRRORS))
        places = np.random.default_rng((self.seed, step, _OF_PLACES))
        pair = self.turn(step).pair
        images: list[Tensor] = []
        truths: list[Truth | None] = []
        for rows, other in zip(self.rows(step), reversed(pair), strict=True):
            place = crops.around(rows)
            planes = [crops.read(rows, place)]
            known = None
            if self.paired:
                partners = self._partners(rows, other)
                known = torch.from_numpy(partners >= 0)
                planes.append(crops.read(np.maximum(partners, 0), place))
                planes[1][~known] = -1
            stacked = torch.cat(planes, dim=1)
            if self.jitter:
                stacked = jittered(stacked, self.jitter, places)
            mirrored = torch.from_numpy(flips.random(self.batch_size) < self.mirror)
            stacked[mirrored] = stacked[mirrored].flip(-1)
            images.append(stacked[:, :1])
            truths.append(None if known is None else Truth(stacked[:, 1:], known))
        return CoupleBatch(images[0], images[1], pair, truths[0], truths[1])

    def _partners(self, rows: Array, modality: int) -> Array:
        """Return the rows of the same places in another modality, -1 where a case lacks it: (B,) int64."""
        volumes = np.searchsorted(self._starts, rows, side="right") - 1
        starts = self._partner_starts[volumes, modality]
        value: Array = np.where(starts >= 0, starts + rows - self._starts[volumes], -1)
        return value

    def _listed(self, turn: Turn, side: int) -> Array:
        """Return the next slices of a side's list: (B,) rows."""
        modality, other = turn.pair[side], turn.pair[1 - side]
        rows = self._rows[modality]
        places = turn.count * self.batch_size + np.arange(self.batch_size)
        rounds, within = np.divmod(places, len(rows))
        chosen = np.empty(self.batch_size, dtype=np.int64)
        for number in np.unique(rounds):
            # The other side's number is a part of the seed: the hub's list is another one in every pair.
            seed = (self.seed, _OF_LISTS, modality, other, int(number))
            order = np.random.default_rng(seed).permutation(len(rows))
            here = rounds == number
            chosen[here] = rows[order[within[here]]]
        return chosen


def jittered(images: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Enlarge images and cut a random square of the old size out of each, as the CycleGAN code does (286 -> 256).

    Args:
        images: (B, C, S, S) in [-1, 1]; what was background in the whole neighbourhood stays exactly -1.
        share: by which the side grows.
        rng: draws the corners.
    """
    side = images.shape[-1]
    large = side + round(share * side)
    grown = F.interpolate(images, size=(large, large), mode="bilinear", align_corners=False)
    empty = F.interpolate((images > -1).float(), size=(large, large), mode="bilinear") == 0
    grown[empty] = -1  # the weights of a mean need not add up to exactly 1
    corners = rng.integers(large - side + 1, size=(len(images), 2))
    return torch.stack(
        [image[:, y : y + side, x : x + side] for image, (y, x) in zip(grown, corners, strict=True)]
    )

"""The samplers, which draw training batches from a slice store.

A batch is a function of (seed, step). What a network learns from it is left to the methods.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from attcl_cli.data.augment import change_appearance, change_contrast
from attcl_cli.data.batches import Batch, CaseBatch, DomainBatch
from attcl_cli.data.couples import jittered
from attcl_cli.data.crops import Crops
from attcl_cli.data.intensities import Array
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import AttclError, counted

__all__ = [
    "Batch",
    "CaseBatch",
    "CaseSampler",
    "DomainBatch",
    "DomainSampler",
    "Sampler",
]

# What follows (seed, step) in the seeds of further random generators (`crops` has 1 and 4, `couples` 6 to 8): a new
# draw never moves the ones before it.
_OF_SOURCES, _OF_CONTRASTS, _OF_APPEARANCES, _OF_JITTER = 2, 3, 5, 9


class Sampler(Protocol):
    """Draws batches; a batch is a function of (seed, step), so a resumed run sees what an undisturbed one does."""

    @property
    def size(self) -> int:
        """The number of slices that an epoch goes over: how many distinct places a batch's slices are drawn from."""

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""


class DomainSampler:
    """Draws slices, a target modality for each, and references of that modality.

    Modalities are drawn uniformly, however unequal their numbers of volumes (StarGAN v2 balances its domains, too). Of
    true pairs it is the target that is drawn first: where every case has FLAIR and one other modality (ratio1), three
    of four sources are not FLAIR, and would all be taught to become FLAIR, which no case lacks.
    """

    def __init__(  # noqa: PLR0913 - one per choice of the settings
        self,
        store: SliceStore,
        *,
        batch_size: int,
        seed: int,
        mirror: float = 0.0,
        pair_targets: float = 0.0,
        missing_targets: float = 0.0,
        paired_until: int = 0,
        context: int = 0,
        crop: int = 0,
        augment: float = 0.0,
        warp: float = 0.0,
        many: bool = False,
        alone: float = 0.4,
        others: bool = False,
        jitter: float = 0.0,
    ) -> None:
        """Prepare to draw.

        Args:
            store: the training slices.
            batch_size: slices per batch.
            seed: of all that is drawn.
            mirror: share of slices mirrored left to right.
            pair_targets: share of slices whose case has the target; of these, the target is drawn first and then a
                source of such a case.
            missing_targets: share of those targets that are drawn as often as cases lack the modality, in place of
                uniformly; without effect if no case lacks any.
            paired_until: before this step, that share is 1, and no references are drawn.
            context: neighbouring slices on each side that the slices to translate have, too.
            crop: side of the squares that slices are cut to, in pixels (`Crops`); a source and its pair have one
                square, each reference its own. 0: whole slices.
            augment: share of slices whose sources look as if they were of another scanner
                (`augment.change_appearance`); pairs and references do not.
            warp: share of places that are turned, resized and bent (`augment.warp_grids`).
            many: also draw `x_all`, `given` and `x_taught`: further modalities of the source's case, to make the target
                from and to learn.
            alone: with many, share of slices whose source stands alone; the other ones have a number of sources drawn
                uniformly from 1 to all that the case has.
            others: targets are drawn uniformly from the modalities that differ from the source's; otherwise from all.
            jitter: images are enlarged by this share of their side, and a random square of the old size is cut out; a
                source and its pair have one square (not with many).

        Raises:
            AttclError: no slice of a modality shows brain; or, with others, the store has a single modality.
        """
        if others and len(store.modalities) == 1:
            raise AttclError(
                f"training slices: {store.modalities[0]} alone, expected two modalities at least, "
                "to translate one into the other",
                "train on cases that have further modalities",
                code="nothing-to-learn-from",
            )
        self.store = store
        self.batch_size = batch_size
        self.seed = seed
        self.mirror = mirror
        self.pair_targets = pair_targets
        self.paired_until = paired_until
        self.context = context
        self.crop, self.augment, self.warp = crop, augment, warp
        self.many, self.alone, self.others, self.jitter = many, alone, others, jitter
        count = len(store.modalities)
        rows = store.data.shape[0]
        self._domain = np.empty(rows, dtype=np.int64)
        self._entry = np.empty(rows, dtype=np.int64)
        for index, entry in enumerate(store.entries):
            self._domain[entry.start : entry.start + entry.count] = store.modalities.index(
                entry.modality
            )
            self._entry[entry.start : entry.start + entry.count] = index
        self._pools = [
            np.flatnonzero((self._domain == domain) & store.filled) for domain in range(count)
        ]
        for name, pool in zip(store.modalities, self._pools, strict=True):
            if not len(pool):
                raise _nothing_of(name, store.modalities)
        self._partner = store.partner_starts()
        self._starts = store.starts()
        # target -> the slices that can become it, per source modality that has any
        self._paired_pools = [
            [rows for domain in range(count) if len(rows := self._pairs(domain, target))]
            for target in range(count)
        ]
        taught = np.array([bool(pools) for pools in self._paired_pools])
        self._target_shares = _shares_of(store, taught, missing_targets) if taught.any() else None

    def _pairs(self, source: int, target: int) -> Array:
        """Return the slices of a source modality whose cases have the target."""
        pool = self._pools[source]
        if source == target:
            return pool[:0]
        value: Array = pool[self._partner[self._entry[pool], target] >= 0]
        return value

    @property
    def size(self) -> int:
        """See `Sampler`."""
        return int(self.store.filled.sum())

    def rows(self, step: int) -> dict[str, Array]:
        """Return the rows and domains of a step's batch, before any pixel is read."""
        rng = np.random.default_rng((self.seed, step))
        size, domains = self.batch_size, len(self._pools)
        y_src = rng.integers(domains, size=size)
        if self.others:
            y_ref = (y_src + rng.integers(1, domains, size=size)) % domains
        else:
            y_ref = rng.integers(domains, size=size)
        source = np.array([rng.choice(self._pools[domain]) for domain in y_src])
        paired = 1.0 if step < self.paired_until else self.pair_targets
        if self._target_shares is None:
            paired = 0.0
        # Drawn uniformly, few targets have a truth (one in five under ratio1).
        for index in np.flatnonzero(rng.random(size) < paired):
            y_ref[index] = rng.choice(domains, p=self._target_shares)
            pools = self._paired_pools[y_ref[index]]
            source[index] = rng.choice(pools[rng.integers(len(pools))])
            y_src[index] = self._domain[source[index]]
        first, second = (
            np.array([rng.choice(self._pools[domain]) for domain in y_ref]) for _ in range(2)
        )
        start = self._partner[self._entry[source], y_ref]
        pair = np.where(start >= 0, start + source - self._starts[self._entry[source]], -1)
        return {
            "x_src": source,
            "y_src": y_src,
            "x_ref": first,
            "x_ref2": second,
            "y_ref": y_ref,
            "x_pair": pair,
            "mirrored": rng.random((3, size)) < self.mirror,  # the source with its pair; references
        }

    def given(self, step: int, rows: Mapping[str, Array]) -> Array:
        """Return the modalities that a step's targets are made from, of its `rows`: (B, N) bool."""
        rng = np.random.default_rng((self.seed, step, _OF_SOURCES))
        given = self._partner[self._entry[rows["x_src"]]] >= 0
        for kept, source, target in zip(given, rows["y_src"], rows["y_ref"], strict=True):
            kept[[source, target]] = False
            others = rng.permutation(np.flatnonzero(kept))
            count = 0 if rng.random() < self.alone else rng.integers(len(others) + 1)
            kept[others[count:]] = False
            kept[source] = True
        return given

    def batch(self, step: int) -> DomainBatch:
        """Return the batch of a step."""
        rows = self.rows(step)
        crops = Crops(self.store, self.crop, (self.seed, step), warp=self.warp)
        place = crops.around(rows["x_src"])
        has_pair = rows["x_pair"] >= 0
        pair = crops.read(np.maximum(rows["x_pair"], 0), place)
        pair[torch.from_numpy(~has_pair)] = -1
        rng = np.random.default_rng((self.seed, step, _OF_APPEARANCES))
        augmented = rng.random(self.batch_size) < self.augment
        mirrored = dict(zip(("x_src", "x_ref", "x_ref2"), rows["mirrored"], strict=True))
        x_all, given, x_taught, taught = None, None, None, None
        if self.many:
            given = self.given(step, rows)
            entry = self._entry[rows["x_src"]]
            beside = self._partner[entry] + (rows["x_src"] - self._starts[entry])[:, None]
            taught = (self._partner[entry] >= 0) & ~given
            x_taught = torch.full((*taught.shape, *pair.shape[2:]), -1.0)
            true = crops.read(beside[taught], place.of(np.nonzero(taught)[0]))
            x_taught[torch.from_numpy(taught)] = true[:, 0]
            x_taught = _mirrored(x_taught, mirrored["x_src"])
            which, _ = np.nonzero(given)
            read = crops.read(beside[given], place.of(which), context=self.context)
            x_all = torch.full((*given.shape, *read.shape[1:]), -1.0)
            x_all[torch.from_numpy(given)] = _augmented(read, augmented[which], rng)
            x_all = _mirrored(x_all, mirrored["x_src"])
            x_src = x_all[torch.arange(self.batch_size), torch.from_numpy(rows["y_src"])]
        else:
            x_src = crops.read(rows["x_src"], place, context=self.context)
            x_src = _mirrored(_augmented(x_src, augmented, rng), mirrored["x_src"])
        if step < self.paired_until:  # nothing learns from them
            x_ref = x_ref2 = pair[:, :0]
        else:
            x_ref, x_ref2 = (
                _mirrored(crops.read(rows[name], crops.around(rows[name])), mirrored[name])
                for name in ("x_ref", "x_ref2")
            )
        x_pair = _mirrored(pair, mirrored["x_src"])
        if self.jitter:
            rng = np.random.default_rng((self.seed, step, _OF_JITTER))
            both = jittered(torch.cat([x_src, x_pair], dim=1), self.jitter, rng)
            x_src, x_pair = both[:, :-1], both[:, -1:]
            x_ref, x_ref2 = (jittered(images, self.jitter, rng) for images in (x_ref, x_ref2))
        return DomainBatch(
            x_src=x_src,
            y_src=torch.from_numpy(rows["y_src"]),
            x_ref=x_ref,
            x_ref2=x_ref2,
            y_ref=torch.from_numpy(rows["y_ref"]),
            x_pair=x_pair,
            has_pair=torch.from_numpy(has_pair),
            x_all=x_all,
            given=None if given is None else torch.from_numpy(given),
            x_taught=x_taught,
            taught=None if taught is None else torch.from_numpy(taught),
        )


class CaseSampler:
    """Draws whole cases at one slice, each with a true target.

    Targets are drawn among those that any case can teach: it has the target, and what that is made from.
    """

    def __init__(  # noqa: PLR0913 - one per choice of the settings
        self,
        store: SliceStore,
        sources_for: Callable[[str, Sequence[str]], tuple[str, ...] | None],
        *,
        batch_size: int,
        seed: int,
        mirror: float = 0.0,
        missing_targets: float = 0.0,
        leave_out: float = 0.0,
        alone: float = 0.0,
        gamma: float = 0.0,
        tumour_slices: float = 0.0,
        context: int = 0,
        crop: int = 0,
        augment: float = 0.0,
        warp: float = 0.0,
    ) -> None:
        """Prepare to draw.

        Args:
            store: the training slices.
            sources_for: (target, present modalities) -> what the target is made from, or None.
            batch_size: cases per batch.
            seed: of all that is drawn.
            mirror: share of cases mirrored left to right.
            missing_targets: share of the targets that are drawn as often as cases lack the modality, in place of
                uniformly; without effect if no case lacks any.
            leave_out: share of cases of which a random part of the sources is left out.
            alone: share of cases of which a single source is left, any of them.
            gamma: spread of the random power that the intensities of each source are raised to
                (`augment.change_contrast`); 0: none.
            tumour_slices: share of slices drawn from those with tumour, if a case has a segmentation.
            context: neighbouring slices on each side that a batch has, too.
            crop: side of the squares that cases are cut to, in pixels (`Crops`); around the tumour if the slice was
                drawn for it. 0: whole slices.
            augment: share of cases whose sources look as if they were of another scanner
                (`augment.change_appearance`); what is learned does not.
            warp: share of cases that are turned, resized and bent (`augment.warp_grids`), labels too.

        Raises:
            AttclError: no case has a target together with its sources.
        """
        self.store = store
        self.leave_out, self.alone, self.tumour_slices = leave_out, alone, tumour_slices
        self.gamma = gamma
        self.context, self.crop = context, crop
        self.augment, self.warp = augment, warp
        self.batch_size = batch_size
        self.seed = seed
        self.mirror = mirror
        modalities = store.modalities
        cases = list(dict.fromkeys(entry.case for entry in store.entries))
        number = {case: index for index, case in enumerate(cases)}
        # (case, domain) -> first row of that volume, or -1; (case,) -> first row of its label map, or -1
        self._start = np.full((len(cases), len(modalities)), -1, dtype=np.int64)
        self._labels = np.full(len(cases), -1, dtype=np.int64)
        for entry in store.entries:
            self._start[number[entry.case], modalities.index(entry.modality)] = entry.start
        for entry in store.segmentations:
            self._labels[number[entry.case]] = entry.start
        # target -> (K, 2): case and offset of every slice that can be drawn; and of those with tumour, or none known
        self._pools: dict[int, Array] = {}
        self._preferred: dict[int, Array] = {}
        # (case, target) -> (M,) bool: what the target is made from
        self._sources: dict[tuple[int, int], Array] = {}
        for domain, target in enumerate(modalities):
            pool, preferred = [], []
            for entry in store.entries:
                case = number[entry.case]
                present = [
                    name
                    for name, start in zip(modalities, self._start[case], strict=True)
                    if start >= 0 and name != target
                ]
                sources = sources_for(target, present) if entry.modality == target else None
                if not sources:
                    continue
                self._sources[case, domain] = np.isin(modalities, sources)
                rows = np.arange(entry.count)
                filled = rows[store.filled[entry.start : entry.start + entry.count]]
                pool += [(case, offset) for offset in filled]
                first = self._labels[case]
                chosen = filled if first < 0 else filled[store.tumour[first + filled]]
                preferred += [(case, offset) for offset in chosen]
            if pool:
                self._pools[domain] = np.array(pool)
                self._preferred[domain] = np.array(preferred or pool)
        if not self._pools:
            raise AttclError(
                f"training slices of {counted(len(cases), 'case')}: none has a target together with "
                "what it is made from, expected one case at least",
                "train on cases with more modalities, or with another method: --method attcl-gan",
                code="nothing-to-learn-from",
            )
        taught = np.isin(np.arange(len(modalities)), list(self._pools))
        # Without it, targets are drawn as earlier versions drew them, to the bit.
        self._target_shares = (
            _shares_of(store, taught, missing_targets)[taught] if missing_targets else None
        )

    @property
    def size(self) -> int:
        """See `Sampler`: slices of cases, whatever their targets."""
        pools = self._preferred if self.tumour_slices == 1 else self._pools
        return len(np.unique(np.concatenate(list(pools.values())), axis=0))

    def rows(self, step: int) -> dict[str, Array]:
        """Return the cases, slices, sources and targets of a step's batch, before any pixel is read."""
        rng = np.random.default_rng((self.seed, step))
        targets = rng.choice(list(self._pools), size=self.batch_size, p=self._target_shares)
        places, sources, for_tumour = [], [], []
        for target in targets:
            prefers = rng.random() < self.tumour_slices
            for_tumour.append(prefers)
            pool = (self._preferred if prefers else self._pools)[int(target)]
            places.append(pool[rng.integers(len(pool))])
            kept = self._sources[int(places[-1][0]), int(target)].copy()
            if rng.random() < self.leave_out:
                order = rng.permutation(np.flatnonzero(kept))
                kept[order[rng.integers(1, len(order) + 1) :]] = False
            sources.append(kept)
        further = np.random.default_rng((self.seed, step, _OF_SOURCES))
        for index in np.flatnonzero(further.random(self.batch_size) < self.alone):
            case, target = int(places[index][0]), int(targets[index])
            one = further.choice(np.flatnonzero(self._sources[case, target]))
            sources[index] = np.arange(len(sources[index])) == one
        case, offset = np.array(places).T
        return {
            "case": case,
            "offset": offset,
            "target": targets,
            "sources": np.array(sources),
            "for_tumour": np.array(for_tumour),
            "mirrored": rng.random(self.batch_size) < self.mirror,
        }

    def batch(self, step: int) -> CaseBatch:
        """Return the batch of a step."""
        chosen = self.rows(step)
        case, offset = chosen["case"], chosen["offset"]
        start = self._start[case]
        count, modalities = start.shape
        rows = np.maximum(start, 0) + offset[:, None]
        first = self._labels[case]
        maps = np.where(first < 0, -1, first + offset)
        crops = Crops(self.store, self.crop, (self.seed, step), warp=self.warp)
        place = crops.around(
            rows[np.arange(count), chosen["target"]],
            tumour=np.where(chosen["for_tumour"], maps, -1),
        )
        each = place.of(np.repeat(np.arange(count), modalities))
        stacks = crops.read(rows.ravel(), each, context=self.context)
        stacks = stacks.unflatten(0, (count, modalities))  # (B, M, 1 + 2 * context, S, S)
        stacks[torch.from_numpy(start < 0)] = -1
        given = torch.from_numpy(chosen["sources"])
        if self.gamma:
            rng = np.random.default_rng((self.seed, step, _OF_CONTRASTS))
            stacks[given] = change_contrast(stacks[given], self.gamma, rng)
        if self.augment:
            rng = np.random.default_rng((self.seed, step, _OF_APPEARANCES))
            which, _ = np.nonzero(chosen["sources"])
            augmented = rng.random(self.batch_size) < self.augment
            stacks[given] = _augmented(stacks[given], augmented[which], rng)
        stacks = _mirrored(stacks, chosen["mirrored"])
        before, images, after = stacks.split([self.context, 1, self.context], dim=2)
        return CaseBatch(
            images=images[:, :, 0],
            sources=given,
            target=torch.from_numpy(chosen["target"]),
            labels=_mirrored(crops.read_labels(maps, place), chosen["mirrored"]),
            has_labels=torch.from_numpy(first >= 0),
            neighbours=torch.cat([before, after], dim=2) if self.context else None,
        )


def _shares_of(store: SliceStore, taught: Array, missing_targets: float) -> Array:
    """Return how often each modality is drawn as a target, (N,), in sum 1.

    Args:
        store: the training slices.
        taught: which modalities are targets at all, one at least; (N,) bool.
        missing_targets: share of the draws in which a target comes as often as cases lack it; in the others, and if no
            case lacks one, each comes as often.
    """
    cases = store.volumes_by_case().values()
    lacking = np.array([sum(name not in case for case in cases) for name in store.modalities])
    lacking = lacking * taught
    uniform: Array = taught / taught.sum()
    if not lacking.any():
        return uniform
    value: Array = (1 - missing_targets) * uniform + missing_targets * lacking / lacking.sum()
    return value


def _nothing_of(modality: str, expected: Sequence[str]) -> AttclError:
    """Return the error about a modality of which no training slice shows any brain."""
    return AttclError(
        f"training slices: none of {modality} shows brain, expected some of {', '.join(expected)}",
        "train on cases that have it in the slices of the setting slice_span",
        code="nothing-to-learn-from",
    )


def _mirrored(images: Tensor, chosen: Array) -> Tensor:
    """Exchange left and right of the chosen images (B, ..., W), in place; chosen: (B,) bool."""
    images[torch.from_numpy(chosen)] = images[torch.from_numpy(chosen)].flip(-1)
    return images


def _augmented(images: Tensor, chosen: Array, rng: np.random.Generator) -> Tensor:
    """Change the appearance of the chosen images (K, C, S, S), in place; chosen: (K,) bool."""
    if chosen.any():
        flags = torch.from_numpy(chosen)
        images[flags] = change_appearance(images[flags], rng)
    return images

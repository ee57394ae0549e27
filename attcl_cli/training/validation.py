"""How good a method is while it trains: SSIM inside the brain on paired slices of the validation split.

Knows slices at the networks' own size, no volume; whole volumes are `score`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean

import numpy as np
import torch

from attcl_cli.data.slices import Entry, SliceStore
from attcl_cli.methods.base import Method
from attcl_cli.scoring import metrics

_SLICES_A_DIRECTION = 12
_SLICES_A_TARGET = 36  # as many as the directions that lead to it have together


def on_pairs(
    store: SliceStore, device: torch.device, *, seed: int = 0
) -> Callable[[Method], float] | None:
    """A validation function: mean SSIM in the brain over all directions that the store has pairs for.

    Only volumes that the prepared split holds are looked at, never hidden ones.

    Args:
        store: slices of the validation cases.
        device: where the method is.
        seed: chooses the slices, once.

    Returns:
        The function (higher is better), or None where no case has two modalities.
    """
    starts = {(entry.case, entry.modality): entry for entry in store.entries}
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for (case, source), entry in starts.items():
        for target in store.modalities:
            other = starts.get((case, target))
            if other is not None and target != source:
                rows = ((entry.start + index, other.start + index) for index in range(entry.count))
                filled = [pair for pair in rows if store.filled[pair[0]] and store.filled[pair[1]]]
                pairs.setdefault((source, target), []).extend(filled)
    rng = np.random.default_rng(seed)
    chosen = {
        direction: [
            found[int(index)] for index in rng.permutation(len(found))[:_SLICES_A_DIRECTION]
        ]
        for direction, found in sorted(pairs.items())
        if found
    }
    if not chosen:
        return None

    def validate(method: Method) -> float:
        scores = []
        for (source, target), rows in chosen.items():
            x = store.read(np.array([row for row, _ in rows]))
            made = method.synthesise({source: x.to(device)}, [target])[target]
            scores.append(mean(_similarities(store, made, [row for _, row in rows])))
        return mean(scores)

    return validate


def on_cases(
    store: SliceStore,
    device: torch.device,
    *,
    needs: Mapping[str, tuple[str, ...]],
    seed: int = 0,
) -> Callable[[Method], float] | None:
    """A validation function for methods of many sources: each target is made from all other modalities of its case.

    Args:
        store: slices of the validation cases.
        device: where the method is.
        needs: target -> the sources that it cannot do without.
        seed: chooses the slices, once.

    Returns:
        The function: SSIM in the brain, mean over slices, then over targets; or None where no case allows it.
    """
    volumes: dict[str, dict[str, Entry]] = {}
    for entry in store.entries:
        volumes.setdefault(entry.case, {})[entry.modality] = entry
    # target -> the modalities of a case -> (rows of these, row of the target)
    chosen: dict[str, dict[tuple[str, ...], list[tuple[list[int], int]]]] = {}
    rng = np.random.default_rng(seed)
    for target, needed in sorted(needs.items()):
        found = []
        for own in volumes.values():
            sources = tuple(name for name in store.modalities if name in own and name != target)
            if target not in own or not sources or not set(needed) <= set(sources):
                continue
            for offset in range(own[target].count):
                truth = own[target].start + offset
                if store.filled[truth]:
                    found.append((sources, [own[name].start + offset for name in sources], truth))
        for index in rng.permutation(len(found))[:_SLICES_A_TARGET]:
            sources, rows, truth = found[int(index)]
            chosen.setdefault(target, {}).setdefault(sources, []).append((rows, truth))
    if not chosen:
        return None

    def validate(method: Method) -> float:
        scores = []
        for target, groups in chosen.items():
            values: list[float] = []
            for sources, slices in groups.items():
                images = {
                    name: store.read(np.array([rows[index] for rows, _ in slices])).to(device)
                    for index, name in enumerate(sources)
                }
                made = method.synthesise(images, [target])[target]
                values += _similarities(store, made, [truth for _, truth in slices])
            scores.append(mean(values))
        return mean(scores)

    return validate


def _similarities(store: SliceStore, made: torch.Tensor, rows: Sequence[int]) -> list[float]:
    """SSIM in the brain of made slices (B, 1, S, S) and the true ones of the store."""
    truth = store.read(np.array(rows))[:, 0].numpy()
    made_ = made[:, 0].float().clamp(-1, 1).cpu().numpy()
    return [
        metrics.ssim(prediction, real, data_range=2, mask=real > -1)
        for prediction, real in zip(made_, truth, strict=True)
    ]

"""How good a method is while it trains: SSIM in the brain on paired slices of the validation split.

Knows slices at the networks' own size, no volume; whole volumes are left to `scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

import numpy as np
import torch

from attcl_cli.data.slices import SliceStore
from attcl_cli.methods.base import Method
from attcl_cli.methods.sources import SourceRule, takes_one
from attcl_cli.scoring import formulas

_SLICES_PER_DIRECTION = 12
_SLICES_PER_TARGET = 36  # as many as the directions that lead to it have together

# sources -> (rows of these, row of the target)
_Slices = dict[tuple[str, ...], list[tuple[list[int], int]]]


def make_validation(
    store: SliceStore, rule: SourceRule, device: torch.device, *, seed: int = 0
) -> Callable[[Method], float] | None:
    """Return a validation function: mean SSIM in the brain of what a method makes of true pairs.

    A method of one source is judged by every direction that the store has pairs for, another one by every target, made
    from what the rule takes of all other modalities of its case. Only volumes that the prepared split holds are used,
    never held-out ones.

    Args:
        store: slices of the validation cases.
        rule: what the method makes from what.
        device: of the method.
        seed: chooses the slices, once.

    Returns:
        The function (higher is better): mean over slices, then over directions or targets; None if no case allows it.
    """
    rng = np.random.default_rng(seed)
    one = takes_one(rule, store.modalities)
    groups = _directions(store, rng) if one else _targets(store, rule, rng)
    if not groups:
        return None

    def validate(method: Method) -> float:
        scores = []
        for target, slices in groups:
            values: list[float] = []
            for sources, pairs in slices.items():
                images = {
                    name: store.read(
                        np.array([rows[index] for rows, _ in pairs]), context=method.context
                    ).to(device)
                    for index, name in enumerate(sources)
                }
                synthetic = method.synthesise(images, [target])[target]
                values += _similarities(store, synthetic, [truth for _, truth in pairs])
            scores.append(mean(values))
        return mean(scores)

    return validate


def _directions(store: SliceStore, rng: np.random.Generator) -> list[tuple[str, _Slices]]:
    """Return (target, slices) of each direction that any case has both modalities of."""
    pairs: dict[tuple[str, str], list[tuple[int, int]]] = {}
    cases = store.volumes_by_case()
    for entry in store.entries:
        volumes = cases[entry.case]
        for target in store.modalities:
            if target in volumes and target != entry.modality:
                start = volumes[target].start
                rows = ((entry.start + index, start + index) for index in range(entry.count))
                filled = [row for row in rows if store.filled[row[0]] and store.filled[row[1]]]
                pairs.setdefault((entry.modality, target), []).extend(filled)
    groups: list[tuple[str, _Slices]] = []
    for (source, target), rows_of_both in sorted(pairs.items()):
        chosen = rng.permutation(len(rows_of_both))[:_SLICES_PER_DIRECTION]
        slices = [([rows_of_both[int(i)][0]], rows_of_both[int(i)][1]) for i in chosen]
        if slices:
            groups.append((target, {(source,): slices}))
    return groups


def _targets(
    store: SliceStore, rule: SourceRule, rng: np.random.Generator
) -> list[tuple[str, _Slices]]:
    """Return (target, slices) of each target that any case can be judged by."""
    groups: list[tuple[str, _Slices]] = []
    cases = store.volumes_by_case()
    for target in sorted(rule.targets):
        candidates: list[tuple[tuple[str, ...], list[int], int]] = []
        for volumes in cases.values():
            others = [name for name in store.modalities if name in volumes and name != target]
            sources = rule.sources_for(target, others) if target in volumes else None
            if not sources:
                continue
            for offset in range(volumes[target].count):
                truth = volumes[target].start + offset
                if store.filled[truth]:
                    rows = [volumes[name].start + offset for name in sources]
                    candidates.append((sources, rows, truth))
        slices: _Slices = {}
        for index in rng.permutation(len(candidates))[:_SLICES_PER_TARGET]:
            sources, rows, truth = candidates[int(index)]
            slices.setdefault(sources, []).append((rows, truth))
        if slices:
            groups.append((target, slices))
    return groups


def _similarities(store: SliceStore, synthetic: torch.Tensor, rows: Sequence[int]) -> list[float]:
    """Return the SSIM in the brain of synthetic slices (B, 1, S, S) and the true ones of the store."""
    truth = store.read(np.array(rows))[:, 0].numpy()
    predictions = synthetic[:, 0].float().clamp(-1, 1).cpu().numpy()
    return [
        formulas.ssim(prediction, real, data_range=2, mask=real > -1)
        for prediction, real in zip(predictions, truth, strict=True)
    ]

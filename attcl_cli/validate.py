"""How good a method is while it trains: SSIM inside the brain on paired slices of the validation split.

Knows slices at the networks' own size, no volume; whole volumes are `score`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

import numpy as np
import torch

from attcl_cli import metrics
from attcl_cli.methods import Method
from attcl_cli.slices import SliceStore

_SLICES_A_DIRECTION = 12


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
            truth = store.read(np.array([row for _, row in rows]))[:, 0].numpy()
            made = method.synthesise({source: x.to(device)}, [target])[target]
            made_ = made[:, 0].float().clamp(-1, 1).cpu().numpy()
            values = [
                metrics.ssim(prediction, real, data_range=2, mask=real > -1)
                for prediction, real in zip(made_, truth, strict=True)
            ]
            scores.append(mean(values))
        return mean(scores)

    return validate

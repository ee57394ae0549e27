"""Which slices a sample picture of a training run shows: training slices, and what the averaged weights make of them.

How a picture is drawn is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attcl_cli.data.crops import brain_box
from attcl_cli.data.slices import Entry, SliceStore
from attcl_cli.methods.base import Method
from attcl_cli.methods.sources import takes_one

_MOST_ROWS = 4

Rows = list[tuple[str, list[np.ndarray[Any, Any]]]]
"""(row title, images (S, S) in [-1, 1]), one per column."""


def sample_rows(
    method: Method, store: SliceStore, *, seed: int, device: torch.device, boxed: bool = False
) -> tuple[list[str], Rows]:
    """Return the column titles and the rows of a picture.

    A method of one source: a row per source slice, then its translation into every modality. Otherwise a row per
    target: the sources that the case has (black: none, or the target itself), the synthetic and the real slice.

    Args:
        method: with references, on `device`.
        store: the training slices.
        seed: chooses the slices, identical for all pictures of a run.
        device: of the method.
        boxed: show the networks the brain's box alone, as completion does after training on squares.
    """
    rng = np.random.default_rng((seed, 1))
    if takes_one(method.rule, store.modalities):
        return _from_one(method, store, rng, device, boxed=boxed)
    return _from_several(method, store, rng, device, boxed=boxed)


def _from_one(
    method: Method,
    store: SliceStore,
    rng: np.random.Generator,
    device: torch.device,
    *,
    boxed: bool,
) -> tuple[list[str], Rows]:
    rows: Rows = []
    for index in range(min(_MOST_ROWS, len(store.entries))):
        modality = store.modalities[index % len(store.modalities)]
        entries = [entry for entry in store.entries if entry.modality == modality]
        entry = entries[int(rng.integers(len(entries)))]
        source = _middle(store, entry, device, context=method.context)
        if boxed:
            source = source[..., *brain_box([source.cpu()], stride=method.stride)]
        fakes = method.synthesise({modality: source}, store.modalities)
        rows.append((f"{entry.case} {modality}", _pictures([source, *fakes.values()])))
    return ["source", *(f"synthetic {name}" for name in store.modalities)], rows


def _from_several(
    method: Method,
    store: SliceStore,
    rng: np.random.Generator,
    device: torch.device,
    *,
    boxed: bool,
) -> tuple[list[str], Rows]:
    cases = store.volumes_by_case()
    rows: Rows = []
    for target in method.rule.targets:
        fitting = [
            (case, volumes, sources)
            for case, volumes in cases.items()
            if target in volumes
            and (sources := method.sources_for(target, _others(volumes, target)))
        ]
        if not fitting or len(rows) == _MOST_ROWS:
            continue
        case, volumes, sources = fitting[int(rng.integers(len(fitting)))]
        images = {
            name: _middle(store, volumes[name], device, context=method.context) for name in sources
        }
        real = _middle(store, volumes[target], device)
        if boxed:
            box = brain_box([*(image.cpu() for image in images.values())], stride=method.stride)
            images = {name: image[..., *box] for name, image in images.items()}
            real = real[..., *box]
        fake = method.synthesise(images, [target])[target]
        black = torch.full_like(real, -1)
        columns = [images.get(name, black) for name in store.modalities]
        rows.append((f"{case} {target}", _pictures([*columns, fake, real])))
    return [*(f"source {name}" for name in store.modalities), "synthetic", "real"], rows


def _others(volumes: Mapping[str, Entry], target: str) -> list[str]:
    return [name for name in volumes if name != target]


def _middle(store: SliceStore, entry: Entry, device: torch.device, *, context: int = 0) -> Tensor:
    """Return the middle slice of a volume, (1, 1 + 2 * context, S, S)."""
    return store.read(np.array([entry.start + entry.count // 2]), context=context).to(device)


def _pictures(images: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """Return images (1, C, S, S) as (S, S), without their neighbours."""
    return [image[0, image.shape[1] // 2].float().cpu().numpy() for image in images]

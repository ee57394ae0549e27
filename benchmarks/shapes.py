"""Run networks on tensors that have shapes and no values: what they cost and how they are built is known at once.

Nothing is computed and no memory is needed. What is done with the counts and the shapes is left to the scripts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from attcl_cli.data.intensities import Scale
from attcl_cli.data.slices import STEPS, Entry, SliceStore
from attcl_cli.methods import METHODS, VARIANTS
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings

MODALITIES = ("flair", "t1", "t1ce", "t2")
PUBLISHED_METHODS = (*METHODS, *(f"{method}:{variant}" for variant, method in VARIANTS.items()))
"""Every method of the registry, and every published one that is a variant of one: `plave:aca-gan`."""

_CASES, _SLICES = 2, 2  # of the store: a case has all modalities, so all losses of a method arise
_ATEN = torch.ops.aten
_ASKING = (_ATEN._local_scalar_dense.default, _ATEN.item.default, _ATEN.is_nonzero.default)
_ONE: Mapping[torch.dtype, bool | int] = {torch.bool: True, torch.int32: 1, torch.int64: 1}
_FAKE = FakeTensorMode(allow_non_fake_inputs=True)  # one, since tensors of two of them do not mix


class FlopCounter(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products while it is entered.

    A multiplication and an addition count as two; backward passes are counted as well. torch's own counter tracks
    modules, too, and fails at gradient penalties.

    Attributes:
        flop: what was counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out an operation, and count it."""
        del types
        options = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None and func is not torch.ops.prim.device.default:
            with self:  # in inference mode, convolutions arrive as what they consist of
                parts = func.decompose(*args, **options)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **options)
        if count is not None:
            self.flop += count(*args, **options, out_val=result)
        return result


class _AllTrue(TorchDispatchMode):
    """Answers what is asked of values that no tensor has: every mask is true everywhere, every number is 1.

    What depends on a batch alone has values, and is computed: which slices have a pair, and the like.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Carry out an operation."""
        del types
        tensors = [it for it in tree_leaves((args, kwargs)) if isinstance(it, Tensor)]
        if tensors and not any(isinstance(it, FakeTensor) for it in tensors):
            with _disable_current_modes():
                return func(*args, **(kwargs or {}))
        if func in _ASKING:
            return _ONE.get(args[0].dtype, 1.0)
        if func is _ATEN.nonzero.default:
            return _places(args[0])
        if func is _ATEN.index.Tensor:
            x, places = args
            return func(x, [item for place in places for item in _as_indices(place)])
        return func(*args, **(kwargs or {}))


@contextmanager
def without_values() -> Iterator[None]:
    """Let new tensors, and what is computed from them, have shapes and no values; masks are true everywhere."""
    with _FAKE, _AllTrue():
        yield


def example_store(size: int) -> SliceStore:
    """Return training slices of two cases with all modalities and label maps; they show noise."""
    noise = np.random.default_rng(0)
    entries, count = [], _CASES * _SLICES
    for case in range(_CASES):
        for index, name in enumerate(MODALITIES):
            start = (case * len(MODALITIES) + index) * _SLICES
            entries.append(Entry(f"Phantom_{case}", name, start, _SLICES, 0))
    labels = [Entry(f"Phantom_{it}", "seg", it * _SLICES, _SLICES, 0) for it in range(_CASES)]
    rows = count * len(MODALITIES)
    return SliceStore(
        data=noise.integers(-STEPS, STEPS, (rows, size, size), np.int16),
        entries=tuple(entries),
        filled=np.ones(rows, bool),
        modalities=MODALITIES,
        scales=dict.fromkeys(MODALITIES, Scale(0.0, 1.0)),
        trained_on=tuple(entry.case for entry in labels),
        labels=np.ones((count, size, size), np.uint8),
        segmentations=tuple(labels),
        tumour=np.ones(count, bool),
    )


def made(settings: Settings, device: torch.device | None = None) -> Method:
    """Return a new method of four modalities in eval mode, with references, as completion has it.

    Args:
        settings: of the method.
        device: where its networks are to be; None: they stay as they are made.
    """
    torch.manual_seed(settings.seed)
    method: Method = METHODS[settings.method](settings, MODALITIES).eval()
    for network in method.networks().values() if device else ():
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    size = settings.image_size
    method.remember_references(
        {name: torch.zeros(1, 1, size, size, device=device) for name in MODALITIES}
    )
    return method


def translations(method: Method) -> list[tuple[str, tuple[str, ...]]]:
    """Return every target that the method makes of a case that has all other modalities, and its sources."""
    pairs = [
        (target, method.sources_for(target, [name for name in MODALITIES if name != target]))
        for target in method.rule.targets
    ]
    return [(target, sources) for target, sources in pairs if sources]


def slices_for(method: Method, sources: tuple[str, ...], count: int) -> dict[str, Tensor]:
    """Return grey slices as completion hands them over: source -> (count, 1 + 2 * context, S, S)."""
    size = method.settings.image_size
    shape = (count, 1 + 2 * method.context, size, size)
    return {name: torch.zeros(shape, device=method.device) for name in sources}


def _places(mask: Tensor) -> Tensor:
    """Return `torch.nonzero` of a mask, (K, dimensions) int64; one without values is true everywhere."""
    if not isinstance(mask, FakeTensor):
        with _disable_current_modes():
            return torch.nonzero(mask)
    return mask.new_zeros((mask.numel(), mask.ndim), dtype=torch.int64)


def _as_indices(place: Tensor | None) -> list[Tensor | None]:
    """Return an index, a mask as the indices of its places."""
    if place is None or place.dtype is not torch.bool:
        return [place]
    return list(_places(place).unbind(dim=1))

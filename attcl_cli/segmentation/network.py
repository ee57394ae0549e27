"""The segmenter: a 2-D U-Net on concatenated modalities, its predictions, and its weights file.

Its slices are left to `slices`, its training to `training`, the scores of its predictions to `evaluation`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional

from attcl_cli import __version__, documents
from attcl_cli.data import intensities
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.intensities import Array
from attcl_cli.data.labels import CLASSES, CONVENTIONS
from attcl_cli.documents import Count, Document, Items, Name
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import parse_json, write_whole
from attcl_cli.methods.finite import require_finite_tensors
from attcl_cli.methods.settings import validated
from attcl_cli.methods.weights import WEIGHTS_FILE, opened, read_tensors
from attcl_cli.segmentation.inputs import Size
from attcl_cli.segmentation.settings import SegmentSettings
from attcl_cli.segmentation.slices import Loaded

SCHEMA_VERSION = 1
METADATA_KEY = "attcl-segment"  # our entry in the metadata of a safetensors file
_MOST_CHANNELS = 256
_SLICES_AT_ONCE = 32  # of a prediction


@dataclass(frozen=True)
class SegmenterInfo:
    """The description of a segmenter that its weights file holds.

    Attributes:
        settings: of its training.
        input: the name of the input that it was trained on.
        channels: the modalities, in order.
        convention: how its dataset's label maps write the classes.
        trained_on: ids of the training cases.
        validated_on: ids of the cases that chose the weights; empty: the last weights were taken.
        steps: how many training steps the weights have seen.
        background: what was background in the volumes (`volumes.load`).
    """

    settings: SegmentSettings
    input: str
    channels: tuple[str, ...]
    convention: str
    trained_on: tuple[str, ...]
    validated_on: tuple[str, ...] = ()
    steps: int = 0
    attcl_version: str = __version__
    background: BackgroundOption = "auto"


class _InfoDocument(Document):
    schema_version: Literal[1]
    settings: dict[str, Any]
    input: Name
    channels: Annotated[Items[Name], Field(min_length=1, max_length=_MOST_CHANNELS)]
    convention: str
    trained_on: Items[str]
    validated_on: Items[str]
    steps: Count
    attcl_version: str
    background: BackgroundOption = "auto"

    @field_validator("convention")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in CONVENTIONS:
            raise ValueError(f"one of {', '.join(CONVENTIONS)}")
        return value


@dataclass(frozen=True)
class Segmenter:
    """A trained network on its device."""

    network: nn.Module
    info: SegmenterInfo
    device: torch.device


def size_of(settings: SegmentSettings) -> Size:
    """Return the size of the slices that a network of these settings sees."""
    return Size(settings.image_size, settings.canvas)


def make_network(settings: SegmentSettings, channels: int) -> nn.Module:
    """Return monai's plain U-Net at its random start, a function of the seed.

    It maps (B, C, S, S) to (B, classes, S, S) logits.
    """
    from monai.networks.nets.dynunet import DynUNet

    lower = [2] * (settings.levels - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network: nn.Module = DynUNet(
            spatial_dims=2,
            in_channels=channels,
            out_channels=len(CLASSES),
            kernel_size=[3] * settings.levels,
            strides=[1, *lower],
            upsample_kernel_size=lower,
            filters=[settings.width * 2**level for level in range(settings.levels)],
        )
    return network


def predict(segmenter: Segmenter, loaded: Loaded) -> Array:
    """Return (D, H, W) uint8 classes of one case.

    Each voxel has its most probable class at the case's own resolution; outside of the brain it is background.
    """
    factor = size_of(segmenter.info.settings).factor
    depth, height, width = loaded.brain.shape
    classes = np.zeros((depth, height, width), dtype=np.uint8)
    for rows in in_parts(np.flatnonzero(loaded.brain.any(axis=(1, 2)))):
        best = most_probable(
            segmenter.network, loaded.images[rows], segmenter.device, enlarge=factor
        )
        classes[rows] = intensities.crop(best, (height, width))
    classes[~loaded.brain] = 0
    return classes


def in_parts(rows: Array) -> list[Array]:
    """Return (N,) rows as equal parts that a network can take at once; no part for no rows."""
    return np.array_split(rows, -(-len(rows) // _SLICES_AT_ONCE)) if len(rows) else []


def most_probable(
    network: nn.Module, images: Array, device: torch.device, *, enlarge: int = 1
) -> Array:
    """Return the most probable classes of some slices, in float32 whatever the training's precision was.

    Args:
        network: in eval mode.
        images: (B, C, S, S) float32.
        device: of the network.
        enlarge: probabilities are interpolated to this many times S first.

    Returns:
        (B, enlarge S, enlarge S) uint8.
    """
    with torch.inference_mode():
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        shares = network(batch.contiguous(memory_format=torch.channels_last)).softmax(dim=1)
        if enlarge > 1:
            shares = functional.interpolate(
                shares, scale_factor=enlarge, mode="bilinear", align_corners=False
            )
        value: Array = shares.argmax(dim=1).byte().cpu().numpy()
        return value


def save_segmenter(path: Path, network: nn.Module, info: SegmenterInfo) -> None:
    """Write weights, float32 and whole, with all that is needed to use them."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.named_parameters()}
    require_finite_tensors(tensors, path, saving=True)
    document = {
        "schema_version": SCHEMA_VERSION,
        **asdict(info),
        "settings": info.settings.model_dump(mode="json"),
    }
    write_whole(path, to_safetensors(tensors, {METADATA_KEY: json.dumps(document)}))


def weights_file(path: Path) -> Path:
    """Return the weights file that a user means by a file or by a segmenter's folder.

    Raises:
        UsageError: there is no such file; the hint names segmenters that lie in the folder.
    """
    file = path / WEIGHTS_FILE if path.is_dir() else path
    if file.is_file():
        return file
    inside = sorted(other.parent for other in file.parent.glob(f"*/{WEIGHTS_FILE}"))
    raise UsageError(
        f"--weights: {file} does not exist, expected a segmenter's {WEIGHTS_FILE}",
        f"name one of {', '.join(map(str, inside))}"
        if inside
        else "name what attcl segment wrote; attcl segment trains one",
        code="weights-missing",
    )


def read_info(path: Path) -> SegmenterInfo:
    """Return the description in a segmenter's weights file.

    Raises:
        UsageError: there is no such file.
        AttclError: `save_segmenter` did not write it.
    """
    path = weights_file(path)
    try:
        with opened(path) as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "null")
        record = documents.validated(
            _InfoDocument,
            parse_json(text, allow_nan=True),
            name=METADATA_KEY,
            expected="the description of a segmenter",
            hint="",
            code="not-a-segmenter",
        )
        return SegmenterInfo(
            settings=validated(SegmentSettings, record.settings),
            input=record.input,
            channels=record.channels,
            convention=record.convention,
            trained_on=record.trained_on,
            validated_on=record.validated_on,
            steps=record.steps,
            attcl_version=record.attcl_version,
            background=record.background,
        )
    except (ValueError, AttclError) as error:
        raise AttclError(
            f"{path}: not readable as a segmenter ({error}), expected weights that attcl segment wrote",
            "name a weights.safetensors of attcl segment; those of attcl train complete, and do not segment",
            code="not-a-segmenter",
        ) from error


def load_segmenter(path: Path, device: torch.device) -> Segmenter:
    """Return a segmenter on a device, ready for `predict`; errors as `read_info`."""
    info = read_info(path)
    path = weights_file(path)
    tensors = read_tensors(path)
    require_finite_tensors(tensors, path, saving=False)
    misfit = AttclError(
        f"{path}: tensors do not fit its own settings, expected weights that attcl segment wrote",
        "copy the file again from its source, or train again",
        code="weights-do-not-fit",
    )
    # The lowest level has a convolution from as many channels to as many: no memory is taken for a false promise.
    lowest = info.settings.width * 2 ** (info.settings.levels - 1)
    if lowest**2 > sum(tensor.numel() for tensor in tensors.values()):
        raise misfit
    network = make_network(info.settings, len(info.channels))
    if not load_tensors(network, tensors):
        raise misfit
    network.to(device).eval().requires_grad_(requires_grad=False)
    return Segmenter(network, info, device)


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Set all weights of a network, unless these are of another shape; return whether they were set.

    monai's network registers its weights under several names; `named_parameters` has each once.
    """
    parameters = dict(network.named_parameters())
    shapes = {key: value.shape for key, value in tensors.items()}
    if {key: value.shape for key, value in parameters.items()} != shapes:
        return False
    with torch.no_grad():
        for key, value in parameters.items():
            value.copy_(tensors[key])
    return True

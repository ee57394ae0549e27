"""The segmenter that completion is judged by: a 2-D U-Net on concatenated modalities, its training, its predictions.

Which files it is shown is `segment_inputs`' business, what its predictions are worth `segment_scores`'. Everything
random is a function of (seed, step), so a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional as F

from attcl_cli import __version__
from attcl_cli.data import intensities, volumes
from attcl_cli.data.intensities import Array
from attcl_cli.data.labels import CLASSES, CONVENTIONS, REGIONS, Convention, mask_of, to_labels
from attcl_cli.data.slices import STEPS
from attcl_cli.devices import Precision
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.files import write_whole
from attcl_cli.methods.settings import validated
from attcl_cli.methods.weights import WEIGHTS_FILE
from attcl_cli.prefetch import read_ahead
from attcl_cli.segmentation.inputs import Sample
from attcl_cli.segmentation.metrics import dice
from attcl_cli.segmentation.settings import SegmentSettings
from attcl_cli.segmentation.slices import Loaded, SegmentationStore, Size, SliceSampler, load
from attcl_cli.segmentation.summary import Row, rows_of
from attcl_cli.training.loop import STATS_FILE, log_stats, stop_requested, trim_stats
from attcl_cli.training.state import STATE_FILE, TrainingState, load_state, save_state

PREDICTIONS = "predictions"
SCHEMA_VERSION = 1
_KEY = "attcl-segment"  # our entry among a safetensors file's metadata
_SLICES_AT_ONCE = 32  # of a prediction
_NIFTI_AXES = np.diag(
    [-1.0, -1.0, 1.0, 1.0]
)  # of a prediction for PNG slices, which have no geometry


@dataclass(frozen=True)
class SegmenterInfo:
    """What a segmenter's weights say of themselves.

    Attributes:
        settings: those of its training.
        input: what it was shown.
        channels: the modalities, in order.
        convention: how its dataset's label maps write the classes.
        trained_on: ids of the training cases.
        validated_on: ids of the cases that chose the weights; none: the last ones were taken.
        steps: how many training steps the weights have seen.
    """

    settings: SegmentSettings
    input: str
    channels: tuple[str, ...]
    convention: str
    trained_on: tuple[str, ...]
    validated_on: tuple[str, ...] = ()
    steps: int = 0
    attcl_version: str = __version__


@dataclass(frozen=True)
class Segmenter:
    """A trained network on its device."""

    network: nn.Module
    info: SegmenterInfo
    device: torch.device


OnStep = Callable[[int, Mapping[str, float]], None]


def size_of(settings: SegmentSettings) -> Size:
    """The size of its slices."""
    return Size(settings.image_size, settings.canvas)


def make_network(settings: SegmentSettings, channels: int) -> nn.Module:
    """monai's plain U-Net at its random start, a function of the seed: (B, C, S, S) -> (B, classes, S, S) logits."""
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


def train(
    info: SegmenterInfo,
    store: SegmentationStore,
    folder: Path,
    *,
    validation: SegmentationStore | None,
    device: torch.device,
    precision: Precision = "fp32",
    resume: bool = False,
    workers: int = 2,
    on_step: OnStep = lambda _step, _values: None,
) -> int:
    """Trains a segmenter by Dice + cross-entropy and SGD; leaves weights, checkpoint and statistics in `folder`.

    Args:
        info: its settings and channels.
        store: the training slices.
        folder: exists.
        validation: slices of the validation cases: the weights that do best on them are kept. None: the last are.
        device: where.
        precision: `bf16` computes the network in bfloat16; weights and losses stay float32.
        resume: go on from the checkpoint in `folder`.
        workers: batches read ahead.
        on_step: called after each step with the newest losses.

    Returns:
        The steps that the weights in `folder` have seen.

    Raises:
        InterruptedRun: Ctrl-C; everything is saved.
        AttclError: a loss is no longer finite, or the device is out of memory; the last good checkpoint is kept.
    """
    from monai.losses.dice import DiceCELoss

    settings = info.settings
    run = _Run(info, folder, device)
    first = run.restore() if resume else 0
    trim_stats(folder / STATS_FILE, first)
    sampler = SliceSampler(
        store,
        batch_size=settings.batch_size,
        seed=settings.seed,
        tumour_share=settings.tumour_share,
        augment=settings.augment,
    )
    # Dice over the batch as a whole: most slices lack most classes.
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    clock, clock_step = time.monotonic(), first
    logged: dict[str, float] = {}
    with stop_requested() as stop:
        for step, future in read_ahead(
            sampler.batch, range(first, settings.steps), depth=max(workers, 1)
        ):
            run.network.train()
            try:
                images, classes = future.result().on(device)
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    logits = run.network(images)
                loss = criterion(logits.float(), classes)
                run.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                run.optimiser.step()
            except torch.cuda.OutOfMemoryError as error:
                raise _out_of_memory(settings, device) from error
            done = step + 1
            last = done == settings.steps
            judging = done % settings.validate_every == 0 or last
            stopped = stop.is_set()  # asked once: what is saved is what is told
            saving = judging or stopped
            if done % settings.log_every == 0 or saving:
                # The only place where the loop waits for the device.
                logged = {"loss": float(loss.detach())}
                _require_finite(logged["loss"], done, folder)
                now = time.monotonic()
                seconds = round((now - clock) / (done - clock_step), 4)
                clock, clock_step = now, done
                if done % settings.log_every == 0 or last:
                    log_stats(
                        folder / STATS_FILE,
                        {"step": done, "seconds_a_step": seconds, **logged},
                    )
            if judging:
                run.judge(done, validation)
                clock = time.monotonic()
            if saving:
                run.save(done)
            on_step(done, logged)
            if stopped and not last:
                raise InterruptedRun(
                    f"{folder}: stopped after step {done} of {settings.steps}, everything is saved",
                    "go on with --resume",
                )
    return run.best_step


def validate(network: nn.Module, store: SegmentationStore, device: torch.device) -> float:
    """The mean Dice over cases and regions, at the network's own resolution."""
    network.eval()
    found = []
    for entry in store.entries:
        rows = slice(entry.start, entry.start + entry.count)
        images = store.images[rows]
        predicted = np.concatenate(
            [
                _probabilities(network, part.astype(np.float32) / STEPS, device)
                .argmax(dim=1)
                .byte()
                .cpu()
                .numpy()
                for part in np.array_split(images, max(1, -(-len(images) // _SLICES_AT_ONCE)))
            ]
        )
        found += [
            dice(mask_of(predicted, region), mask_of(store.classes[rows], region))
            for region in REGIONS
        ]
    return float(np.mean(found))


def predict(segmenter: Segmenter, loaded: Loaded) -> Array:
    """(D, H, W) uint8 classes of one case: the most probable at the case's resolution, background outside the brain."""
    size = size_of(segmenter.info.settings)
    depth, height, width = loaded.brain.shape
    classes = np.zeros((depth, height, width), dtype=np.uint8)
    shown = np.flatnonzero(loaded.brain.any(axis=(1, 2)))
    for rows in np.array_split(shown, max(1, -(-len(shown) // _SLICES_AT_ONCE))):
        if len(rows):
            found = _probabilities(segmenter.network, loaded.images[rows], segmenter.device)
            if size.factor > 1:
                found = F.interpolate(
                    found, scale_factor=size.factor, mode="bilinear", align_corners=False
                )
            best = found.argmax(dim=1).byte().cpu().numpy()
            classes[rows] = intensities.crop(best, (height, width))
    classes[~loaded.brain] = 0
    return classes


def evaluate(
    segmenter: Segmenter,
    samples: Sequence[Sample],
    folder: Path,
    *,
    convention: Convention,
    input_: str,
    per_slice: bool = False,
    workers: int = 2,
) -> Iterator[tuple[str, list[Row]]]:
    """Predicts and scores case by case; yields the case's id and its rows.

    Label maps go into `folder`, named by the case, in its geometry and with its dataset's label values.

    Raises:
        AttclError: a file cannot be read or written.
    """
    size = size_of(segmenter.info.settings)
    segmenter.network.eval()

    def predicted() -> Iterator[tuple[Loaded, Array]]:
        for _, future in read_ahead(
            lambda sample: load(sample, size, convention), samples, depth=workers
        ):
            loaded = future.result()
            yield loaded, predict(segmenter, loaded)

    def finish(item: tuple[Loaded, Array]) -> list[Row]:
        loaded, classes = item
        case, grid = loaded.sample.case, loaded.grid
        if grid.header is None:
            depth, height, width = classes.shape
            grid = volumes.new_grid((width, height, depth), _NIFTI_AXES)
        volumes.save(
            (folder / f"{case}.nii.gz",),
            to_labels(classes, convention),
            replace(grid, dtype=np.dtype(np.uint8), scaled=False),
            description=f"attcl {__version__} segmentation",
        )
        spacing = loaded.grid.axial_spacing_mm
        return rows_of(
            classes, loaded.truth, spacing, case=case, input_=input_, per_slice=per_slice
        )

    # Scored and written while the network is at the next case.
    for (loaded, _), future in read_ahead(finish, predicted(), depth=min(workers, 1)):
        yield loaded.sample.case, future.result()


def save_segmenter(path: Path, network: nn.Module, info: SegmenterInfo) -> None:
    """Writes weights, float32 and whole, with all that is needed to use them."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.named_parameters()}
    document = {
        "schema_version": SCHEMA_VERSION,
        **asdict(info),
        "settings": info.settings.model_dump(mode="json"),
    }
    write_whole(path, to_safetensors(tensors, {_KEY: json.dumps(document)}))


def read_info(path: Path) -> SegmenterInfo:
    """What a segmenter's weights say of themselves.

    Raises:
        UsageError: there is no such file.
        AttclError: it is none that `save_segmenter` wrote.
    """
    if path.is_dir():
        path = path / WEIGHTS_FILE
    if not path.is_file():
        inside = sorted(found.parent for found in path.parent.glob(f"*/{WEIGHTS_FILE}"))
        raise UsageError(
            f"--weights: {path} does not exist, expected a segmenter's {WEIGHTS_FILE}",
            f"name one of {', '.join(map(str, inside))}"
            if inside
            else "name what attcl segment wrote, or leave --weights out to train one",
        )
    try:
        with safe_open(path, framework="pt") as file:
            document: Any = json.loads((file.metadata() or {}).get(_KEY, "null"))
        if not isinstance(document, dict) or document["schema_version"] != SCHEMA_VERSION:
            raise KeyError(_KEY)
        if document["convention"] not in CONVENTIONS:
            raise KeyError("convention")
        return SegmenterInfo(
            settings=validated(SegmentSettings, document["settings"]),
            input=document["input"],
            channels=tuple(document["channels"]),
            convention=document["convention"],
            trained_on=tuple(document["trained_on"]),
            validated_on=tuple(document["validated_on"]),
            steps=document["steps"],
            attcl_version=document["attcl_version"],
        )
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttclError) as error:
        raise AttclError(
            f"{path}: not readable as a segmenter ({error}), expected weights that attcl segment wrote",
            "name a weights.safetensors of attcl segment; those of attcl train complete, and do not segment",
        ) from error


def load_segmenter(path: Path, device: torch.device) -> Segmenter:
    """A segmenter on a device, ready for `predict`; errors as `read_info`."""
    info = read_info(path)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    network = make_network(info.settings, len(info.channels))
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    if not _load(network, tensors):
        raise AttclError(
            f"{path}: tensors do not fit its own settings, expected weights that attcl segment wrote",
            "copy the file again from its source, or train again",
        )
    network.to(device).eval().requires_grad_(requires_grad=False)
    return Segmenter(network, info, device)


class _Run:
    """A segmenter in training, and its files."""

    def __init__(self, info: SegmenterInfo, folder: Path, device: torch.device) -> None:
        settings = info.settings
        self.info, self.folder = info, folder
        self.device = device
        network = make_network(settings, len(info.channels)).to(device)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.SGD(
            self.network.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.best: float | None = None
        self.best_step = 0

    def judge(self, step: int, validation: SegmentationStore | None) -> None:
        """Keeps the weights if they are the best so far; without validation cases the newest always are."""
        score = None if validation is None else validate(self.network, validation, self.device)
        if score is not None:
            log_stats(self.folder / STATS_FILE, {"step": step, "validation_dice": score})
        if self.best is None or score is None or score > self.best:
            self.best, self.best_step = score, step
            info = replace(self.info, steps=step)
            save_segmenter(self.folder / WEIGHTS_FILE, self.network, info)

    def save(self, step: int) -> None:
        """The checkpoint to resume from."""
        tensors = {f"network.{key}": value for key, value in self.network.named_parameters()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            if slots.get("momentum_buffer") is not None:
                tensors[f"momentum.{index}"] = slots["momentum_buffer"]
        extra = {"best": self.best, "best_step": self.best_step}
        save_state(self.folder / STATE_FILE, TrainingState(step, tensors, extra))

    def restore(self) -> int:
        """Everything as it was at the checkpoint; returns its step."""
        state = load_state(self.folder / STATE_FILE)

        def own(prefix: str) -> dict[str, Tensor]:
            found = ((key, value) for key, value in state.tensors.items() if key.startswith(prefix))
            return {key.removeprefix(prefix): value for key, value in found}

        if not _load(self.network, own("network.")):
            raise UsageError(
                f"--resume: {self.folder / STATE_FILE} does not fit these settings, "
                "expected those that the run began with",
                "start a new run with another --output",
            )
        slots = {
            int(index): {"momentum_buffer": value} for index, value in own("momentum.").items()
        }
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": slots, "param_groups": groups})
        self.best, self.best_step = state.extra["best"], state.extra["best_step"]
        return state.step


def _load(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Sets all weights, unless these are not a network's like this; monai's registers them under several names."""
    own = dict(network.named_parameters())
    if {key: value.shape for key, value in own.items()} != {
        key: value.shape for key, value in tensors.items()
    }:
        return False
    with torch.no_grad():
        for key, value in own.items():
            value.copy_(tensors[key])
    return True


def _probabilities(network: nn.Module, images: Array, device: torch.device) -> Tensor:
    """(B, C, S, S) float32 -> (B, classes, S, S), in float32 whatever the training's precision was."""
    with torch.inference_mode():
        shown = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        found: Tensor = network(shown.contiguous(memory_format=torch.channels_last)).softmax(dim=1)
    return found


def _require_finite(loss: float, step: int, folder: Path) -> None:
    if not math.isfinite(loss):
        raise AttclError(
            f"{folder}: the loss is {loss} at step {step}, expected a finite number",
            "the last good checkpoint is kept; start again with smaller steps: --set learning_rate=1e-3",
        )


def _out_of_memory(settings: SegmentSettings, device: torch.device) -> AttclError:
    size = f"{settings.batch_size} slices of {settings.image_size} pixels"
    return AttclError(
        f"{device}: out of memory with {size}, expected a step that fits",
        f"--set batch_size={max(settings.batch_size // 2, 1)}, --precision bf16, or --preset small",
    )

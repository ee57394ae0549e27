"""Training learns, keeps the best weights, resumes to the bit, and names a loss that blows up."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from segmenters import info_of

from attcl_cli.errors import AttclError, InterruptedRun
from attcl_cli.segmentation.network import load_segmenter, make_network
from attcl_cli.segmentation.slices import SliceSampler
from attcl_cli.segmentation.training import SegmenterTrainer, train, validate
from attcl_cli.training.loop import LoopHooks

CPU = torch.device("cpu")


def stats_in(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def stop_after(step: int) -> LoopHooks:
    """Hooks that press Ctrl-C during a step."""

    def on_step(done: int, _losses: object) -> None:
        if done == step:
            signal.raise_signal(signal.SIGINT)

    return LoopHooks(on_step=on_step)


def test_training_learns_and_the_best_validated_weights_are_kept(packed, tmp_path):
    info = info_of(packed, steps=24, validate_every=12, log_every=1)
    best = train(info, packed, tmp_path, validation=packed, device=CPU)
    lines = stats_in(tmp_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    judged = {line["step"]: line["validation_dice"] for line in lines if "validation_dice" in line}
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert set(judged) == {12, 24} and judged[best] == max(judged.values())
    segmenter = load_segmenter(tmp_path, CPU)
    assert segmenter.info.steps == best
    assert round(validate(segmenter.network, packed, CPU), 6) == judged[best]


def test_without_validation_cases_the_last_weights_are_kept(packed, tmp_path):
    info = info_of(packed, steps=3, validate_every=2)
    assert train(info, packed, tmp_path, validation=None, device=CPU) == 3
    assert load_segmenter(tmp_path, CPU).info.steps == 3
    assert not any("validation_dice" in line for line in stats_in(tmp_path))


def test_validation_is_dice_over_cases_and_regions(packed):
    class Truth(torch.nn.Module):
        """Knows the classes, since it is shown the slices in their order."""

        row = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            rows = slice(self.row, self.row + len(images))
            self.row += len(images)
            classes = torch.from_numpy(packed.classes[rows].astype(np.int64))
            return torch.nn.functional.one_hot(classes, 4).permute(0, 3, 1, 2).float()

    assert validate(Truth(), packed, CPU) == 1


def test_a_stopped_run_ends_where_an_undisturbed_one_would_have(packed, tmp_path):
    info = info_of(packed, steps=6, validate_every=4, learning_rate_decay=0.5)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    train(info, packed, whole, validation=packed, device=CPU)
    with pytest.raises(InterruptedRun, match="stopped after step") as stop:
        train(
            info,
            packed,
            parts,
            validation=packed,
            device=CPU,
            hooks=stop_after(3),
            resume_hint="attcl segment --resume here",
        )
    assert stop.value.hint == "resume with: attcl segment --resume here"
    train(info, packed, parts, validation=packed, device=CPU, resume=True)
    for name in ("weights.safetensors", "checkpoint-last.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_a_checkpoint_of_an_earlier_version_is_restored(packed, tmp_path):
    info = info_of(packed, steps=2)
    train(info, packed, tmp_path, validation=None, device=CPU)
    path = tmp_path / "checkpoint-last.safetensors"
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = {
        key.replace("optimiser.network.", "momentum.").replace(".momentum_buffer", ""): value
        for key, value in load_file(path).items()
    }
    new = SegmenterTrainer(info, tmp_path, validation=None, device=CPU)
    new.restore()
    save_file(tensors, path, metadata)
    old = SegmenterTrainer(info, tmp_path, validation=None, device=CPU)
    assert old.restore() == 2
    momenta = [
        [slots["momentum_buffer"] for slots in trainer.optimiser.state_dict()["state"].values()]
        for trainer in (old, new)
    ]
    assert len(momenta[0]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*momenta, strict=True))


def test_a_checkpoint_of_other_settings_is_refused(packed, tmp_path):
    train(info_of(packed, steps=2), packed, tmp_path, validation=None, device=CPU)
    wider = info_of(packed, steps=4, width=6)
    with pytest.raises(AttclError) as error:
        train(wider, packed, tmp_path, validation=None, device=CPU, resume=True)
    assert error.value.code == "checkpoint-does-not-fit"


def test_the_learning_rate_is_constant_unless_it_decays(packed, tmp_path):
    rates: dict[float, list[float]] = {}
    for decay in (0.0, 0.5):
        folder = tmp_path / str(decay)
        folder.mkdir()
        rates[decay] = []
        step = SegmenterTrainer.step

        def noted(self, batch, number, *, seen=rates[decay], step=step):
            seen.append(self.optimiser.param_groups[0]["lr"])
            return step(self, batch, number)

        info = info_of(packed, steps=4, learning_rate_decay=decay)
        with mock.patch.object(SegmenterTrainer, "step", noted):
            train(info, packed, folder, validation=None, device=CPU)
    assert rates[0.0] == [0.05] * 4
    assert rates[0.5] == pytest.approx([0.05, 0.05, 0.05, 0.025])


def test_the_loss_is_dice_and_cross_entropy_of_the_batch(packed, tmp_path):
    info = info_of(packed, augment=False)
    trainer = SegmenterTrainer(info, tmp_path, validation=None, device=CPU)
    batch = SliceSampler(packed, batch_size=4, seed=0, tumour_share=1.0, augment=False).batch(0)
    images, classes = batch.varied()
    with torch.no_grad():
        logits = make_network(info.settings, 4).train()(images)
    shares, truth = logits.softmax(dim=1)[:, 1:], torch.nn.functional.one_hot(classes[:, 0], 4)
    truth = truth.permute(0, 3, 1, 2)[:, 1:].float()
    both, total = (shares * truth).sum(dim=(0, 2, 3)), (shares + truth).sum(dim=(0, 2, 3))
    dice = 1 - (2 * both + 1e-5) / (total + 1e-5)
    entropy = torch.nn.functional.cross_entropy(logits, classes[:, 0])
    expected = float(dice.mean() + entropy)
    assert float(trainer.step(batch, 0)["loss"]) == pytest.approx(expected, rel=1e-5)


def test_the_loss_that_blows_up_is_named(packed, tmp_path):
    info = info_of(packed, steps=30, log_every=1)
    nan = mock.Mock(return_value=torch.tensor(float("nan"), requires_grad=True))
    with (
        mock.patch("monai.losses.dice.DiceCELoss", return_value=nan),
        pytest.raises(AttclError, match="loss is nan at step 1") as error,
    ):
        train(info, packed, tmp_path, validation=None, device=CPU)
    assert error.value.code == "loss-not-finite"
    assert "--resume" not in error.value.hint  # a resumed segmenter keeps its learning rate


def test_what_does_not_fit_into_memory_is_named(packed, tmp_path):
    full = mock.Mock(side_effect=torch.cuda.OutOfMemoryError)
    with (
        mock.patch("monai.losses.dice.DiceCELoss", return_value=full),
        pytest.raises(AttclError, match="4 slices of 40 pixels") as error,
    ):
        train(info_of(packed), packed, tmp_path, validation=None, device=CPU)
    assert error.value.code == "out-of-memory" and "batch_size=2" in error.value.hint


@pytest.mark.gpu
def test_bf16_on_a_gpu_trains_finite_weights(packed, tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    cuda = torch.device("cuda")
    info = info_of(packed, steps=4)
    train(info, packed, tmp_path, validation=packed, device=cuda, precision="bf16")
    segmenter = load_segmenter(tmp_path, cuda)
    assert all(weight.isfinite().all() for weight in segmenter.network.parameters())

"""Preset `paper` of PLAVE against the publication: weights counted by hand, a step from the papers' text alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from gradients import recorded, require_equal
from helpers import SMALL_NETWORKS, SMALL_RUN, changed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from training_runs import KilledError, require_same_runs, run

from attcl_cli import complete
from attcl_cli.data.sampling import CaseBatch
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.networks.fusion import Branch, Design, ModalityFusion
from attcl_cli.methods.networks.layers import BatchNormLayers
from attcl_cli.methods.plave import Plave
from attcl_cli.methods.settings import Settings, resolve
from attcl_cli.training.learning_rates import rate_factor
from attcl_cli.training.state import STATE_FILE, load_state

FOUR = ("flair", "t1", "t1ce", "t2")
Weights = Mapping[str, Tensor]


def small_paper(**changes: Any) -> Settings:
    """Return preset `paper` with networks that train in milliseconds."""
    small = {**SMALL_RUN, **SMALL_NETWORKS["plave"], "epochs": 0, "plave_target": "t1ce"}
    return resolve(preset="paper", method="plave", overrides={**small, **changes})


def method_of(settings: Settings) -> Plave:
    torch.manual_seed(1)
    return METHODS["plave"](settings, FOUR)


def batch_of(size: int = 3) -> CaseBatch:
    """Return targets t1ce from the other three, the first without a segmentation."""
    noise = torch.Generator().manual_seed(5)
    return CaseBatch(
        images=torch.rand(size, 4, 16, 16, generator=noise) * 2 - 1,
        sources=torch.tensor([True, True, False, True]).expand(size, -1),
        target=torch.full((size,), 2),
        labels=torch.randint(4, (size, 16, 16), generator=noise),
        has_labels=torch.arange(size) > 0,
    )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_networks_have_as_many_weights_as_the_papers_layers():
    settings = resolve(preset="paper", method="plave", overrides={"plave_target": "t1ce"})
    with torch.device("meta"):
        method = METHODS["plave"](settings, FOUR)
    norm = {channels: 2 * channels for channels in (64, 128, 256, 512)}
    encoder = (49 * 64 + norm[64]) + (9 * 64 * 128 + norm[128]) + (9 * 128 * 256 + norm[256])
    excitation = 2 * 128 * 128 // 16 + 2 * 256 * 256 // 16  # after each halving, without bias
    positions = 3 * 64 * 64
    attention = positions * positions // 16 + positions // 16 * 3
    mix = 3 * 256 * 256 + 256
    trunk = 6 * 2 * (9 * 256 * 256 + norm[256])
    doublings = (9 * 256 * 128 + norm[128]) + (9 * 128 * 64 + norm[64])
    image, segmentation = 49 * 64 + 1, 4 * (49 * 64 + 1)
    assert count(method.generator) == (
        3 * (encoder + excitation) + attention + mix + trunk + doublings + image
    )
    assert count(method.generator) == 18_241_281
    assert count(method.segmenter) == doublings + segmentation
    assert count(method.autoencoder) == encoder + trunk + doublings + image
    assert count(method.discriminator) == (
        (16 * 4 * 64 + 64)
        + (16 * 64 * 128 + norm[128])
        + (16 * 128 * 256 + norm[256])
        + (16 * 256 * 512 + norm[512])
        + (16 * 512 + 1)
    )  # pix2pix's of 4 planes
    head = 256 * 256 + 256
    assert count(method.heads) == (3 * 256 * 256 + 256) + head + 2 * head


def test_weights_start_as_pix2pix_s():
    method = method_of(small_paper(width=32, max_width=128))
    # Of thousands, so that chance is 1 %: torch's own start of the trunk would be 0.017.
    kernels = [p for p in method.generator.parameters() if p.ndim > 1 and p.numel() > 5000]
    assert len(kernels) > 10
    assert [p.std().item() for p in kernels] == pytest.approx([0.02] * len(kernels), rel=0.04)
    scales = torch.cat([p for name, p in method.named_parameters() if name.endswith("norm.weight")])
    assert scales.mean().item() == pytest.approx(1, abs=0.01)
    assert scales.std().item() == pytest.approx(0.02, rel=0.2)
    kernels = [p for p in method.discriminator.parameters() if p.ndim > 1 and p.numel() > 500]
    assert [p.std().item() for p in kernels] == pytest.approx([0.02] * len(kernels), rel=0.1)
    for name in ("generator", "segmenter", "discriminator", "autoencoder"):
        network = method.networks()[name]
        biases = [p for key, p in network.named_parameters() if key.endswith("bias")]
        assert biases
        assert not any(bias.any() for bias in biases), name


def test_the_design_is_the_published_one_unless_told_otherwise():
    s = resolve(preset="paper", method="plave", overrides={"plave_target": "t1ce"})
    assert Design() == Design(
        width=s.width,
        max_width=s.max_width,
        side=s.side,
        norm=s.plave_norm,
        style_dim=s.style_dim,
        blocks=s.plave_blocks,
        excitation=s.plave_excitation,
        fusion=s.plave_fusion,
        contrast=s.plave_contrast,
        skips=s.plave_skips,
        autoencoder_blocks=s.plave_autoencoder_blocks,
    )


# --- layers -----------------------------------------------------------------------------------------------------------


def excited(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """ACA-GAN's single-modal attention: x + x * se(x)."""
    gate = torch.sigmoid(torch.relu(x.mean(dim=(2, 3)) @ first.T) @ second.T)
    return x + x * gate[:, :, None, None]


def test_a_branch_has_squeeze_and_excitation_after_each_halving():
    branch = Branch(Design(width=8, max_width=64), excitation="each").eval()
    x = torch.rand(2, 1, 16, 16)
    first = branch.stem(x, None)
    half = branch.down[0](first, None)
    half = excited(half, branch.early[0].mlp[0].weight, branch.early[0].mlp[2].weight)
    quarter = branch.down[1](half, None)
    quarter = excited(quarter, branch.attention.mlp[0].weight, branch.attention.mlp[2].weight)
    for ours, expected in zip(branch(x, None), (first, half, quarter), strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)


def attended(features: list[Tensor], first: Tensor, second: Tensor) -> Tensor:
    """ACA-GAN's multi-modal attention, channel by channel."""
    out = [torch.empty_like(item) for item in features]
    for b in range(len(features[0])):
        for c in range(features[0].shape[1]):
            maps = [item[b, c] for item in features]
            whole = torch.cat([item.flatten() for item in maps])
            weights = torch.sigmoid(second @ torch.relu(first @ whole)).softmax(dim=0)
            mix = sum(weight * item for weight, item in zip(weights, maps, strict=True))
            for place, item in zip(out, maps, strict=True):
                place[b, c] = 0.9 * item + 0.1 * mix
    return torch.cat(out, dim=1)


def modality_fusion() -> ModalityFusion:
    fusion = ModalityFusion(5, slots=3, size=4, layers=BatchNormLayers())
    for layer in (fusion.score[0], fusion.score[2]):
        nn.init.normal_(layer.weight)  # at N(0, 0.02) all weights are about a third
    return fusion


def test_multi_modal_attention_scores_whole_maps_of_each_channel():
    fusion, features = modality_fusion(), torch.randn(2, 3, 5, 4, 4)
    present = torch.ones(2, 3, dtype=torch.bool)
    expected = attended([*features.unbind(1)], fusion.score[0].weight, fusion.score[2].weight)
    assert torch.allclose(fusion.attend(features, present), expected, atol=1e-6)
    weights = fusion.weights(features, present)
    assert torch.allclose(weights.sum(dim=1), torch.ones(2, 5))
    assert weights.std() > 0.01


@pytest.mark.parametrize("junk", [1e30, float("nan")])
def test_an_absent_source_gives_nothing_to_multi_modal_attention(junk):
    fusion, features = modality_fusion(), torch.randn(2, 3, 5, 4, 4)
    present = torch.tensor([[True, False, True], [False, True, False]])
    clean = features.clone()
    clean[~present] = 0
    spoiled = features.clone()
    spoiled[~present] = junk
    result = fusion.attend(spoiled, present)
    assert torch.equal(result, fusion.attend(clean, present))
    parts = result.unflatten(1, (3, 5))
    assert (parts[~present] == 0).all()
    assert torch.allclose(parts[1, 1], features[1, 1], atol=1e-6)  # alone, it is its own mean


def test_maps_of_another_size_are_scored_at_the_size_of_training():
    fusion, features = modality_fusion(), torch.randn(2, 3, 5, 4, 4)
    present = torch.ones(2, 3, dtype=torch.bool)
    larger = features.repeat_interleave(2, dim=3).repeat_interleave(3, dim=4)  # 8 x 12
    expected = fusion.weights(features, present)
    assert torch.allclose(fusion.weights(larger, present), expected, atol=1e-6)
    assert fusion.attend(larger, present).shape == (2, 15, 8, 12)


# --- a whole step from the text ---------------------------------------------------------------------------------------


def normed(x: Tensor, p: Weights, name: str, *, still: Weights | None = None) -> Tensor:
    """Batch norm: of the batch, or with running statistics."""
    if still is None:
        mean, variance = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
    else:
        mean, variance = still[f"{name}.running_mean"], still[f"{name}.running_var"]
    shape = (1, -1, 1, 1)
    x = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
    return x * p[f"{name}.weight"].view(shape) + p[f"{name}.bias"].view(shape)


def mirrored_conv(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    edge = weight.shape[-1] // 2
    return F.conv2d(F.pad(x, (edge,) * 4, mode="reflect"), weight, bias)


def branch_of(x: Tensor, p: Weights, at: str, still: Weights | None = None) -> Tensor:
    h = torch.relu(
        normed(mirrored_conv(x, p[f"{at}.stem.conv.weight"]), p, f"{at}.stem.norm", still=still)
    )
    for level, attention in ((0, "early.0"), (1, "attention")):
        h = F.conv2d(h, p[f"{at}.down.{level}.conv.weight"], stride=2, padding=1)
        h = torch.relu(normed(h, p, f"{at}.down.{level}.norm", still=still))
        if f"{at}.{attention}.mlp.0.weight" in p:
            names = (f"{at}.{attention}.mlp.{index}.weight" for index in (0, 2))
            h = excited(h, *(p[name] for name in names))
    return h


def trunk_of(h: Tensor, p: Weights, still: Weights | None = None) -> Tensor:
    for index in range(2):
        at = f"trunk.{index}"
        inner = normed(mirrored_conv(h, p[f"{at}.conv1.weight"]), p, f"{at}.norm1", still=still)
        inner = mirrored_conv(torch.relu(inner), p[f"{at}.conv2.weight"])
        h = h + normed(inner, p, f"{at}.norm2", still=still)
    return h


def decoder_of(
    h: Tensor, p: Weights, at: str, still: Weights | None = None
) -> tuple[Tensor, list[Tensor]]:
    layers = []
    for level in range(2):
        weight = p[f"{at}up.{level}.conv.weight"]
        h = F.conv_transpose2d(h, weight, stride=2, padding=1, output_padding=1)
        h = torch.relu(normed(h, p, f"{at}up.{level}.norm", still=still))
        layers.append(h)
    return mirrored_conv(h, p[f"{at}last.weight"], p[f"{at}last.bias"]), layers


def fused_of(images: list[Tensor], p: Weights) -> tuple[list[Tensor], Tensor, Tensor]:
    own = [branch_of(image, p, f"branches.{slot}") for slot, image in enumerate(images)]
    joined = attended(own, p["fusion.score.0.weight"], p["fusion.score.2.weight"])
    mixed = F.conv2d(joined, p["fusion.mix.weight"], p["fusion.mix.bias"])
    return own, joined, torch.relu(mixed)


def judged(x: Tensor, p: Weights) -> Tensor:
    """pix2pix's PatchGAN with one layer between the first and the last, as 16 pixels have."""
    h = F.leaky_relu(
        F.conv2d(x, p["layers.0.weight"], p["layers.0.bias"], stride=2, padding=1), 0.2
    )
    h = normed(F.conv2d(h, p["layers.2.weight"], padding=1), p, "layers.3")
    return F.conv2d(F.leaky_relu(h, 0.2), p["layers.5.weight"], p["layers.5.bias"], padding=1)


def contrasted(source: Tensor, fake: Tensor, p: Weights, number: int, patches: int) -> Tensor:
    """Eq 1 and 2 of each image: the rows of smallest entropy, dot products as printed."""
    each = []
    for one, other in zip(source.detach(), fake, strict=True):
        rows, fakes = one.flatten(1).T, other.flatten(1).T
        weights = (rows @ rows.T).softmax(dim=1)
        entropy = -(weights * weights.clamp_min(1e-30).log()).sum(dim=1)
        chosen = weights[entropy.argsort(stable=True)[:patches]]

        def head(x: Tensor) -> Tensor:
            at = f"{number}.mlp"
            x = torch.relu(x @ p[f"{at}.0.weight"].T + p[f"{at}.0.bias"])
            return F.normalize(x @ p[f"{at}.2.weight"].T + p[f"{at}.2.bias"], dim=1)

        logits = head(chosen @ fakes) @ head(chosen @ rows).detach().T / 0.07
        each.append(F.cross_entropy(logits, torch.arange(len(logits))))
    return torch.stack(each).mean()


def literal_adam(method: Plave) -> dict[str, Adam]:
    return {
        name: Adam(net.parameters(), lr=1e-4, betas=(0.5, 0.999))
        for name, net in method.networks().items()
    }


def literal_step(method: Plave, adam: Mapping[str, Adam], batch: CaseBatch) -> dict[str, Tensor]:
    """Run one iteration after the pretraining with none of the project's layers or losses."""
    p = {name: dict(net.named_parameters()) for name, net in method.networks().items()}
    images = [batch.images[:, slot, None] for slot in (0, 1, 3)]
    real = batch.images[:, 2, None]
    generator = p["generator"]
    own, joined, mixed = fused_of(images, generator)
    h = trunk_of(mixed, generator)
    raw, decoded = decoder_of(h, generator, "decoder.")
    fake = raw.tanh()
    shown = torch.cat(images, dim=1)

    def bce(image: Tensor, label: float) -> Tensor:
        logits = judged(torch.cat([shown, image], dim=1), p["discriminator"])
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))

    result = {"d_real": bce(real, 1.0), "d_fake": bce(fake.detach(), 0.0)}
    (0.5 * (result["d_real"] + result["d_fake"])).backward()
    adam["discriminator"].step()

    with torch.no_grad():  # frozen: with its running statistics
        a, still = p["autoencoder"], dict(method.autoencoder.named_buffers())
        true = branch_of(real, a, "branch", still)
        _, layers = decoder_of(trunk_of(true, a, still), a, "decoder.", still)
    _, joined2, mixed2 = fused_of([fake] * 3, generator)
    most = method.settings.contrastive_patches
    seen = decoder_of(h, p["segmenter"], "")[0][batch.has_labels]
    terms = {
        "adv": (1.0, bce(fake, 1.0)),
        "image": (100.0, (fake - real).abs().mean()),
        "patch": (
            0.1,
            (
                contrasted(joined, joined2, p["heads"], 0, most)
                + contrasted(mixed, mixed2, p["heads"], 1, most)
            )
            / 2,
        ),
        "seg": (0.1, F.cross_entropy(seen, batch.labels[batch.has_labels])),
        "branch": (0.1, torch.stack([(item - true).square().mean() for item in own]).mean()),
        "fused": (0.1, (mixed - true).square().mean()),
        "decoder": (
            0.05,
            sum(
                F.kl_div(one.log_softmax(1), two.softmax(1), reduction="none").mean()
                for one, two in zip(decoded, layers, strict=True)
            ),
        ),
    }
    for optimiser in adam.values():
        optimiser.zero_grad()
    torch.stack([weight * value for weight, value in terms.values()]).sum().backward()
    for name in ("generator", "segmenter", "heads"):
        adam[name].step()
    return result | {f"g_{name}": value for name, (_, value) in terms.items()}


def test_a_step_is_the_literal_iteration_of_the_publication():
    settings = small_paper()
    ours, literal = method_of(settings), method_of(settings)
    for method in (
        ours,
        literal,
    ):  # larger scores than those of the start, or the attention would not matter
        for index in (0, 2):
            torch.manual_seed(index)
            nn.init.normal_(method.generator.fusion.score[index].weight)
        method.autoencoder.eval()
        torch.manual_seed(3)
        for name, buffer in method.autoencoder.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    adam = literal_adam(literal)
    seen, printed = recorded(ours.optimisers()), recorded(adam)
    losses, expected = ours.training_step(batch_of(), 3), literal_step(literal, adam, batch_of())
    assert list(losses) == list(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), name
    require_equal(seen, printed)
    now, then = dict(ours.named_parameters()), dict(literal.named_parameters())
    for name, value in then.items():
        if value.ndim > 1:
            close = (now[name] - value).abs() < 0.1 * settings.learning_rate
            assert close.float().mean() > 0.95, name


def test_one_forward_of_the_generator_is_that_of_the_publication():
    method = method_of(small_paper()).eval()
    torch.manual_seed(2)
    for name, tensor in method.generator.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif name.endswith("running_mean"):
            tensor.normal_(std=0.1)
        elif tensor.ndim > 1:
            tensor.normal_(std=0.2)
    p, still = (dict(items()) for items in (
        method.generator.named_parameters, method.generator.named_buffers
    ))  # fmt: skip
    images = [torch.rand(2, 1, 16, 16) * 2 - 1 for _ in range(3)]
    own = [branch_of(image, p, f"branches.{slot}", still) for slot, image in enumerate(images)]
    joined = attended(own, p["fusion.score.0.weight"], p["fusion.score.2.weight"])
    mixed = torch.relu(F.conv2d(joined, p["fusion.mix.weight"], p["fusion.mix.bias"]))
    expected = decoder_of(trunk_of(mixed, p, still), p, "decoder.", still)[0].tanh()
    sources = dict(zip(("flair", "t1", "t2"), images, strict=True))
    result = method.synthesise(sources, ["t1ce"])["t1ce"]
    assert torch.allclose(result, expected, atol=1e-5)
    assert result.std() > 0.01


# --- a run ------------------------------------------------------------------------------------------------------------


def test_without_a_target_the_published_model_is_refused():
    with pytest.raises(UsageError) as caught:
        Plave.sources(resolve(preset="paper", method="plave"), FOUR)
    assert caught.value.code == "target-not-named"
    assert caught.value.message.startswith("setting plave_target: '', expected one of flair, t1")
    assert "--set plave_target=t1ce" in caught.value.hint


def test_the_autoencoder_is_frozen_to_the_bit_once_the_rest_learns():
    method = method_of(small_paper())
    method.training_step(batch_of(), 1)
    before = copy.deepcopy(method.autoencoder.state_dict())
    method.training_step(batch_of(), 2)
    now = method.autoencoder.state_dict()
    assert all(torch.equal(now[key], value) for key, value in before.items())
    assert any(value.ndim and not torch.equal(value, torch.ones_like(value)) for key, value in
               before.items() if key.endswith("running_var"))  # fmt: skip


@pytest.mark.parametrize("loads", [False, True])
def test_the_generator_may_start_from_the_weights_of_the_autoencoder(loads):
    method = method_of(small_paper(plave_loads=loads, learning_rate=1e-9))
    expected = copy.deepcopy(method.autoencoder.state_dict())
    method.training_step(batch_of(), 2)  # the first one after the pretraining
    now = method.generator.state_dict()
    same = [
        torch.allclose(now[f"{place}.{key}"], expected[f"{own}.{key}"], atol=1e-6)
        for place, own, key in (
            ("branches.0", "branch", "stem.conv.weight"),
            ("branches.2", "branch", "down.1.conv.weight"),
            ("trunk.1", "trunk.1", "conv2.weight"),
            ("decoder", "decoder", "up.0.conv.weight"),
            ("decoder", "decoder", "last.weight"),
        )
    ]
    assert same == [loads] * 5


def test_the_autoencoder_is_handed_over_once_also_if_the_plan_changes_meanwhile():
    """A resumed run with fewer steps passes the end of the pretraining at a step that the first plan did not have."""
    method = method_of(small_paper(plave_loads=True, learning_rate=1e-9))
    expected = copy.deepcopy(method.autoencoder.branch.stem.conv.weight)
    method.training_step(batch_of(), 5)
    assert torch.allclose(method.generator.branches[0].stem.conv.weight, expected, atol=1e-6)
    with torch.no_grad():
        method.generator.branches[0].stem.conv.weight.add_(1)
    method.training_step(batch_of(), 2)  # a longer plan goes back to it
    assert torch.allclose(method.generator.branches[0].stem.conv.weight, expected + 1, atol=1e-6)


def test_the_published_weights_are_the_last_ones_without_an_average(store: SliceStore, tmp_path):
    settings = small_paper(batch_size=2)
    run(settings, store, tmp_path / "run")
    tensors = load_state(tmp_path / "run" / STATE_FILE).tensors
    averages = {key: value for key, value in tensors.items() if key.startswith("average.")}
    assert averages
    for key, value in averages.items():
        assert torch.equal(value, tensors[key.replace("average.", "module.", 1)]), key


def test_a_stopped_run_resumes_to_the_same_bits(store: SliceStore, tmp_path):
    settings = small_paper(steps=6, save_every=3)
    run(settings, store, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(settings, store, tmp_path / "stopped", kill_after=4)
    run(settings, store, tmp_path / "stopped", resume=True)
    require_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_the_published_model_completes_its_modality_from_slices_as_in_training(
    store: SliceStore, gappy, tmp_path
):
    run(small_paper(steps=60), store, tmp_path / "run")  # the averages of batch norm need some
    data = gappy(lacking=[["t1ce"], [], [], []])
    complete(data, tmp_path / "out", weights=tmp_path / "run", device="cpu")
    (image,) = (tmp_path / "out").rglob("*_t1ce.nii.gz")
    written = np.asarray(nib.load(image).dataobj)
    truth = np.asarray(nib.load(next(data.rglob("*_t1.nii.gz"))).dataobj)
    assert written.shape == truth.shape
    assert np.isfinite(written).all() and written[truth > 0].std() > 0


def test_batch_norm_needs_the_batch_at_once(store: SliceStore, tmp_path):
    with pytest.raises(UsageError) as caught:
        run(changed(small_paper(), micro_batch=1), store, tmp_path / "run")
    assert caught.value.code == "batch-norm-in-parts"


def test_scores_of_whole_maps_want_images_as_in_training():
    assert method_of(small_paper()).stride == 16
    assert method_of(small_paper(plave_fusion="position")).stride == 4


def test_rates_stay_for_400_epochs_and_fall_over_the_last_100():
    s = resolve(preset="paper", method="plave", overrides={"plave_target": "t1ce"})
    assert s.epochs == 500
    factors = [
        rate_factor(epoch, steps=500, decay=s.learning_rate_decay, warm_up=s.warm_up)
        for epoch in (0, 399, 400, 450, 499)
    ]
    assert factors == pytest.approx([1, 1, 1, 0.5, 0.01])


def test_the_discriminator_loss_is_halved():
    steps = []
    for weight in (0.5, 1.0):
        method = method_of(small_paper(plave_lambda_discriminator=weight))
        method.training_step(batch_of(), 3)
        steps.append([item.grad.clone() for item in method.discriminator.parameters()])
    assert all(map(torch.allclose, steps[1], [2 * item for item in steps[0]]))


def test_a_segmentation_is_not_needed():
    batch = replace(batch_of(), has_labels=torch.zeros(3, dtype=torch.bool))
    losses = method_of(small_paper()).training_step(batch, 3)
    assert losses["g_seg"] == 0
    assert all(math.isfinite(value) for value in losses.values())

"""ACA-GAN, AE-GAN and Auto-GAN as variants of PLAVE: their networks, their losses, and runs of each."""

from __future__ import annotations

import copy
import math
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import SMALL_NETWORKS, SMALL_RUN
from torch import Tensor, nn
from torch.nn import functional as F
from training_runs import CPU, KilledError, require_same_runs, run

from attcl_cli import complete
from attcl_cli.data.sampling import CaseBatch
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import AttclError
from attcl_cli.methods import METHODS
from attcl_cli.methods.losses import decoder_loss
from attcl_cli.methods.networks.discriminator import FeatureDiscriminator
from attcl_cli.methods.networks.fusion import Decoder, Design, PlainFusion
from attcl_cli.methods.networks.layers import BatchNormLayers
from attcl_cli.methods.plave import Plave
from attcl_cli.methods.settings import Settings, notes_of, resolve
from attcl_cli.methods.weights import find_weights, load_method

FOUR = ("flair", "t1", "t1ce", "t2")
NAMES = ("aca-gan", "ae-gan", "auto-gan")
every_ancestor = pytest.mark.parametrize("name", NAMES)


def small(name: str, preset: str = "paper", **changes: Any) -> Settings:
    """Return small settings of a variant: a dedicated model of T1ce in preset `paper`, a general one in the others."""
    networks = {
        key: value for key, value in SMALL_NETWORKS["plave"].items() if key != "plave_pretraining"
    }
    given = {**SMALL_RUN, **networks, "epochs": 0}
    given |= {"plave_target": "t1ce"} if preset == "paper" else {}
    return resolve(preset=preset, method="plave", variant=name, overrides={**given, **changes})


def method_of(settings: Settings) -> Plave:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        method: Plave = METHODS["plave"](settings, FOUR)
    return method


def batch_of(size: int = 3) -> CaseBatch:
    """Return targets t1ce from the other three."""
    noise = torch.Generator().manual_seed(5)
    return CaseBatch(
        images=torch.rand(size, 4, 16, 16, generator=noise) * 2 - 1,
        sources=torch.tensor([True, True, False, True]).expand(size, -1),
        target=torch.full((size,), 2),
        labels=torch.randint(4, (size, 16, 16), generator=noise),
        has_labels=torch.ones(size, dtype=torch.bool),
    )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- networks ---------------------------------------------------------------------------------------------------------


@every_ancestor
def test_the_networks_have_as_many_weights_as_the_published_layers(name):
    settings = resolve(
        preset="paper", method="plave", variant=name, overrides={"plave_target": "t1ce"}
    )
    with torch.device("meta"):
        method = METHODS["plave"](settings, FOUR)
    norm = {channels: 2 * channels for channels in (64, 128, 256, 512)}
    encoder = (49 * 64 + norm[64]) + (9 * 64 * 128 + norm[128]) + (9 * 128 * 256 + norm[256])
    mix = 3 * 256 * 256 + 256
    trunk = 6 * 2 * (9 * 256 * 256 + norm[256])
    decoder = (9 * 256 * 128 + norm[128]) + (9 * 128 * 64 + norm[64]) + 49 * 64 + 1
    plain = 3 * encoder + mix + trunk + decoder
    positions = 3 * 64 * 64
    extra = {
        "aca-gan": 3 * (2 * 128 * 128 // 16 + 2 * 256 * 256 // 16)
        + positions * positions // 16
        + positions // 16 * 3,
        "ae-gan": 2 * 128 * 128 // 16 + 2 * 64 * 64 // 16,
        "auto-gan": 0,
    }
    assert count(method.generator) == plain + extra[name]
    assert count(method.autoencoder) == encoder + trunk + decoder
    pix2pix = (16 * 4 * 64 + 64) + (16 * 64 * 128 + norm[128]) + (16 * 128 * 256 + norm[256])
    pix2pix += (16 * 256 * 512 + norm[512]) + (16 * 512 + 1)
    head = 256 * 256 + norm[256] + 16 * 256
    assert count(method.discriminator) == (head if name == "ae-gan" else pix2pix)
    assert count(method.heads) == 0
    assert set(method.stored_networks()) == {"generator"}


def test_aca_gan_s_generator_is_plave_s():
    settings = [
        resolve(preset="paper", method="plave", variant=name, overrides={"plave_target": "t1ce"})
        for name in (None, "aca-gan")
    ]
    with torch.device("meta"):
        plave, ancestor = (METHODS["plave"](each, FOUR).generator.state_dict() for each in settings)
    assert {key: value.shape for key, value in plave.items()} == {
        key: value.shape for key, value in ancestor.items()
    }


@pytest.mark.parametrize("junk", [1e30, float("nan")])
def test_plain_fusion_is_a_1x1_convolution_of_the_sources_side_by_side(junk):
    fusion = PlainFusion(5, slots=3, layers=BatchNormLayers())
    features, present = torch.randn(2, 3, 5, 4, 6), torch.tensor([[True] * 3, [False, True, False]])
    clean = features.clone()
    clean[~present] = 0
    features[~present] = junk
    kernel = fusion.mix.weight[:, :, 0, 0]
    expected = torch.einsum("ok,bkhw->bohw", kernel, clean.flatten(1, 2))
    assert torch.allclose(fusion(features, present), expected, atol=1e-6)  # biases start at 0


def test_larger_features_are_fused_without_attention_too():
    method = method_of(small("auto-gan", plave_skips=True))
    assert [type(fusion) for fusion in method.generator.skip] == [PlainFusion] * 2


def test_the_decoder_of_ae_gan_has_squeeze_and_excitation_after_each_doubling():
    design = Design(width=16, max_width=64, excitation="decoder")
    decoder = Decoder(design, outputs=1, excited=True).eval()
    h = torch.randn(2, 64, 4, 4)
    expected = []
    x = h
    for level in range(2):
        x = decoder.up[level](x, None)
        first, second = (decoder.attention[level].mlp[index].weight for index in (0, 2))
        gate = torch.sigmoid(torch.relu(x.mean(dim=(2, 3)) @ first.T) @ second.T)
        x = x + x * gate[:, :, None, None]
        expected.append(x)
    image, features = decoder(h, None)
    assert torch.allclose(image, decoder.last(x), atol=1e-6)
    for ours, one in zip(features, expected, strict=True):
        assert torch.allclose(ours, one, atol=1e-6)
    method = method_of(small("ae-gan"))
    assert not any(
        isinstance(b.attention, type(decoder.attention[0])) for b in method.generator.branches
    )
    assert len(method.generator.decoder.attention) == 2
    assert len(method.autoencoder.decoder.attention) == 0


def test_the_discriminator_of_ae_gan_judges_features_of_a_quarter_of_the_size():
    head = FeatureDiscriminator(6, targets=1)
    features, target = torch.randn(3, 6, 64, 64), torch.zeros(3, dtype=torch.int64)
    p = dict(head.named_parameters())
    h = F.conv2d(features, p["layers.0.weight"])
    mean, variance = h.mean(dim=(0, 2, 3)), h.var(dim=(0, 2, 3), unbiased=False)
    shape = (1, -1, 1, 1)
    h = (h - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
    h = h * p["layers.1.weight"].view(shape) + p["layers.1.bias"].view(shape)
    logits = F.conv2d(F.leaky_relu(h, 0.2), p["layers.3.weight"], stride=2)[:, 0]
    assert logits.shape == (3, 31, 31)
    assert torch.allclose(head(features, target), logits, atol=1e-6)
    several = FeatureDiscriminator(6, targets=4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in several.modules())
    assert several(features, target + 2).shape == (3, 31, 31)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_l1_of_decoder_features_is_a_mean_per_layer_summed_over_layers():
    ours = [torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[0.0]], [[3.0]]]])]
    true = [torch.tensor([[[[0.0, 5.0]]]]), torch.tensor([[[[1.0]], [[3.0]]]], requires_grad=True)]
    loss = decoder_loss(ours, true, scale="absolute")
    assert loss.item() == pytest.approx((1 + 3) / 2 + 1 / 2)
    assert not loss.requires_grad


def weights_and_losses(name: str) -> tuple[dict[str, float], dict[str, Tensor], Plave]:
    """Return the weight of each loss in one step after the pretraining, their values, and the method before it."""
    method = method_of(small(name))
    before = copy.deepcopy(method)
    seen: dict[str, float] = {}
    update = method.update

    def noting(parts: Any, networks: Any, loss_of: Any, *, path: str) -> dict[str, Tensor]:
        def noted(part: Any) -> Any:
            terms = loss_of(part)
            seen.update({f"{path}_{key}": weight for key, (weight, _) in terms.items()})
            return terms

        return update(parts, networks, noted, path=path)

    method.update = noting  # type: ignore[method-assign]
    return seen, method.training_step(batch_of(), 3), before


PATCH_GAN = {"d_real": 0.5, "d_fake": 0.5}
IMAGE = {"g_adv": 1.0, "g_image": 100.0}
WEIGHTS = {
    "aca-gan": {**PATCH_GAN, **IMAGE, "g_branch": 0.1, "g_fused": 0.1},
    "auto-gan": {**PATCH_GAN, **IMAGE, "g_decoder": 0.1},
    "ae-gan": {
        "d_real": 0.5, "d_fake": 0.25, "d_fake_rec": 0.25, "d_image": 100.0, **IMAGE, "g_decoder": 0.1,
    },
}  # fmt: skip


@every_ancestor
def test_each_has_its_losses_with_their_weights_and_no_other(name):
    seen, logged, _ = weights_and_losses(name)
    assert seen == WEIGHTS[name]
    assert set(logged) == set(seen)
    assert all(math.isfinite(value) for value in logged.values())


def generated(method: Plave, batch: CaseBatch) -> tuple[Tensor, list[Tensor]]:
    """Return image and decoder features of a generator without attention, layer by layer."""
    g = method.generator
    maps = [
        g.branches[i](batch.images[:, slot, None], None)[-1] for i, slot in enumerate((0, 1, 3))
    ]
    h = torch.relu(g.fusion.mix(torch.cat(maps, dim=1)))
    for block in g.trunk:
        h = block(h, None)
    image, features = g.decoder(h, None)
    return image.tanh(), features


def test_auto_gan_follows_the_decoder_of_the_autoencoder_by_l1():
    _, logged, method = weights_and_losses("auto-gan")
    batch = batch_of()
    method.autoencoder.eval()  # frozen
    with torch.no_grad():
        fake, ours = generated(method, batch)
        *_, true = method.autoencoder(batch.images[:, 2, None], batch.target)
    expected = sum((one - two).abs().mean() for one, two in zip(ours, true, strict=True))
    assert logged["g_decoder"].item() == pytest.approx(float(expected), rel=1e-4)
    image = (fake - batch.images[:, 2, None]).abs().mean()
    assert logged["g_image"].item() == pytest.approx(image.item(), rel=1e-4)


def test_ae_gan_s_generator_follows_the_decoder_by_kl_and_is_judged_by_what_the_judge_has_become():
    settings = small("ae-gan")
    method = method_of(settings)
    batch, seen = batch_of(), {}
    with torch.no_grad():
        fake, ours = generated(method, batch)
    update = method.update

    def noting(parts: Any, networks: Any, loss_of: Any, *, path: str) -> dict[str, Tensor]:
        if path == "g":  # after D's update, before G's
            seen["judge"] = copy.deepcopy((method.autoencoder, method.discriminator))
        return update(parts, networks, loss_of, path=path)

    method.update = noting  # type: ignore[method-assign]
    logged = method.training_step(batch, 3)
    a, head = seen["judge"]
    with torch.no_grad():
        *_, true = a(batch.images[:, 2, None], batch.target)
        divergence = 0.0
        for one, two in zip(ours, true, strict=True):
            p, q = two.softmax(dim=1), one.softmax(dim=1)
            divergence += (p * (p / q).log()).mean().item()
        h = a.branch(fake, None)[-1]
        for block in a.trunk:
            h = block(h, None)
        adversarial = F.softplus(-head.layers(h)).mean().item()
    assert logged["g_decoder"].item() == pytest.approx(divergence, rel=1e-3)
    assert logged["g_adv"].item() == pytest.approx(adversarial, rel=1e-4)


@pytest.mark.parametrize("changes", [{}, {"plave_lambda_adv": 0.0}])
def test_the_autoencoder_of_ae_gan_learns_before_its_encoder_judges(changes):
    method = method_of(small("ae-gan", "tiny", plave_supervised=0.5, steps=10, **changes))
    before = {key: value.clone() for key, value in method.named_parameters()}
    real, target = batch_of().images[:, 2, None], batch_of().target
    with torch.no_grad():
        rec, *_ = method.autoencoder(real, target)
    logged = method.training_step(batch_of(), 0)
    assert moved(method, before) == {"generator", "autoencoder"}
    assert logged["a_image"].item() == pytest.approx((rec - real).abs().mean().item(), rel=1e-4)
    assert method.autoencoder.training


def test_the_other_reading_of_auto_gan_follows_branches_and_fusion_by_mse():
    changes = {"plave_lambda_branch": 0.1, "plave_lambda_fused": 0.1, "plave_lambda_decoder": 0.0}
    method = method_of(small("auto-gan", **changes))
    batch, g = batch_of(), copy.deepcopy(method.generator)
    a = copy.deepcopy(method.autoencoder).eval()
    logged = method.training_step(batch, 3)
    assert "g_decoder" not in logged
    with torch.no_grad():
        own = a.encode(batch.images[:, 2, None], batch.target)
        maps = [
            g.branches[i](batch.images[:, slot, None], None)[-1] for i, slot in enumerate((0, 1, 3))
        ]
        fused = torch.relu(g.fusion.mix(torch.cat(maps, dim=1)))
    assert logged["g_branch"].item() == pytest.approx(
        sum(((one - own.branch) ** 2).mean().item() for one in maps) / 3, rel=1e-3
    )
    assert logged["g_fused"].item() == pytest.approx(F.mse_loss(fused, own.last).item(), rel=1e-3)


def test_ae_gan_shows_its_encoder_the_true_image_the_fake_and_the_reconstruction():
    _, logged, method = weights_and_losses("ae-gan")
    batch = batch_of()
    real = batch.images[:, 2, None]
    a, head = method.autoencoder, method.discriminator.layers

    def judged(image: Tensor) -> Tensor:
        h = a.branch(image, None)[-1]
        for block in a.trunk:
            h = block(h, None)
        return head(h)

    with torch.no_grad():
        fake, ours = generated(method, batch)
        rec, *_ = a(real, batch.target)
        for name, image, sign in (("real", real, -1), ("fake", fake, 1), ("fake_rec", rec, 1)):
            expected = F.softplus(sign * judged(image)).mean().item()
            assert logged[f"d_{name}"].item() == pytest.approx(expected, rel=1e-4), name
    assert logged["d_image"].item() == pytest.approx((rec - real).abs().mean().item(), rel=1e-4)
    assert len(ours) == 2


def moved(method: Plave, before: dict[str, Tensor]) -> set[str]:
    """Return the networks of which a weight has moved; running statistics do not count."""
    return {
        name.partition(".")[0]
        for name, value in method.named_parameters()
        if not torch.equal(value, before[name])
    }


@every_ancestor
def test_the_autoencoder_of_ae_gan_learns_with_the_discriminator_and_those_of_the_others_are_frozen(
    name,
):
    method = method_of(small(name))
    for step in (3, 3):
        before = {key: value.clone() for key, value in method.named_parameters()}
        method.training_step(batch_of(), step)
        expected = {"generator", "discriminator"} | ({"autoencoder"} if name == "ae-gan" else set())
        assert moved(method, before) == expected
    assert method.autoencoder.training == (name == "ae-gan")


def test_no_weight_of_ae_gan_s_judge_moves_when_the_generator_learns():
    method = method_of(small("ae-gan"))
    method.training_step(batch_of(), 3)
    # What the last update left: gradients of the generator, and those of the update before.
    left = {name: value.grad.clone() for name, value in method.autoencoder.named_parameters()}
    other = method_of(small("ae-gan"))
    other.optimisers()["generator"].param_groups[0]["lr"] = 0.0
    other.training_step(batch_of(), 3)
    for name, value in other.autoencoder.named_parameters():
        assert torch.equal(value.grad, left[name]), name


# --- runs -------------------------------------------------------------------------------------------------------------


def test_a_stopped_run_of_ae_gan_resumes_to_the_same_bits(store: SliceStore, tmp_path):
    settings = small("ae-gan", steps=6, save_every=3)
    run(settings, store, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(settings, store, tmp_path / "stopped", kill_after=4)
    run(settings, store, tmp_path / "stopped", resume=True)
    require_same_runs(tmp_path / "whole", tmp_path / "stopped")


@every_ancestor
def test_each_learns_and_completes(name, store: SliceStore, gappy, tmp_path):
    # The averages of batch norm need some steps, and weights that start near 0 need large ones.
    settings = small(name, steps=30, save_every=30, sample_every=30, learning_rate=2e-3)
    run(settings, store, tmp_path / "run")
    data = gappy(lacking=[["t1ce"], [], [], []])
    complete(data, tmp_path / "out", weights=tmp_path / "run", device="cpu")
    (image,) = (tmp_path / "out").rglob("*_t1ce.nii.gz")
    assert np.isfinite(np.asarray(nib.load(image).dataobj)).all()


@every_ancestor
def test_a_general_model_learns_and_makes_anything_from_anything(name):
    method = method_of(small(name, "tiny"))
    logged = method.training_step(batch_of(), 3)
    assert set(WEIGHTS[name]) < set(logged)  # and the structure in the brain, which is ours
    assert all(math.isfinite(value) for value in logged.values())
    method.eval()
    noise = torch.Generator().manual_seed(4)
    images = {one: torch.rand(2, 1, 16, 16, generator=noise) * 2 - 1 for one in FOUR}
    for sources in (("t2",), ("flair", "t1"), ("flair", "t1", "t2")):
        given = {one: images[one] for one in sources}
        made = method.synthesise(given, ["t1ce"])["t1ce"]
        assert torch.isfinite(made).all()
        for one in range(2):
            alone = method.synthesise({key: image[[one]] for key, image in given.items()}, ["t1ce"])
            assert torch.allclose(alone["t1ce"][0], made[one], atol=1e-5)


def test_without_a_segmentation_decoder_nothing_is_segmented(store: SliceStore, tmp_path):
    run(small("auto-gan"), store, tmp_path / "run")
    method = load_method(find_weights(str(tmp_path / "run")), CPU)
    images = {one: torch.zeros(1, 1, 16, 16) for one in ("flair", "t1", "t2")}
    with pytest.raises(AttclError) as caught:
        method.segment(images, "t1ce")
    assert caught.value.code == "no-segmentation-decoder"


# --- settings ---------------------------------------------------------------------------------------------------------


@every_ancestor
def test_a_variant_changes_networks_and_losses_and_keeps_slices_and_optimiser(name):
    kept = ("plave_norm", "plave_blocks", "width", "image_size", "crop", "batch_size", "learning_rate",
            "plave_tumour_slices", "plave_lambda_image", "plave_lambda_adv", "plave_skips", "epochs")  # fmt: skip
    for preset in ("tiny", "paper"):
        plain, variant = (
            resolve(preset=preset, method="plave", variant=one) for one in (None, name)
        )
        assert [getattr(variant, key) for key in kept] == [getattr(plain, key) for key in kept]
        assert not (variant.plave_segmentation or variant.plave_lambda_seg)
        assert bool(notes_of(variant)) == (name == "auto-gan")  # that it is our specification

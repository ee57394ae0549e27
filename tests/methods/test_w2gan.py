"""W2GAN: what it adds to StarGAN v2, against formulas written by hand, and that it adds nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attcl_gan_steps import batch_of
from helpers import changed, small_settings
from torch import Tensor, nn

from attcl_cli.errors import UsageError
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.networks.wavelets import Bands, haar, inverse_haar
from attcl_cli.methods.settings import Settings, notes_of, resolve
from attcl_cli.methods.w2gan import W2Gan, wavelet_loss, weighted_cycle_loss

FOUR = ("flair", "t1", "t1ce", "t2")
SHUT = -1e4  # the bias of a gate that lets nothing through: its sigmoid is 0 in float32


def method_of(settings: Settings, seed: int = 1) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return METHODS[settings.method](settings, FOUR)


def stargan(**changes: Any) -> AttclGan:
    """Return a small StarGAN v2 of AttCL-GAN's file."""
    off = {"acl": "none", "att_adain": False, "scd": False}
    method: AttclGan = method_of(small_settings(**{**off, **changes}))
    return method


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- networks ---------------------------------------------------------------------------------------------------------


def test_the_networks_are_stargan_v2_s_and_two_gates_of_28_weights():
    with torch.device("meta"):
        method = METHODS["w2gan"](resolve(preset="published", method="w2gan"), FOUR)
    assert list(method.generator.gates) == ["1", "2"]
    assert [method.generator.channels[layer] for layer in (1, 2)] == [128, 256]
    assert count(method.generator) == 33_891_713 + 2 * 28
    assert count(method.discriminator) == 20_852_164
    assert count(method.style_encoder) == 20_981_440
    assert count(method.mapping) == 4_079_872
    assert count(method.attention) == count(method.heads) == 0


def test_details_of_the_source_are_added_to_the_input_of_the_decoder_block_of_that_size():
    generator = method_of(small_settings("w2gan", downs=2)).generator
    x, style = torch.rand(2, 1, 16, 16) * 2 - 1, torch.randn(2, 8)
    features = generator.encode(x)
    bands = haar(features.layers[1])
    weight = generator.gates["1"].importance(bands)
    detail = inverse_haar(
        Bands(torch.zeros_like(bands.low), *(weight * band for band in bands.details))
    )
    h = generator.decode_deep[0](features.deep, style)
    h = generator.up[1](generator.up[0](h, style) + detail, style)
    h = generator.full_size(h + features.layers[0], style)
    expected = x + generator.to_image(h)
    assert torch.allclose(generator.decode(features, style), expected, atol=1e-5)
    assert detail.abs().max() > 0.01


def test_features_of_chosen_rows_keep_their_details():
    generator = method_of(small_settings("w2gan")).generator
    x, rows = torch.rand(3, 1, 16, 16), torch.tensor([2, 0, 2])
    style = torch.randn(3, 8)
    chosen = generator.decode(generator.encode(x).of(rows), style)
    assert torch.allclose(chosen, generator.decode(generator.encode(x[rows]), style), atol=1e-5)


# --- StarGAN v2 is in it ----------------------------------------------------------------------------------------------


def require_equal_to_the_bit(one: AttclGan, two: W2Gan, *, path: str = "") -> None:
    """Check two training steps and a synthesis of both."""
    for step in range(2):
        losses = [each.training_step(batch_of(4), step) for each in (one, two)]
        assert losses[0].keys() == losses[1].keys()
        for name, value in losses[0].items():
            assert torch.equal(value, losses[1][name]), name
    weights = two.state_dict()
    for name, value in one.state_dict().items():
        assert torch.equal(value, weights[name]), name
    images = {"t1": batch_of(4).x_src}
    with torch.inference_mode():
        made = [each.synthesise(images, FOUR[2:], sample=3) for each in (one, two)]
    for target in FOUR[2:]:
        assert torch.equal(made[0][target], made[1][target])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("alternate", [False, True])
def test_with_shut_gates_and_no_wavelet_loss_it_is_stargan_v2_to_the_bit(alternate, weighted):
    shared = {"lambda_ds": 1.5, "lambda_pair": 0.5, "alternate": alternate}
    one = stargan(**shared)
    two = method_of(small_settings("w2gan", lambda_wav=0.0, weighted_cycle=weighted, **shared))
    missing, unexpected = two.load_state_dict(one.state_dict(), strict=False)
    assert set(missing) == {"generator.gates.1.conv.weight", "generator.gates.1.conv.bias"}
    assert not unexpected
    nn.init.constant_(two.generator.gates["1"].conv.bias, SHUT)
    require_equal_to_the_bit(one, two)


def test_variant_stargan_v2_starts_and_learns_as_attcl_gan_s_does():
    settings = resolve(preset="tiny", method="w2gan", variant="stargan-v2")
    chosen = {key: getattr(settings, key) for key in ("wavelet_layers", "weighted_cycle")}
    two = method_of(small_settings("w2gan", lambda_wav=settings.lambda_wav, **chosen))
    require_equal_to_the_bit(stargan(), two)


def test_open_gates_change_what_is_made():
    one, two = stargan(), method_of(small_settings("w2gan"))
    two.load_state_dict(one.state_dict(), strict=False)
    images = {"t1": batch_of().x_src}
    made = [each.synthesise(images, ["t2"], sample=3)["t2"] for each in (one, two)]
    assert (made[0] - made[1]).abs().max() > 1e-3


# --- losses -----------------------------------------------------------------------------------------------------------


def test_the_cycle_loss_weighs_places_by_their_importance():
    x, x_rec = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    x_rec[0, 0, 0, 0], x_rec[0, 0, 0, 2], x_rec[0, 0, 3, 3] = 0.8, -0.4, 1.0
    importance = torch.tensor([[[[0.1, 0.3], [0.4, 0.0]]]])  # mean 0.2: weights 0.5, 1.5, 2, 0
    loss = weighted_cycle_loss(x, x_rec, importance)
    assert loss.item() == pytest.approx((0.5 * 0.8 + 1.5 * 0.4) / 16)


def test_the_gate_learns_nothing_from_the_weights_that_it_gives():
    importance = torch.rand(1, 1, 2, 2, requires_grad=True)
    x_rec = torch.rand(1, 1, 4, 4, requires_grad=True)
    weighted_cycle_loss(torch.zeros(1, 1, 4, 4), x_rec, importance).backward()
    assert importance.grad is None
    assert x_rec.grad.abs().min() > 0


def test_the_wavelet_loss_adds_up_three_bands_and_passes_over_brightness():
    x, x_rec = torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
    x_rec[0, 0, 0, 0] = 1.0  # 1/2 in each band of the first of two squares
    assert wavelet_loss(x, x_rec).item() == pytest.approx(3 * 0.5 / 2)
    assert wavelet_loss(x, x_rec + 0.3).item() == pytest.approx(3 * 0.5 / 2)
    noise, other = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    pairs = zip(haar(noise).details, haar(other).details, strict=True)
    expected = sum((one - two).abs().mean() for one, two in pairs)
    assert wavelet_loss(noise, other).item() == pytest.approx(float(expected), rel=1e-5)


def literal_cycle(
    method: W2Gan, x: Tensor, y: Tensor, style: Tensor, y_trg: Tensor
) -> tuple[float, float]:
    """Return the weighted cycle loss and the wavelet loss of slices, from the text of the method's page."""
    g, e, rows = method.generator, method.style_encoder, torch.arange(len(x))
    features = g.encode(x)
    x_fake = g.decode(features, style)
    x_rec = g.decode(g.encode(x_fake), e(x)[rows, y])
    w = features.importance[1]
    cycle = 0.0
    for b in range(len(x)):
        for row in range(16):
            for column in range(16):  # of 16 pixels, layer 1 has 8 and its wavelets 4
                weight = w[b, 0, row // 4, column // 4] / w[b].mean()
                cycle += float(weight * (x - x_rec)[b, 0, row, column].abs())
    bands = zip(haar(x).details, haar(x_rec).details, strict=True)
    wavelets = sum(float((one - two).abs().mean()) for one, two in bands)
    return cycle / x.numel(), wavelets


def test_a_step_compares_the_source_and_its_cycle_and_no_translation():
    settings = small_settings("w2gan", keep_background=False, lambda_cyc=0.7, lambda_wav=0.3)
    method, batch = method_of(settings), batch_of()
    nn.init.normal_(method.generator.gates["1"].conv.weight, std=3.0)  # no place like another
    noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + 4)
    with torch.no_grad():
        z = torch.randn(2, settings.latent_dim, generator=noise)
        style = method.mapping(z)[torch.arange(2), batch.y_ref]
        cycle, wavelets = literal_cycle(method, batch.x_src, batch.y_src, style, batch.y_ref)
    losses = method.training_step(batch, 4)
    assert losses["g_latent_cyc"].item() == pytest.approx(cycle, rel=1e-4)
    assert losses["g_latent_wav"].item() == pytest.approx(wavelets, rel=1e-4)
    assert {"g_reference_cyc", "g_reference_wav"} <= losses.keys()


def test_the_losses_weigh_as_the_settings_say():
    method = method_of(small_settings("w2gan", lambda_cyc=0.7, lambda_wav=0.3))
    x = torch.rand(2, 1, 16, 16)
    features = method.generator.encode(x)
    terms = method.cycle_losses(x, x.flip(3), features)
    assert {name: weight for name, (weight, _) in terms.items()} == {"cyc": 0.7, "wav": 0.3}
    plain = method_of(changed(method.settings, weighted_cycle=False, lambda_wav=0.0))
    ((weight, loss),) = plain.cycle_losses(x, x.flip(3), features).values()
    assert (weight, loss.item()) == (0.7, pytest.approx((x - x.flip(3)).abs().mean().item()))


def test_the_first_of_the_layers_weighs_the_cycle():
    settings = small_settings(
        "w2gan", image_size=32, canvas=64, downs=3, wavelet_layers=(2, 1), lambda_wav=0.0
    )
    method, x = method_of(settings), torch.rand(1, 1, 32, 32)
    features = method.generator.encode(x)
    assert {layer: tuple(w.shape[2:]) for layer, w in features.importance.items()} == {
        2: (4, 4),
        1: (8, 8),
    }
    _, loss = method.cycle_losses(x, -x, features)["cyc"]
    assert torch.equal(loss, weighted_cycle_loss(x, -x, features.importance[1]))


def test_gates_learn_with_the_generator():
    method = method_of(small_settings("w2gan"))
    before = {name: value.clone() for name, value in method.generator.gates.named_parameters()}
    method.training_step(batch_of(), 0)
    for name, value in method.generator.gates.named_parameters():
        assert not torch.equal(value, before[name]), name


# --- settings ---------------------------------------------------------------------------------------------------------


def test_it_is_called_re_specified_and_says_so_when_it_starts():
    assert METHODS.title("w2gan") == "W2GAN (re-specified)"
    assert ["w2gan" in note for note in notes_of(resolve(method="w2gan"))] == [True]


@pytest.mark.parametrize("preset", ["published", "paper"])
def test_published_and_paper_are_stargan_v2_s_numbers_with_nothing_of_ours(preset):
    s = resolve(preset=preset, method="w2gan")
    assert (s.image_size, s.crop, s.batch_size, s.steps) == (256, 0, 8, 100_000)
    assert (s.beta1, s.beta2, s.learning_rate, s.learning_rate_mapping) == (0, 0.99, 1e-4, 1e-6)
    assert (s.weight_decay, s.ema_decay, s.lambda_r1) == (1e-4, 0.999, 1)
    assert (s.lambda_sty, s.lambda_cyc, s.lambda_ds, s.lambda_wav) == (1, 1, 1, 1)
    assert (s.wavelet_layers, s.weighted_cycle) == ((1, 2), True)
    assert (s.acl, s.att_adain, s.scd, s.lambda_pair, s.lambda_structure) == (
        "none",
        False,
        False,
        0,
        0,
    )
    assert not (s.keep_background or s.full_size_skips or s.mirror)


@pytest.mark.parametrize(("preset", "side"), [("tiny", 64), ("small", 128), ("base", 128)])
def test_our_presets_have_the_sizes_of_the_other_methods(preset, side):
    s = resolve(preset=preset, method="w2gan")
    assert (s.side, s.generator, s.sources, s.acl) == (side, "stargan-v2", "one", "none")
    assert (s.wavelet_layers, s.weighted_cycle, s.lambda_wav) == ((1, 2), True, 1)
    assert s.lambda_pair > 0


def test_variants_leave_out_one_part_after_the_other():
    kind = METHODS["w2gan"].settings_class
    parts = {}
    for name in kind.variants:
        s = resolve(preset="small", method="w2gan", variant=name)
        assert (s.acl, s.att_adain, s.scd) == ("none", False, False)
        parts[name] = (bool(s.wavelet_layers), s.weighted_cycle, s.lambda_wav > 0)
    assert parts == {
        "w2gan": (True, True, True),
        "stargan-v2": (False, False, False),
        "wavelet-skip": (True, False, False),
        "wavelet-skip+cycle": (True, True, False),
        "wavelet-loss": (False, False, True),
    }


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"generator": "u-net"}, "generator: u-net, expected stargan-v2: its decoder takes the wavelets"),
        ({"wavelet_layers": [1, 3]}, "wavelet_layers: [3], expected layers from 1 to downs - 1 (2)"),
        ({"wavelet_layers": [2, 2]}, "wavelet_layers: [2, 2], expected each layer once"),
        (
            {"wavelet_layers": []},
            "weighted_cycle: true, expected false without wavelet_layers, whose weights it takes",
        ),
    ],
)  # fmt: skip
def test_wavelets_that_do_not_fit_are_refused(values, complaint):
    fitting = {"full_size_skips": False, "shortcut_refined": False}  # of a U-Net, too
    with pytest.raises(UsageError) as caught:
        resolve(preset="tiny", method="w2gan", overrides={**fitting, **values})
    assert caught.value.message == f"setting {complaint}"

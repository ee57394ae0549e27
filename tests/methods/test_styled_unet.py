"""The U-Net that a style code modulates: its layers by hand, what it does not look at."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from attcl_cli.methods.networks.styled_unet import Convolution, StyledUNet


def net_of(**changes: int) -> StyledUNet:
    sizes = {"width": 8, "max_width": 16, "downs": 2, "style_dim": 6, "images": 2, "flags": 2}
    return StyledUNet(**{**sizes, **changes})


def planes(count: int = 2, side: int = 16) -> torch.Tensor:
    """Return two images with a background of -1 on the left, and flags that say that both are given."""
    images = torch.rand(count, 2, side, side) * 1.8 - 0.9
    images[..., : side // 4] = -1
    return torch.cat([images, torch.ones(count, 2, side, side)], dim=1)


def everywhere(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(x), 1, x.shape[2] * x.shape[3])


# --- what the norm is for --------------------------------------------------------------------------------------------


def test_what_is_brain_looks_alike_however_much_background_there_is():
    net = net_of(flags=0)
    x = torch.full((1, 2, 16, 16), -1.0)
    brain = (slice(4, 12), slice(4, 12))
    x[..., 4:12, 4:12] = torch.rand(1, 2, 8, 8) * 1.8 - 0.9
    wide = F.pad(x, (16, 16, 16, 16), value=-1)  # 16: whole pixels at every level
    small, large = net.encode(x).layers[0], net.encode(wide).layers[0][..., 16:32, 16:32]
    torch.testing.assert_close(large[..., *brain], small[..., *brain], rtol=0.05, atol=0.05)
    plain = [F.group_norm(net.encoder[0][0].conv(_seen(each)), 8) for each in (x, wide)]
    assert (plain[0] - plain[1][..., 16:32, 16:32])[..., *brain].abs().max() > 0.5


def _seen(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([(x[:, :2] + 1) / 2, x[:, 2:]], dim=1)


def _inside(x: torch.Tensor) -> torch.Tensor:
    return ((x[:, :2] > -1).any(dim=1, keepdim=True).float() + 1e-4).flatten(2)


# --- a convolution ----------------------------------------------------------------------------------------------------


def test_a_convolution_is_normalised_modulated_and_bent():
    layer = Convolution(3, 8, style_dim=6)
    x, style = torch.randn(2, 3, 6, 6), torch.randn(2, 6)
    gamma, beta = layer.style(style).chunk(2, dim=1)
    h = F.group_norm(layer.conv(x), 8)
    expected = F.leaky_relu((1 + gamma)[:, :, None, None] * h + beta[:, :, None, None], 0.2)
    torch.testing.assert_close(layer(x, everywhere(x), style), expected)


def test_one_row_of_style_serves_a_whole_batch():
    layer = Convolution(3, 8, style_dim=6)
    x, style = torch.randn(2, 3, 6, 6), torch.randn(1, 6)
    every = layer(x, everywhere(x), style.expand(2, -1))
    torch.testing.assert_close(layer(x, everywhere(x), style), every)


# --- the network ------------------------------------------------------------------------------------------------------


def test_the_encoder_has_two_convolutions_and_a_pool_per_level():
    net, x = net_of(), planes()
    features = net.encode(x)
    assert net.channels == [8, 16, 16]
    assert [tuple(layer.shape) for layer in features.layers] == [
        (2, 8, 16, 16),
        (2, 16, 8, 8),
        (2, 16, 4, 4),
    ]
    h, brain = _seen(x), _inside(x).view(2, 1, 16, 16)
    for level, (first, second) in enumerate(net.encoder):
        if level:
            h, brain = F.max_pool2d(h, 2), F.avg_pool2d(brain, 2)
        h = second(first(h, brain.flatten(2)), brain.flatten(2))
        assert torch.equal(features.layers[level], h)
    assert torch.equal(features.deep, features.layers[-1])


@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_the_decoder_sees_each_level_or_what_attention_made_of_it(level):
    net, x, style = net_of(), planes(), torch.randn(2, 6)
    features = net.encode(x)
    layers = list(features.layers)
    refined = {}
    if level is not None:
        refined = {level: torch.randn_like(layers[level])}
        layers[level] = refined[level]
    h = layers[2]
    for here in (1, 0):
        h = torch.cat([layers[here], net.up[here](h)], dim=1)
        for convolution in net.decoder[here]:
            h = convolution(h, features.inside[here], style)
    expected = 2 * net.to_image(h) - 1
    torch.testing.assert_close(net.decode(features, style, refined), expected)
    if level is not None:
        assert not torch.allclose(net.decode(features, style), expected)


def test_features_of_some_rows_decode_as_in_the_batch():
    net, x, style = net_of(), planes(3), torch.randn(3, 6)
    rows = torch.tensor([2, 0])
    found = net.decode(net.encode(x).of(rows), style[rows])
    torch.testing.assert_close(found, net(x, style)[rows])


def test_an_image_that_is_not_given_has_no_influence_but_by_its_flag():
    """-1 is what is missing; the network sees 0 there, as in the background."""
    net, style = net_of(), torch.randn(1, 6)
    x = planes(1)
    x[:, 1], x[:, 3] = -1, 0
    assert not torch.allclose(net(planes(1), style), net(x, style))
    assert torch.equal(_seen(x)[:, 1], torch.zeros(1, 16, 16))


def test_another_style_gives_another_image_and_sides_may_differ():
    net = net_of()
    x = planes(1)[..., :8]
    assert net(x, torch.zeros(1, 6)).shape == (1, 1, 16, 8)
    assert not torch.allclose(net(x, torch.zeros(1, 6)), net(x, torch.ones(1, 6)))


def test_the_style_begins_as_small_as_asked_for():
    plain, small = (net_of_start(adain_start) for adain_start in (1.0, 0.1))
    torch.testing.assert_close(0.1 * plain, small)


def net_of_start(adain_start: float) -> torch.Tensor:
    torch.manual_seed(3)
    net = StyledUNet(width=8, max_width=16, downs=2, style_dim=6, adain_start=adain_start)
    return net.decoder[0][0].style.weight.detach()


def test_squares_without_any_brain_give_numbers():
    net = net_of()
    x = torch.full((1, 4, 16, 16), -1.0)
    assert torch.isfinite(net(x, torch.randn(1, 6))).all()


def test_in_bfloat16_it_computes_about_the_same():
    net, x, style = net_of(), planes(), torch.randn(2, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = net(x, style)
    exact = net(x, style)
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).square().mean() < 0.01 * exact.var()

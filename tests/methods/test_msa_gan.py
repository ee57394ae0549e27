"""MSA-GAN, re-specified: CycleGAN to the bit with both modules off, and each module by its formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import SMALL_NETWORKS, small_settings
from torch import nn
from torch.nn import functional as F

from attcl_cli.data.couples import CoupleBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.msa_gan import MsaGan, MsaGanSettings
from attcl_cli.methods.networks.attention import CBAM
from attcl_cli.methods.networks.resnet import PatchGan, Res2NetBlock, ResnetBlock
from attcl_cli.methods.pairwise import Pairwise
from attcl_cli.methods.settings import notes_of, resolve

FOUR = ("flair", "t1", "t1ce", "t2")
OFF = {"res2net": False, "cbam": False}


def method_of(name: str, **changes: Any) -> Pairwise:
    """Return a new small method, with the same weights for the same networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        method = METHODS[name](small_settings(name, **changes), FOUR)
    assert isinstance(method, Pairwise)
    return method


def batch_of() -> CoupleBatch:
    noise = torch.Generator().manual_seed(3)
    a, b = (torch.rand(2, 1, 16, 16, generator=noise) * 2 - 1 for _ in range(2))
    return CoupleBatch(a, b, (0, 1))


# --- with both off ----------------------------------------------------------------------------------------------------


def test_with_both_modules_off_it_is_cyclegan_to_the_bit():
    assert SMALL_NETWORKS["msa-gan"] == SMALL_NETWORKS["cyclegan"]
    method, cyclegan = method_of("msa-gan", **OFF), method_of("cyclegan")
    for step in range(2):
        losses, others = (one.training_step(batch_of(), step) for one in (method, cyclegan))
        assert losses == others
    state, other = method.state_dict(), cyclegan.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in state.items())
    image = {"t1": batch_of().a}
    made, others = (one.eval().synthesise(image, FOUR) for one in (method, cyclegan))
    assert all(torch.equal(made[name], others[name]) for name in FOUR)


def test_all_presets_are_those_of_cyclegan():
    for preset in ("tiny", "small", "base", "paper", "published"):
        ours, theirs = (
            resolve(preset=preset, method=name).model_dump() for name in ("msa-gan", "cyclegan")
        )
        assert {name: ours[name] for name in theirs if name != "method"} == {
            name: value for name, value in theirs.items() if name != "method"
        }
        assert (ours["res2net"], ours["cbam"], ours["discriminator_cbam"]) == (True, True, False)


@pytest.mark.parametrize("variant", MsaGanSettings.variants)
def test_a_variant_builds_the_blocks_that_it_names(variant):
    s = resolve(preset="tiny", method="msa-gan", variant=variant, overrides={"width": 4})
    with torch.device("meta"):
        method = MsaGan(s, ("t1", "t2"))
    modules = list(method.get_submodule("generator_0_1").modules())
    kinds = {kind for kind in (CBAM, Res2NetBlock, ResnetBlock) if _has(modules, kind)}
    assert kinds == {
        Res2NetBlock if "res2net" in variant or variant == "msa-gan" else ResnetBlock,
        *([CBAM] if "cbam" in variant or variant == "msa-gan" else []),
    }


def _has(modules: list[nn.Module], kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in modules)


# --- its networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "count"), [(1, 3_002_572), (2, 7_172_236)])
def test_the_generator_has_as_many_weights_as_its_parts(width, count):
    settings = resolve(
        preset="published",
        method="msa-gan",
        overrides={"res2net_width": width, "image_pool": 0},
    )
    with torch.device("meta"):
        generator = MsaGan(settings, ("t1", "t2")).get_submodule("generator_0_1")
    inner = 256 * width
    res2net = (256 * inner + inner) + 3 * (9 * (inner // 4) ** 2 + inner // 4) + (256 * inner + 256)
    cbam = (256 * 16 + 16) + (16 * 256 + 256) + (2 * 49 + 1)
    around = 11_365_633 - 9 * 2 * (9 * 256 * 256 + 256)  # CycleGAN without its blocks
    assert sum(one.numel() for one in generator.parameters()) == around + 9 * (res2net + cbam)
    assert around + 9 * (res2net + cbam) == count


def test_a_res2net_block_is_its_formula():
    torch.manual_seed(0)
    block = Res2NetBlock(8, inner=16)
    x = torch.rand(2, 8, 8, 8)

    def norm(value: torch.Tensor) -> torch.Tensor:
        return F.instance_norm(value)

    def convolve(index: int, value: torch.Tensor) -> torch.Tensor:
        conv = block.scale[index][0]
        padded = F.pad(value, (1, 1, 1, 1), mode="reflect")
        return torch.relu(norm(F.conv2d(padded, conv.weight, conv.bias)))

    h = torch.relu(norm(block.first[0](x)))
    x1, x2, x3, x4 = h[:, :4], h[:, 4:8], h[:, 8:12], h[:, 12:]
    y2 = convolve(0, x2)
    y3 = convolve(1, x3 + y2)
    y4 = convolve(2, x4 + y3)
    expected = x + norm(block.last[0](torch.cat([x1, y2, y3, y4], dim=1)))
    assert torch.allclose(block(x), expected, atol=1e-5)


@pytest.mark.parametrize("res2net", [True, False])
def test_the_branch_attends_before_the_sum(res2net):
    def block(attend: nn.Module | None) -> nn.Module:
        torch.manual_seed(0)
        if res2net:
            return Res2NetBlock(16, inner=16, attend=attend)
        return ResnetBlock(16, attend=attend)

    x, cbam = torch.rand(2, 16, 8, 8), CBAM(16)
    plain, attending = block(None), block(cbam)
    assert torch.allclose(attending(x) - x, cbam(plain(x) - x), atol=1e-5)


def test_the_discriminator_attends_if_it_is_asked_to():
    for asked in (True, False):
        method = method_of("msa-gan", discriminator_cbam=asked)
        judge = method.get_submodule("discriminator_0_1")
        assert isinstance(judge, PatchGan)
        assert _has(list(judge.modules()), CBAM) is asked
    losses = method_of("msa-gan", discriminator_cbam=True).training_step(batch_of(), 0)
    assert torch.isfinite(losses["d_real"])


def test_its_title_says_that_it_is_re_specified():
    assert METHODS.title("msa-gan") == "MSA-GAN (re-specified)"
    assert ["msa-gan" in note for note in notes_of(resolve(method="msa-gan"))] == [True]
    assert notes_of(resolve(method="cyclegan")) == ()

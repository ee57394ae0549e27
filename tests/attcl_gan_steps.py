"""A small AttCL-GAN, a batch for it, and its weights: what the tests of its training step share."""

from __future__ import annotations

import copy

import torch
from helpers import SMALL_NETWORKS, SMALL_RUN
from torch import Tensor

from attcl_cli.data.sampling import DomainBatch
from attcl_cli.methods import METHODS
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.settings import Settings, resolve

FOUR = ("flair", "t1", "t1ce", "t2")
ALL_OFF = {"acl": "none", "att_adain": False, "scd": False}


def small_paper(**changes: object) -> Settings:
    """Return preset `paper` with networks that train in milliseconds."""
    return resolve(
        preset="paper", overrides={**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"], **changes}
    )


def method_of(settings: Settings) -> AttclGan:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return METHODS["attcl-gan"](settings, FOUR)


def batch_of(size: int = 2, *, pairs: bool = True) -> DomainBatch:
    noise = torch.Generator().manual_seed(5)
    x_src, x_ref, x_ref2, x_pair = (
        torch.rand(size, 1, 16, 16, generator=noise) * 2 - 1 for _ in range(4)
    )
    has_pair = torch.arange(size) % 2 == (0 if pairs else 9)
    return DomainBatch(
        x_src=x_src,
        y_src=torch.arange(size) % 4,
        x_ref=x_ref,
        x_ref2=x_ref2,
        y_ref=(torch.arange(size) + 1) % 4,
        x_pair=x_pair,
        has_pair=has_pair,
    )


def weights_of(method: AttclGan) -> dict[str, dict[str, Tensor]]:
    return {
        name: copy.deepcopy(network.state_dict()) for name, network in method.networks().items()
    }

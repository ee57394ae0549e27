"""The discriminator D: one real-or-fake logit a domain."""

from __future__ import annotations

from torch import Tensor, nn

from attcl_cli.networks.blocks import initialise, pick
from attcl_cli.networks.style import Trunk


class Discriminator(nn.Module):
    """D of StarGAN v2: like the style encoder, with a logit instead of a code a domain."""

    def __init__(self, *, image_size: int, width: int, max_width: int, domains: int) -> None:
        super().__init__()
        self.trunk = Trunk(image_size=image_size, width=width, max_width=max_width)
        self.heads = nn.Linear(self.trunk.outputs, domains)
        initialise(self)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """x (B, 1, image_size, image_size), domain (B,) int64 -> logits (B,) of each slice's own domain."""
        return pick(self.heads(self.trunk(x)), domain)

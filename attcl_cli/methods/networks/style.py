"""Where style codes come from: the mapping network F (a latent) and the style encoder E (an image).

Both return the codes of all N domains; whoever asks picks one.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from attcl_cli.methods.networks.blocks import ResidualBlock, initialise, widths

_SHARED_LAYERS = 4
_DOMAIN_LAYERS = 4
_LAST_SIZE = 4  # pixels; the trunk of E and D ends here


class MappingNetwork(nn.Module):
    """F: z (B, latent_dim) -> codes (B, N, style_dim); 4 shared ReLU layers, then 4 per domain."""

    def __init__(self, *, latent_dim: int, style_dim: int, domains: int, hidden: int) -> None:
        super().__init__()
        shared: list[nn.Module] = []
        for index in range(_SHARED_LAYERS):
            shared += [nn.Linear(latent_dim if index == 0 else hidden, hidden), nn.ReLU()]
        self.shared = nn.Sequential(*shared)
        self.domain = nn.ModuleList()
        for _ in range(domains):
            layers: list[nn.Module] = []
            for _ in range(_DOMAIN_LAYERS - 1):
                layers += [nn.Linear(hidden, hidden), nn.ReLU()]
            self.domain.append(nn.Sequential(*layers, nn.Linear(hidden, style_dim)))
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        """Return the codes of all domains (B, N, style_dim) of z (B, latent_dim) from N(0, 1)."""
        h = self.shared(z)
        return torch.stack([head(h) for head in self.domain], dim=1)


class Trunk(nn.Module):
    """The common shape of E and D: residual down blocks to 4x4, a 4x4 convolution, a vector per slice."""

    def __init__(self, *, image_size: int, width: int, max_width: int) -> None:
        super().__init__()
        halvings = (image_size // _LAST_SIZE).bit_length() - 1
        channels = widths(width, max_width, halvings)
        self.outputs = channels[-1]
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Sequential(*(ResidualBlock(a, b, down=True) for a, b in pairwise(channels)))
        self.last = nn.Sequential(
            nn.LeakyReLU(0.2), nn.Conv2d(self.outputs, self.outputs, _LAST_SIZE), nn.LeakyReLU(0.2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a vector per slice: (B, 1, image_size, image_size) -> (B, outputs)."""
        value: Tensor = self.last(self.down(self.stem(x))).flatten(1)
        return value


class StyleEncoder(nn.Module):
    """E: an image -> the codes of all domains, (B, N, style_dim)."""

    def __init__(
        self, *, image_size: int, width: int, max_width: int, style_dim: int, domains: int
    ) -> None:
        super().__init__()
        self.domains = domains
        self.trunk = Trunk(image_size=image_size, width=width, max_width=max_width)
        # one linear head per domain, side by side
        self.heads = nn.Linear(self.trunk.outputs, domains * style_dim)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the codes of all domains: (B, 1, image_size, image_size) in [-1, 1] -> (B, N, style_dim)."""
        value: Tensor = self.heads(self.trunk(x)).unflatten(1, (self.domains, -1))
        return value

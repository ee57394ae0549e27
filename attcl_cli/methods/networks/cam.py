"""Class activation maps as attention: which channels tell two domains apart (U-GAT-IT; Zhou et al. 2016).

Knows features. Which two classes are told apart, and by which loss, is left to the method.

Formulas: Kim et al., "U-GAT-IT", ICLR 2020 (arXiv 1907.10830), as its published PyTorch code has them
(znxlwm/UGATIT-pytorch, commit b8c4251; facts, no line of it).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class CamAttention(nn.Module):
    """Weighs each channel by how much it says about the domain, and says the domain.

    A linear unit on the mean of each channel and another one on its maximum classify the image. The weights of a unit
    then multiply the channels, as they are learned: the spectral norm of a discriminator's unit is for its logit alone,
    as in the published code. A 1x1 convolution joins the two weighted maps.

    Args:
        channels: of the features.
        activation: after the 1x1 convolution.
    """

    def __init__(self, channels: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mean = nn.Linear(channels, 1, bias=False)
        self.maximum = nn.Linear(channels, 1, bias=False)
        self.join = nn.Conv2d(2 * channels, channels, 1)
        self.activation = activation

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to features (B, C, H, W).

        Returns:
            The attended features, (B, C, H, W), and the logits of the two units, (B, 2).
        """
        logits = torch.cat(
            [self.mean(features.mean(dim=(2, 3))), self.maximum(features.amax(dim=(2, 3)))], dim=1
        )
        weighted = [
            features * _as_learned(unit)[:, :, None, None] for unit in (self.mean, self.maximum)
        ]
        value: Tensor = self.activation(self.join(torch.cat(weighted, dim=1)))
        return value, logits


def _as_learned(unit: nn.Linear) -> Tensor:
    """Return the weight of a unit, (1, C), without a norm that it may have."""
    if parametrize.is_parametrized(unit, "weight"):
        return unit.get_parameter("parametrizations.weight.original")
    return unit.weight

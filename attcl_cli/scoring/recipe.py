"""What is measured, as a record that can travel: each process that scores loads the networks of its own.

What is computed with them is left to `rows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from attcl_cli.completion.inference import InMemory
from attcl_cli.methods.weights import Weights, load_method, require_same_file
from attcl_cli.scoring import feature_networks
from attcl_cli.scoring.baselines import Quantiles
from attcl_cli.scoring.metrics import METRICS
from attcl_cli.scoring.rows import Measures

SAMPLES_OF_DIVERSITY = 10  # StarGAN v2, appendix C: 10 outputs per source, the mean of the 45 pairs


@dataclass(frozen=True, eq=False)
class Recipe:
    """What `Measures` are made of.

    Attributes:
        metrics: names, keys of `METRICS`.
        cache: folder in which features of real volumes are kept between runs, by content.
        fid_network: a key of `feature_networks.NETWORKS`.
        baselines: score the trivial baselines by the networks, too.
        only: names of the predictions that are scored; empty: all.
        quantiles: of other patients, for the baseline that is a quantile-matched copy.
        weights: of what translates and draws samples; None: nothing does.
        samples: style samples per volume; None: 10 for metrics of samples, otherwise none.
        offline: never download a feature network.
        batch_size: slices that a feature network sees at once.
    """

    metrics: tuple[str, ...]
    cache: Path
    fid_network: str = "inception"
    baselines: bool = False
    only: tuple[str, ...] = ()
    quantiles: Quantiles | None = None
    weights: Weights | None = None
    samples: int | None = None
    offline: bool = False
    batch_size: int = 32

    def load(self, device: torch.device) -> Measures:
        """Load the networks that are needed.

        Raises:
            AttclError: the file of one is missing, or not what it should be.
        """
        model = None
        if self.weights is not None:
            require_same_file(self.weights)
            model = InMemory(load_method(self.weights, device), self.weights, device)
        needed = {METRICS[name].sees for name in self.metrics}
        embed = perceptual = None
        if "sets" in needed:
            embed = feature_networks.load_network(
                self.fid_network, offline=self.offline, device=device
            )
        if needed & {"slices", "samples"}:
            perceptual = feature_networks.load_perceptual(offline=self.offline, device=device)
        count = self.samples or SAMPLES_OF_DIVERSITY
        return Measures(
            metrics=self.metrics,
            baselines=self.baselines,
            only=self.only,
            quantiles=self.quantiles,
            embed=embed,
            perceptual=perceptual,
            translate=model.volumes if model else None,
            samples=self.samples or 0,
            draw=partial(model.samples, count=count) if model else None,
            batch_size=self.batch_size,
            cache=self.cache,
        )

"""A method of another package, as its page "add a method" would print it: two convolutions, flair -> t2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from attcl_cli.data.sampling import CaseBatch, CaseSampler
from attcl_cli.data.slices import SliceStore
from attcl_cli.methods.base import Losses, Method
from attcl_cli.methods.settings import Positive, Settings, setting
from attcl_cli.methods.sources import Exactly

ENTRY_POINTS = {"toy": "toy_method:Toy", "toy-context": "toy_method:ToyOfNeighbours"}


class ToySettings(Settings):
    """The settings of the toy."""

    toy_width: Positive = setting(8, "Channels of the hidden layer.", fixed=True)


class Toy(Method):
    """A regression by two convolutions."""

    settings_class = ToySettings
    settings: ToySettings

    def __init__(self, settings: ToySettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        hidden, planes = settings.toy_width, 1 + 2 * self.context
        self.network = nn.Sequential(
            nn.Conv2d(planes, hidden, 3, padding=1),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, 1, 3, padding=1),
        )

    @classmethod
    def sources(cls, settings: ToySettings, modalities: Sequence[str]) -> Exactly:
        return Exactly({"t2": ("flair",)})

    def sampler(self, store: SliceStore) -> CaseSampler:
        s = self.settings
        return CaseSampler(store, self.sources_for, batch_size=s.batch_size, seed=s.seed)

    def training_step(self, batch: CaseBatch, step: int) -> dict[str, Tensor]:
        return self.update(self.parts(batch), ["network"], self.losses, path="g")

    def losses(self, part: CaseBatch) -> Losses:
        flair, t2 = (self.modalities.index(name) for name in ("flair", "t2"))
        fake = self.network(part.source(flair))
        return {"l1": (1.0, (fake.float() - part.images[:, [t2]]).abs().mean())}

    @torch.inference_mode()
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        return {target: self.network(sources["flair"]) for target in targets}


class ToyOfNeighbours(Toy):
    """The toy with a look at the slices before and after."""

    context = 1

    def sampler(self, store: SliceStore) -> CaseSampler:
        s = self.settings
        return CaseSampler(
            store, self.sources_for, batch_size=s.batch_size, seed=s.seed, context=self.context
        )


def install(folder: Path) -> None:
    """Write the metadata of an installed package that brings these methods; `folder` is to be on sys.path."""
    info = folder / "toy_method-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-method\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in ENTRY_POINTS.items()]
    (info / "entry_points.txt").write_text("\n".join(["[attcl.methods]", *lines, ""]))

"""Two-domain models round a hub: the frame of CycleGAN and its kin (Zhu et al. 2017), one such model per pair.

Knows how pairs take turns, the cycle, the pool of earlier fakes, and how volumes are made by one or two generators.
Which networks these are, and what else they learn, is left to the methods.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from attcl_cli.data.couples import CoupleBatch, CoupleSampler, Truth, Turn
from attcl_cli.data.slices import SliceStore
from attcl_cli.errors import UsageError, nearest
from attcl_cli.methods import losses
from attcl_cli.methods.adversarial import adversarial_loss
from attcl_cli.methods.base import Losses, Method
from attcl_cli.methods.networks.blocks import keep_background
from attcl_cli.methods.setting_fields import Decay, Positive, Rate, Share, Weight, setting
from attcl_cli.methods.settings import Settings
from attcl_cli.methods.sources import HubAndSpokes, made_between
from attcl_cli.methods.updates import frozen

_OF_POOL = 9  # follows (seed, step) in the seed of the pool's generator; samplers have 1 to 8
_FEWEST = 2  # modalities of a pair


class PairwiseSettings(Settings):
    """What the methods of this frame share; the defaults are those of the CycleGAN code."""

    batch_size: Positive = setting(1, "Slices of each side per iteration.", section="run")
    learning_rate: Rate = setting(2e-4, "Adam step of the networks.", section="optimiser")
    learning_rate_decay: Share = setting(
        0.5,
        "Share of a pair's steps, the last ones, over which its Adam steps fall linearly to 0.",
        section="optimiser",
    )
    beta1: Decay = setting(0.5, "Adam: decay of the mean of the gradients.", section="optimiser")
    beta2: Decay = setting(0.999, "Adam: decay of the mean of their squares.", section="optimiser")
    weight_decay: Weight = setting(0.0, "Adam: weight decay.", section="optimiser")
    ema_decay: Decay = setting(
        0.0,
        "Decay of the averaged weights that completion uses; 0: no average.",
        section="optimiser",
    )

    hub: str = setting(
        "",
        "The modality that all pairs share; empty: the most frequent one of the training slices.",
        fixed=True,
    )
    schedule: Literal["successive", "interleaved"] = setting(
        "successive",
        "Pairs are trained one after the other with an equal number of steps each, or take turns at every step.",
        fixed=True,
    )
    jitter: Share = setting(
        0.0, "Slices are enlarged by this share, and a random square of the old size is cut out."
    )
    image_pool: int = setting(
        50, "Earlier fakes that a discriminator is shown half of the time.", fixed=True, ge=0
    )
    lambda_cycle: Weight = setting(10.0, "L1 between a slice and its way there and back.")
    lambda_identity: Weight = setting(
        5.0, "L1 between a slice and what its own modality's generator makes of it."
    )
    lambda_discriminator: Weight = setting(0.5, "Both losses of a discriminator.")
    lambda_pair: Weight = setting(0.0, "L1 to the true slice, if the training case has it (ours).")

    @model_validator(mode="after")
    def _require_true_contrasts(self) -> PairwiseSettings:
        if self.augment:
            raise ValueError(
                f"augment: {self.augment:g}, expected 0: sources of one direction are what the other one learns to make"
            )
        return self


@dataclass(frozen=True)
class Way:
    """One direction of a pair in a training step, x to the modality of y, and what the networks made on it.

    Attributes:
        forward: the generator from x's modality to y's.
        back: the generator from y's modality to x's.
        judge: the discriminator of y's modality.
        x: (B, 1, S, S), the sources.
        y: (B, 1, S, S), slices of the target modality that have nothing to do with x.
        made: what `forward` returned for x.
        fake: its image, (B, 1, S, S).
        cycled: (B, 1, S, S), the image that `back` made of the fake.
        made_of_own: what `forward` returned for y.
        own: its image, (B, 1, S, S).
        true: what x should become; None unless the setting `lambda_pair` asks for it.
    """

    forward: nn.Module
    back: nn.Module
    judge: nn.Module
    x: Tensor
    y: Tensor
    made: Any
    fake: Tensor
    cycled: Tensor
    made_of_own: Any
    own: Tensor
    true: Truth | None = None


class Pairwise(Method):
    """A two-domain model per pair of the hub and another modality: two generators and two discriminators each.

    A subclass says `make_generator` and `make_discriminator`, and narrows the settings. What a generator returns is its
    image, or more (`image_of`); a discriminator returns a map of logits, or several (`logits_of`). Further losses go
    into `way_losses`. Networks must not look at other slices of the batch.

    Children are named by indices of modalities: `generator_0_1` makes 1 of 0, `discriminator_0_1` judges 1 in the pair
    with 0.
    """

    settings_class = PairwiseSettings
    shown = ("g_gan", "g_cycle", "d_real", "d_fake")
    settings: PairwiseSettings
    rule: HubAndSpokes

    discriminators_first: ClassVar[bool] = False
    """Whether the discriminators step before the generators do; they then see the fakes of that moment."""

    def __init__(self, settings: PairwiseSettings, modalities: Sequence[str]) -> None:
        super().__init__(settings, modalities)
        hub = self.modalities.index(self.rule.hub)
        self.pairs = tuple((hub, i) for i in range(len(modalities)) if i != hub)
        for pair in self.pairs:
            for x, y in (pair, pair[::-1]):
                self.add_module(f"generator_{x}_{y}", self.make_generator())
        for pair in self.pairs:
            for x, y in (pair, pair[::-1]):
                self.add_module(f"discriminator_{x}_{y}", self.make_discriminator())
        self.pool = ImagePool(
            slots=2 * len(self.pairs), size=settings.image_pool, side=settings.side
        )
        self.inference = tuple(name for name in self.networks() if name.startswith("generator_"))

    @abstractmethod
    def make_generator(self) -> nn.Module:
        """Return a new generator: (B, 1, S, S) in [-1, 1] -> what `image_of` takes."""

    @abstractmethod
    def make_discriminator(self) -> nn.Module:
        """Return a new discriminator: (B, 1, S, S) -> what `logits_of` takes."""

    def image_of(self, made: Any) -> Tensor:
        """Return the image, (B, 1, S, S), of what a generator returned."""
        image: Tensor = made
        return image

    def logits_of(self, judged: Any) -> Sequence[Tensor]:
        """Return all logits, (B, ...) each, of what a discriminator returned; their losses are added up."""
        return (judged,)

    def way_losses(self, way: Way) -> Losses:
        """Return the losses of the generators in one direction; those of both directions are added up.

        LSGAN, cycle (Eq 2) and identity (Section 5.2) of Zhu et al. (2017).
        """
        s = self.settings
        logits = self.logits_of(way.judge(way.fake))
        way_losses: Losses = {
            "gan": (1.0, _sum(adversarial_loss(it, "lsgan", "fooled") for it in logits)),
            "cycle": (s.lambda_cycle, losses.cycle_loss(way.x, way.cycled)),
            "identity": (s.lambda_identity, losses.cycle_loss(way.y, way.own)),
        }
        if way.true is not None:
            true = way.true
            pair = losses.paired_loss(way.fake, true.images, true.known, share=true.share)
            way_losses["pair"] = (s.lambda_pair, pair)
        return way_losses

    def judge_losses(self, judge: nn.Module, real: Tensor, fake: Tensor) -> Losses:
        """Return the losses of a discriminator; those of both of a pair are added up. LSGAN."""
        weight = self.settings.lambda_discriminator
        of_real, of_fake = (self.logits_of(judge(images)) for images in (real, fake))
        return {
            "real": (weight, _sum(adversarial_loss(it, "lsgan", "real") for it in of_real)),
            "fake": (weight, _sum(adversarial_loss(it, "lsgan", "fake") for it in of_fake)),
        }

    @classmethod
    def sources(cls, settings: PairwiseSettings, modalities: Sequence[str]) -> HubAndSpokes:
        """See `Method`: one source; a hub that the settings do not name is the first modality."""
        if len(modalities) < _FEWEST:
            raise UsageError(
                f"method {settings.method}: of {', '.join(modalities)} alone, expected two modalities at least",
                "train on cases that have another one",
                code="one-modality",
            )
        hub = settings.hub or modalities[0]
        if hub not in modalities:
            raise UsageError(
                f"setting hub: {hub!r}, expected one of {', '.join(modalities)}, "
                "or '' for the most frequent one",
                nearest(hub, modalities),
                code="unknown-hub",
            )
        return HubAndSpokes(tuple(modalities), hub)

    @classmethod
    def settled(cls, settings: PairwiseSettings, store: SliceStore) -> PairwiseSettings:
        """See `Method`: the hub is the modality with most volumes, of several the first by name (Section 3.6)."""
        if settings.hub:
            return settings
        counts = Counter(entry.modality for entry in store.entries)
        hub = min(store.modalities, key=lambda name: (-counts[name], name))
        return settings.model_copy(update={"hub": hub})

    @property
    def stride(self) -> int:
        """See `Method`: the trunk halves twice, and mirrors its edges, for which two pixels must be left."""
        return 8

    @property
    def restarts(self) -> tuple[float, ...]:
        """See `Method`: successive pairs have a schedule of learning rates each."""
        count = len(self.pairs)
        if self.settings.schedule == "interleaved":
            return ()
        return tuple(index / count for index in range(1, count))

    def turn(self, step: int) -> Turn:
        """Return which pair a step trains, and how many steps have trained it before."""
        count = len(self.pairs)
        if self.settings.schedule == "interleaved":
            return Turn(self.pairs[step % count], step // count)
        begins = [0, *(round(share * self.settings.steps) for share in self.restarts)]
        index = max(i for i, begin in enumerate(begins) if begin <= step)
        return Turn(self.pairs[index], step - begins[index])

    def sampler(self, store: SliceStore) -> CoupleSampler:
        """See `Method`: unpaired slices of two modalities."""
        s = self.settings
        return CoupleSampler(
            store,
            self.pairs,
            self.turn,
            batch_size=s.batch_size,
            seed=s.seed,
            mirror=s.mirror,
            crop=s.crop,
            warp=s.warp,
            jitter=s.jitter,
            paired=s.lambda_pair > 0,
        )

    def training_step(self, batch: CoupleBatch, step: int) -> dict[str, Tensor]:
        """Update the generators and the discriminators of the batch's pair once each."""
        which = torch.tensor(float(self.pairs.index(batch.pair)), device=self.device)
        parts = self.parts(batch)
        if self.discriminators_first:
            fakes = self._fakes(parts)
            logged = self._update_judges(parts, fakes, step)
            logged |= self._update_generators(parts)[0]
        else:
            logged, fakes = self._update_generators(parts)
            logged |= self._update_judges(parts, fakes, step)
        return {**logged, "which_pair": which}

    @torch.inference_mode()
    def synthesise(
        self, sources: Mapping[str, Tensor], targets: Sequence[str], *, sample: int | None = None
    ) -> dict[str, Tensor]:
        """See `Method`. Of its own image alone, a target is made by the way there and back."""
        del sample  # not styled: there is nothing to draw
        between: dict[tuple[str, str], Tensor] = {}
        images = {}
        for target in targets:
            (source,) = self.sources_for(target, tuple(sources)) or (target,)
            image = sources[source]
            for name in self._between(source, target):
                way = (source, name)
                if way not in between:  # the next generator expects what a volume looks like
                    between[way] = keep_background(self._made(*way, image), image)
                source, image = name, between[way]
            images[target] = self._made(source, target, image)
        return images

    def network(self, kind: Literal["generator", "discriminator"], x: int, y: int) -> nn.Module:
        """Return the generator that makes y of x, or the discriminator of y in the pair with x."""
        return self.get_submodule(f"{kind}_{x}_{y}")

    def _between(self, source: str, target: str) -> tuple[str, ...]:
        """Return the modalities on the way; to itself, the hub goes by the first one that it shares a pair with."""
        if source == target == self.rule.hub:
            return (self.modalities[self.pairs[0][1]],)
        return made_between(self.rule, target, (source,))

    def _made(self, source: str, target: str, image: Tensor) -> Tensor:
        """Translate within a pair."""
        x, y = map(self.modalities.index, (source, target))
        return self.image_of(self.network("generator", x, y)(image))

    def _translated(self, generator: nn.Module, x: Tensor) -> tuple[Any, Tensor]:
        """Return what a generator returns for x, and its image, float32."""
        made = generator(x)
        image = self.image_of(made).float()
        return made, keep_background(image, x) if self.settings.keep_background else image

    def _names(self, kind: str, pair: tuple[int, int]) -> list[str]:
        """Return the names of both networks of a pair: of the direction to the spoke, then of that to the hub."""
        return [f"{kind}_{x}_{y}" for x, y in (pair, pair[::-1])]

    def _ways(self, part: CoupleBatch) -> list[Way]:
        """Send a part of a batch through the generators, in both directions."""
        ways = []
        for x, y, (source, target), true in (
            (part.a, part.b, part.pair, part.true_of_a),
            (part.b, part.a, part.pair[::-1], part.true_of_b),
        ):
            forward = self.network("generator", source, target)
            back = self.network("generator", target, source)
            made, fake = self._translated(forward, x)
            _, cycled = self._translated(back, fake)
            made_of_own, own = self._translated(forward, y)
            judge = self.network("discriminator", source, target)
            ways.append(Way(forward, back, judge, x, y, made, fake, cycled, made_of_own, own, true))
        return ways

    @torch.no_grad()
    def _fakes(self, parts: Sequence[CoupleBatch]) -> list[Tensor]:
        """Return what the generators make of a batch as they are: the spoke of the hub's slices, and the reverse."""
        names = self._names("generator", parts[0].pair)
        fakes = []
        for name, side in zip(names, ("a", "b"), strict=True):
            generator = self.get_submodule(name)
            images = []
            for part in parts:
                with self.runtime.autocast(self.device):
                    images.append(self._translated(generator, getattr(part, side))[1])
            fakes.append(torch.cat(images))
        return fakes

    def _update_generators(
        self, parts: Sequence[CoupleBatch]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Update the generators; return the losses, and the fakes of before as `_fakes` does."""
        pair = parts[0].pair
        fakes: list[list[Tensor]] = []

        def loss_of(part: CoupleBatch) -> Losses:
            ways = self._ways(part)
            fakes.append([way.fake.detach() for way in ways])
            return _added([self.way_losses(way) for way in ways])

        judges = nn.ModuleList(map(self.get_submodule, self._names("discriminator", pair)))
        with frozen(judges):
            logged = self.update(parts, self._names("generator", pair), loss_of, path="g")
        return logged, [torch.cat(side) for side in zip(*fakes, strict=True)]

    def _update_judges(
        self, parts: Sequence[CoupleBatch], fakes: Sequence[Tensor], step: int
    ) -> dict[str, Tensor]:
        """Update the discriminators, on fakes of this step and of earlier ones."""
        pair = parts[0].pair
        names = self._names("discriminator", pair)
        slots = [2 * self.pairs.index(pair), 2 * self.pairs.index(pair) + 1]
        sizes = [len(part) for part in parts]
        shown = [
            self._pooled(slot, images, step).split(sizes)
            for slot, images in zip(slots, fakes, strict=True)
        ]
        judged = [
            _Judged(part.b, part.a, of_b, of_a)
            for part, of_b, of_a in zip(parts, *shown, strict=True)
        ]
        spoke, hub = map(self.get_submodule, names)

        def loss_of(part: _Judged) -> Losses:
            return _added(
                [
                    self.judge_losses(spoke, part.spoke, part.fake_spoke),
                    self.judge_losses(hub, part.hub, part.fake_hub),
                ]
            )

        return self.update(judged, names, loss_of, path="d")

    def _pooled(self, slot: int, own: Tensor, step: int) -> Tensor:
        """Return what the pool gives for this process' fakes; the pool of all processes is that of one."""
        if not self.settings.image_pool:
            return own
        whole = self._gathered(own)
        rng = np.random.default_rng((self.settings.seed, step, _OF_POOL, slot))
        return self.pool.exchange(slot, whole, rng)[self.runtime.share(len(whole))]

    def _gathered(self, own: Tensor) -> Tensor:
        """Return the images of all processes, in the order of the whole batch."""
        count = self.runtime.processes
        if count == 1:
            return own
        whole = nn.Parameter(own.new_zeros(len(own) * count, *own.shape[1:]))
        whole.grad = torch.zeros_like(whole)
        whole.grad[self.runtime.share(len(whole))] = count * own
        with self.runtime.averaging([whole]):  # of what only one of them has
            pass
        return whole.grad


@dataclass(frozen=True)
class _Judged:
    """What the discriminators of a pair learn from at once: B slices of each kind, (B, 1, S, S)."""

    spoke: Tensor
    hub: Tensor
    fake_spoke: Tensor
    fake_hub: Tensor

    def __len__(self) -> int:
        return len(self.spoke)


class ImagePool(nn.Module):
    """Earlier fakes per discriminator, a part of the training state (Shrivastava et al. 2017; CycleGAN's code: 50).

    Args:
        slots: discriminators.
        size: images of each.
        side: of an image, in pixels.
    """

    images: Tensor
    count: Tensor

    def __init__(self, *, slots: int, size: int, side: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(slots * size, side, side))
        self.register_buffer("count", torch.zeros(slots, dtype=torch.int64))

    @torch.no_grad()
    def exchange(self, slot: int, fakes: Tensor, rng: np.random.Generator) -> Tensor:
        """Put fakes in, one after the other, and return what to show instead of each.

        Until the pool is full, each is kept and returned. Then half of them are returned as they are, and the others
        take the place of a random earlier one, which is returned.

        Args:
            slot: the discriminator.
            fakes: (B, 1, S, S).
            rng: draws which.
        """
        swapped = torch.from_numpy(rng.random(len(fakes)) < 0.5).to(fakes.device)  # noqa: PLR2004
        places = torch.from_numpy(rng.integers(self.size, size=len(fakes))).to(fakes.device)
        result = fakes.clone()
        for index in range(
            len(fakes)
        ):  # without a look at the numbers, so that no device is waited for
            filling = self.count[slot] < self.size
            within = torch.where(filling, self.count[slot], places[index])
            place = slot * self.size + within[None]  # (1,): an index without dimension is looked at
            earlier, new = self.images[place], fakes[index]
            old = ~filling & swapped[index]
            result[index] = torch.where(old, earlier, new)
            self.images[place] = torch.where(old | filling, new, earlier)
            self.count[slot] += filling
        return result


def _sum(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars."""
    return torch.stack(list(values)).sum()


def _added(all_losses: Sequence[Losses]) -> Losses:
    """Add up losses of the same names and weights."""
    return {
        name: (weight, _sum(each[name][1] for each in all_losses))
        for name, (weight, _) in all_losses[0].items()
    }

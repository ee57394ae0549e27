"""Which modalities a missing one is made from: the ready rules of the methods.

Knows names only. Planning, training, validation, samples and scoring ask a rule and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class SourceRule(Protocol):
    """Answers for one trained model; cheap to make, so that planning needs no network."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The modalities that the model can make."""

    def sources_for(self, target: str, present: Sequence[str]) -> tuple[str, ...] | None:
        """Return what `target` is made from.

        Args:
            target: the modality that is missing.
            present: the modalities that the case has, in the order of preference; `target` among them is ignored.

        Returns:
            The sources, or None if the model cannot make the target from these.
        """

    def describe(self, target: str) -> str:
        """Return in words what `target` needs, for an error: `any of flair, t1`."""


@dataclass(frozen=True)
class AnyOne:
    """One source: the first present one that the model knows.

    Attributes:
        targets: the modalities that the model knows.
    """

    targets: tuple[str, ...]

    def sources_for(self, target: str, present: Sequence[str]) -> tuple[str, ...] | None:
        """See `SourceRule`."""
        if target not in self.targets:
            return None
        known = [name for name in present if name in self.targets and name != target]
        return (known[0],) if known else None

    def describe(self, target: str) -> str:
        """See `SourceRule`."""
        return f"any one of {', '.join(name for name in self.targets if name != target)}"


@dataclass(frozen=True)
class AllPresent:
    """Every present modality that the model knows, at least one, in the model's own order.

    Attributes:
        targets: the modalities that the model knows.
    """

    targets: tuple[str, ...]

    def sources_for(self, target: str, present: Sequence[str]) -> tuple[str, ...] | None:
        """See `SourceRule`."""
        if target not in self.targets:
            return None
        return tuple(name for name in self.targets if name in present and name != target) or None

    def describe(self, target: str) -> str:
        """See `SourceRule`."""
        return f"any of {', '.join(name for name in self.targets if name != target)}"


@dataclass(frozen=True)
class SeenTogether:
    """The sources of another rule, but no more of them than a training case had together with the target.

    Cases with FLAIR and T1, and others with FLAIR and T2, teach T2 from FLAIR alone. What a network makes of T2 from
    FLAIR and T1 it has never been told.

    Attributes:
        rule: the other rule.
        patterns: modalities that a training case had.
    """

    rule: SourceRule
    patterns: frozenset[frozenset[str]]

    @property
    def targets(self) -> tuple[str, ...]:
        """See `SourceRule`."""
        return self.rule.targets

    def sources_for(self, target: str, present: Sequence[str]) -> tuple[str, ...] | None:
        """See `SourceRule`: as many sources as any training case had, the preferred ones if others are as many."""
        sources = self.rule.sources_for(target, present)
        together = [pattern for pattern in self.patterns if target in pattern]
        if sources is None or not together:
            return sources

        def known(pattern: frozenset[str]) -> list[str]:
            return [name for name in present if name in pattern and name in sources]

        best = max(
            (known(pattern) for pattern in together), key=lambda names: _rank(names, present)
        )
        return self.rule.sources_for(target, best) if best else sources

    def describe(self, target: str) -> str:
        """See `SourceRule`."""
        return self.rule.describe(target)


def _rank(names: Sequence[str], present: Sequence[str]) -> tuple[int, list[int]]:
    """Return how good a choice of sources is: more are better, then earlier ones."""
    return len(names), [-present.index(name) for name in names]


@dataclass(frozen=True)
class Exactly:
    """A fixed set of sources for each target.

    Attributes:
        needs: target -> its sources, all of which a case must have.
    """

    needs: Mapping[str, tuple[str, ...]]

    @property
    def targets(self) -> tuple[str, ...]:
        """See `SourceRule`."""
        return tuple(self.needs)

    def sources_for(self, target: str, present: Sequence[str]) -> tuple[str, ...] | None:
        """See `SourceRule`."""
        sources = self.needs.get(target, ())
        return sources if sources and set(sources) <= set(present) - {target} else None

    def describe(self, target: str) -> str:
        """See `SourceRule`."""
        return ", ".join(self.needs.get(target, ()))


@dataclass(frozen=True)
class HubAndSpokes:
    """One source, from or to a hub: two-domain models know the hub and one other modality each.

    The hub is preferred as a source. Without it, another modality becomes the hub first, and that the target
    (`made_between`).

    Attributes:
        targets: the modalities that the model knows, two at least.
        hub: the one of them that every pair has.
    """

    targets: tuple[str, ...]
    hub: str

    def sources_for(self, target: str, present: Sequence[str]) -> tuple[str, ...] | None:
        """See `SourceRule`."""
        if target not in self.targets:
            return None
        known = [name for name in present if name in self.targets and name != target]
        if self.hub in known:
            return (self.hub,)
        return (known[0],) if known else None

    def describe(self, target: str) -> str:
        """See `SourceRule`."""
        others = [name for name in self.targets if name not in (self.hub, target)]
        first = [] if target == self.hub else [self.hub]
        return f"any one of {', '.join([*first, *others])}"


def made_between(rule: SourceRule, target: str, sources: Sequence[str]) -> tuple[str, ...]:
    """Return the modalities that a model makes on the way from the sources to the target, and does not write.

    Args:
        rule: of the model.
        target: what is made.
        sources: what it is made from, as the rule says.
    """
    if not isinstance(rule, HubAndSpokes) or rule.hub in (target, *sources):
        return ()
    return (rule.hub,)


def withheld(rule: SourceRule, target: str, present: Sequence[str]) -> tuple[str, ...]:
    """Return the sources that a model would take, and is not given: no training case had them with the others.

    Args:
        rule: of the model.
        target: what is made.
        present: as of `SourceRule.sources_for`.
    """
    if not isinstance(rule, SeenTogether):
        return ()
    given = rule.sources_for(target, present) or ()
    return tuple(name for name in rule.rule.sources_for(target, present) or () if name not in given)


def takes_one(rule: SourceRule, present: Sequence[str]) -> bool:
    """Return whether the model makes every target from a single source, whichever of `present` that is."""
    return all(
        rule.sources_for(target, [source]) == (source,)
        for target in rule.targets
        for source in present
        if source != target
    ) and not any(len(rule.sources_for(target, present) or ()) > 1 for target in rule.targets)

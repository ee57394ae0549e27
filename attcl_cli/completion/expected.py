"""What the cases of a dataset should have, and the weights that make what they lack."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attcl_cli.data.dataset import Case, Dataset, check_case
from attcl_cli.data.layouts import canonical
from attcl_cli.data.preconditions import examine
from attcl_cli.errors import AttclError, ProblemsError, UsageError
from attcl_cli.methods import bundled
from attcl_cli.methods.weights import Weights, find_weights
from attcl_cli.progress import Progress


def expect(
    dataset: Dataset,
    names: Sequence[Path | str],
    targets: Sequence[str],
    progress: Progress,
    *,
    force: bool,
) -> tuple[Dataset, list[Weights], str]:
    """Return the dataset with all that its cases should have, the weights for it, and how these were chosen.

    A case should have the targets that were named. A single case cannot show what others have: it should have all that
    the weights can make.

    Raises:
        AttclError: no weights will do; together with what else is wrong (`_wrong_besides`).
    """
    of_one_case = dataset.alone and not targets
    dataset = dataset.including(targets)
    whole = dataset.including(dataset.absent) if of_one_case else dataset
    if not names and not any(_asked_for(whole, case, targets) for case in whole.cases):
        return whole, [], "none"
    try:
        models, chosen = _choose_models(names, dataset, targets, progress, force=force)
    except AttclError as error:
        more = _wrong_besides(dataset, force=force) if error.code == "no-weights" else []
        problems = [*dataset.problems, *more]
        if not problems:
            raise
        raise ProblemsError([*problems, error]) from error
    if of_one_case:
        known = {target for model in models for target in model.info.rule.targets}
        dataset = dataset.including(known.intersection(dataset.absent))
    return dataset, models, chosen


def _wrong_besides(dataset: Dataset, *, force: bool) -> list[AttclError]:
    """Return what else is wrong with a dataset that no weights fit, so that it is corrected in one go.

    Of a single case that is what `attcl info` finds in its images. Of many, whose voxels take minutes to read, it is
    which volumes lie on another grid than their case: the weights may fit the others. Slices have no grid.
    """
    sound = [case for case in dataset.cases if case.id not in dataset.wrong]
    if dataset.alone:
        findings = examine(dataset, sound, force=force)
        return [problem for case in sound for problem in findings.of(case.id)]
    if dataset.layout.sliced:
        return []
    return [
        problem
        for case in sound
        for problem in check_case(dataset, case)
        if problem.code == "grids-differ"
    ]


def _choose_models(
    names: Sequence[Path | str],
    dataset: Dataset,
    targets: Sequence[str],
    progress: Progress,
    *,
    force: bool,
) -> tuple[list[Weights], str]:
    """Return the weights by name, in this order, or those that the dataset takes; and how they were chosen."""
    if not names:
        choice = bundled.choose_weights(dataset, targets)
        progress.say(f"weights: {choice.title}")
        for note in choice.notes:
            progress.say(f"not taken: {note}")
        return [choice.weights], choice.origin
    named = [find_weights(str(name)) for name in names]
    models = list({model.sha256: model for model in named}.values())  # named twice is named once
    warning = bundled.refuse_patients(models, dataset, force=force)
    if warning:
        progress.say(warning)
    return models, "named"


def _asked_for(dataset: Dataset, case: Case, targets: Sequence[str]) -> list[str]:
    """Return the modalities that a case lacks, of those that are to be made."""
    return [name for name in dataset.missing(case) if not targets or name in targets]


def canonical_targets(names: Sequence[str], dataset: Dataset) -> list[str]:
    """Return the modalities that `--target` names, by their canonical names.

    Raises:
        UsageError: a name is no modality.
    """
    try:
        return [canonical(name, dataset.vocabulary) for name in names]
    except UsageError as error:
        raise UsageError(
            f"--target: {error.message}", "name one of these", code=error.code
        ) from error

"""`attcl complete` as a function: finds weights, plans, synthesises what is missing, keeps the record.

Knows no terminal: talk goes to `progress`, the outcome is returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attcl_cli import devices
from attcl_cli.completion.jobs import Completed, CompletionPlan, Manner
from attcl_cli.completion.making import link_originals as link_all
from attcl_cli.completion.making import make_volumes
from attcl_cli.completion.plan import plan_completion
from attcl_cli.data import splits
from attcl_cli.data.dataset import Dataset, Source
from attcl_cli.data.layouts import SUBMISSIONS, Layout, canonical
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import read_json, sweep
from attcl_cli.methods.weights import BUNDLED, Weights, find_weights, load_method
from attcl_cli.progress import SILENT, Progress
from attcl_cli.run_record import RunRecord


@dataclass(frozen=True)
class CompletionResult:
    """What became of a completion.

    Attributes:
        plan: what there was to do.
        device: where the networks ran.
        record: the `run.json` of this run.
        written: volumes made.
        linked: originals linked.
        failed: case id -> why it failed.
    """

    plan: CompletionPlan
    device: str
    record: Path
    written: int = 0
    linked: int = 0
    failed: tuple[tuple[str, AttclError], ...] = ()

    @property
    def output(self) -> Path:
        """Return the folder that the volumes are in."""
        return self.plan.output

    @property
    def done_before(self) -> int:
        """Return how many volumes an earlier run had made."""
        return self.plan.done


def complete(
    ori: Path | str = "data",
    cpl: Path | str = "out",
    *,
    weights: Path | str | Sequence[Path | str] = (),
    targets: Sequence[str] = (),
    layout: str = "auto",
    modalities: Path | str | None = None,
    batch_size: int = 64,
    slices: tuple[int, int] | None = None,
    samples: int = 0,
    uncertainty: bool = False,
    link_originals: bool = False,
    num_parts: int = 1,
    part_id: int = 1,
    keep_going: bool = False,
    device: str = "auto",
    num_workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> CompletionResult:
    """Synthesise every missing volume of a dataset (Algorithm 1); finished files are never made again.

    Args:
        ori: the incomplete dataset; it is only read.
        cpl: folder for the synthesised volumes, and only these.
        weights: runs' folders, weights files or bundled names, the first that can make a target does; none: the newest
            run, otherwise the bundled weights.
        targets: only these modalities; none: all.
        layout: how the dataset is named (`open_dataset`), or a challenge's naming of what is written.
        modalities: a TOML file with other modality names.
        batch_size: slices on the device at once; never changes results.
        slices: (first, stop) of the slices that are synthesised; None: all.
        samples: write the mean of so many style samples; 0: the reference style.
        uncertainty: also write the samples' standard deviation.
        link_originals: also link the originals, so that `cpl` is a whole dataset.
        num_parts: share the cases among this many runs.
        part_id: which share this run does, from 1: every `num_parts`-th case, starting with this one.
        keep_going: do the sound cases; the others are in the result's `failed`.
        device: auto, cpu, cuda, cuda:N or mps.
        num_workers: cases read ahead.
        overwrite: make volumes again that exist.
        dry_run: plan and check everything, and write nothing.
        progress: hears how it goes.

    Raises:
        UsageError: options that do not fit together.
        AttclError: everything that is wrong, together; or, without `keep_going`, what failed on the way.
    """
    if not 1 <= part_id <= num_parts:
        raise UsageError(
            f"--part-id: {part_id}, expected 1 to --num-parts ({num_parts})",
            "parts are counted from 1: --num-parts 4 --part-id 1",
            code="part-out-of-range",
        )
    source = Source(Path(ori), layout, Path(modalities) if modalities is not None else None)
    naming = SUBMISSIONS.get(layout)
    if naming is not None:  # says how to write; what is read shows its layout itself
        source = replace(source, layout="auto")
        if link_originals:
            raise UsageError(
                f"--link-originals: with --layout {naming.name}, expected synthesised files alone",
                "leave one of them out",
                code="options-exclude-each-other",
            )
    dataset = source.open()
    place = devices.select(device)
    names = [weights] if isinstance(weights, Path | str) else list(weights)
    models = _find_models(names, progress)
    manner = Manner(slices, samples, uncertainty)
    plan = plan_completion(
        dataset,
        Path(cpl),
        models,
        naming=naming,
        targets=_canonical(targets, dataset),
        manner=manner,
        part=(part_id, num_parts),
        originals=splits.originals_of(dataset.root),
        keep_going=keep_going,
        overwrite=overwrite,
    )
    name = "run.json" if num_parts == 1 else f"run-{part_id}of{num_parts}.json"
    record_file = plan.places.records / name
    if dry_run:
        return CompletionResult(plan, str(place), record_file, failed=tuple(plan.failed.items()))
    record = _record(plan, record_file, str(place), source, naming, targets)
    record.config |= {
        "part": [part_id, num_parts],
        "keep_going": keep_going,
        "overwrite": overwrite,
    }
    for folder in {plan.output, plan.places.records}:
        if folder.is_dir():
            sweep(folder)
    linked = link_all(dataset, plan.output) if link_originals else 0
    written = 0
    failed: dict[str, AttclError] = {}
    if plan.jobs or plan.failed:
        methods = {model.sha256: load_method(model, place) for model in plan.used}
        items = make_volumes(
            plan,
            methods,
            device=place,
            batch_size=batch_size,
            workers=num_workers,
            keep_going=keep_going,
        )
        written, failed = _make(plan, record, items, progress)
    else:
        _finish_earlier(plan, record)
    return CompletionResult(plan, str(place), record_file, written, linked, tuple(failed.items()))


def _find_models(names: Sequence[Path | str], progress: Progress) -> list[Weights]:
    """Return the weights by name, in this order; without names those of the newest run, otherwise the bundled ones."""
    named = [find_weights(str(name)) for name in names] or [find_weights(None)]
    models = list({model.sha256: model for model in named}.values())  # named twice is named once
    if not names:
        info = models[0].info
        progress.say(
            f"weights: {models[0].path} ({info.steps} steps on {len(info.trained_on)} cases)"
        )
    if any(model.name == BUNDLED for model in models):
        progress.say(
            "warning: these bundled weights know simulated phantoms only; "
            "train on your own data first: attcl train"
        )
    return models


def _canonical(names: Sequence[str], dataset: Dataset) -> list[str]:
    try:
        return [canonical(name, dataset.modalities) for name in names]
    except UsageError as error:
        raise UsageError(
            f"--target: {error.message}", "name one of these", code=error.code
        ) from error


def _record(
    plan: CompletionPlan,
    path: Path,
    device: str,
    source: Source,
    naming: Layout | None,
    targets: Sequence[str],
) -> RunRecord:
    first, *others = plan.models
    trained_on = {case for model in plan.models for case in model.info.trained_on}
    return RunRecord(
        path,
        "complete",
        config={
            "ori": str(source.folder),
            "cpl": str(plan.output),
            "layout": naming.name if naming else plan.dataset.layout.name,
            "targets": list(targets),
            **plan.manner.document(),
        },
        seed=first.info.settings.seed,
        device=device,
        weights={"name": first.name, "sha256": first.sha256},
        extra={
            "trained_on": sorted(trained_on),  # `segment` warns if test patients are among them
            **(
                {"further_weights": [{"name": it.name, "sha256": it.sha256} for it in others]}
                if others
                else {}
            ),
        },
    )


def _make(
    plan: CompletionPlan, record: RunRecord, items: Iterator[Completed], progress: Progress
) -> tuple[int, dict[str, AttclError]]:
    """Run the plan with its progress and `run.json`; return how many volumes were made, and which cases failed."""
    written = 0
    failed = dict(plan.failed)
    with record.recorded():
        for case, error in plan.failed.items():
            record.add(case, "failed", seconds=0, outputs=_present(plan, case), error=error)
            progress.fail(error)
        _note_present(plan, record)
        left = {job.case.id: 0 for job in plan.jobs}
        for job in plan.jobs:
            left[job.case.id] += 1
        parts: dict[str, list[Completed]] = {}
        with progress.bar(len(left), "complete") as bar:
            for item in items:
                if item.error:
                    failed[item.case] = item.error
                    progress.fail(item.error)
                else:
                    written += len(item.job.outputs)
                progress.detail(f"{item.case}: {item.seconds:.1f} s in the network")
                parts.setdefault(item.case, []).append(item)
                left[item.case] -= 1
                if left[item.case] == 0:
                    _note(plan, record, parts.pop(item.case))
                    bar(item.case)
    return written, failed


def _note(plan: CompletionPlan, record: RunRecord, items: Sequence[Completed]) -> None:
    """Note what became of a case, of which several models may have made volumes."""
    case = items[0].case
    error = next((item.error for item in items if item.error), None)
    outputs = [*_present(plan, case), *(file for item in items for file in item.outputs)]
    record.add(
        case,
        "failed" if error else "done",
        seconds=sum(item.seconds for item in items),
        outputs=outputs,
        error=error,
    )


def _present(plan: CompletionPlan, case: str) -> list[str]:
    """Return the files of a case that an earlier run made."""
    return [str(file) for files in plan.present.get(case, {}).values() for file in files]


def _note_present(plan: CompletionPlan, record: RunRecord) -> None:
    """Note the cases of which nothing is left to do: the record names everything that lies in the folder."""
    busy = {*plan.failed, *(job.case.id for job in plan.jobs)}
    for case in plan.present:
        if case not in busy:
            record.add(case, "present", seconds=0, outputs=_present(plan, case))


def _finish_earlier(plan: CompletionPlan, record: RunRecord) -> None:
    """Finish the record of a run that was killed after its last file; a finished one is not touched."""
    if record.path.is_file() and read_json(record.path).get("status") == "running":
        _note_present(plan, record)
        record.finish(0)

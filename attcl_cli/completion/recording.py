"""Keeps the record of a completion, `run.json`: what was asked for, and what became of each case."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from attcl_cli.completion import provenance
from attcl_cli.completion.doubt import read_doubt
from attcl_cli.completion.jobs import Completed, CompletionPlan, Doubt
from attcl_cli.data.dataset import Source, makers_in, read_side_car
from attcl_cli.data.layouts import Layout
from attcl_cli.errors import AttclError, counted
from attcl_cli.methods.weights import Weights
from attcl_cli.progress import Progress
from attcl_cli.run_record import RunRecord, read_record


def new_record(
    plan: CompletionPlan,
    path: Path,
    device: str,
    source: Source,
    naming: Layout | None,
    targets: Sequence[str],
) -> RunRecord:
    """Return the record of a completion that begins: its options, its weights, and the cases these were trained on.

    Weights of an earlier run stay in it, if they made volumes that stay.
    """
    first = plan.models[0] if plan.models else None
    trained_on = {case for model in plan.models for case in model.info.trained_on}
    record = RunRecord(
        path,
        "complete",
        outputs_in=plan.output,
        config={
            **(
                {"images": {name: str(path) for name, path in source.images}}
                if source.images
                else {"ori": str(source.folder)}
            ),
            "cpl": str(plan.output),
            "layout": naming.name if naming else plan.dataset.layout.name,
            "targets": list(targets),
            **({"bids_filter": list(source.bids_filter)} if source.bids_filter else {}),
            **({"bids_desc": plan.dataset.desc} if plan.dataset.desc else {}),
            **plan.manner.document(),
        },
        seed=first.info.settings.seed if first else 0,
        device=device,
        weights=_named(first) if first else {},
        extra={
            "trained_on": sorted(
                trained_on
            ),  # `score` and `segment` say if their patients are among them
            **(
                {
                    "further_weights": [_named(it) for it in plan.models[1:]],
                    "trained_on_by_weights": {
                        it.sha256: list(it.info.trained_on) for it in plan.models
                    },
                }
                if len(plan.models) > 1
                else {}
            ),
        },
    )
    _keep_earlier_weights(plan, record)
    return record


def _keep_earlier_weights(plan: CompletionPlan, record: RunRecord) -> None:
    """Add the weights of an earlier run whose volumes lie there: `score` asks whom these were trained on.

    `_drop_replaced_weights` removes those that have none left in the end; if the run stops, they stay.
    """
    before = read_record(record.path.parent, record.path.name)
    own = {weights.sha256 for weights in plan.models}
    earlier = [it for it in provenance.named(before) if it.get("sha256") not in own]
    if before.get("command") != record.command or not earlier:
        return  # as nearly always: no side-car is read
    left = _makers_of_all(plan)
    kept = [it for it in earlier if it.get("sha256") in left]
    if not kept:
        return
    learned = provenance.trained_on(before)
    by_weights = {weights.sha256: list(weights.info.trained_on) for weights in plan.models}
    # Of weights that are not among them it stays unknown.
    by_weights |= {sha: list(learned[sha]) for it in kept if (sha := it["sha256"]) in learned}
    record.extra["further_weights"] = [*record.extra.get("further_weights", []), *kept]
    _note_trained_on(record, by_weights)


def _drop_replaced_weights(plan: CompletionPlan, record: RunRecord) -> None:
    """Remove the weights of earlier runs of which this one has left no volume."""
    further = record.extra.get("further_weights", [])
    own = {weights.sha256 for weights in plan.models}
    if all(it["sha256"] in own for it in further):
        return
    left = own | _makers_of_all(plan)
    record.extra["further_weights"] = [it for it in further if it["sha256"] in left]
    by_weights = record.extra["trained_on_by_weights"]
    _note_trained_on(record, {sha: cases for sha, cases in by_weights.items() if sha in left})
    if not record.extra["further_weights"]:
        del record.extra["further_weights"], record.extra["trained_on_by_weights"]


def _note_trained_on(record: RunRecord, by_weights: Mapping[str, list[str]]) -> None:
    record.extra["trained_on_by_weights"] = dict(by_weights)
    record.extra["trained_on"] = sorted({case for cases in by_weights.values() for case in cases})


def _makers_of_all(plan: CompletionPlan) -> set[str]:
    """Return the SHA-256 of the weights that made the volumes of the output folder, as their side-cars say."""
    makers: set[str] = set()
    for case in plan.dataset.cases:
        for target in plan.dataset.modalities:
            if target not in case.files:
                with suppress(AttclError):  # an edited one says nothing; its case failed
                    makers |= makers_in(read_side_car(plan.places.side_car(case, target)))
    return makers


def _named(weights: Weights) -> dict[str, str]:
    return {"name": weights.name, "sha256": weights.sha256}


def known_doubts(plan: CompletionPlan) -> dict[str, dict[str, Doubt]]:
    """Return case id -> target -> doubt of the volumes that an earlier run made, as their side-cars say."""
    doubts: dict[str, dict[str, Doubt]] = {}
    for case in plan.dataset.cases:
        for target in plan.present.get(case.id, {}):
            doubt = read_doubt(plan.places, case, target)
            if doubt is not None:
                doubts.setdefault(case.id, {})[target] = doubt
    return doubts


def make_all(
    plan: CompletionPlan,
    record: RunRecord,
    items: Iterator[Completed],
    doubts: dict[str, dict[str, Doubt]],
    progress: Progress,
) -> tuple[int, dict[str, AttclError]]:
    """Run the plan with its progress and `run.json`; return how many volumes were made, and which cases failed.

    The doubts of the volumes that are made are added to `doubts`.
    """
    written = 0
    failed = dict(plan.failed)
    cases = {case.id: case for case in plan.dataset.cases}
    targets = {case: list(files) for case, files in plan.present.items()}
    record.beside = lambda case: [
        plan.places.side_car(cases[case], target) for target in targets.get(case, ())
    ]
    for case, error in plan.failed.items():
        record.add(case, "failed", seconds=0, outputs=_present(plan, case), error=error)
        progress.fail(error)
    _note_present(plan, record, doubts)
    left = {job.case.id: 0 for job in plan.jobs}
    for job in plan.jobs:
        left[job.case.id] += 1
    parts: dict[str, list[Completed]] = {}
    if left:  # without a terminal, there is no other sign until the first case is done
        progress.say(f"{counted(plan.volumes, 'volume')} to make, of {counted(len(left), 'case')}")
    begun, passed = time.monotonic(), 0
    with progress.bar(len(left), "complete") as bar:
        for item in items:
            passed += len(item.job.outputs)
            if item.error:
                failed[item.case] = item.error
                progress.fail(item.error)
            else:
                written += len(item.job.outputs)
                targets.setdefault(item.case, []).extend(item.job.outputs)
                said = {name: it for name, it in item.doubts.items() if it.document()}
                if said:
                    doubts.setdefault(item.case, {}).update(said)
            progress.detail(f"{item.case}: {item.seconds:.1f} s in the network")
            parts.setdefault(item.case, []).append(item)
            left[item.case] -= 1
            if left[item.case] == 0:
                _note(plan, record, parts.pop(item.case), doubts)
                # Cases lack one volume or several: what is left is counted in volumes.
                seconds = (time.monotonic() - begun) / passed
                bar(item.case, left=seconds * (plan.volumes - passed))
    record.require_files()  # before the page shows them
    _drop_replaced_weights(plan, record)
    return written, failed


def _note(
    plan: CompletionPlan,
    record: RunRecord,
    items: Sequence[Completed],
    doubts: Mapping[str, Mapping[str, Doubt]],
) -> None:
    """Note what became of a case, of which several models may have made volumes."""
    case = items[0].case
    error = next((item.error for item in items if item.error), None)
    outputs = [*_present(plan, case), *(file for item in items for file in _lying(plan, item))]
    record.add(
        case,
        "failed" if error else "done",
        seconds=sum(item.seconds for item in items),
        outputs=outputs,
        error=error,
        further=_doubted(doubts, case),
    )


def _lying(plan: CompletionPlan, item: Completed) -> Sequence[str]:
    """Return the images of a job; of one that failed those that it had written, or another run before it."""
    if item.error is None:
        return item.outputs
    files = (str(file) for files in item.job.outputs.values() for file in files)
    return [file for file in files if (plan.output / file).is_file()]


def _doubted(doubts: Mapping[str, Mapping[str, Doubt]], case: str) -> dict[str, Any]:
    """Return the key of a case's record about doubt; {} if nothing is known."""
    known = {target: doubt.document() for target, doubt in doubts.get(case, {}).items()}
    return {"doubt": known} if known else {}


def _present(plan: CompletionPlan, case: str) -> list[str]:
    """Return the files of a case that an earlier run made."""
    return [str(file) for files in plan.present.get(case, {}).values() for file in files]


def _note_present(
    plan: CompletionPlan, record: RunRecord, doubts: Mapping[str, Mapping[str, Doubt]]
) -> None:
    """Note the cases of which nothing is left to do: the record names everything that lies in the folder."""
    busy = {*plan.failed, *(job.case.id for job in plan.jobs)}
    for case in plan.present:
        if case not in busy:
            outputs = _present(plan, case)
            further = _doubted(doubts, case)
            record.add(case, "present", seconds=0, outputs=outputs, further=further)


def finish_earlier(
    plan: CompletionPlan, record: RunRecord, doubts: Mapping[str, Mapping[str, Doubt]]
) -> None:
    """Finish the record of a run that was broken off after its last file, or write one that was removed.

    A finished one is not touched.
    """
    removed = bool(plan.present) and not record.path.exists()
    if removed:
        record.device = ""  # where the networks ran is not known any more
    before = read_record(record.path.parent, record.path.name)
    if removed or before.get("status", "done") != "done":
        _note_present(plan, record, doubts)
        record.finish(0)

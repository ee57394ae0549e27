"""`attcl export` without its command line: an input as another segmenter's dataset.

Formats are in `EXPORTS`; how the result is shown is left to the caller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from attcl_cli.errors import UsageError, as_note, nearest
from attcl_cli.progress import SILENT, Progress
from attcl_cli.run_record import RunRecord
from attcl_cli.segmentation import EXPORTS, report
from attcl_cli.segmentation.inputs import plan_inputs
from attcl_cli.segmentation.request import (
    DEFAULT_INPUT,
    FILES,
    Request,
    as_text,
    clear,
    open_ground_truth,
    open_study,
    refuse_place,
    require_free,
)

if TYPE_CHECKING:
    from attcl_cli.segmentation.nnunet import Exported


@dataclass(frozen=True)
class ExportResult:
    """The result of `export`.

    Attributes:
        output: the folder of the exported dataset.
        input: what was exported.
        cases: split -> number of cases.
        exported: what was written; None after a dry run.
        checked: whether the other segmenter's own check was run; it passed.
        left_out: ids of the cases without a label map.
        notes: what else a user should know.
        warnings: what makes a segmenter's figures on this dataset doubtful.
    """

    output: Path
    input: str
    cases: Mapping[str, int]
    exported: Exported | None = None
    checked: bool = False
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def export(
    format: str,
    folder: Path | str,
    *,
    ori: Path | str = "data",
    cpl: Path | str = "out",
    truth: Path | str | None = None,
    input: str | None = None,
    allow_missing: bool = False,
    layout: str = "auto",
    modalities: Path | str | None = None,
    num_workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Write an input as another segmenter's dataset, and have it checked by that segmenter if it is installed.

    Args:
        format: a key of `segmentation.EXPORTS`.
        folder: where the dataset goes, named as the segmenter's datasets are.
        ori: the incomplete dataset, as prepare-splits wrote it.
        cpl: the folder of the synthesised volumes.
        truth: the complete dataset, needed by input `real`; None: the one that `splits.json` names.
        input: `completed` (also if None), `real`, or a modality that all cases have.
        allow_missing: leave out cases without a label map.
        layout: a key of `layouts.LAYOUTS`, or `auto`.
        modalities: a TOML file with other modality names or another naming.
        num_workers: cases at once.
        overwrite: replace what an earlier export left in `folder`.
        dry_run: check everything, write nothing.
        progress: listens.

    Raises:
        UsageError: an option is impossible, or `folder` holds something else.
        AttclError: a file is unusable (all problems together), or the segmenter refuses the dataset.
        InterruptedRun: Ctrl-C or another signal; finished files are kept.
    """
    if format not in EXPORTS:
        raise UsageError(
            f"FORMAT: {format!r}, expected one of {', '.join(EXPORTS)}",
            nearest(format, EXPORTS),
            code="unknown-format",
        )
    exporter = import_module(EXPORTS[format])
    folder = Path(folder)
    exporter.require_name(folder)
    request = Request(
        ori=str(ori),
        cpl=str(cpl),
        truth=as_text(truth),
        layout=layout,
        modalities=as_text(modalities),
        input=input,
        allow_missing=allow_missing,
    )
    study = open_study(request)
    name = input or DEFAULT_INPUT
    ground_truth = open_ground_truth(request, study, (name,))
    refuse_place(folder, request, study, ground_truth, flag="DIR")
    config = {**request.config, "format": format}
    refusals: list[str] = []
    with as_note(refusals, when=dry_run):
        require_free(folder, command="export", config=config, overwrite=overwrite, flag="DIR")
    plan = plan_inputs(
        study.data,
        study.splits,
        (name,),
        completed=Path(cpl),
        truth=ground_truth,
        size=None,
        allow_missing=allow_missing,
        force=True,
        progress=progress,
    )
    for note in plan.notes:
        progress.say(f"note: {note}")
    chosen = plan.inputs[name]
    if dry_run:
        return ExportResult(
            folder, name, chosen.counts, left_out=plan.unlabelled, notes=tuple(refusals)
        )
    clear(
        folder,
        command="export",
        config=config,
        overwrite=overwrite,
        flag="DIR",
        remove=exporter.remove,
    )
    files = list(exporter.files(chosen, folder, study.data.extension))
    record = RunRecord(
        folder / "run.json",
        "export",
        config=config,
        alone=True,
        extra={FILES: [str(file.relative_to(folder)) for file in files]},
    )
    with record.recorded():
        with progress.bar(sum(chosen.counts.values()), "export") as bar:
            exported = exporter.export(
                chosen,
                folder,
                convention=plan.convention,
                ending=study.data.extension,
                workers=num_workers,
                on_case=bar,
            )
        checked = exporter.verify(folder, workers=num_workers)
        record.results = files
        record.extra |= {f"checked_by_{format}": checked, **asdict(exported)}
    return ExportResult(
        output=folder,
        input=name,
        cases=chosen.counts,
        exported=exported,
        checked=checked,
        left_out=plan.unlabelled,
        notes=() if checked else (exporter.NOT_CHECKED,),
        warnings=tuple(report.leaks(study.provenance, (name,))),
    )

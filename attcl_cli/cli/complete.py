"""`attcl complete`: synthesise every missing volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attcl_cli.cli.options import (
    BackgroundText,
    BidsFilter,
    Debug,
    DryRun,
    GpuShare,
    Json,
    Ori,
    Overwrite,
    Quiet,
    Verbose,
    Viewer,
    Vocabulary,
    Workers,
)
from attcl_cli.cli.terminal import Terminal, document
from attcl_cli.data.layouts import LAYOUTS, is_nifti
from attcl_cli.data.suggested import complete_images
from attcl_cli.errors import IncompleteError, UsageError, counted, quoted, some
from attcl_cli.processes import Launch, launched, leave, own_device

if TYPE_CHECKING:
    from attcl_cli.completion.jobs import CompletionPlan
    from attcl_cli.completion.run import CompletionResult

EXAMPLES = (
    "Examples:  attcl complete -i PATIENT/ -o out/   |   "
    "attcl complete --image flair=a.nii.gz --image t1=b.nii.gz --target t2 -o out/"
)


def complete(
    ori: Ori = Path("data"),
    cpl: Annotated[
        Path,
        typer.Option(
            "-o", "--cpl", "--output", help="Folder for the synthesised volumes, and only these."
        ),
    ] = Path("out"),
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="MODALITY=FILE",
            help="One image of one patient, in place of --ori; may be given several times. New volumes are called as "
            "their modalities: out/t2.nii.gz.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "-w",
            "--weights",
            metavar="NAME|PATH",
            help="A run's folder, a weights file, or a bundled name; may be given several times: the first model that "
            "can make a volume makes it.  [default: the newest finished run of these modalities, otherwise bundled "
            "weights of patients if the data fits them]",
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            metavar="MODALITY",
            help="Only this modality, also if no case has it; may be given several times.",
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            "--batch-size", min=1, help="Slices on the device at once; never changes results."
        ),
    ] = 64,
    slices: Annotated[
        str,
        typer.Option(
            "--slices",
            metavar="all|FIRST:STOP",
            help="Counted from 0, at the feet, without STOP: 31:125 makes slices 31 to 124.",
        ),
    ] = "all",
    samples: Annotated[
        int,
        typer.Option(
            "--samples",
            min=0,
            max=1000,
            help="Average this many random style samples; 0 uses the reference style.",
        ),
    ] = 0,
    uncertainty: Annotated[
        bool,
        typer.Option(
            "--uncertainty",
            help="Also write the standard deviation of the samples (<name>_uncertainty).",
        ),
    ] = False,
    mirror: Annotated[
        bool | None,
        typer.Option(
            "--mirror/--no-mirror",
            help="Average with a pass over mirrored slices: twice the work.  [default: if the weights were trained so]",
        ),
    ] = None,
    planes: Annotated[
        str,
        typer.Option(
            "--planes",
            help="axial, or three: average passes over axial, coronal and sagittal slices, three times the work.",
        ),
    ] = "axial",
    average: Annotated[
        bool,
        typer.Option(
            "--average", help="Average all -w that can make a volume, instead of taking the first."
        ),
    ] = False,
    intensities: Annotated[
        str,
        typer.Option(
            "--intensities",
            help="network; stretched (the darkest and brightest 5 %, to the ends of the training volumes); matched "
            "(to their quantiles); or auto: if the weights were trained on squares (presets small and base, "
            "brain-many, brain-attcl), stretched, or matched in volumes that are sharpened.",
        ),
    ] = "auto",
    even: Annotated[
        bool | None,
        typer.Option(
            "--even/--no-even",
            help="Even out steps between neighbouring slices, which are made one by one.  "
            "[default: if the weights were trained on squares, in whole volumes]",
        ),
    ] = None,
    guide: Annotated[
        bool | None,
        typer.Option(
            "--guide/--no-guide",
            help="Sharpen a volume by modalities that its network was not given, since no training case had them "
            "together with the others.  [default: in whole volumes, if the weights were trained on squares]",
        ),
    ] = None,
    link_originals: Annotated[
        bool,
        typer.Option(
            "--link-originals", help="Also link the originals, so that --cpl is a whole dataset."
        ),
    ] = False,
    num_parts: Annotated[
        int,
        typer.Option(
            "--num-parts",
            min=1,
            help="Divide the cases among this many runs. Processes of torchrun divide them by themselves.",
        ),
    ] = 1,
    part_id: Annotated[
        int, typer.Option("--part-id", min=1, help="The part that this run does, from 1.")
    ] = 1,
    keep_going: Annotated[
        bool,
        typer.Option(
            "--keep-going", help="Complete the sound cases and list the others (exit code 3)."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Take what a check refuses: weights that know simulated phantoms only, on others; volumes whose "
            "voxels show a skull, noise, a shift or other units.",
        ),
    ] = False,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            help=f"How files are named: auto, {', '.join(LAYOUTS)}; or brasyn-submission: writes the challenge's flat "
            "folder.",
        ),
    ] = "auto",
    modalities: Vocabulary = None,
    bids_filter: BidsFilter = None,
    background: BackgroundText = "auto",
    bids_desc: Annotated[
        str | None,
        typer.Option(
            "--bids-desc",
            metavar="LABEL",
            help="In BIDS, mark new names with desc-LABEL, such as synthetic.  [default: as --cpl has them, otherwise "
            "no mark]",
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "-d",
            "--device",
            help="auto, cpu, cuda, cuda:N or mps; or several GPUs, each in a process of its own: "
            "cuda:0,cuda:1.",
        ),
    ] = "auto",
    workers: Workers = 2,
    overwrite: Overwrite = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="[ADDRESS]",
            help="Make the volumes on a Ray cluster: without an address (or local) one on this machine is started for "
            "the run, auto takes the running one, HOST:PORT another.  [default: in this process]",
        ),
    ] = None,
    gpu_share: GpuShare = None,
    viewer: Viewer = "slices",
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
) -> None:
    """Make the volumes that patients lack from those they have.

    This is Algorithm 1 of the paper. Originals are only read. PATIENT/ may also be a dataset of many patients. Files
    that are done are not made again; --dry-run shows the plan.
    """
    from attcl_cli.completion import run
    from attcl_cli.data.background import parse_background

    launch = launched()
    terminal = Terminal(as_json=as_json, quiet=quiet, verbose=verbose)
    progress = terminal
    if launch is not None:
        _require_divided_once(launch, device, ray=ray, parts=(part_id, num_parts))
        device = own_device(device, launch)
        part_id, num_parts = launch.rank + 1, launch.count
        terminal = replace(terminal, title=f"part {part_id} of {num_parts}: ")
        progress = replace(terminal, quiet=quiet or launch.rank > 0)
    result = run.complete(
        ori,
        cpl,
        images=_images(image or [], cpl),
        weights=weights or [],
        targets=target or [],
        layout=layout,
        modalities=modalities,
        bids_filter=bids_filter or [],
        background=parse_background(background),
        bids_desc=bids_desc,
        batch_size=batch_size,
        slices=_span(slices),
        samples=samples,
        uncertainty=uncertainty,
        mirror=mirror,
        planes=planes,
        average=average,
        intensities=intensities,
        even=even,
        guide=guide,
        link_originals=link_originals,
        num_parts=num_parts,
        part_id=part_id,
        keep_going=keep_going,
        force=force,
        device=device,
        num_workers=workers,
        overwrite=overwrite,
        dry_run=dry_run,
        viewer=viewer,
        ray=ray,
        gpu_share=gpu_share,
        progress=progress,
    )
    if launch is not None:
        leave(launch, after_all=bool(result.failed) and not dry_run)
    if dry_run:
        _show_plan(result.plan, terminal, target or [])
        return
    incomplete = None
    if result.failed:
        cases = len({*result.plan.failed, *(job.case.id for job in result.plan.jobs)})
        incomplete = IncompleteError(
            f"{result.output}: {len(result.failed)} of {counted(cases, 'case')} failed, expected all",
            f"see {result.record}; fix the cases and run the same command again",
            code="cases-failed",
        )
    _show_outcome(result, terminal, incomplete, launch, target or [])


def _require_divided_once(
    launch: Launch, device: str, *, ray: str | None, parts: tuple[int, int]
) -> None:
    """Refuse to divide among others the cases that the processes of torchrun divide among themselves."""
    given = {
        "--num-parts": parts != (1, 1),
        "--ray": ray is not None,
        f"--device {device}": "," in device,
    }
    for option, taken in given.items():
        if taken:
            raise UsageError(
                f"{option}: given to {launch.count} processes of torchrun, which divide the cases among themselves, "
                "expected one of the two",
                f"leave {option} out, or run attcl complete without torchrun",
                code="divided-twice",
            )


def _images(texts: Sequence[str], output: Path) -> list[tuple[str, Path]]:
    """Read each `MODALITY=FILE`; if one is a file alone, the hint has the modality that its name tells."""
    split = [text.partition("=") if "=" in text else ("", "", text) for text in texts]
    images = [(name.strip(), Path(file.strip())) for name, _, file in split]
    malformed = [
        text for text, (name, file) in zip(texts, images, strict=True) if not name or file == Path()
    ]
    if malformed:
        files = [file for _, file in images]
        raise UsageError(
            f"--image: {malformed[0]!r}, expected MODALITY=FILE",
            complete_images(files, named={file: name for name, file in images}, output=output)
            if all(map(is_nifti, files))
            else "for example --image flair=a.nii.gz --image t1=b.nii.gz",
            code="malformed-image",
        )
    return images


def _show_plan(plan: CompletionPlan, terminal: Terminal, targets: Sequence[str]) -> None:
    between = [
        ", ".join(dict.fromkeys(name for target in job.outputs for name in job.between(target)))
        for job in plan.jobs
    ]
    guided = any(plan.manner.guides_of(job.makers) for job in plan.jobs)
    jobs = [
        {
            "case": job.case.id,
            "source": ", ".join(job.sources),
            **({"through": through} if any(between) else {}),
            **({"sharpened by": ", ".join(plan.manner.guides_of(job.makers))} if guided else {}),
            **(
                {"weights": ", ".join(maker.weights.name for maker in job.makers)}
                if len(plan.models) > 1
                else {}
            ),
            "targets": list(job.outputs),
            "files": [str(file) for files in job.outputs.values() for file in files],
        }
        for job, through in zip(plan.jobs, between, strict=True)
    ]
    if terminal.as_json:
        failed = {case: error.message for case, error in plan.failed.items()}
        counts = {"volumes": plan.volumes, "done": plan.done, "jobs": jobs, "failed": failed}
        document({"modal_list": list(plan.modal_list), **counts})
        return
    for error in plan.failed.values():
        terminal.fail(error)
    terminal.table(
        [{**job, "targets": ", ".join(job["targets"]), "files": len(job["files"])} for job in jobs]
    )
    left_out = f", cases that cannot be done: {len(plan.failed)}" if plan.failed else ""
    terminal.result(
        f"{counted(plan.volumes, 'volume')} to make, {plan.done} done{left_out}; "
        f"sources by frequency: {', '.join(plan.modal_list)}"
    )
    if not (plan.jobs or plan.failed or plan.done):
        _explain_nothing(plan, terminal, targets)


def _explain_nothing(plan: CompletionPlan, terminal: Terminal, targets: Sequence[str]) -> None:
    """Say why nothing is missing, and what else there is to do with such a dataset."""
    from attcl_cli.completion.expected import canonical_targets

    dataset = plan.dataset
    names = canonical_targets(targets, dataset) or dataset.modalities
    elsewhere = any(name not in case.files for case in dataset.cases for name in names)
    cases = "every case of this part" if elsewhere else "every case"
    *others, last = names
    listed = f"{', '.join(others)} and {last}" if others else last
    asked = f"--target {' --target '.join(targets)}" if targets else "nothing is missing"
    terminal.result(f"{asked}: {cases} has {listed}")
    if not targets and dataset.absent:
        terminal.say(
            f"note: no case has {', '.join(dataset.absent)}; --target makes such a modality, "
            "if the weights know it"
        )
    if not dataset.alone:
        terminal.say(
            f"note: no volume was read: attcl info {quoted(dataset.root)} checks those that there are"
        )
        terminal.say(
            f"note: to test on known volumes, hide some: attcl prepare-splits {quoted(dataset.root)}"
        )
    elif not dataset.layout.sliced:
        case = dataset.cases[0]
        hidden = names if targets else names[-1:]
        kept = {dataset.paths(case, it)[0]: it for it in case.files if it not in hidden}
        if kept:
            command = complete_images(list(kept), named=kept, output=plan.output, targets=hidden)
            terminal.say(f"note: to test, make {', '.join(hidden)} from the others: {command}")


def _show_outcome(
    result: CompletionResult,
    terminal: Terminal,
    incomplete: IncompleteError | None,
    launch: Launch | None,
    targets: Sequence[str],
) -> None:
    """Show what was made, then raise the error, if any."""
    output = result.output
    if not terminal.as_json:
        _show_counts(result, terminal, targets)
    if result.linked:
        terminal.say(f"{output}: {counted(result.linked, 'original')} linked")
    if result.far:
        terminal.say(
            f"note: {len(result.far)} of {counted(len(result.doubts), 'case')} {_are(result.far)} unlike the "
            f"training data ({some(result.far)}): check these volumes first"
        )
    content = {
        **({"part": [launch.rank + 1, launch.count]} if launch else {}),
        "output": str(output),
        "written": result.written,
        "done_before": result.done_before,
        "linked": result.linked,
        "failed": len(result.failed),
        "far": list(result.far),
        **({"report": str(result.page)} if result.page else {}),
    }
    if result.page and not terminal.as_json:
        terminal.result(f"{result.page}: open it in a browser")
    terminal.end(content, incomplete)


def _show_counts(result: CompletionResult, terminal: Terminal, targets: Sequence[str]) -> None:
    from attcl_cli.data.synthetic import span_in_words

    plan, output = result.plan, result.output
    if plan.jobs or result.failed:
        span = plan.manner.slices
        partly = f" (slices {span_in_words(span)} only)" if span else ""
        terminal.result(
            f"{output}: {counted(result.written, 'volume')} written{partly}, "
            f"{counted(result.done_before, 'was', 'were')} there already"
        )
        if plan.places.naming is not None:
            terminal.say(f"{plan.places.records}: side-cars and run.json")
    elif plan.done:
        terminal.result(
            f"{output}: nothing to do, {counted(plan.done, 'volume is', 'volumes are')} there already"
        )
    else:
        terminal.result(f"{plan.dataset.root}: nothing to do")
        _explain_nothing(plan, terminal, targets)


def _are(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"


def _span(text: str) -> tuple[int, int] | None:
    if text == "all":
        return None
    try:
        first, stop = (int(part) for part in text.split(":"))
    except ValueError:
        first = stop = 0
    if not 0 <= first < stop:
        raise UsageError(
            f"--slices: {text!r}, expected all or FIRST:STOP such as 31:125",
            "for example --slices 31:125",
            code="malformed-slices",
        )
    return first, stop

"""`attcl complete` as a function: finds weights, plans, synthesises what is missing, keeps the record.

Knows no terminal: talk goes to `progress`, the outcome is returned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli import cluster, devices
from attcl_cli.completion.checks import require_possible
from attcl_cli.completion.doubt import read_doubt
from attcl_cli.completion.jobs import (
    DEFAULT_DATA,
    Completed,
    CompletionPlan,
    Doubt,
    Manner,
    Places,
)
from attcl_cli.completion.plan import plan_completion
from attcl_cli.confined import confined
from attcl_cli.data import derivative, originals
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.dataset import Case, Dataset, Source
from attcl_cli.data.layouts import SUBMISSIONS, Layout, canonical
from attcl_cli.errors import AttclError, ProblemsError, UsageError
from attcl_cli.methods import bundled
from attcl_cli.methods.weights import Weights, find_weights, load_method
from attcl_cli.progress import SILENT, Progress
from attcl_cli.report.viewers import SLICES, require_viewer
from attcl_cli.run_ends import reported
from attcl_cli.run_log import RunLog
from attcl_cli.run_record import RunRecord, read_record
from attcl_cli.temporaries import sweep

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class CompletionResult:
    """What became of a completion.

    Attributes:
        plan: what there was to do.
        device: where the networks ran; several with commas.
        record: the `run.json` of this run.
        written: volumes made.
        linked: originals linked.
        failed: case id -> why it failed.
        doubts: case id -> target -> how far the volume is to be distrusted, of all volumes that lie in the folder.
        page: the page that shows the volumes; None if there is none to show, or nothing was written.
    """

    plan: CompletionPlan
    device: str
    record: Path
    written: int = 0
    linked: int = 0
    failed: tuple[tuple[str, AttclError], ...] = ()
    doubts: Mapping[str, Mapping[str, Doubt]] = field(default_factory=dict)
    page: Path | None = None

    @property
    def far(self) -> tuple[str, ...]:
        """Return the ids of the cases that are unlike the training cases."""
        return tuple(
            case for case, doubts in self.doubts.items() if any(it.far for it in doubts.values())
        )

    @property
    def output(self) -> Path:
        """Return the folder that the volumes are in."""
        return self.plan.output

    @property
    def done_before(self) -> int:
        """Return how many volumes an earlier run had made."""
        return self.plan.done


def complete(
    ori: Path | str = DEFAULT_DATA,
    cpl: Path | str = "out",
    *,
    images: Mapping[str, Path | str] | Sequence[tuple[str, Path | str]] = (),
    weights: Path | str | Sequence[Path | str] = (),
    targets: Sequence[str] = (),
    layout: str = "auto",
    modalities: Path | str | None = None,
    batch_size: int = 64,
    bids_filter: Sequence[str] = (),
    background: BackgroundOption = "auto",
    bids_desc: str | None = None,
    slices: tuple[int, int] | None = None,
    samples: int = 0,
    uncertainty: bool = False,
    mirror: bool | None = None,
    planes: str = "axial",
    average: bool = False,
    intensities: str = "auto",
    even: bool | None = None,
    guide: bool | None = None,
    link_originals: bool = False,
    num_parts: int = 1,
    part_id: int = 1,
    keep_going: bool = False,
    force: bool = False,
    device: str = "auto",
    num_workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    viewer: str = SLICES,
    ray: str | None = None,
    gpu_share: float | None = None,
    progress: Progress = SILENT,
) -> CompletionResult:
    """Synthesise every missing volume of a dataset (Algorithm 1); finished files are never made again.

    Args:
        ori: the incomplete dataset; it is only read.
        cpl: folder for the synthesised volumes, and only these.
        images: modality -> NIfTI file, of one patient, in place of `ori`; volumes are called as their modalities.
        weights: runs' folders, weights files or bundled names, the first that can make a target does; none: the newest
            finished run of these modalities, otherwise bundled weights of patients, if the data fits them.
        targets: only these modalities; none: all.
        layout: how the dataset is named (`open_dataset`), or a challenge's naming of what is written.
        modalities: a TOML file with other modality names.
        batch_size: slices on the device at once; never changes results.
        bids_filter: of several files of a modality in BIDS, which is meant (`open_dataset`).
        background: what is background in the volumes (`volumes.load`).
        bids_desc: the value of `desc-` in new names of BIDS; None: that of the output folder, otherwise none.
        slices: (first, stop) of the slices that are synthesised; None: all.
        samples: write the mean of so many style samples; 0: the reference style.
        uncertainty: also write the samples' standard deviation.
        mirror: write the mean of each slice's translation and that of its mirror image; None: if the weights were
            trained so (settings `mirror` and `crop`).
        planes: `axial`, or `three`: write the mean of axial, coronal and sagittal passes.
        average: write the mean of all weights that can make a target, instead of what the first makes.
        intensities: `network`, `matched` (to the quantiles of the target's training volumes) or `auto`.
        even: even out steps between neighbouring slices, which are made one by one; None: in whole volumes, if the
            weights were trained on squares.
        guide: sharpen a volume by modalities that its network was not given, since no training case had them together
            with the others; None: in whole volumes, if the weights were trained on squares.
        link_originals: also link the originals, so that `cpl` is a whole dataset.
        num_parts: share the cases among this many runs.
        part_id: which share this run does, from 1: every `num_parts`-th case, starting with this one.
        keep_going: do the sound cases; the others are in the result's `failed`.
        force: use weights that know phantoms alone also on others, and take volumes that a check of their voxels
            refuses.
        device: auto, cpu, cuda, cuda:N or mps; or several GPUs, `cuda:0,cuda:1`: a process for each divides the cases.
        num_workers: cases read ahead, per device.
        overwrite: make volumes again that exist.
        dry_run: plan and check everything, and write nothing.
        viewer: `slices`, or `niivue`: the page also has NiiVue, with a few volumes in whole; it is written again even
            if nothing is left to make.
        ray: make the volumes on this Ray cluster: `local` (started for this run), `auto`, or its address.
        gpu_share: of a GPU, for each worker of the cluster; None: a whole one.
        progress: hears how it goes.

    Raises:
        UsageError: options that do not fit together.
        AttclError: everything that is wrong, together; or, without `keep_going`, what failed on the way.
        InterruptedRun: Ctrl-C or another signal; finished files are kept.
    """
    _require_part(part_id, num_parts)
    require_viewer(viewer)
    source = Source(
        Path(ori),
        layout,
        Path(modalities) if modalities is not None else None,
        tuple(bids_filter),
        background,
        tuple((name, Path(file)) for name, file in _items(images)),
    )
    progress = RunLog(progress)
    if source.images:
        _require_images_alone(source, link_originals=link_originals)
    naming = _submission(layout, link_originals=link_originals)
    if naming is not None:  # says how to write; what is read shows its layout itself
        source = replace(source, layout="auto")
    dataset = source.open()
    if naming is None:
        dataset = replace(dataset, desc=derivative.choose_desc(dataset, Path(cpl), bids_desc))
    manner = Manner(
        slices=slices,
        samples=samples,
        uncertainty=uncertainty,
        mirror=mirror,
        planes=planes,
        average=average,
        intensities=intensities,
        even=even,
        guide=guide,
    )
    kept = originals.folders_of(dataset)
    require_possible(Places(dataset, Path(cpl), naming), manner, kept)
    names = [weights] if isinstance(weights, Path | str) else list(weights)
    wanted = _canonical(targets, dataset)
    dataset, models, chosen = _expect(dataset, names, wanted, progress, force=force)
    for note in dataset.notes:
        progress.say(f"note: {note}")
    on_cluster = cluster.asked_for(ray, device, gpu_share)
    place, several, on = _places(device, ray)
    plan = plan_completion(
        dataset,
        Path(cpl),
        models,
        naming=naming,
        targets=wanted,
        manner=manner,
        part=(part_id, num_parts),
        originals=kept,
        keep_going=keep_going,
        overwrite=overwrite,
        force=force,
        progress=progress,
    )
    _say_notes(plan, progress)
    record_file = plan.places.records / _record_name(part_id, num_parts)
    if dry_run:
        return CompletionResult(plan, on, record_file, failed=tuple(plan.failed.items()))
    from attcl_cli.completion import making  # loads torch: all is checked

    record = _record(plan, record_file, on, source, naming, targets)
    record.config |= {
        "part": [part_id, num_parts],
        "keep_going": keep_going,
        "overwrite": overwrite,
        **({"background": background} if background != "auto" else {}),
    }
    record.extra["weights_chosen"] = chosen
    if not overwrite:  # what an earlier run made stays
        record.resume()
    busy = bool(plan.jobs or plan.failed)
    with (
        record.recorded(progress) if busy else reported(),
        confined(plan.output, plan.places.records),
    ):
        if plan.output.is_dir():
            sweep(plan.output)
        if naming is None:
            done = [case for case in dataset.cases if case.id in plan.present]
            made = dataset.cases if link_originals else [*done, *(job.case for job in plan.jobs)]
            derivative.write_description(dataset, plan.output, made)
        linked = making.link_originals(dataset, plan.output) if link_originals else 0
        doubts = _known_doubts(plan)
        written = 0
        failed: dict[str, AttclError] = {}
        if busy:
            with _made(
                plan,
                place,
                several=several,
                on_cluster=on_cluster,
                batch_size=batch_size,
                workers=num_workers,
                keep_going=keep_going,
            ) as items:
                written, failed = _make(plan, record, items, doubts, progress)
        else:
            _finish_earlier(plan, record, doubts)
        page = _write_page(plan, record_file, failed, anew=busy or viewer != SLICES, viewer=viewer)
    return CompletionResult(
        plan, on, record_file, written, linked, tuple(failed.items()), doubts, page
    )


@contextmanager
def _made(
    plan: CompletionPlan,
    place: torch.device,
    *,
    several: Sequence[str],
    on_cluster: cluster.Cluster | None,
    batch_size: int,
    workers: int,
    keep_going: bool,
) -> Iterator[Iterator[Completed]]:
    """Make the volumes here, in a process per device, or on a cluster."""
    if on_cluster is not None:
        from attcl_cli.completion.on_ray import make_on_ray

        yield make_on_ray(
            plan, on_cluster, batch_size=batch_size, workers=workers, keep_going=keep_going
        )
        return
    if several:
        from attcl_cli.completion.on_devices import make_on_devices

        # No process writes any more when the record of the run ends.
        with closing(
            make_on_devices(
                plan, several, batch_size=batch_size, workers=workers, keep_going=keep_going
            )
        ) as items:
            yield items
        return
    from attcl_cli.completion.making import make_volumes  # loads torch: all is checked

    methods = {model.sha256: load_method(model, place) for model in plan.used}
    yield make_volumes(
        plan,
        methods,
        device=place,
        batch_size=batch_size,
        workers=workers,
        keep_going=keep_going,
    )


def _places(device: str, ray: str | None) -> tuple[torch.device, tuple[str, ...], str]:
    """Return the device of this process, those of other processes that make the volumes, and how the record names them.

    Raises:
        UsageError: there is no such device on this machine, or a cluster is to make the volumes besides.
    """
    several = devices.several(device)
    if several and ray is not None:
        raise UsageError(
            f"--ray: given with --device {device}, expected one of them",
            "leave one of them out; -d cuda takes all GPUs of a cluster",
            code="options-exclude-each-other",
        )
    if several:
        return devices.select("cpu"), several, ",".join(several)
    if ray is not None:
        return devices.select("cpu"), (), f"ray ({device})"
    place = devices.select(device)
    return place, (), str(place)


def _require_part(part_id: int, num_parts: int) -> None:
    if not 1 <= part_id <= num_parts:
        raise UsageError(
            f"--part-id: {part_id}, expected 1 to --num-parts ({num_parts})",
            "parts are counted from 1: --num-parts 4 --part-id 1",
            code="part-out-of-range",
        )


def _record_name(part_id: int, num_parts: int) -> str:
    return "run.json" if num_parts == 1 else f"run-{part_id}of{num_parts}.json"


def _items(
    images: Mapping[str, Path | str] | Sequence[tuple[str, Path | str]],
) -> Iterable[tuple[str, Path | str]]:
    return images.items() if isinstance(images, Mapping) else images


def _require_images_alone(source: Source, *, link_originals: bool) -> None:
    """Refuse what needs the names of a dataset, if images are named one by one."""
    given = {
        f"--ori {source.folder}": source.folder != Path(DEFAULT_DATA),
        f"--layout {source.layout}": source.layout != "auto",
        "--bids-filter": bool(source.bids_filter),
        "--link-originals": link_originals,
    }
    for option, taken in given.items():
        if taken:
            raise UsageError(
                f"--image: given with {option}, expected images alone",
                "leave one of them out; --image names the files of one patient, --ori a folder",
                code="options-exclude-each-other",
            )


def _submission(layout: str, *, link_originals: bool) -> Layout | None:
    """Return a challenge's naming of what is written; None if `layout` names no challenge."""
    naming = SUBMISSIONS.get(layout)
    if naming is not None and link_originals:
        raise UsageError(
            f"--link-originals: with --layout {naming.name}, expected synthesised files alone",
            "leave one of them out",
            code="options-exclude-each-other",
        )
    return naming


def _expect(
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
        AttclError: no weights will do; together with what is wrong with the names of files.
    """
    of_one_case = dataset.alone and not targets
    dataset = dataset.including(dataset.absent if of_one_case and not names else targets)
    if not names and not any(_asked_for(dataset, case, targets) for case in dataset.cases):
        return dataset, [], "none"
    try:
        models, chosen = _choose_models(names, dataset, targets, progress, force=force)
    except AttclError as error:
        if not dataset.problems:
            raise
        raise ProblemsError([*dataset.problems, error]) from error
    if of_one_case:
        known = {target for model in models for target in model.info.rule.targets}
        dataset = dataset.including(known.intersection(dataset.absent))
    return dataset, models, chosen


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


def _say_notes(plan: CompletionPlan, progress: Progress) -> None:
    """Say what is fixed on reading the sources, and if weights were trained with another --background."""
    own = plan.dataset.background
    otherwise = [
        f"{weights.path}: trained with --background {weights.info.background}, used with {own}"
        for weights in plan.used
        if weights.info.background != own
    ]
    for note in (*plan.notes, *otherwise):
        progress.say(f"note: {note}")


def _canonical(names: Sequence[str], dataset: Dataset) -> list[str]:
    try:
        return [canonical(name, dataset.vocabulary) for name in names]
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
    first = plan.models[0] if plan.models else None
    trained_on = {case for model in plan.models for case in model.info.trained_on}
    return RunRecord(
        path,
        "complete",
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
            "trained_on": sorted(trained_on),  # `segment` warns if test patients are among them
            **(
                {"further_weights": [_named(it) for it in plan.models[1:]]}
                if len(plan.models) > 1
                else {}
            ),
        },
    )


def _named(weights: Weights) -> dict[str, str]:
    return {"name": weights.name, "sha256": weights.sha256}


def _known_doubts(plan: CompletionPlan) -> dict[str, dict[str, Doubt]]:
    """Return case id -> target -> doubt of the volumes that an earlier run made, as their side-cars say."""
    doubts: dict[str, dict[str, Doubt]] = {}
    for case in plan.dataset.cases:
        for target in plan.present.get(case.id, {}):
            doubt = read_doubt(plan.places, case, target)
            if doubt is not None:
                doubts.setdefault(case.id, {})[target] = doubt
    return doubts


def _make(
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
    for case, error in plan.failed.items():
        record.add(case, "failed", seconds=0, outputs=_present(plan, case), error=error)
        progress.fail(error)
    _note_present(plan, record, doubts)
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
                said = {name: it for name, it in item.doubts.items() if it.document()}
                if said:
                    doubts.setdefault(item.case, {}).update(said)
            progress.detail(f"{item.case}: {item.seconds:.1f} s in the network")
            parts.setdefault(item.case, []).append(item)
            left[item.case] -= 1
            if left[item.case] == 0:
                _note(plan, record, parts.pop(item.case), doubts)
                bar(item.case)
    record.require_outputs(plan.output)
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
    outputs = [*_present(plan, case), *(file for item in items for file in item.outputs)]
    record.add(
        case,
        "failed" if error else "done",
        seconds=sum(item.seconds for item in items),
        outputs=outputs,
        error=error,
        further=_doubted(doubts, case),
    )


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


def _write_page(
    plan: CompletionPlan,
    record: Path,
    failed: Mapping[str, AttclError],
    *,
    anew: bool,
    viewer: str,
) -> Path | None:
    """Write the page, or keep that of an earlier run if nothing was made since; None if there is nothing to show."""
    from attcl_cli.completion.report import page_file, write_report

    path = page_file(record)
    if not (plan.jobs or plan.present or failed):
        return None
    if path.is_file() and not anew:
        return path
    return write_report(plan, record, failed, viewer=viewer)


def _finish_earlier(
    plan: CompletionPlan, record: RunRecord, doubts: Mapping[str, Mapping[str, Doubt]]
) -> None:
    """Finish the record of a run that was broken off after its last file; a finished one is not touched."""
    if read_record(record.path.parent, record.path.name).get("status", "done") != "done":
        _note_present(plan, record, doubts)
        record.finish(0)

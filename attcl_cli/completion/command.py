"""`attcl complete`: plans, synthesises what is missing, and says what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from attcl_cli import devices
from attcl_cli.cli import terminal
from attcl_cli.cli.terminal import Terminal
from attcl_cli.completion import plan as planning
from attcl_cli.completion import run as completing
from attcl_cli.data import splits
from attcl_cli.data.dataset import Dataset, Source
from attcl_cli.data.layouts import SUBMISSIONS, canonical
from attcl_cli.errors import IncompleteError, UsageError
from attcl_cli.files import read_json, sweep
from attcl_cli.methods import METHODS
from attcl_cli.methods import weights as checkpoint
from attcl_cli.run_record import RunRecord


def complete(
    source: Source,
    output: Path,
    *,
    weights: str | None = None,
    fallback: str | None = None,
    targets: Sequence[str] = (),
    batch_size: int = 64,
    slices: tuple[int, int] | None = None,
    samples: int = 0,
    uncertainty: bool = False,
    link_originals: bool = False,
    part: tuple[int, int] = (1, 1),
    keep_going: bool = False,
    device: str = "auto",
    workers: int = 2,
    overwrite: bool = False,
    dry_run: bool = False,
    talk: Terminal = Terminal(),
) -> None:
    """Plans and makes the missing volumes."""
    naming = SUBMISSIONS.get(source.layout)
    if naming is not None:  # says how to write; what is read tells its layout itself
        source = replace(source, layout="auto")
        if link_originals:
            raise UsageError(
                f"--link-originals: with --layout {naming.name}, expected synthesised files alone",
                "leave one of them out",
            )
    dataset = source.open()
    place = devices.select(device)
    found = checkpoint.find_weights(weights)
    if weights is None:
        trained = f"{found.info.steps} steps on {len(found.info.trained_on)} cases"
        terminal.say(f"weights: {found.path} ({trained})", quiet=talk.quiet)
    if found.name == checkpoint.BUNDLED:
        terminal.say(
            "warning: these bundled weights know simulated phantoms only; "
            "train on your own data first: attcl train",
            quiet=talk.quiet,
        )
    second = None if fallback is None else checkpoint.find_weights(fallback, flag="--fallback")
    plan = planning.plan(
        dataset,
        output,
        found,
        fallback=second,
        naming=naming,
        targets=_targets(targets, dataset),
        slices=slices,
        samples=samples,
        uncertainty=uncertainty,
        part=part,
        originals=splits.originals_of(dataset.root),
        keep_going=keep_going,
        overwrite=overwrite,
    )
    if dry_run:
        _show_plan(plan, talk)
        return
    name = "run.json" if part == (1, 1) else f"run-{part[0]}of{part[1]}.json"
    run = RunRecord(
        plan.places.records / name,
        "complete",
        config={
            "ori": str(source.folder),
            "cpl": str(output),
            "layout": naming.name if naming else dataset.layout.name,
            "targets": list(targets),
            **plan.made_how,
            "part": list(part),
            "keep_going": keep_going,
            "overwrite": overwrite,
        },
        seed=found.info.settings.seed,
        device=str(place),
        weights={"name": found.name, "sha256": found.sha256},
        extra={
            # `segment` warns where test patients are among them
            "trained_on": sorted(
                {*found.info.trained_on, *(second.info.trained_on if second else ())}
            ),
            **({"fallback": {"name": second.name, "sha256": second.sha256}} if second else {}),
        },
    )
    for folder in {output, plan.places.records}:
        if folder.is_dir():
            sweep(folder)
    linked = completing.link_originals(dataset, output) if link_originals else 0
    made = 0
    if plan.jobs or plan.failed:
        method = checkpoint.load_method(found, place)
        needed = any(job.weights.sha256 != found.sha256 for job in plan.jobs)
        items = completing.run(
            plan,
            method,
            device=place,
            fallback=checkpoint.load_method(second, place) if second and needed else None,
            batch_size=batch_size,
            workers=workers,
            keep_going=keep_going,
        )
        made = _complete(plan, run, items, talk)
    else:
        _finish_earlier(plan, run)
    failed = run.count("failed")
    _show_outcome(plan, made, linked, failed, talk)
    if failed:
        raise IncompleteError(
            f"{output}: {failed} of {len(plan.jobs) + len(plan.failed)} cases failed, expected all",
            f"see {plan.places.records / name}; mend the cases and run the same command again",
        )


def _targets(names: Sequence[str], dataset: Dataset) -> list[str]:
    try:
        return [canonical(name, dataset.modalities) for name in names]
    except UsageError as error:
        raise UsageError(f"--target: {error.message}", "name one of these") from error


def _complete(
    plan: planning.Plan, run: RunRecord, items: Iterator[completing.Completed], talk: Terminal
) -> int:
    """Runs the plan with its progress and `run.json`; returns how many volumes were made."""
    made = 0
    targets = {job.case.id: len(job.outputs) for job in plan.jobs}
    with run.recorded():
        for case, error in plan.failed.items():
            run.add(case, "failed", seconds=0, outputs=_present(plan, case), error=error)
            terminal.show_error(error)
        _note_present(plan, run)
        with talk.bar(len(plan.jobs), "complete") as bar:
            for item in items:
                status = "failed" if item.error else "done"
                outputs = [*_present(plan, item.case), *item.outputs]
                run.add(item.case, status, seconds=item.seconds, outputs=outputs, error=item.error)
                if item.error:
                    terminal.show_error(item.error)
                else:
                    made += targets[item.case]
                bar(item.case)
                if talk.verbose:
                    terminal.say(
                        f"{item.case}: {item.seconds:.1f} s in the network", quiet=talk.quiet
                    )
    return made


def _present(plan: planning.Plan, case: str) -> list[str]:
    """The files of a case that an earlier run made."""
    return [str(file) for files in plan.present.get(case, {}).values() for file in files]


def _note_present(plan: planning.Plan, run: RunRecord) -> None:
    """Cases of which nothing is left to do: the record tells of everything that lies in the folder."""
    busy = {*plan.failed, *(job.case.id for job in plan.jobs)}
    for case in plan.present:
        if case not in busy:
            run.add(case, "present", seconds=0, outputs=_present(plan, case))


def _finish_earlier(plan: planning.Plan, run: RunRecord) -> None:
    """A run that was killed after its last file left `run.json` as "running"; a finished one is not touched."""
    if run.path.is_file() and read_json(run.path).get("status") == "running":
        _note_present(plan, run)
        run.finish(0)


def _show_plan(plan: planning.Plan, talk: Terminal) -> None:
    jobs = [
        {
            "case": job.case.id,
            "source": ", ".join(job.sources),
            **({"weights": job.weights.name} if plan.fallback else {}),
            "targets": list(job.outputs),
            "files": [str(file) for files in job.outputs.values() for file in files],
        }
        for job in plan.jobs
    ]
    if talk.as_json:
        failed = {case: error.message for case, error in plan.failed.items()}
        counts = {"volumes": plan.volumes, "done": plan.done, "jobs": jobs, "failed": failed}
        terminal.document({"modal_list": list(plan.modal_list), **counts})
        return
    for error in plan.failed.values():
        terminal.show_error(error)
    talk.table(
        [{**job, "targets": ", ".join(job["targets"]), "files": len(job["files"])} for job in jobs]
    )
    told = f"sources by frequency: {', '.join(plan.modal_list)}"
    if METHODS[plan.weights.info.settings.method].accepts == "many":
        told = "sources: all that a case has"
    lost = f", cases that cannot be done: {len(plan.failed)}" if plan.failed else ""
    talk.result(f"{plan.volumes} volumes to make, {plan.done} done{lost}; {told}")


def _show_outcome(plan: planning.Plan, made: int, linked: int, failed: int, talk: Terminal) -> None:
    if talk.as_json:
        counts = {"written": made, "done_before": plan.done, "linked": linked}
        terminal.document({"output": str(plan.output), **counts, "failed": failed})
    elif plan.jobs or failed:
        talk.result(f"{plan.output}: {made} volumes written, {plan.done} were there already")
        if plan.naming is not None:
            terminal.say(f"{plan.places.records}: labels and run.json", quiet=talk.quiet)
    elif plan.done:
        talk.result(f"{plan.output}: nothing to do, {plan.done} volumes are there already")
    else:
        talk.result(f"{plan.dataset.root}: no volume asked for is missing, nothing to do")
    if linked:
        terminal.say(f"{plan.output}: {linked} originals linked", quiet=talk.quiet)

"""What each command does, free of Typer: from options to files and a rendered result.

Puts the stages together and hands them what they must not know of one another. Used by `cli` and `demo`.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from attcl_cli import __version__, console
from attcl_cli import splits as splitting
from attcl_cli.dataset import Dataset, canonical, check, describe, open_dataset
from attcl_cli.errors import AttclError, IncompleteError, UsageError, raise_all
from attcl_cli.files import sha256, sweep, write_whole
from attcl_cli.runinfo import RunInfo

_SLOW_CPU_PIXELS = 128  # networks for larger slices train for months on a CPU


def prepare_splits(
    source: Path, output: Path, *, ratio: str, sizes: tuple[int, int, int] | None, fractions: tuple[float, float, float] | None, subset: Fraction,
    link: Literal["symlink", "hardlink", "copy"], layout: str, modalities: Path | None, seed: int, overwrite: bool, dry_run: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Draws the splits and writes the data tree."""
    dataset = open_dataset(source, layout=layout, modalities=modalities)
    raise_all(check(dataset))
    made = splitting.make_splits(
        dataset, ratio=ratio, sizes=sizes, fractions=fractions, subset=subset, seed=seed
    )
    written = False
    if not dry_run:
        written = splitting.write_tree(dataset, made, output, link=link, overwrite=overwrite)
        if written:
            config = {
                "dataset": str(source),
                "ratio": made.ratio,
                "link": link,
                "layout": dataset.layout.name,
                "subset": str(subset),
            }
            RunInfo(output / "run.json", "prepare-splits", config=config, seed=seed).finish(0)
    if as_json:
        console.document({"output": str(output), "written": written, **splitting.to_json(made)})
        return
    console.table(made.table(), title=f"{made.ratio}: what remains of {source}")
    console.say(
        f"{output}: {'nothing written (dry run)' if dry_run else 'written' if written else 'holds these very splits, nothing written'}",
        quiet=quiet,
    )


def train(
    data: Path, output: Path | None, *, preset: str, config: Path | None, overrides: Mapping[str, Any], resume: Path | None, layout: str,
    modalities: Path | None, device: str, workers: int, dry_run: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Prepares the training slices and trains."""
    from attcl_cli import devices, report, slices
    from attcl_cli import train as training
    from attcl_cli.config import dump, resolve

    run_dir = (
        resume
        or output
        or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{overrides.get('method', 'attcl-gan')}"
    )
    if resume is not None and config is None:
        config = resume / "config.toml"
        if not config.is_file():
            raise UsageError(
                f"--resume: {resume} has no config.toml, wanted the folder of a run",
                "start without --resume",
            )
    settings = resolve(preset=preset, file=config, overrides=dict(overrides))
    if resume is None and run_dir.exists() and any(run_dir.iterdir()):
        raise UsageError(
            f"--output: {run_dir} is not empty, wanted a new folder",
            f"choose another --output, or go on with: attcl train --resume {run_dir}",
        )
    place = devices.select(device)
    dataset = _open_data(data, layout, modalities)
    splits = splitting.read_splits(data)
    chosen = [case for case in dataset.cases if splits is None or case.id in splits.names("train")]
    if not chosen:
        raise AttclError(
            f"{data}: no training case, wanted at least one",
            "run attcl prepare-splits with a larger --fractions or --sizes",
        )
    raise_all(check(dataset, cases=chosen))
    if place.type == "cpu" and settings.image_size > _SLOW_CPU_PIXELS:
        console.say(
            f"note: no GPU; {settings.image_size}-pixel networks take months on a CPU. To try things out: attcl train --preset tiny",
            quiet=quiet,
        )
    described = {
        "run": str(run_dir),
        "device": str(place),
        "cases": len(chosen),
        "volumes": sum(len(case.files) for case in chosen),
        "settings": settings.model_dump(mode="json"),
    }
    if dry_run:
        console.document(described) if as_json else console.result(
            f"would train on {len(chosen)} cases, {described['volumes']} volumes, on {place}, into {run_dir}\n\n{dump(settings)}"
        )
        return

    write_whole(run_dir / "config.toml", dump(settings).encode())
    run = RunInfo(
        run_dir / "run.json",
        "train",
        config=described["settings"],
        seed=settings.seed,
        device=str(place),
        extra={"data": str(data), "trained_on": [case.id for case in chosen]},
    )
    run.start()
    cache = run_dir / "slices"
    code = 1
    try:
        if resume is not None and (cache / "index.json").is_file():
            store = slices.open_store(cache)
        else:
            with console.progress(len(chosen), "slices", quiet=quiet) as bar:
                store = slices.build(
                    dataset,
                    chosen,
                    cache,
                    image_size=settings.image_size,
                    canvas=settings.canvas,
                    on_case=bar,
                    workers=workers,
                )
        with console.progress(settings.steps, "train", every_seconds=10, quiet=quiet) as bar:

            def on_step(step: int, losses: Mapping[str, float]) -> None:
                bar(
                    "  ".join(
                        f"{name} {value:.3f}"
                        for name, value in losses.items()
                        if name in _SHOWN_LOSSES
                    ),
                    to=step,
                )

            hooks = training.Hooks(on_step=on_step, draw=report.write_grid)
            info = training.train(
                settings, store, run_dir, device=place, resume=resume is not None, hooks=hooks
            )
        del store
        shutil.rmtree(cache, ignore_errors=True)
        code = 0
    except AttclError as error:
        code = error.exit_code
        raise
    finally:
        run.finish(code)
    weights = run_dir / "weights.safetensors"
    console.say(f"{weights}: written after {info.steps} steps", quiet=quiet)
    if as_json:
        console.document(
            {**described, "steps": info.steps, "weights": str(weights), "sha256": sha256(weights)}
        )
    else:
        console.result(str(weights))


def complete(
    ori: Path, cpl: Path, *, weights: str | None, targets: Sequence[str], batch_size: int, slices: tuple[int, int] | None, link_originals: bool,
    part: tuple[int, int], keep_going: bool, layout: str, modalities: Path | None, device: str, workers: int, overwrite: bool, dry_run: bool, as_json: bool,
    quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Plans and makes the missing volumes."""
    from attcl_cli import checkpoint, devices
    from attcl_cli import complete as completing

    dataset = _open_data(ori, layout, modalities)
    place = devices.select(device)
    found = checkpoint.find_weights(weights)
    if weights is None:
        console.say(
            f"weights: {found.path} ({found.info.steps} steps on {len(found.info.trained_on)} cases)",
            quiet=quiet,
        )
        if found.name == checkpoint.BUNDLED:
            console.say(
                "warning: these bundled weights know simulated phantoms only; train on your own data first: attcl train",
                quiet=quiet,
            )
    splits = splitting.read_splits(ori)
    originals = [Path(splits.source)] if splits else []
    plan = completing.plan(
        dataset, cpl, found, targets=[canonical(name, dataset.modalities) for name in targets], slices=slices, part=part,
        originals=originals, keep_going=keep_going, overwrite=overwrite,
    )  # fmt: skip
    if dry_run:
        _show_plan(plan, as_json=as_json)
        return

    name = "run.json" if part == (1, 1) else f"run-{part[0]}of{part[1]}.json"
    options = {
        "ori": str(ori),
        "cpl": str(cpl),
        "targets": list(targets),
        "slices": list(slices) if slices else "all",
        "part": list(part),
        "keep_going": keep_going,
        "overwrite": overwrite,
    }
    run = RunInfo(
        cpl / name,
        "complete",
        config=options,
        seed=found.info.settings.seed,
        device=str(place),
        weights={"name": found.name, "sha256": found.sha256},
    )
    linked = completing.link_originals(dataset, cpl) if link_originals else 0
    if not plan.jobs and not plan.failed:
        if cpl.is_dir():
            sweep(cpl)
        _finish_earlier(run)
        _show_outcome(plan, 0, linked, as_json=as_json, quiet=quiet)
        return
    cpl_existed = cpl.is_dir()
    run.start()
    if cpl_existed:
        sweep(cpl)
    method = checkpoint.load_method(found, place)
    made = 0
    code = 1
    try:
        for case, error in plan.failed.items():
            run.add(case, "failed", seconds=0, outputs=[], error=error.message)
            console.error(error)
        with console.progress(len(plan.jobs), "complete", quiet=quiet) as bar:
            for item in completing.run(
                plan,
                method,
                device=place,
                batch_size=batch_size,
                workers=workers,
                keep_going=keep_going,
            ):
                run.add(
                    item.case,
                    "failed" if item.error else "done",
                    seconds=item.seconds,
                    outputs=list(item.outputs),
                    error=item.error.message if item.error else "",
                )
                if item.error:
                    console.error(item.error)
                else:
                    made += len(
                        {
                            Path(output).parent / Path(output).name.split("_")[0]
                            if output.endswith(".png")
                            else output
                            for output in item.outputs
                        }
                    )
                bar(item.case)
                if verbose and not quiet:
                    console.say(
                        f"{item.case}: {len(item.outputs)} files, {item.seconds:.1f} s in the network"
                    )
        failed = sum(record["status"] == "failed" for record in run.cases)
        code = 3 if failed else 0
    except AttclError as error:
        code = error.exit_code
        raise
    except KeyboardInterrupt:
        code = 130
        raise
    finally:
        run.finish(code)
    _show_outcome(plan, made, linked, as_json=as_json, quiet=quiet)
    if failed:
        raise IncompleteError(
            f"{cpl}: {failed} of {len(plan.jobs) + len(plan.failed)} cases failed, wanted all",
            f"see {cpl / name}; mend the cases and run the same command again",
        )


def info_dataset(folder: Path, *, layout: str, modalities: Path | None, as_json: bool) -> None:
    """Shows what a folder holds."""
    dataset = open_dataset(folder, layout=layout, modalities=modalities)
    problems = check(dataset, values=True)
    content = describe(dataset, problems)
    splits = splitting.read_splits(folder)
    if splits is not None:
        content["splits"] = {
            "ratio": splits.ratio,
            "source": splits.source,
            "table": splits.table(),
        }
    if as_json:
        console.document(content)
        return
    console.result(
        f"{folder}: {dataset.layout.title}, {content['cases']} cases of {content['patients']} patients, {content['segmentations']} with segmentation\n"
    )
    console.table(
        [
            {"modality": name, "volumes": count, "missing": content["cases"] - count}
            for name, count in content["volumes"].items()
        ]
    )
    console.result("")
    console.table(
        [
            {"cases": item["cases"], "missing": ", ".join(item["missing"]) or "nothing"}
            for item in content["patterns"]
        ]
    )
    if splits is not None:
        console.result("")
        console.table(splits.table(), title=f"splits ({splits.ratio} of {splits.source})")
    if dataset.ignored:
        console.result(
            f"\n{len(dataset.ignored)} images are not part of this layout and ignored, such as {dataset.ignored[0]}"
        )
    console.result(f"\n{len(problems)} problems" if problems else "\nno problems")
    for problem in problems:
        console.result(f"- {problem.message}" + (f"\n  {problem.hint}" if problem.hint else ""))


def info_installation(*, as_json: bool) -> None:
    """Shows versions, device and weights."""
    import torch

    from attcl_cli import checkpoint, devices

    named = {name: str(path) for name, path in checkpoint.named_weights().items()}
    newest = checkpoint.newest_run(Path("runs"))
    content = {
        "attcl": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": str(devices.select("auto")),
        "weights": named,
        "newest_run": str(newest) if newest else None,
    }
    if as_json:
        console.document(content)
        return
    console.table(
        [
            {"": key, " ": value if not isinstance(value, dict) else ", ".join(value) or "none"}
            for key, value in content.items()
        ]
    )


_SHOWN_LOSSES = ("g_latent_adv", "g_reference_cyc", "g_reference_pair")


def _open_data(data: Path, layout: str, modalities: Path | None) -> Dataset:
    if not data.exists():
        raise AttclError(
            f"{data}: no such folder, wanted a dataset or what prepare-splits wrote",
            "run attcl prepare-splits DATASET first, or name the folder",
        )
    return open_dataset(data, layout=layout, modalities=modalities)


def _finish_earlier(run: RunInfo) -> None:
    """A run that was killed after its last file left `run.json` as "running"; a finished one is not touched."""
    if run.path.is_file() and '"status": "running"' in run.path.read_text(encoding="utf-8"):
        run.finish(0)


def _show_plan(plan: Any, *, as_json: bool) -> None:
    jobs = [
        {
            "case": job.case.id,
            "source": job.source,
            "targets": list(job.outputs),
            "files": [str(file) for files in job.outputs.values() for file in files],
        }
        for job in plan.jobs
    ]
    if as_json:
        console.document(
            {
                "modal_list": list(plan.modal_list),
                "volumes": plan.volumes,
                "done": plan.done,
                "jobs": jobs,
                "failed": {case: error.message for case, error in plan.failed.items()},
            }
        )
        return
    if jobs:
        console.table(
            [
                {"case": job["case"], "source": job["source"], "targets": ", ".join(job["targets"])}
                for job in jobs
            ]
        )
    console.result(
        f"{plan.volumes} volumes to make, {plan.done} done; sources by frequency: {', '.join(plan.modal_list)}"
    )


def _show_outcome(plan: Any, made: int, linked: int, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        console.document(
            {
                "output": str(plan.output),
                "written": made,
                "done_before": plan.done,
                "linked": linked,
                "failed": len(plan.failed),
            }
        )
    elif plan.jobs:
        console.result(f"{plan.output}: {made} volumes written, {plan.done} were there already")
    else:
        console.result(f"{plan.output}: nothing to do, {plan.done} volumes are there already")
    if linked:
        console.say(f"{plan.output}: {linked} originals linked", quiet=quiet)

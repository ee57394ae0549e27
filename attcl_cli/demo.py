"""The whole way on simulated patients: phantoms, hidden modalities, completion, scores, pictures.

Uses the stages as any caller would; only the wording and the choice of pictures are its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from attcl_cli import checkpoint, complete, console, devices, metrics, report, splits, volume
from attcl_cli.cohort import write_cohort
from attcl_cli.commands import Talk
from attcl_cli.dataset import Dataset, open_dataset
from attcl_cli.errors import AttclError
from attcl_cli.files import write_json
from attcl_cli.runinfo import RunInfo

_VOXEL_MM = 2.0  # what the bundled weights were trained at
_SEED = 20_000  # far from the seeds that the weights were trained with
_SSIM, _PSNR = "SSIM brain", "PSNR brain (dB)"


@dataclass(frozen=True)
class Score:
    """One completed volume against the hidden truth, beside a copy of its source."""

    case: str
    source: str
    target: str
    values: dict[str, float]
    copy: dict[str, float]


def run(output: Path, *, cases: int, seed: int, device: str, talk: Talk) -> None:
    """Makes a phantom cohort, hides modalities by ratio1, completes it, and shows how good that is.

    Writes `phantoms/`, `data/`, `out/`, `scores.json`, `montage.png` and `report.html` into `output`;
    what is there from an earlier, interrupted run is used.

    Raises:
        AttclError: the bundled weights are missing, or `output` holds another demo.
    """
    clock = time.monotonic()
    place = devices.select(device)
    weights = checkpoint.find_weights(checkpoint.BUNDLED)
    record = RunInfo(
        output / "run.json",
        "demo",
        config={"cases": cases},
        seed=seed,
        device=str(place),
        weights={"name": weights.name, "sha256": weights.sha256},
    )
    record.start()
    whole = _cohort(output / "phantoms", cases, seed, talk)
    made = splits.make_splits(whole, ratio="ratio1", sizes=(cases, 0, 0), seed=seed)
    splits.write_tree(whole, made, output / "data")
    data = open_dataset(output / "data")
    hidden = sum(len(item.hidden) for item in made.splits["train"])
    console.say(
        f"{output / 'data'}: {hidden} of {4 * cases} volumes hidden (ratio1)", quiet=talk.quiet
    )

    plan = complete.plan(data, output / "out", weights)
    method = checkpoint.load_method(weights, place)
    with console.progress(len(plan.jobs), "complete", quiet=talk.quiet) as bar:
        for completed in complete.run(plan, method, device=place):
            bar(completed.case)
    sources = {case.id: complete.source_of(case, plan.modal_list) for case in data.cases}

    scores, panels = [], []
    with console.progress(len(data.cases), "score", quiet=talk.quiet) as bar:
        for item in made.splits["train"]:
            for target in item.hidden:
                score, panel = _score(
                    whole, data, output / "out", item.case, sources[item.case], target
                )
                scores.append(score)
                panels.append(panel)
            bar(item.case)
    summary = _summary(scores)
    seconds = time.monotonic() - clock
    _show(output, whole, weights, summary, panels, seconds)
    write_json(
        output / "scores.json", {"summary": summary, "volumes": [vars(score) for score in scores]}
    )
    record.finish(0)
    if talk.as_json:
        page, montage = output / "report.html", output / "montage.png"
        files = {"report": str(page), "montage": str(montage)}
        console.document({**files, "seconds": round(seconds, 1), "summary": summary})
        return
    talk.table(summary, title="synthetic volumes against the hidden truth, inside the brain")
    console.say(
        "(copy) is what copying the source reaches: what costs nothing. These weights are tiny and "
        "trained for an hour or two: the demo shows the way, not the quality.",
        quiet=talk.quiet,
    )
    talk.result(f"{output / 'report.html'}: open it in a browser ({seconds:.0f} s in all)")


def _cohort(root: Path, cases: int, seed: int, talk: Talk) -> Dataset:
    if root.is_dir():
        found = open_dataset(root)
        if len(found.cases) != cases:
            raise AttclError(
                f"{root}: {len(found.cases)} cases of an earlier demo, wanted {cases}",
                "choose another --output, or remove the folder",
            )
        return found
    with console.progress(cases, "phantoms", quiet=talk.quiet) as bar:
        write_cohort(root, cases=cases, seed=_SEED + seed, voxel_mm=_VOXEL_MM, on_case=bar)
    return open_dataset(root)


def _score(
    whole: Dataset, data: Dataset, output: Path, case_id: str, source: str, target: str
) -> tuple[Score, report.Panel]:
    case = next(case for case in whole.cases if case.id == case_id)
    hollow = next(case for case in data.cases if case.id == case_id)
    truth, copied = (volume.load(whole.paths(case, name)).data for name in (target, source))
    made = volume.load([output / file for file in data.place(hollow, target)]).data
    brain = truth != 0
    shown = {
        name: _unit(image, brain)
        for name, image in {"truth": truth, "made": made, "copied": copied}.items()
    }

    def values(prediction: str) -> dict[str, float]:
        pair = shown[prediction], shown["truth"]
        return {
            _SSIM: metrics.ssim(*pair, data_range=1, mask=brain),
            _PSNR: metrics.psnr(*pair, data_range=1, mask=brain),
        }

    score = Score(case_id, source, target, values("made"), values("copied"))
    panel = report.Panel(
        case=case_id,
        source_modality=source,
        target_modality=target,
        source=shown["copied"],
        synthetic=shown["made"],
        truth=shown["truth"],
        brain=brain,
        scores=score.values,
        baseline=score.copy,
    )
    return score, panel


def _unit(image: volume.Array, brain: volume.Array) -> volume.Array:
    """Scaled to [0, 1] by the image's own 0.5 and 99.5 percentiles in the brain."""
    scale = volume.intensity_scale(image, brain)
    if scale is None:
        return np.zeros(image.shape, dtype=np.float32)
    return np.where(brain, metrics.to_unit(image, scale.low, scale.high), 0).astype(np.float32)


def _summary(scores: Sequence[Score]) -> list[dict[str, str | float]]:
    rows: list[dict[str, str | float]] = []
    for target in [*sorted({score.target for score in scores}), "all"]:
        own = [score for score in scores if target in {score.target, "all"}]
        row: dict[str, str | float] = {"modality": target, "n": len(own)}
        for name in (_SSIM, _PSNR):
            row[name] = mean(score.values[name] for score in own)
            row[f"{name} (copy)"] = mean(score.copy[name] for score in own)
        rows.append(row)
    return rows


def _show(
    output: Path,
    whole: Dataset,
    weights: checkpoint.Weights,
    summary: list[dict[str, str | float]],
    panels: Sequence[report.Panel],
    seconds: float,
) -> None:
    title = "attcl demo: simulated patients, completed"
    report.write_montage(output / "montage.png", panels, title=title)
    report.write_html(
        output / "report.html",
        panels,
        title=title,
        facts={
            "patients": f"{len(whole.cases)} simulated",
            "hidden": f"{len(panels)} volumes (ratio1)",
            "weights": f"{weights.name}, {weights.info.steps} steps",
            "time": f"{seconds:.0f} s",
        },
        summary=summary,
        notes=[
            "The patients are phantoms: anatomy made by formulas, images by MR signal equations. The weights saw "
            "other phantoms of the same kind, and only the modalities that ratio1 leaves. Nothing here says how good "
            "completion is on real patients.",
            "Each volume is scaled by its own 0.5 and 99.5 percentiles in the brain; SSIM (3-D, Gaussian 1.5) and PSNR "
            "are averaged inside the brain. (copy) is the same score of a copy of the source.",
        ],
        files=["montage.png", "scores.json"],
    )

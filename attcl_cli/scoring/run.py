"""`attcl score`: the completed volumes against the hidden truths; scores/ with a table, a page and pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attcl_cli.cli import terminal
from attcl_cli.cli.terminal import Terminal
from attcl_cli.data import splits
from attcl_cli.data.dataset import Source
from attcl_cli.data.splits import open_truth
from attcl_cli.errors import AttclError, IncompleteError, UsageError, raise_all
from attcl_cli.files import read_json, refuse_inside, write_csv
from attcl_cli.run_record import RunRecord
from attcl_cli.scoring import pairs
from attcl_cli.scoring.metrics import IMAGE_METRICS

if TYPE_CHECKING:
    from attcl_cli.methods.weights import Weights
    from attcl_cli.scoring.pairs import Plan
    from attcl_cli.scoring.rows import Measures, Row

_EFFNET = "effnet-lite0"
# The networks' names for what only Inception's may be called.
_OTHERWISE = {"fid": "fd-effnet", "kid": "kd-effnet"}


@dataclass(frozen=True)
class Wanted:
    """What is measured.

    Attributes:
        metrics: as on the command line; empty: `IMAGE_METRICS`.
        fid_network: `inception` or `effnet-lite0`.
        baselines: score what costs nothing by every metric.
        directions: translate the real volumes in every direction instead of reading completed ones.
        samples: of lpips-diversity.
        offline: never download a network.
    """

    metrics: Sequence[str] = ()
    fid_network: str = "inception"
    baselines: bool = False
    directions: bool = False
    samples: int = 10
    offline: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics by the names that they are reported under."""
        chosen = tuple(self.metrics) or IMAGE_METRICS
        if self.fid_network == _EFFNET:
            chosen = tuple(_OTHERWISE.get(name, name) for name in chosen)
        return chosen


def score(
    source: Source,
    cpl: Path,
    output: Path,
    wanted: Wanted,
    *,
    truth: Path | None = None,
    split: str | None = None,
    weights: str | None = None,
    allow_missing: bool = False,
    device: str = "auto",
    batch_size: int = 32,
    workers: int = 2,
    dry_run: bool = False,
    talk: Terminal = Terminal(),
) -> None:
    """Compares, writes `scores.csv`, `summary.json`, `report.html`, `montage.png`, and shows a table."""
    data = source.open()
    made = splits.read_splits(data.root)
    whole = open_truth(source, made, truth)
    split = split or ("test" if made else "all")
    refuse_inside(output, [*splits.originals_of(data.root), whole.root], flag="--output")
    refuse_inside(output, [cpl], flag="--output", kept="synthesised volumes")
    if not dry_run:
        _locate_networks(wanted, talk)  # before anything slow is imported or read
    from attcl_cli.scoring import report as score_report
    from attcl_cli.scoring import rows as scoring

    if wanted.directions:
        plan = pairs.plan_directions(whole, made, split=split)
    else:
        plan = pairs.plan(data, whole, cpl, made, split=split, allow_missing=allow_missing)
    if dry_run:
        told = {"volumes": plan.volumes, "missing": len(plan.missing), "metrics": wanted.names}
        _say_plan(told, output, talk)
        return
    record = RunRecord(
        output / "run.json",
        "score",
        config={
            "ori": str(source.folder),
            "cpl": str(cpl),
            "truth": str(whole.root),
            "split": split,
        }
        | asdict(wanted),
    )
    measures = _measures(wanted, record, weights, device, batch_size, output, talk)
    if not record.weights:
        record.extra["completed_by"] = [
            {"name": name, "sha256": key} for key, name in plan.weights.items()
        ]
    _say_what_is_replaced(output, talk)
    with record.recorded(), tempfile.TemporaryDirectory(prefix="attcl-") as folder:
        rows: list[Row] = []
        scored = scoring.run(plan, measures, folder=Path(folder), workers=workers)
        with talk.bar(len(plan.jobs), "score") as bar:
            for job, found in zip(plan.jobs, scored, strict=True):
                rows += found
                record.add(job.case, "done", seconds=0, outputs=[])
                bar(f"{job.case} {job.made_from}")
        figures = scoring.summarise(rows, plan, measures, folder=Path(folder))
        write_csv(output / "scores.csv", scoring.Row, rows)
        scoring.write_summary(output / "summary.json", figures, plan, split=split)
        score_report.write_pages(
            output,
            plan,
            rows,
            figures,
            measures,
            title="attcl score: synthetic volumes against the truth",
            facts={"split": split, "truth": whole.root.name, "weights": _weights_of(plan, record)},
            quiet=talk.quiet,
        )
    score_report.show(figures, output, plan, talk)
    if plan.missing:
        raise IncompleteError(
            f"{cpl}: {len(plan.missing)} of {plan.volumes + len(plan.missing)} hidden volumes not there, "
            "counted as n_missing, expected all",
            "summary.json lists them; attcl complete makes them",
        )


def _locate_networks(wanted: Wanted, talk: Terminal) -> None:
    """Finds, or downloads, the files of the networks that are needed; out of reach, the run ends here."""
    from attcl_cli.scoring import feature_weights

    told: set[str] = set()

    def progress(done: int, total: int) -> None:
        text = f"downloading a feature network: {10 * done // total * 10} % of {total / 1e6:.0f} MB"
        if text not in told:
            told.add(text)
            terminal.say(text, quiet=talk.quiet)

    names = set(wanted.names)
    problems: list[AttclError] = []
    for file, metrics in (("inception", {"fid", "kid"}), ("alexnet", {"lpips", "lpips-diversity"})):
        if names & metrics:
            try:
                feature_weights.locate(
                    feature_weights.FILES[file], offline=wanted.offline, progress=progress
                )
            except AttclError as error:
                problems.append(error)
    raise_all(problems)


def _weights_of(plan: Plan, record: RunRecord) -> str:
    """The weights that made what is scored, for the page."""
    if record.weights:
        return record.weights["name"]
    return ", ".join(sorted(set(plan.weights.values()))) or "unknown"


def _measures(
    wanted: Wanted,
    record: RunRecord,
    weights: str | None,
    device: str,
    batch_size: int,
    output: Path,
    talk: Terminal,
) -> Measures:
    """Loads the networks that are needed, and notes them in the record."""
    from attcl_cli import devices
    from attcl_cli.completion import inference
    from attcl_cli.methods import weights as checkpoint
    from attcl_cli.scoring import feature_networks
    from attcl_cli.scoring.rows import Measures

    place = devices.select(device)
    names = set(wanted.names)
    reach: dict[str, Any] = {"offline": wanted.offline, "device": place}
    embed = perceptual = predict = draw = None
    if names & {"fid", "kid", *_OTHERWISE.values()}:
        embed = feature_networks.load_network(wanted.fid_network, **reach)
    if names & {"lpips", "lpips-diversity"}:
        perceptual = feature_networks.load_perceptual(**reach)
    if wanted.directions or "lpips-diversity" in names:
        found = checkpoint.find_weights(weights)
        record.weights = {"name": found.name, "sha256": found.sha256}
        _require_able(wanted, found)
        terminal.say(f"weights: {found.path}", quiet=talk.quiet)
        network = inference.InMemory(checkpoint.load_method(found, place), found, place)
        predict = network.volumes

        def draw(*arguments: Any) -> Any:
            return network.samples(*arguments, count=wanted.samples)

    record.device = str(place)
    record.extra["networks"] = {
        item.name: item.sha256 for item in (embed, perceptual) if item is not None
    }
    return Measures(
        metrics=wanted.names,
        baselines=wanted.baselines,
        embed=embed,
        perceptual=perceptual,
        predict=predict,
        draw=draw,
        batch_size=batch_size,
        cache=output / "features",
    )


def _say_what_is_replaced(output: Path, talk: Terminal) -> None:
    earlier = output / "summary.json"
    if earlier.is_file():
        known = {item["metric"] for item in read_json(earlier).get("scores", [])}
        terminal.say(
            f"{output}: the scores of an earlier run are replaced ({', '.join(sorted(known)) or 'none'})",
            quiet=talk.quiet,
        )


def _require_able(wanted: Wanted, weights: Weights) -> None:
    """Directions take one source, diversity takes looks: not every method has them."""
    from attcl_cli.methods import METHODS

    info = weights.info
    method = METHODS[info.settings.method]
    hint = "choose weights of attcl-gan with -w"
    if wanted.directions and any(method.needs(info.settings, info.modalities).values()):
        raise UsageError(
            f"--directions: {weights.path} needs several sources, expected a model that takes one",
            hint,
        )
    if "lpips-diversity" in wanted.names and not method.styled:
        raise UsageError(
            f"--lpips-diversity: {info.settings.method} has one look a volume, expected samples",
            hint,
        )


def _say_plan(told: Mapping[str, Any], output: Path, talk: Terminal) -> None:
    if talk.as_json:
        terminal.document(told)
    else:
        measured = ", ".join(told["metrics"])
        talk.result(
            f"would score {told['volumes']} volumes by {measured} into {output}; {told['missing']} missing"
        )

"""`attcl info`: what a folder holds, or what this installation has."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import typer

from attcl_cli import __version__
from attcl_cli.cli import terminal
from attcl_cli.cli.options import Debug, Json, LayoutName, Vocabulary
from attcl_cli.data import splits
from attcl_cli.data.dataset import Source, check, describe

EXAMPLES = "Examples:  attcl info BraTS2021/   |   attcl info data/ --json"


def info(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A dataset; without it: versions, device, weights.", show_default=False
        ),
    ] = None,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a folder holds: layout, cases, modalities, what is missing, what is wrong."""
    if folder is None:
        info_installation(as_json=as_json)
    else:
        info_dataset(Source(folder, layout, modalities), as_json=as_json)


def info_dataset(source: Source, *, as_json: bool = False) -> None:
    """Shows what a folder holds."""
    dataset = source.open()
    problems = check(dataset, values=True)
    content = describe(dataset, problems)
    made = splits.read_splits(dataset.root)
    if made is not None:
        content["splits"] = {
            "ratio": made.ratio,
            "source": made.source,
            "table": made.table(),
        }
    if as_json:
        terminal.document(content)
        return
    cases, patients = content["cases"], content["patients"]
    with_seg = content["segmentations"]
    terminal.result(
        f"{source.folder}: {dataset.layout.title}, {cases} cases of {patients} patients, "
        f"{with_seg} with segmentation\n"
    )
    counts = content["volumes"].items()
    terminal.table([{"modality": name, "volumes": n, "missing": cases - n} for name, n in counts])
    terminal.result("")
    patterns = content["patterns"]
    terminal.table(
        [
            {"cases": item["cases"], "missing": ", ".join(item["missing"]) or "nothing"}
            for item in patterns
        ]
    )
    if made is not None:
        terminal.result("")
        terminal.table(made.table(), title=f"splits ({made.ratio} of {made.source})")
    if dataset.ignored:
        terminal.result(
            f"\n{len(dataset.ignored)} images do not fit this layout and are ignored, such as {dataset.ignored[0]}"
        )
    terminal.result(f"\n{len(problems)} problems" if problems else "\nno problems")
    for problem in problems:
        terminal.result(f"- {problem.message}" + (f"\n  {problem.hint}" if problem.hint else ""))


def info_installation(*, as_json: bool = False) -> None:
    """Shows versions, device and weights."""
    import torch

    from attcl_cli import devices
    from attcl_cli.methods import weights as checkpoint

    newest = checkpoint.newest_run(Path("runs"))
    content = {
        "attcl": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": str(devices.select("auto")),
        "weights": {name: str(path) for name, path in checkpoint.named_weights().items()},
        "newest_run": str(newest) if newest else None,
    }
    if as_json:
        terminal.document(content)
        return
    shown = {**content, "weights": ", ".join(checkpoint.named_weights()) or "none"}
    terminal.table([{"what": key, "found": value or "none"} for key, value in shown.items()])

"""`attcl info`: what a folder holds, or what this installation has."""

from __future__ import annotations

import platform
from pathlib import Path

from attcl_cli import __version__, console, splits
from attcl_cli.commands.arguments import Source
from attcl_cli.dataset import check, describe


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
        console.document(content)
        return
    cases, patients = content["cases"], content["patients"]
    with_seg = content["segmentations"]
    console.result(
        f"{source.folder}: {dataset.layout.title}, {cases} cases of {patients} patients, "
        f"{with_seg} with segmentation\n"
    )
    counts = content["volumes"].items()
    console.table([{"modality": name, "volumes": n, "missing": cases - n} for name, n in counts])
    console.result("")
    patterns = content["patterns"]
    console.table(
        [
            {"cases": item["cases"], "missing": ", ".join(item["missing"]) or "nothing"}
            for item in patterns
        ]
    )
    if made is not None:
        console.result("")
        console.table(made.table(), title=f"splits ({made.ratio} of {made.source})")
    if dataset.ignored:
        console.result(
            f"\n{len(dataset.ignored)} images do not fit this layout and are ignored, such as {dataset.ignored[0]}"
        )
    console.result(f"\n{len(problems)} problems" if problems else "\nno problems")
    for problem in problems:
        console.result(f"- {problem.message}" + (f"\n  {problem.hint}" if problem.hint else ""))


def info_installation(*, as_json: bool = False) -> None:
    """Shows versions, device and weights."""
    import torch

    from attcl_cli import checkpoint, devices

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
        console.document(content)
        return
    shown = {**content, "weights": ", ".join(checkpoint.named_weights()) or "none"}
    console.table([{"what": key, "found": value or "none"} for key, value in shown.items()])

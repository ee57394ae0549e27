"""`attcl info`: what a folder holds, or what this installation has."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attcl_cli import __version__
from attcl_cli.cli import terminal
from attcl_cli.cli.options import BackgroundText, BidsFilter, Debug, Json, LayoutName, Vocabulary
from attcl_cli.data.suggested import complete_folder
from attcl_cli.errors import EXIT_INCOMPLETE, AttclError, counted
from attcl_cli.progress import SILENT

if TYPE_CHECKING:
    from attcl_cli.data.dataset import Source

EXAMPLES = "Examples:  attcl info BraTS2021/   |   attcl info data/ --json"


def info(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="A dataset. Without it: versions, device, weights.", show_default=False
        ),
    ] = None,
    layout: LayoutName = "auto",
    modalities: Vocabulary = None,
    bids_filter: BidsFilter = None,
    background: BackgroundText = "auto",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List what a folder holds, and what is wrong with it.

    Files that are not read are named, too. The exit code is 3 if something is wrong. Names of BraTS 2018 to 2025,
    UPENN-GBM, UCSF-PDGM, TCGA, IXI, BIDS and nnU-Net are recognised, and the patients that they name. A file that looks
    like a volume and cannot be read (.mha, DICOM, another name) is a problem.
    """
    if folder is None:
        _show_installation(as_json=as_json)
    else:
        from attcl_cli.data.background import parse_background
        from attcl_cli.data.dataset import Source
        from attcl_cli.data.info import dataset_info

        content = dataset_info(
            folder,
            layout=layout,
            modalities=modalities,
            bids_filter=bids_filter or [],
            background=parse_background(background),
            progress=terminal.Terminal(as_json=as_json),
        )
        source = Source(
            folder, layout, modalities, tuple(bids_filter or []), parse_background(background)
        )
        reading = [
            *(["--layout", layout] if layout != "auto" else []),
            *(["--modalities", str(modalities)] if modalities else []),
            *(word for pair in bids_filter or () for word in ("--bids-filter", pair)),
            *(["--background", background] if background != "auto" else []),
        ]
        command = _command_for_one(source, content, reading)
        _show_dataset(folder, content, command, as_json=as_json)


def _command_for_one(source: Source, content: dict[str, Any], reading: Sequence[str]) -> str:
    """Return the command that makes what a single case lacks; "" if it would be refused.

    If that is for want of weights alone, the notes of the content say so.
    """
    from attcl_cli.completion.expected import expect

    sound = not content["problems"] and not content["synthetic"]
    if content["cases"] != 1 or not content["patterns"][0]["missing"] or not sound:
        return ""
    try:
        expect(source.open(), (), (), SILENT, force=False)
    except AttclError as error:
        content["notes"].append(f"attcl complete would stop: {error.message}; {error.hint}")
        return ""
    return complete_folder(source.folder, reading=reading)


def _show_dataset(folder: Path, content: Mapping[str, Any], command: str, *, as_json: bool) -> None:
    """Show what a folder holds; exit with code 3 if something is wrong with it."""
    if as_json:
        terminal.document(content)
    else:
        _show_tables(folder, content, command)
    if content["problems"]:
        raise typer.Exit(EXIT_INCOMPLETE)


def _show_tables(folder: Path, content: Mapping[str, Any], command: str) -> None:
    cases, patients = content["cases"], content["patients"]
    with_seg = content["segmentations"]
    names = [name for name in content["recognised"] if name not in content["layout_title"]]
    recognised = f", names of {' and '.join(names)}" if names else ""
    terminal.result(
        f"{folder}: {content['layout_title']}{recognised}, {counted(cases, 'case')} of {counted(patients, 'patient')}, "
        f"{with_seg} with segmentation",
        "",
    )
    counts = content["volumes"].items()
    if content["synthetic"]:
        terminal.result(
            f"synthetic, as the side-cars say: {content['synthetic']:,} of "
            f"{counted(sum(content['volumes'].values()), 'volume')}; complete takes none of them as a source",
            "",
        )
    terminal.table([{"modality": name, "volumes": n, "missing": cases - n} for name, n in counts])
    terminal.result("")
    if cases == 1:
        terminal.result(_missing_of_one(content, command))
    else:
        _show_patterns(content)
    if "splits" in content:
        splits = content["splits"]
        terminal.result("")
        terminal.table(splits["table"], title=f"splits ({splits['ratio']} of {splits['source']})")
    for note in content["notes"]:
        terminal.result("", f"note: {note}")
    problems = content["problems"]
    terminal.result("", counted(len(problems), "problem") if problems else "no problems")
    for problem in problems:
        hint = [f"  {problem['hint']}"] if problem["hint"] else []
        terminal.result(f"- {problem['error']}", *hint)


def _missing_of_one(content: Mapping[str, Any], command: str) -> str:
    """Return what a single case lacks, and the command that makes it, if there is one."""
    missing = ", ".join(content["patterns"][0]["missing"]) or "nothing"
    return f"missing: {missing}" + (f"; what the weights can make: {command}" if command else "")


def _show_patterns(content: Mapping[str, Any]) -> None:
    patterns = content["patterns"]
    terminal.table(
        [
            {"cases": item["cases"], "missing": ", ".join(item["missing"]) or "nothing"}
            for item in patterns
        ]
    )
    if content["absent"]:
        terminal.result(
            "",
            f"no case has {', '.join(content['absent'])}: not counted as missing, and made only if "
            "complete --target names them",
        )


def _show_installation(*, as_json: bool) -> None:
    """Show versions, device and weights."""
    import torch

    from attcl_cli import devices
    from attcl_cli.methods.bundled import newest_finished_run
    from attcl_cli.methods.weights import named_weights

    newest = newest_finished_run()
    content: dict[str, Any] = {
        "attcl": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": str(devices.select("auto")),
        "weights": {name: str(path) for name, path in named_weights().items()},
        "newest_run": str(newest) if newest else None,
    }
    if as_json:
        terminal.document(content)
        return
    rows = {**content, "weights": ", ".join(content["weights"])}
    terminal.table(
        [{"what": key.replace("_", " "), "found": value or "none"} for key, value in rows.items()]
    )

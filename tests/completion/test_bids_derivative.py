"""Completed BIDS datasets: the output is a BIDS derivative, which the BIDS validator accepts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from completers import content
from helpers import states

from attcl_cli.completion.run import complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.derivative import metadata_of
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.data.splits import read_splits
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.files import read_json
from attcl_cli.scoring.run import score
from attcl_cli.segmentation.inputs import plan_inputs

LACKING = (("t2",), ("t1", "t1ce"), (), ("flair",))
MADE = {
    "sub-phantom00000/anat/sub-phantom00000_T2w.nii.gz",
    "sub-phantom00001/anat/sub-phantom00001_T1w.nii.gz",
    "sub-phantom00001/anat/sub-phantom00001_ce-gadolinium_T1w.nii.gz",
    "sub-phantom00003/anat/sub-phantom00003_FLAIR.nii.gz",
}
SIDE_CARS = {name.replace(".nii.gz", ".json") for name in MADE}
NAMING = {"dataset_description.json", ".bidsignore"}


def errors_of(folder: Path) -> list[str]:
    """Return what the validator of BIDS calls an error; warnings (no README, no authors) are left out."""
    program = Path(sys.executable).with_name("bids-validator-deno")
    run = subprocess.run(
        [program, folder, "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "DENO_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"},
    )
    issues = json.loads(run.stdout)["issues"]["issues"]
    errors = [it for it in issues if it["severity"] == "error"]
    assert bool(errors) == bool(run.returncode)
    return [f"{it['code']} {it.get('location', '')} {it.get('subCode', '')}" for it in errors]


@pytest.fixture
def made(gappy: Any, weights: Any, tmp_path: Path) -> Callable[..., Path]:
    """`made(root, name, ...)` is the output folder of a completion."""

    def run(root: Path | None = None, name: str = "out", **options: Any) -> Path:
        output = tmp_path / name
        place = root or gappy("bids")
        complete(place, output, weights=weights.path.parent, device="cpu", **options)
        return output

    return run


def renamed(root: Path, rule: Callable[[str], str]) -> Path:
    """Rename the images of a dataset: `rule` is given what follows the case's id."""
    for path in sorted(root.glob("*/**/*.nii*")):
        case, _, token = path.name.partition("_")
        target = path.with_name(f"{case}_{rule(token)}")
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    return root


# --- what the validator says ----------------------------------------------------------------------------------------


def test_the_validator_refuses_what_it_should(made):
    output = made()
    assert errors_of(output) == []
    (output / "dataset_description.json").unlink()
    (output / "sub-phantom00000" / "anat" / "notes.txt").touch()
    errors = errors_of(output)
    assert any("MISSING_DATASET_DESCRIPTION" in it for it in errors)
    assert any("notes.txt" in it for it in errors)


OPTIONS: dict[str, dict[str, Any]] = {
    "links to the originals": {"link_originals": True},
    "marked names": {"bids_desc": "synthetic"},
    "marked names beside links": {"bids_desc": "synthetic", "link_originals": True},
    "maps of uncertainty": {"samples": 2, "uncertainty": True},
    "one of two parts": {"num_parts": 2, "part_id": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_validator_accepts_the_output_with(options, made):
    assert errors_of(made(**options)) == []


NAMES: dict[str, Callable[[str], str]] = {
    "runs": lambda token: token.replace("T1w", "run-01_T1w"),
    "acquisitions": lambda token: f"acq-3d_{token}",
    "a standard space": lambda token: f"space-MNI152NLin2009aSym_{token}",
    "a space of its own": lambda token: f"space-atlas_{token}",
    "descriptions": lambda token: f"desc-preproc_{token}",
    "no compression": lambda token: token,
}  # fmt: skip


def ordered(token: str) -> str:
    """Put `ce-` in its place: after `acq-`, before all others."""
    parts = token.split("_")
    rank = {"acq": 0, "ce": 1}
    return "_".join(
        sorted(parts, key=lambda it: 9 if "-" not in it else rank.get(it[:2], rank.get(it[:3], 2)))
    )


@pytest.mark.slow
@pytest.mark.parametrize("rule", NAMES.values(), ids=NAMES)
def test_the_validator_accepts_the_output_of_names_with(rule, gappy, made):
    root = renamed(gappy("bids"), lambda token: ordered(rule(token)))
    if rule is NAMES["no compression"]:
        for path in root.glob("*/anat/*.nii.gz"):
            nib.save(nib.load(path), path.with_suffix(""))
            path.unlink()
    output = made(root, link_originals=True)
    assert errors_of(output) == []
    completed = open_dataset(output)
    assert all(set(case.files) == {"flair", "t1", "t1ce", "t2"} for case in completed.cases)
    assert completed.problems == ()


def test_the_side_car_of_a_link_is_renewed_and_that_of_somebody_else_stays(gappy, made, tmp_path):
    """The dataset describes its images, too; a link that leads elsewhere gets a new description."""
    root = gappy("bids")
    image = "sub-phantom00001/anat/sub-phantom00001_FLAIR"
    (root / f"{image}.json").write_text('{"Description": "denoised", "FlipAngle": 8}')
    output = made(root, link_originals=True)
    linked = output / f"{image}.json"
    assert read_json(linked)["FlipAngle"] == 8
    (root / f"{image}.json").write_text('{"Description": "denoised", "FlipAngle": 9}')
    for text, angle in ((None, 9), ('{"FlipAngle": 1}', 1)):
        if text:
            linked.write_text(text)
        (output / f"{image}.nii.gz").unlink()
        (output / f"{image}.nii.gz").symlink_to(tmp_path / "elsewhere")
        made(root, link_originals=True)
        assert read_json(linked)["FlipAngle"] == angle


def test_sessions_are_completed_each(gappy, made):
    root = gappy("bids")
    for path in sorted(root.glob("*/anat/*.nii.gz")):
        case, _, token = path.name.partition("_")
        target = root / case / "ses-pre" / "anat" / f"{case}_ses-pre_{token}"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    output = made(root)
    assert errors_of(output) == []
    assert (output / "sub-phantom00000/ses-pre/anat/sub-phantom00000_ses-pre_T2w.nii.gz").is_file()


def test_a_dataset_further_below_is_described_in_its_own_folder(gappy, made, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    gappy("bids").rename(project / "rawdata")
    output = made(project)
    assert not (output / "dataset_description.json").exists()
    assert errors_of(output / "rawdata") == []
    document = read_json(output / "rawdata" / "dataset_description.json")
    source = (output / "rawdata" / document["DatasetLinks"]["source"]).resolve()
    assert source == (project / "rawdata").resolve()
    side_car = read_json(output / "rawdata/sub-phantom00000/anat/sub-phantom00000_T2w.json")
    assert (source / side_car["Sources"][0].removeprefix("bids:source:")).is_file()


def test_a_derivative_is_completed_as_a_derivative(gappy, made, tmp_path):
    tool = tmp_path / "bids" / "derivatives" / "brainextraction"
    tool.parent.mkdir(parents=True)
    renamed(gappy("bids"), lambda token: ordered(f"desc-brain_{token}")).rename(tool)
    description = {"Name": "prepared", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}
    (tool / "dataset_description.json").write_text(
        json.dumps({**description, "GeneratedBy": [{"Name": "hd-bet"}], "DatasetDOI": "doi:10.1/x"})
    )
    output = made(tool)
    assert errors_of(output) == []
    document = read_json(output / "dataset_description.json")
    assert document["Name"] == "prepared, completed by attcl"
    assert document["SourceDatasets"][0]["DOI"] == "doi:10.1/x"
    assert (output / "sub-phantom00000/anat/sub-phantom00000_desc-brain_T2w.nii.gz").is_file()


# --- what it says of itself -----------------------------------------------------------------------------------------


def test_the_output_holds_the_volumes_their_side_cars_and_its_description(made):
    assert set(content(made())) == MADE | SIDE_CARS | NAMING | {
        "run.json",
        "log.txt",
        "report.html",
    }


def test_the_description_names_what_made_it_and_from_what(gappy, made):
    root = gappy("bids")
    output = made(root)
    document = read_json(output / "dataset_description.json")
    assert document["DatasetType"] == "derivative"
    (maker,) = document["GeneratedBy"]
    assert maker["Name"] == "attcl"
    assert maker["Version"] == read_json(output / "run.json")["attcl_version"]
    (source,) = document["SourceDatasets"]
    assert (output / source["URL"]).resolve() == root.resolve()
    assert document["DatasetLinks"] == {"source": source["URL"]}


def test_a_side_car_names_its_sources_by_uri(made):
    output = made()
    side_car = read_json(output / "sub-phantom00001/anat/sub-phantom00001_T1w.json")
    dataset = read_json(output / "dataset_description.json")
    (uri,) = side_car["Sources"]
    _, name, path = uri.split(":")
    assert (output / dataset["DatasetLinks"][name] / path).is_file()
    assert path == side_car["source"]["files"][0]
    assert side_car["SkullStripped"] is True
    assert side_car["synthetic"] is True
    assert "Synthetic t1" in side_car["Description"]


@pytest.mark.parametrize("place", ["beside the image", "in the root"])
def test_what_the_sources_say_of_skull_and_space_is_kept(place, gappy, made):
    root = renamed(gappy("bids"), lambda token: ordered(f"space-own_{token}"))
    said = {"SkullStripped": False, "SpatialReference": "atlas.nii.gz", "EchoTime": 0.1}
    for suffix in ("FLAIR", "T1w", "T2w"):
        files = root.glob(f"*/anat/*_{suffix}.nii.gz")
        names = [path.with_name(path.name.replace(".nii.gz", ".json")) for path in files]
        for path in names if place == "beside the image" else [root / f"{suffix}.json"]:
            path.write_text(json.dumps(said))
    output = made(root)
    side_car = read_json(output / "sub-phantom00000/anat/sub-phantom00000_space-own_T2w.json")
    assert (side_car["SkullStripped"], side_car["SpatialReference"]) == (False, "atlas.nii.gz")
    assert "EchoTime" not in side_car
    assert errors_of(output) == []


def test_a_side_car_says_nothing_of_the_image_after_contrast_agent(tmp_path):
    anat = tmp_path / "sub-01" / "anat"
    anat.mkdir(parents=True)
    (tmp_path / "T1w.json").write_text('{"MagneticFieldStrength": 3}')
    (anat / "sub-01_T1w.json").write_text('{"EchoTime": 0.1, "MagneticFieldStrength": 7}')
    plain = PurePosixPath("sub-01/anat/sub-01_T1w.nii.gz")
    after = PurePosixPath("sub-01/anat/sub-01_ce-gd_T1w.nii.gz")
    other = PurePosixPath("sub-01/anat/sub-01_T2w.nii.gz")
    assert metadata_of(tmp_path, plain) == {"EchoTime": 0.1, "MagneticFieldStrength": 7}
    assert metadata_of(tmp_path, after) == {"MagneticFieldStrength": 3}
    assert metadata_of(tmp_path, other) == {}


@pytest.mark.parametrize("layout", ["brats", "brats2023"])
def test_other_layouts_get_no_description(layout, gappy, weights, tmp_path):
    complete(gappy(layout), tmp_path / "out", weights=weights.path.parent, device="cpu")
    assert not {Path(name).name for name in content(tmp_path / "out")} & NAMING


def test_linked_originals_have_side_cars_and_are_not_synthetic(gappy, made):
    root = gappy("bids")
    (root / "sub-phantom00000/anat/sub-phantom00000_T1w.json").write_text('{"EchoTime": 0.1}')
    output = made(root, link_originals=True)
    completed = open_dataset(output)
    synthetic = {
        f"{case.id} {name}"
        for case in completed.cases
        for name in completed.synthetic(case, case.files)
    }
    assert synthetic == {
        "sub-phantom00000 t2", "sub-phantom00001 t1", "sub-phantom00001 t1ce", "sub-phantom00003 flair",
    }  # fmt: skip
    side_car = read_json(output / "sub-phantom00000/anat/sub-phantom00000_T1w.json")
    assert side_car["EchoTime"] == 0.1
    assert not (root / "sub-phantom00000/anat/sub-phantom00000_FLAIR.json").exists()


def test_a_description_that_is_there_is_kept(gappy, made, tmp_path):
    (tmp_path / "out").mkdir()
    mine = {
        "Name": "mine",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "me"}],
    }
    (tmp_path / "out" / "dataset_description.json").write_text(json.dumps(mine))
    assert read_json(made() / "dataset_description.json") == mine


# --- what comes after -----------------------------------------------------------------------------------------------


def test_the_same_command_again_touches_nothing(gappy, made):
    root = gappy("bids")
    for options in ({}, {"link_originals": True}):
        before = states(made(root, **options))
        assert states(made(root, **options)) == before


def test_an_output_of_an_earlier_version_is_done_and_gets_its_description(gappy, made):
    root = gappy("bids")
    output = made(root)
    for path in output.glob("*/anat/*.json"):
        old = read_json(path)
        for key in ("Description", "Sources", "SkullStripped"):
            del old[key]
        path.write_text(json.dumps(old))
    for name in NAMING:
        (output / name).unlink()
    volumes = {name: state for name, state in states(output).items() if name.endswith(".nii.gz")}
    made(root)
    after = states(output)
    assert {name: after[name] for name in volumes} == volumes
    assert set(after) >= NAMING


def test_the_names_are_marked_in_all_or_in_none(gappy, made):
    root = gappy("bids")
    output = made(root, bids_desc="synthetic")
    marked = {name for name in content(output) if name.endswith(".nii.gz")}
    assert (
        "sub-phantom00001/anat/sub-phantom00001_ce-gadolinium_desc-synthetic_T1w.nii.gz" in marked
    )
    assert len(marked) == 4
    assert all("_desc-synthetic_" in name for name in marked)
    before = states(output)
    made(root)  # the folder says how its names are marked
    assert states(output) == before
    with pytest.raises(UsageError) as caught:
        made(root, bids_desc="made")
    assert caught.value.code == "output-of-another-desc"
    plain = made(root, "plain")
    with pytest.raises(UsageError) as caught:
        made(root, "plain", bids_desc="synthetic")
    assert caught.value.code == "output-of-another-desc"
    assert len(list(plain.glob("*/anat/*.nii.gz"))) == 4


@pytest.mark.parametrize(
    ("layout", "desc", "code"),
    [
        ("brats", "synthetic", "bids-desc-without-bids"),
        ("bids", "syn-thetic", "malformed-bids-desc"),
        ("bids", "", "malformed-bids-desc"),
    ],
)
def test_a_mark_that_cannot_be_is_refused(layout, desc, code, gappy, made):
    with pytest.raises(UsageError) as caught:
        made(gappy(layout), bids_desc=desc)
    assert caught.value.code == code


def study(phantoms: Any, weights: Any, root: Path, **options: Any) -> None:
    """Write data/ with missing modalities and out/ with their completion below `root`."""
    ratio = root / "ratio.toml"
    ratio.write_text('hidden = [["t1ce", "t2"], ["t1"]]')
    prepare_splits(phantoms("bids"), root / "data", ratio=str(ratio), sizes=(2, 1, 1))
    complete(root / "data", root / "out", weights=weights.path.parent, device="cpu", **options)


@pytest.mark.parametrize("options", [{}, {"bids_desc": "synthetic"}, {"link_originals": True}])
def test_scores_are_the_same_however_the_output_is_written(options, phantoms, weights, tmp_path):
    study(phantoms, weights, tmp_path, **options)
    assert errors_of(tmp_path / "out") == []
    result = score(
        tmp_path / "data",
        tmp_path / "out",
        output=tmp_path / "scores",
        metrics=["psnr"],
        device="cpu",
    )
    made_of_test = sum(
        len(case["outputs"])
        for case in read_json(tmp_path / "out" / "run.json")["cases"]
        if case["id"] in {row.case for row in result.rows}
    )
    assert result.missing == ()
    assert result.comparison.volumes == made_of_test > 0


def test_the_segmenter_reads_marked_names(phantoms, weights, tmp_path):
    study(phantoms, weights, tmp_path, bids_desc="synthetic")
    data = open_dataset(tmp_path / "data")
    splits = read_splits(data.root)
    plan = plan_inputs(
        data,
        splits,
        ("completed",),
        completed=tmp_path / "out",
        truth=None,
        size=None,
    )
    channels = [
        paths
        for samples in plan.inputs["completed"].splits.values()
        for it in samples
        for paths in it.channels
    ]
    assert len(channels) == 16
    assert all(paths for paths in channels)
    assert sum("desc-synthetic" in paths[0].name for paths in channels) == sum(
        len(it.hidden) for items in splits.splits.values() for it in items
    )


def test_a_filter_goes_with_the_whole_command(gappy, made):
    root = gappy("bids")
    for path in root.glob("*/anat/*0_FLAIR.nii.gz"):
        shutil.copy(path, path.with_name(path.name.replace("_FLAIR", "_run-2_FLAIR")))
        path.rename(path.with_name(path.name.replace("_FLAIR", "_run-1_FLAIR")))
    with pytest.raises(AttclError) as caught:
        made(root)
    assert caught.value.code == "modality-twice"
    output = made(root, bids_filter=["flair:run=2"])
    record = read_json(output / "run.json")
    assert record["config"]["bids_filter"] == ["flair:run=2"]
    side_car = read_json(output / "sub-phantom00000/anat/sub-phantom00000_T2w.json")
    assert side_car["Sources"] == [
        "bids:source:sub-phantom00000/anat/sub-phantom00000_run-2_FLAIR.nii.gz"
    ]


def test_no_volume_of_a_tool_is_taken_for_the_missing_one(gappy, made):
    """A T2 in derivatives/ does not stand for the patient's own: the missing volume is made."""
    root = gappy("bids")
    tool = root / "derivatives" / "tool" / "sub-phantom00000" / "anat"
    tool.mkdir(parents=True)
    source = nib.load(root / "sub-phantom00000/anat/sub-phantom00000_T1w.nii.gz")
    fake = nib.Nifti1Image(np.asanyarray(source.dataobj), source.affine)
    nib.save(fake, tool / "sub-phantom00000_space-MNI152_desc-synthetic_T2w.nii.gz")
    nib.save(fake, tool / "sub-phantom00000_desc-preproc_T1w.nii.gz")
    assert {name for name in content(made(root)) if name.endswith(".nii.gz")} == MADE

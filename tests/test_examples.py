"""The examples run as a user would start them."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers import fingerprint

from attcl_cli.data import slices
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.phantom_cohort import write_cohort
from attcl_cli.data.prepare import prepare_splits

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOK = EXAMPLES / "first_patient.ipynb"
# The smallest networks that train, on 30x30 slices.
SMALL = [
    "--preset=tiny",
    "--steps=2",
    *(
        f"--set={setting}"
        for setting in (
            "image_size=16",
            "canvas=32",
            "downs=2",
            "width=4",
            "max_width=8",
            "mapping_width=8",
            "batch_size=2",
        )
    ),
]


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which quick_start.sh has run on four phantoms."""
    folder = tmp_path_factory.mktemp("quick")
    write_cohort(folder / "phantoms", cases=5, voxel_mm=8)
    ended = run(["bash", str(EXAMPLES / "quick_start.sh"), "phantoms", *SMALL], folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def volumes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.nii.gz")}


def test_the_quick_start_completes_what_ratio1_hides(started: Path) -> None:
    assert len(volumes(started / "out")) == 2 * 5


def test_the_tasks_of_the_job_array_make_together_what_one_run_makes(started: Path) -> None:
    (weights,) = (started / "runs").iterdir()
    for task in ("1", "2"):
        ended = run(
            ["bash", str(EXAMPLES / "slurm_array.sh"), "data", "array", str(weights), "2"],
            started,
            SLURM_ARRAY_TASK_ID=task,
        )
        assert ended.returncode == 0, ended.stderr
    assert volumes(started / "array") == volumes(started / "out")


def test_the_job_array_says_what_it_lacks(started: Path) -> None:
    three = ["bash", str(EXAMPLES / "slurm_array.sh"), "data", "array", "weights"]
    for arguments in (three, [*three, "2"]):  # the second without an array
        ended = run(arguments, started)
        assert ended.returncode != 0
        assert "usage: sbatch --array=1-SHARES" in ended.stderr


def test_the_python_example_makes_the_same_files(started: Path) -> None:
    (weights,) = (started / "runs").iterdir()
    script = str(EXAMPLES / "python_api.py")
    ended = run([sys.executable, script, "data", "python", str(weights)], started)
    assert ended.returncode == 0, ended.stderr
    assert volumes(started / "python") == volumes(started / "out")


def test_the_python_example_tells_an_error_in_one_line(started: Path) -> None:
    ended = run([sys.executable, str(EXAMPLES / "python_api.py"), "data", "x", "nowhere"], started)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: --weights: 'nowhere'")


# --- Packed slices ------------------------------------------------------------------------------------------------


PACK = str(EXAMPLES / "pack_slices.py")
SIZES = ["--image-size=16", "--canvas=32"]
Pack = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the slices of two phantoms to train on and one to validate, in packed/, in several parts each."""
    folder = tmp_path_factory.mktemp("packing")
    write_cohort(folder / "phantoms", cases=3, voxel_mm=8)
    (folder / "ratio.toml").write_text('hidden = [["t1"], ["t2"]]')
    ratio = str(folder / "ratio.toml")
    prepare_splits(folder / "phantoms", folder / "data", ratio=ratio, sizes=(2, 1, 0))
    pack = [sys.executable, PACK, "pack", "data", "packed", *SIZES, "--part-mb=0.001"]
    ended = run(pack, folder)
    assert ended.returncode == 0, ended.stderr
    return folder / "packed"


@pytest.fixture
def pack_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Pack:
    """`pack_slices("pack", ...)` runs the script in the folder of the test: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    main = runpy.run_path(PACK)["main"]

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [PACK, *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            code = ended.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def unpack(pack_slices: Pack, packing: Path, tmp_path: Path) -> Callable[..., str]:
    """`unpack("train.json", ...)` unpacks these packed files alone into slices/, and returns what is said."""

    def call(*names: str, packed: Path = packing) -> str:
        parts = tmp_path / "parts"
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir()
        for name in names:
            shutil.copy(packed / name, parts)
        code, out, err = pack_slices("unpack", "parts", "slices")
        assert code == 0, err
        return out

    return call


def test_packed_slices_are_unpacked_to_eight_bits_of_what_they_were(tmp_path: Path) -> None:
    write_cohort(tmp_path / "phantoms", cases=2, voxel_mm=8)
    packed = run([sys.executable, PACK, "pack", "phantoms", "packed", *SIZES], tmp_path)
    assert packed.returncode == 0, packed.stderr
    unpacked = run([sys.executable, PACK, "unpack", "packed", "slices"], tmp_path)
    assert unpacked.returncode == 0, unpacked.stderr
    dataset = open_dataset(tmp_path / "phantoms")
    store = slices.build(dataset, dataset.cases, tmp_path / "store", image_size=16, canvas=32)
    other = slices.open_store(tmp_path / "slices" / slices.TRAINING_FOLDER)
    assert (other.entries, other.scales) == (store.entries, store.scales)
    assert other.trained_on == ("Phantom_00000", "Phantom_00001")
    assert (other.data[store.data == -slices.STEPS] == -slices.STEPS).all()  # the background
    difference = abs(store.data.astype(int) - other.data.astype(int))
    assert 0 < difference.max() <= slices.STEPS / 255 + 1  # half a step of 8 bits


@pytest.mark.parametrize("output", ["precious", "phantoms", ".", "phantoms/packed"])
def test_packing_deletes_nothing_that_it_did_not_write(
    output: str, pack_slices: Pack, tmp_path: Path
) -> None:
    write_cohort(tmp_path / "phantoms", cases=1, voxel_mm=8)
    (tmp_path / "precious").mkdir()
    for name in ("notes.txt", "train.json", "train-000.xz"):
        (tmp_path / "precious" / name).write_text("{}")
    before = fingerprint(tmp_path)
    code, _, err = pack_slices("pack", "phantoms", output, *SIZES)
    assert (code, fingerprint(tmp_path)) == (2, before)
    found = {
        "precious": "precious holds notes.txt, train-000.xz, train.json, which pack did not write",
        ".": ". holds phantoms, expected a folder without originals",
    }
    assert f"error: output: {found.get(output, f'{output} lies inside phantoms')}" in err


def test_packing_again_replaces_its_own_files_alone(
    packing: Path, pack_slices: Pack, tmp_path: Path
) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(packing, packed)
    before = fingerprint(packed)
    assert {"train.json", "val.json", "train-001.xz", "val-001.xz"} <= set(before)
    write_cohort(tmp_path / "phantoms", cases=1, voxel_mm=8)
    again = ["pack", "phantoms", "packed", *SIZES]
    assert pack_slices(*again, "--canvas=16")[0] == 1  # its slices are larger
    assert fingerprint(packed) == before
    assert pack_slices(*again)[0] == 0
    assert {path.name for path in packed.iterdir()} == {"train.json", "train-000.xz"}


def test_parts_are_unpacked_by_several_calls_and_trained_on_when_all_are_there(
    packing: Path, pack_slices: Pack, unpack: Callable[..., str], tmp_path: Path
) -> None:
    train, val = (sorted(it.name for it in packing.glob(f"{it}-*.xz")) for it in ("train", "val"))
    made = tmp_path / "slices"
    said = unpack("train.json", *train[1:])
    assert f"not here yet: {train[0]}, val.json; another call may bring them" in said
    said = unpack(train[0])  # its description came with the others
    assert "not here yet: val.json;" in said
    said = unpack("val.json", *val[:-1])
    assert f"not here yet: {val[-1]};" in said
    assert (
        list(made.rglob(slices.INDEX_FILE)) == []
    )  # nobody trains on a part, or without validation
    assert "not here yet" not in unpack(val[-1])
    assert pack_slices("unpack", packing, "at-once")[0] == 0
    assert len(list(made.rglob(slices.INDEX_FILE))) == 2
    assert fingerprint(made) == fingerprint(tmp_path / "at-once")


def test_a_part_counts_only_when_its_slices_are_written(
    packing: Path, pack_slices: Pack, unpack: Callable[..., str], tmp_path: Path
) -> None:
    """A full state beside slices that were removed is not believed, and a damaged part brings nothing."""
    every = [path.name for path in packing.iterdir()]
    unpack(*every)
    made = tmp_path / "slices" / slices.TRAINING_FOLDER
    (made / slices.DATA_FILE).unlink()
    assert "not here yet: train-000.xz" in unpack()
    assert not slices.is_store(made)
    part = packing / "train-000.xz"
    (tmp_path / "parts" / part.name).write_bytes(part.read_bytes()[:-1])
    code, _, err = pack_slices("unpack", "parts", "slices")
    assert code == 1
    assert "train-000.xz: not the bytes that its description names" in err
    assert "not here yet: train-000.xz" in unpack()


@pytest.mark.parametrize("name", [slices.INDEX_FILE, slices.DATA_FILE])
def test_slices_that_unpack_did_not_write_are_refused(
    name: str, packing: Path, pack_slices: Pack, tmp_path: Path
) -> None:
    store = tmp_path / "slices" / slices.TRAINING_FOLDER
    store.mkdir(parents=True)
    (store / name).write_text("{}")  # as in the folder of a run, or of one that was killed
    before = fingerprint(store)
    code, _, err = pack_slices("unpack", packing, "slices")
    assert code == 2
    assert "holds other slices, which unpack did not write" in err
    assert fingerprint(store) == before


def test_packed_slices_of_earlier_versions_are_unpacked(
    packing: Path, unpack: Callable[..., str], tmp_path: Path
) -> None:
    """They name neither the other splits nor the bytes of their parts; an earlier unpack wrote an index at once."""
    old = tmp_path / "old"
    shutil.copytree(packing, old)
    described = json.loads((old / "train.json").read_text())
    del described["splits"]
    for part in described["parts"]:
        del part["sha256"]
    (old / "train.json").write_text(json.dumps(described))
    store = tmp_path / "slices" / slices.TRAINING_FOLDER
    store.mkdir(parents=True)
    (store / slices.INDEX_FILE).write_text(json.dumps(described["index"]))
    said = unpack("train.json", "train-000.xz", packed=old)
    assert "not here yet: train-001.xz" in said and "val" not in said
    assert not slices.is_store(store)
    unpack(*(it.name for it in old.glob("train-*")), packed=old)
    assert list(slices.open_store(store).trained_on) == described["index"]["cases"]


# --- The notebook -------------------------------------------------------------------------------------------------


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    """Return the cells of one kind, "code" or "markdown", in their order."""
    document = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_valid_and_holds_no_output() -> None:
    document = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (document["nbformat"], document["nbformat_minor"]) == (4, 5)
    nbformat.validate(document)
    for cell in cells(NOTEBOOK, "code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None), cell["id"]


def test_the_notebook_says_first_that_it_is_for_research_only() -> None:
    opening = "".join(cells(NOTEBOOK, "markdown")[0]["source"])
    assert "Never use it for diagnosis or treatment." in opening


def test_the_links_of_the_notebook_lead_somewhere() -> None:
    text = "".join(line for cell in cells(NOTEBOOK, "markdown") for line in cell["source"])
    links = re.findall(r"\]\(([^)#]+)", text)
    assert len(links) >= 5
    assert [link for link in links if not (EXAMPLES / link).exists()] == []


def test_the_notebook_runs_from_one_patient_to_the_page(tmp_path: Path) -> None:
    shutil.copy(NOTEBOOK, tmp_path)
    own = {name: str(tmp_path / "home") for name in ("HOME", "IPYTHONDIR", "JUPYTER_DATA_DIR")}
    command = [sys.executable, "-m", "jupyter", "execute", "--inplace", NOTEBOOK.name]
    ended = run(command, tmp_path, JUPYTER_PATH="", ATTCL_OFFLINE="1", **own)
    assert ended.returncode == 0, ended.stderr
    outputs = {cell["id"]: cell["outputs"] for cell in cells(tmp_path / NOTEBOOK.name, "code")}
    assert "image/png" in outputs["look"][0]["data"]
    text = {name: "".join(it[0].get("text", [])) for name, it in outputs.items() if it}
    assert "1 made now, 0 before, by phantom-tiny" in text["complete"]
    ssim = dict(re.findall(r"brain +(\w+) +SSIM +(-?[\d.]+)", text["score"]))
    assert float(ssim["synthetic"]) > 0.7 > float(ssim["copy"])
    side_car = json.loads(text["doubt"])
    assert (side_car["target"], side_car["weights"]["name"]) == ("t2", "phantom-tiny")
    assert side_car["doubt"]["disagreement"] > 0
    pages = [Path(line) for line in text["page"].splitlines()]
    assert [page.is_file() for page in pages] == [True, True]
    assert {path.name for path in tmp_path.iterdir()} <= {NOTEBOOK.name, "first_patient", "home"}


def test_the_notebook_completes_an_incomplete_patient_of_ones_own(
    started: Path, tmp_path: Path
) -> None:
    patient = tmp_path / "MINE"
    shutil.copytree(started / "phantoms" / "Phantom_00001", patient)
    (patient / "Phantom_00001_t2.nii.gz").unlink()
    before = fingerprint(patient)
    shutil.copytree(started / "runs", tmp_path / "runs")  # its weights are taken unasked
    code = "\n".join("".join(cell["source"]) for cell in cells(NOTEBOOK, "code"))
    changed = code.replace('PATIENT = ""', f"PATIENT = {str(patient)!r}")
    assert changed != code
    ended = run([sys.executable, "-c", changed], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "lacks: t2" in ended.stdout
    assert "nothing was hidden" in ended.stdout
    made = tmp_path / "first_patient" / "Phantom_00001" / "completed"
    assert list(volumes(made)) == ["Phantom_00001_t2.nii.gz"]
    assert fingerprint(patient) == before

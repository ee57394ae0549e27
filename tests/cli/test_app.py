"""The command line as users rely on it: the commands in a row with their defaults, streams, exit codes, run.json."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import fresh_python, states

from attcl_cli import __version__
from attcl_cli.cli.app import app, main
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.layouts import LAYOUTS
from attcl_cli.files import sha256
from attcl_cli.methods.settings import Settings, dump
from attcl_cli.methods.weights import BUNDLED, WEIGHTS_FILE

COMMANDS = ("prepare-splits", "train", "complete", "score", "segment", "info", "demo")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_settings: Settings) -> Path:
    """An empty current folder, but for the settings of a method that trains in milliseconds."""
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "tiny.toml").write_text(dump(tiny_settings))
    monkeypatch.chdir(folder)
    return folder


def files(root: Path) -> set[str]:
    """Relative paths of all files, hidden ones too."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def hidden_files(splits: Path, whole: Path) -> set[str]:
    """The files of the original dataset that splits.json says are hidden."""
    document = json.loads(splits.read_text())
    dataset = open_dataset(whole)
    cases = {case.id: case for case in dataset.cases}
    return {
        str(file)
        for items in document["splits"].values()
        for item in items
        for modality in item["hidden"]
        for file in cases[item["case"]].files[modality]
    }


# --- the commands in a row --------------------------------------------------------------------------------------------


def test_training_says_how_good_it_is_on_the_validation_cases(phantoms, attcl, here):
    code, _, err = attcl(
        "prepare-splits", phantoms("brats"), "--ratio", "ratio3", "--sizes", "2/1/1"
    )
    assert code == 0, err
    code, _, err = attcl("train", "-c", "tiny.toml", "-o", "run")
    assert code == 0, err
    lines = [json.loads(line) for line in Path("run/stats.jsonl").read_text().splitlines()]
    judged = {line["step"]: line["validation_ssim"] for line in lines if "validation_ssim" in line}
    assert judged
    for step, ssim in judged.items():
        assert f"step {step}: in-brain SSIM {ssim:.3f} on the validation cases" in err


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_commands_with_defaults_complete_a_dataset_and_score_it(layout, phantoms, attcl, here):
    whole = phantoms(layout)
    code, out, err = attcl("prepare-splits", whole)
    assert code == 0, err
    assert out.startswith("ratio1: what remains of")
    code, out, err = attcl("train", "-c", "tiny.toml")  # the default preset would take days
    assert code == 0, err
    assert re.fullmatch(rf"runs/\d{{8}}-\d{{6}}-attcl-gan/{WEIGHTS_FILE}\n", out)
    code, out, err = attcl("complete")
    assert code == 0, err
    assert out == "out: 8 volumes written, 0 were there already\n"  # ratio1 hides two of each case

    hidden = hidden_files(Path("data/splits.json"), whole)
    images = {name for name in files(here / "out") if not name.endswith(".json")}
    assert images == hidden
    assert files(here / "out") - images - {"run.json"} == {
        re.sub(r"_\d+\.png$|\.nii\.gz$", ".json", name) for name in hidden
    }
    assert files(here / "data") == files(whole) - hidden | {"splits.json", "run.json"}

    code, out, err = attcl("score", "--split", "train")
    assert code == 0, err
    assert out.endswith("scores/report.html: open it in a browser\n")
    assert files(here / "scores") >= {"scores.csv", "summary.json", "report.html", "montage.png"}


def test_the_newest_run_is_taken_and_named(incomplete_root, trained_run, attcl, here):
    for index, name in enumerate(("older", "newer")):
        (here / "runs" / name).mkdir(parents=True)
        weights = here / "runs" / name / WEIGHTS_FILE
        weights.write_bytes((trained_run / WEIGHTS_FILE).read_bytes())
        os.utime(weights, (1_700_000_000 + index, 1_700_000_000 + index))
    _, _, err = attcl("complete", "--ori", incomplete_root)
    assert err.startswith(f"weights: runs/newer/{WEIGHTS_FILE} (4 steps on 3 cases)\n")
    assert json.loads(Path("out/run.json").read_text())["weights"] == {
        "name": "newer",
        "sha256": sha256(here / "runs/newer" / WEIGHTS_FILE),
    }


def test_bundled_weights_come_with_a_warning(
    incomplete_root, trained_run, attcl, here, monkeypatch
):
    (here / "named").mkdir()
    bundled = here / "named" / f"{BUNDLED}.safetensors"
    bundled.write_bytes((trained_run / WEIGHTS_FILE).read_bytes())
    monkeypatch.setenv("ATTCL_WEIGHTS", str(here / "named"))
    code, _, err = attcl("complete", "--ori", incomplete_root, "--target", "t1")
    assert code == 0
    assert "warning: these bundled weights know simulated phantoms only" in err


def test_two_parts_write_what_one_run_writes(incomplete_root, trained_run, attcl, here):
    command = ("complete", "--ori", incomplete_root, "-w", trained_run)
    assert attcl(*command, "--cpl", "one")[0] == 0
    for part in (2, 1):
        assert attcl(*command, "--cpl", "two", "--num-parts", 2, "--part-id", part)[0] == 0
    own = {"run.json", "run-1of2.json", "run-2of2.json"}
    one, two = (
        {name: data for name, (_, data) in states(here / folder).items() if name not in own}
        for folder in ("one", "two")
    )
    assert one == two
    done = [
        {case["id"] for case in json.loads(Path(f"two/run-{part}of2.json").read_text())["cases"]}
        for part in (1, 2)
    ]
    assert done == [{"Phantom_00000"}, {"Phantom_00001", "Phantom_00003"}]


def test_prepare_splits_again_writes_nothing(phantom_root, attcl, here):
    assert attcl("prepare-splits", phantom_root, "--ratio", "ratio3")[0] == 0
    before = states(here)
    code, _, err = attcl("prepare-splits", phantom_root, "--ratio", "ratio3")
    assert (code, "nothing written" in err) == (0, True)
    assert states(here) == before


# --- run.json ---------------------------------------------------------------------------------------------------------

FIELDS = {
    "schema_version", "attcl_version", "command", "argv", "config", "seed", "device", "torch_version", "weights",
    "started", "seconds", "cases", "exit_code", "status",
}  # fmt: skip


def test_run_json_of_every_command_says_what_was_done(phantom_root, attcl, here):
    attcl("prepare-splits", phantom_root, "--ratio", "ratio3", "--seed", 5)
    attcl("train", "-c", "tiny.toml", "-o", "run", "-d", "cpu", "--seed", 6)
    attcl("complete", "-w", "run", "-d", "cpu")
    runs = {
        command: json.loads(Path(folder, "run.json").read_text())
        for command, folder in (("prepare-splits", "data"), ("train", "run"), ("complete", "out"))
    }
    for command, run in runs.items():
        assert set(run) >= FIELDS, command
        assert (run["command"], run["status"], run["exit_code"]) == (command, "done", 0)
        assert (run["schema_version"], run["attcl_version"]) == (1, __version__)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", run["started"])
        assert run["seconds"] >= 0
    assert [run["seed"] for run in runs.values()] == [5, 6, 6]
    assert [run["device"] for run in runs.values()] == ["", "cpu", "cpu"]
    assert runs["prepare-splits"]["config"]["ratio"] == "ratio3"
    assert runs["train"]["config"]["width"] == 4
    assert runs["complete"]["config"]["ori"] == "data"
    assert runs["complete"]["weights"] == {
        "name": "run",
        "sha256": sha256(Path("run", WEIGHTS_FILE)),
    }
    hidden = hidden_files(Path("data/splits.json"), phantom_root)
    cases = runs["complete"]["cases"]
    assert {output for case in cases for output in case["outputs"]} == hidden
    assert {case["status"] for case in cases} == {"done"}
    assert set(cases[0]) == {"id", "status", "seconds", "outputs"}


def test_run_json_records_the_arguments_that_were_given(
    incomplete_root, trained_run, here, monkeypatch
):
    argv = ["attcl", "complete", "--ori", str(incomplete_root), "-w", str(trained_run), "-d", "cpu"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        main()
    assert json.loads(Path("out/run.json").read_text())["argv"] == argv


# --- streams ----------------------------------------------------------------------------------------------------------


def test_json_is_one_document_on_stdout_and_nothing_else(phantom_root, attcl, here):
    documents = {}
    for name, arguments in {
        "prepare-splits": (phantom_root, "--ratio", "ratio3"),
        "train": ("-c", "tiny.toml", "-o", "run"),
        "plan": ("-w", "run", "--dry-run"),
        "complete": ("-w", "run"),
        "again": ("-w", "run"),
        "info": ("data",),
        "installation": (),
    }.items():
        command = {"plan": "complete", "again": "complete", "installation": "info"}.get(name, name)
        code, out, err = attcl(command, *arguments, "--json")
        assert code == 0, err
        documents[name] = json.loads(out)
    assert documents["prepare-splits"]["splits"].keys() == {"train", "val", "test"}
    assert documents["train"]["sha256"] == sha256(Path("run", WEIGHTS_FILE))
    assert documents["plan"]["volumes"] == documents["complete"]["written"] > 0
    assert documents["again"]["written"] == 0
    assert documents["again"]["done_before"] == documents["complete"]["written"]
    assert documents["info"]["cases"] == 4
    assert documents["installation"]["attcl"] == __version__


def test_json_counts_the_cases_that_failed_on_the_way(
    incomplete_root, trained_run, attcl, here, monkeypatch
):
    from attcl_cli.completion import run as complete
    from attcl_cli.errors import AttclError

    def fail(*_: object) -> None:
        raise AttclError("lost, expected it")

    monkeypatch.setattr(complete, "_translate", fail)
    code, out, _ = attcl(
        "complete", "--ori", incomplete_root, "-w", trained_run, "--keep-going", "--json"
    )
    assert (code, json.loads(out)["failed"]) == (3, 3)


def test_quiet_says_nothing_at_all(phantom_root, attcl, here):
    for arguments in (
        ("prepare-splits", phantom_root, "--ratio", "ratio3"),
        ("train", "-c", "tiny.toml", "-o", "run"),
        ("complete", "-w", "run"),
        ("complete", "-w", "run"),
    ):
        assert attcl(*arguments, "--quiet") == (0, "", ""), arguments


def test_quiet_still_tells_errors(attcl, here):
    code, _, err = attcl("complete", "--ori", "nowhere", "-q")
    assert (code, err.startswith("error: nowhere: ")) == (1, True)


def test_without_a_terminal_progress_is_one_plain_line_a_case(
    incomplete_root, trained_run, attcl, here
):
    _, out, err = attcl("complete", "--ori", incomplete_root, "-w", trained_run)
    lines = err.splitlines()
    assert [re.sub(r" \(.*", "", line) for line in lines] == [
        "complete 1/3 Phantom_00000",
        "complete 2/3 Phantom_00001",
        "complete 3/3 Phantom_00003",
    ]
    assert "\r" not in err
    assert "\x1b" not in err + out
    assert out == "out: 4 volumes written, 0 were there already\n"


def test_tables_are_plain_and_narrow_without_a_terminal(phantom_root, attcl, here):
    _, out, _ = attcl("prepare-splits", phantom_root, "--ratio", "ratio3")
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    rows = [line.split() for line in out.splitlines()]
    assert ["split", "cases", "flair", "t1", "t1ce", "t2"] in rows
    assert ["train", "3", "3", "3", "3", "2"] in rows


@pytest.mark.parametrize(
    "arguments",
    [
        ("prepare-splits", "{data}", "--ratio", "ratio3"),
        ("train", "--data", "{data}", "-c", "tiny.toml"),
        ("complete", "--ori", "{data}", "-w", "{run}"),
        ("complete", "--ori", "{data}", "-w", "{run}", "--link-originals"),
    ],
    ids=" ".join,
)
def test_a_dry_run_tells_and_writes_nothing(arguments, incomplete_root, trained_run, attcl, here):
    before = states(here)
    words = [word.format(data=incomplete_root, run=trained_run) for word in arguments]
    code, out, _ = attcl(*words, "--dry-run")
    assert code == 0
    assert out
    assert states(here) == before


def test_the_plan_is_told_case_by_case(incomplete_root, trained_run, attcl, here):
    _, out, _ = attcl("complete", "--ori", incomplete_root, "-w", trained_run, "-n", "--json")
    plan = json.loads(out)
    assert plan["modal_list"] == ["flair", "t1", "t1ce", "t2"]
    assert [(job["case"][-1], job["source"], job["targets"]) for job in plan["jobs"]] == [
        ("0", "flair", ["t2"]),
        ("1", "flair", ["t1", "t1ce"]),
        ("3", "flair", ["t2"]),
    ]


# --- info, version, help ----------------------------------------------------------------------------------------------


def test_info_shows_what_is_there_and_what_is_missing(incomplete_root, attcl, here):
    code, out, err = attcl("info", incomplete_root)
    assert (code, err) == (0, "")
    assert f"{incomplete_root}: BraTS 2018-2021, 4 cases of 4 patients, 4 with segmentation" in out
    rows = [line.split() for line in out.splitlines()]
    for row in ("flair 4 0", "t1 3 1", "t1ce 3 1", "t2 2 2", "2 t2", "1 t1, t1ce", "1 nothing"):
        assert row.split() in rows
    assert out.endswith("no problems\n")


def test_info_as_json_holds_the_same(incomplete_root, attcl, here):
    _, out, _ = attcl("info", incomplete_root, "--json")
    content = json.loads(out)
    assert content["volumes"] == {"flair": 4, "t1": 3, "t1ce": 3, "t2": 2}
    assert content["patterns"] == [
        {"missing": [], "cases": 1},
        {"missing": ["t2"], "cases": 2},
        {"missing": ["t1", "t1ce"], "cases": 1},
    ]
    assert content["problems"] == []


def test_info_of_a_data_tree_shows_its_splits(phantom_root, attcl, here):
    attcl("prepare-splits", phantom_root, "--ratio", "ratio3")
    _, out, _ = attcl("info", "data")
    assert ["train", "3", "3", "3", "3", "2"] in [line.split() for line in out.splitlines()]


def test_info_without_a_folder_shows_the_installation(attcl, here):
    import torch

    code, out, _ = attcl("info")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert ["attcl", __version__] in rows
    assert ["torch", str(torch.__version__)] in rows


def test_the_version_is_told(attcl):
    assert attcl("--version") == (0, f"attcl {__version__}\n", "")


def test_every_command_is_tested_here():
    assert {command.name for command in app.registered_commands} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_each_command_ends_with_two_examples(command, flag, attcl):
    code, out, err = attcl(command, flag)
    assert (code, err) == (0, "")
    examples = re.sub(r"\s+", " ", out[out.index("Examples:") :])
    assert examples.count(f"attcl {command}") == 2
    assert examples.count("|") == 1


def test_help_lists_the_commands(attcl):
    code, out, _ = attcl("-h")
    assert code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", out, re.M)


def test_attcl_alone_shows_the_help(attcl):
    code, out, err = attcl()
    assert (code, err) == (0, "")
    assert out.startswith("Usage: attcl")


def test_help_loads_no_torch():
    script = (
        "import sys, time; start = time.perf_counter()\n"
        "from attcl_cli.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'nibabel', 'numpy', 'scipy', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "print(sorted(heavy), time.perf_counter() - start)"
    )
    loaded, seconds = fresh_python("-c", script).splitlines()[-1].rsplit(" ", 1)
    assert "torch" not in loaded
    assert loaded == "[]"
    assert float(seconds) < 5  # a tenth of that on an idle machine; with torch it would be more


def test_python_dash_m_runs_the_command_line():
    assert fresh_python("-m", "attcl_cli", "--version") == f"attcl {__version__}\n"


def test_a_training_run_is_not_written_among_the_originals(phantom_root, attcl):
    inside = phantom_root / "runs"
    code, _, err = attcl("train", "--data", phantom_root, "--preset", "tiny", "-o", inside)
    assert code == 2
    assert err.startswith(f"error: --output: {inside} lies inside {phantom_root}")
    assert not inside.exists()


@pytest.fixture
def stopped_run(here, incomplete_root, attcl) -> Path:
    """A run of two steps on a dataset that is not called data/."""
    code, _, err = attcl(
        "train", "--data", incomplete_root, "-c", "tiny.toml", "--steps", 2, "-o", "run"
    )
    assert code == 0, err
    return Path("run")


def test_a_resumed_run_finds_its_own_dataset(stopped_run, incomplete_root, attcl):
    code, _, err = attcl("train", "--resume", stopped_run, "--steps", 3)
    assert code == 0, err
    record = json.loads((stopped_run / "run.json").read_text())
    assert record["data"] == str(incomplete_root.resolve())


def test_a_resumed_run_goes_on_in_its_own_precision(here, incomplete_root, attcl):
    start = ("train", "--data", incomplete_root, "-c", "tiny.toml", "--precision", "bf16")
    assert attcl(*start, "--steps", 2, "-o", "run")[0] == 0
    weights = {}
    for name, given in {"none": (), "bf16": ("bf16",), "fp32": ("fp32",)}.items():
        shutil.copytree("run", name)
        options = [option for value in given for option in ("--precision", value)]
        code, _, err = attcl("train", "--resume", name, "--steps", 3, *options)
        told = given[0] if given else "bf16"
        assert (code, f"{name}: goes on from step 2 in {told}" in err) == (0, True)
        assert json.loads(Path(name, "run.json").read_text())["precision"] == told
        weights[name] = Path(name, "weights.safetensors").read_bytes()
    assert weights["none"] == weights["bf16"] != weights["fp32"]


def test_a_dataset_of_one_modality_teaches_nothing(phantom_root, attcl, tmp_path):
    for case in ("Phantom_00000", "Phantom_00001"):
        (tmp_path / "alone" / case).mkdir(parents=True)
        name = f"{case}/{case}_flair.nii.gz"
        (tmp_path / "alone" / name).symlink_to(phantom_root / name)
    code, _, err = attcl("train", "--data", tmp_path / "alone", "--preset", "tiny", "--steps", 1)
    assert code == 1
    assert "flair alone in 2 training cases, expected two modalities at least" in err


def test_a_resumed_run_is_not_shown_other_patients(stopped_run, phantoms, attcl):
    other = phantoms("brats2023")
    code, _, err = attcl("train", "--resume", stopped_run, "--steps", 3, "--data", other)
    assert code == 2
    assert f"error: --resume: {stopped_run} was trained on" in err


def test_a_finished_run_is_not_run_again(stopped_run, attcl):
    before = states(stopped_run)
    code, _, err = attcl("train", "--resume", stopped_run)
    assert code == 0
    assert "finished at step 2, nothing to do" in err
    assert states(stopped_run) == before


def test_a_run_keeps_its_sizes(stopped_run, attcl):
    code, _, err = attcl("train", "--resume", stopped_run, "--preset", "base")
    assert code == 2
    assert err.startswith("error: --preset: given with --resume")


@pytest.mark.parametrize(
    "change",
    [["--method", "plave"], ["--set", "width=8"], ["--variant", "stargan-v2"], ["--seed", "9"]],
    ids=" ".join,
)
def test_a_run_keeps_its_networks_and_a_refusal_leaves_it_as_it_is(change, stopped_run, attcl):
    before = states(stopped_run)
    code, _, err = attcl("train", "--resume", stopped_run, "--steps", 3, *change)
    assert code == 2
    assert f"error: --resume: {stopped_run} was started with" in err and "hint: leave out" in err
    assert states(stopped_run) == before
    assert attcl("train", "--resume", stopped_run, "--steps", 3)[0] == 0


def test_a_resumed_run_stays_in_its_folder(stopped_run, attcl):
    code, _, err = attcl("train", "--resume", stopped_run, "-o", "elsewhere", "--steps", 3)
    assert code == 2 and "--output: given with --resume" in err


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(
    here, incomplete_root, attcl, monkeypatch
):
    from attcl_cli.data import slices

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ("train", "--data", incomplete_root, "-c", "tiny.toml", "--steps", 2, "-o", "run")
    with monkeypatch.context() as patch:
        patch.setattr(slices, "build", interrupted)
        code, _, err = attcl(*arguments)
    assert code == 130
    assert "run: interrupted, no step was saved yet" in err
    assert "hint: go on with: attcl train --resume run" in err
    assert json.loads(Path("run/run.json").read_text())["exit_code"] == 130
    code, _, err = attcl("train", "--resume", "run")
    assert code == 0 and "run: goes on from step 0" in err
    assert attcl(*arguments[:-1], "whole")[0] == 0
    assert sha256(Path("run/weights.safetensors")) == sha256(Path("whole/weights.safetensors"))


def test_fewer_steps_than_a_run_has_are_nothing_to_do(stopped_run, attcl):
    code, _, err = attcl("train", "--resume", stopped_run, "--steps", 1)
    assert code == 0 and "expected 1 steps, is at step 2, nothing to do" in err


def test_synthetic_volumes_are_no_truth_to_learn_from(here, incomplete_root, trained_run, attcl):
    code, _, err = attcl(
        "complete", "--ori", incomplete_root, "-w", trained_run, "--link-originals", "-q"
    )
    assert code == 0, err
    code, _, err = attcl("train", "--data", "out", "-c", "tiny.toml", "-n")
    assert code == 1
    assert err.startswith("error: out: 4 volumes have a label that says they are synthetic")


def test_synthetic_volumes_are_no_sources_either(here, incomplete_root, trained_run, attcl):
    given = ("complete", "-w", trained_run, "-q", "--ori")
    assert attcl(*given, incomplete_root)[0] == 0
    code, _, err = attcl(*given, "out", "--cpl", "again")
    assert code == 1
    assert err.startswith("error: out: ") and "synthetic, as the label says" in err
    assert not (here / "again").exists()


def test_a_bids_side_car_of_the_scanner_makes_no_volume_synthetic(tmp_path):
    for name in ("T1w", "FLAIR"):
        file = tmp_path / f"sub-01/anat/sub-01_{name}.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), file)
        side_car = file.with_name(f"sub-01_{name}.json")
        side_car.write_text(json.dumps({"EchoTime": 0.1, "synthetic": name == "FLAIR"}))
    dataset = open_dataset(tmp_path)
    (case,) = dataset.cases
    assert dataset.layout.name == "bids"
    assert dataset.synthetic(case, case.files) == ["flair"]


def test_a_setting_of_another_method_is_refused(here, incomplete_root, attcl):
    given = ("train", "--data", incomplete_root, "--preset", "tiny", "-n")
    code, _, err = attcl(*given, "--set", "plave_target=t1ce")
    assert code == 2
    assert err.startswith("error: setting plave_target: is PLAVE's") and "--method plave" in err
    code, _, err = attcl(*given, "--method", "plave", "--set", "lambda_pair=5")
    assert code == 2
    assert err.startswith("error: setting lambda_pair: is AttCL-GAN's, found it with method plave")


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (("train", "--method", "PLAVE", "-n"), "did you mean 'plave'?"),
        (("train", "--method", "plave", "--set", "plave_target=T1c", "-n"), "did you mean 't1ce'?"),
        (("info", "--layout", "bratss"), "did you mean 'brats'?"),
        (("info", "--layout", "brasyn-submision"), "did you mean 'brasyn-submission'?"),
    ],
)
def test_a_word_that_is_nearly_right_is_told(here, incomplete_root, attcl, typed, hint):
    command, *others = typed
    folder = ("--data", incomplete_root) if command == "train" else (incomplete_root,)
    code, _, err = attcl(command, *folder, *others)
    assert code == 2 and hint in err


def test_a_dedicated_model_that_no_case_can_teach_is_refused_before_anything_is_read(
    here, phantom_root, attcl
):
    Path("one.toml").write_text('hidden = [["flair"], ["t1"], ["t2"]]')
    made = attcl("prepare-splits", phantom_root, "--ratio", "one.toml", "--sizes", "4/0/0")
    assert made[0] == 0, made[2]
    given = ("train", "--preset", "tiny", "--method", "plave", "-n", "--set")
    assert attcl(*given, "plave_target=t1")[0] == 1
    _, _, err = attcl(*given, "plave_target=t1")
    assert "none of 4 training cases has t1 and flair, t1ce, t2 together" in err


def test_a_dry_run_explains_the_settings_of_its_method_alone(here, incomplete_root, attcl):
    code, out, _ = attcl("train", "--data", incomplete_root, "--preset", "tiny", "-n")
    assert code == 0
    assert "lambda_scd = 0.1  # AttCL-GAN: style code diversity (Eq 11)." in out.splitlines()
    assert "plave_" not in out


def test_scores_do_not_go_among_the_volumes(
    here, incomplete_root, phantom_root, trained_run, attcl
):
    assert attcl("complete", "--ori", incomplete_root, "-w", trained_run, "-q")[0] == 0
    record = Path("out/run.json").read_bytes()
    for place in ("out", "out/scores"):
        code, _, err = attcl(
            "score", "--ori", incomplete_root, "--truth", phantom_root, "-o", place
        )
        assert code == 2 and "outside of the synthesised volumes" in err
    assert Path("out/run.json").read_bytes() == record


def test_a_test_split_alone_serves_weights_from_elsewhere(here, phantom_root, attcl):
    ratio = ("--ratio", "ratio3", "--sizes", "0/0/4")
    assert attcl("prepare-splits", phantom_root, *ratio)[0] == 0
    code, _, err = attcl("train", "--preset", "tiny", "-n")
    assert code == 1 and "no training case" in err


def test_a_dry_run_of_prepare_splits_refuses_what_the_run_would(here, phantom_root, attcl):
    assert attcl("prepare-splits", phantom_root, "--ratio", "ratio3")[0] == 0
    code, _, err = attcl("prepare-splits", phantom_root, "--ratio", "ratio2", "-n")
    assert code == 2
    assert err.startswith("error: --output: data exists already")

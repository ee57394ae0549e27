"""The command line as users rely on it: the commands in a row with their defaults, streams, exit codes, run.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from helpers import fresh_python, states

from attcl_cli import __version__
from attcl_cli.cli.app import app, with_values
from attcl_cli.data.dataset import open_dataset
from attcl_cli.files import sha256
from attcl_cli.methods.weights import WEIGHTS_FILE

COMMANDS = (
    "prepare-splits",
    "train",
    "complete",
    "score",
    "segment",
    "evaluate",
    "export",
    "info",
    "demo",
)
GROUPS = {"weights": ("list", "show", "verify")}


def files(root: Path) -> set[str]:
    """Return the relative paths of all files, hidden ones too."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def hidden_files(splits: Path, whole: Path) -> set[str]:
    """Return the files of the original dataset that splits.json says are hidden."""
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


@pytest.mark.parametrize("layout", ["brats", "brats2023", "bids", "slices", "nnunet"])
def test_the_commands_with_defaults_complete_a_dataset_and_score_it(layout, phantoms, attcl, here):
    whole = phantoms(layout)
    code, out, err = attcl("prepare-splits", whole)
    assert code == 0, err
    assert out.startswith("ratio1: what remains of")
    assert err.splitlines()[-1] == (
        "next: attcl train; or, with bundled weights: attcl complete --ori data --cpl out"
    )
    code, out, err = attcl("train", "-c", "tiny.toml")  # the default preset would take days
    assert code == 0, err
    assert re.fullmatch(
        rf"(runs/\d{{8}}-\d{{6}}-attcl-gan)/{WEIGHTS_FILE}\n\1/report.html: .*\n", out
    )
    code, out, err = attcl("complete")
    assert code == 0, err
    assert (
        out
        == "out: 8 volumes written, 0 were there already\nout/report.html: open it in a browser\n"
    )  # ratio1 hides two of each case

    hidden = hidden_files(Path("data/splits.json"), whole)
    of_bids = {"dataset_description.json", ".bidsignore"} if layout == "bids" else set()
    written = files(here / "out") - {"run.json", "log.txt", "report.html"} - of_bids
    images = {name for name in written if not name.endswith(".json")}
    assert images == hidden
    assert written - images == {re.sub(r"_\d+\.png$|\.nii\.gz$", ".json", name) for name in hidden}
    assert files(here / "data") == files(whole) - hidden | {"splits.json", "run.json"}

    code, out, err = attcl("score", "--split", "train")
    assert code == 0, err
    assert out.endswith("scores/report.html: open it in a browser\n")
    assert files(here / "scores") >= {"scores.csv", "summary.json", "report.html", "montage.png"}


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


def test_quiet_says_nothing_at_all(phantom_root, attcl, here):
    for arguments in (
        ("prepare-splits", phantom_root, "--ratio", "ratio3"),
        ("train", "-c", "tiny.toml", "-o", "run"),
        ("complete", "-w", "run"),
        ("complete", "-w", "run"),
    ):
        assert attcl(*arguments, "--quiet") == (0, "", ""), arguments


def test_quiet_still_reports_errors(attcl, here):
    code, _, err = attcl("complete", "--ori", "nowhere", "-q")
    assert (code, err.startswith("error: nowhere: ")) == (1, True)


def test_tables_are_plain_and_narrow_without_a_terminal(phantom_root, attcl, here):
    Path("whole").symlink_to(phantom_root)  # a name of known length, which the first line tells
    _, out, _ = attcl("prepare-splits", "whole", "--ratio", "ratio3")
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
    ],
    ids=" ".join,
)
def test_a_dry_run_shows_the_plan_and_writes_nothing(arguments, incomplete_root, attcl, here):
    before = states(here)
    words = [word.format(data=incomplete_root) for word in arguments]
    code, out, _ = attcl(*words, "--dry-run")
    assert code == 0
    assert out
    assert states(here) == before


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


def test_prepare_splits_names_a_split_without_cases_and_what_comes_next(phantom_root, attcl, here):
    _, _, err = attcl("prepare-splits", phantom_root, "-o", "my data", "--sizes", "3/0/1")
    assert err.splitlines() == [
        "my data: written",
        "note: no case in val: training keeps its last weights instead of the best; --sizes sets the numbers",
        "next: attcl train --data 'my data'; or, with bundled weights: attcl complete --ori 'my data' --cpl out",
    ]
    _, _, err = attcl("prepare-splits", phantom_root, "--sizes", "0/1/3", "-n")
    assert "note: no case in train: " in err and "next: " not in err
    _, _, err = attcl("prepare-splits", phantom_root, "--sizes", "0/1/3")
    assert err.endswith("next: attcl complete --ori data --cpl out\n")


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


def test_info_and_weights_list_name_the_same_weights(trained_run, attcl, here):
    for name, status in (("finished", "done"), ("going-on", "running")):
        (here / "runs" / name).mkdir(parents=True)
        file = here / "runs" / name / WEIGHTS_FILE
        file.write_bytes((trained_run / WEIGHTS_FILE).read_bytes())
        (file.parent / "run.json").write_text(json.dumps({"status": status}))
    installed = json.loads(attcl("info", "--json")[1])
    listed = json.loads(attcl("weights", "list", "--json")[1])["weights"]
    named = {item["name"]: item["path"] for item in listed if item["origin"] != "runs"}
    assert installed["weights"] == named
    finished = [item["path"] for item in listed if item["origin"] == "runs" and item["finished"]]
    assert finished == [installed["newest_run"]] == [f"runs/finished/{WEIGHTS_FILE}"]


def test_version_prints_the_version(attcl):
    assert attcl("--version") == (0, f"attcl {__version__}\n", "")


def test_every_command_is_tested_here():
    assert {command.name for command in app.registered_commands} == set(COMMANDS)
    groups = {
        group.name: tuple(command.name for command in group.typer_instance.registered_commands)
        for group in app.registered_groups
    }
    assert groups == GROUPS


@pytest.mark.parametrize(
    "command",
    [*COMMANDS, *GROUPS, *(f"{name} {below}" for name, every in GROUPS.items() for below in every)],
)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_of_each_command_ends_with_two_examples(command, flag, attcl):
    code, out, err = attcl(*command.split(), flag)
    assert (code, err) == (0, "")
    examples = re.sub(r"\s+", " ", out[out.index("Examples:") :])
    assert examples.count(f"attcl {command}") == 2
    assert examples.count("|") == 1


def test_help_lists_the_commands(attcl):
    code, out, _ = attcl("-h")
    assert code == 0
    for command in (*COMMANDS, *GROUPS):
        assert re.search(rf"^  {command} ", out, re.M)


@pytest.mark.parametrize("command", ["", "weights", *COMMANDS])
def test_help_cuts_no_sentence_and_names_no_type_of_python(command, attcl, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = attcl(*command.split(), "-h")[1]
    assert "list[str]" not in out
    assert not re.search(r"\w\.\.\.$", out, re.M)  # `[ARGS]...` is no sentence


def test_attcl_alone_shows_the_help(attcl):
    code, out, err = attcl()
    assert (code, err) == (0, "")
    assert out.startswith("Usage: attcl")


def test_help_loads_no_torch():
    script = (
        "import sys, time; start = time.process_time()\n"
        "from attcl_cli.cli.app import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'nibabel', 'numpy', 'scipy', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time() - start)"
    )
    loaded, seconds = fresh_python("-c", script).splitlines()[-1].rsplit(" ", 1)
    assert "torch" not in loaded
    assert loaded == "[]"
    assert float(seconds) < 5  # a tenth of that on an idle machine; with torch it would be more


def test_python_dash_m_runs_the_command_line():
    assert fresh_python("-m", "attcl_cli", "--version") == f"attcl {__version__}\n"


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


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        (("train", "--method", "PLAVE", "-n"), "did you mean 'plave'?"),
        (("train", "--method", "plave", "--set", "plave_target=T1c", "-n"), "did you mean 't1ce'?"),
        (("info", "--layout", "bratss"), "did you mean 'brats'?"),
        (("info", "--layout", "brasyn-submision"), "did you mean 'brasyn-submission'?"),
    ],
)
def test_a_word_that_is_nearly_right_gets_a_hint(here, incomplete_root, attcl, typed, hint):
    command, *others = typed
    folder = ("--data", incomplete_root) if command == "train" else (incomplete_root,)
    code, _, err = attcl(command, *folder, *others)
    assert code == 2 and hint in err


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


def test_a_dry_run_of_prepare_splits_refuses_what_the_run_would(here, phantom_root, attcl):
    assert attcl("prepare-splits", phantom_root, "--ratio", "ratio3")[0] == 0
    code, _, err = attcl("prepare-splits", phantom_root, "--ratio", "ratio2", "-n")
    assert code == 2
    assert err.startswith("error: --output: data exists already")


def test_an_option_may_be_given_without_its_value() -> None:
    values = {"--ray": "local"}
    assert with_values(["--ray", "--cpl", "out"], values) == ["--ray", "local", "--cpl", "out"]
    assert with_values(["--cpl", "out", "--ray"], values) == ["--cpl", "out", "--ray", "local"]
    assert with_values(["--ray", "auto", "-n"], values) == ["--ray", "auto", "-n"]
    assert with_values(["--ray=auto", "-n"], values) == ["--ray=auto", "-n"]
    assert with_values([], values) == []

"""`attcl complete` on the command line: what it prints, on which stream, exit codes, `-w` given several times."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from helpers import small_settings, states

from attcl_cli.cli.app import main
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.slices import build
from attcl_cli.errors import AttclError
from attcl_cli.files import sha256
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.weights import BUNDLED, WEIGHTS_FILE, find_weights

FREQUENT = "sources by frequency: flair, t1, t1ce, t2"
BAD = "Phantom_00001/Phantom_00001_t2.nii.gz"


@pytest.fixture(scope="session")
def dedicated_run(phantom_root, tmp_path_factory) -> Path:
    """A run of weights that make t1ce alone, and only from all the others."""
    import torch

    from attcl_cli.training.trainer import train

    settings = small_settings("plave", plave_target="t1ce", plave_blocks=1)
    dataset = open_dataset(phantom_root)
    sizes = {"image_size": settings.image_size, "canvas": settings.canvas}
    folder = tmp_path_factory.mktemp("slices")
    store = build(dataset, dataset.cases[:3], folder, **sizes, labels=True, workers=0)
    run_dir = tmp_path_factory.mktemp("runs") / "dedicated"
    run_dir.mkdir()
    train(settings, store, run_dir, device=torch.device("cpu"))
    return run_dir


@pytest.fixture
def mixed(gappy) -> Path:
    """A dataset of which the dedicated model can make one volume, t1ce of case 0."""
    root: Path = gappy(lacking=[("t1ce",), ("t1", "t2"), (), ()])
    return root


@pytest.fixture
def one_bad(incomplete_root) -> Path:
    """A dataset whose case 1 cannot be read to its end."""
    bad = incomplete_root / BAD
    bad.write_bytes(bad.read_bytes()[:-300])
    return incomplete_root


# --- what it prints ---------------------------------------------------------------------------------------------------


def test_without_a_terminal_progress_is_one_plain_line_per_case(
    incomplete_root, trained_run, attcl, here
):
    _, out, err = attcl("complete", "--ori", incomplete_root, "-w", trained_run)
    lines = err.splitlines()
    assert [re.sub(r" \(.*", "", line) for line in lines] == [
        "4 volumes to make, of 3 cases",
        "complete 1/3 Phantom_00000",
        "complete 2/3 Phantom_00001",
        "complete 3/3 Phantom_00003",
    ]
    assert "\r" not in err
    assert "\x1b" not in err + out
    assert (
        out
        == "out: 4 volumes written, 0 were there already\nout/report.html: open it in a browser\n"
    )


def test_verbose_says_how_long_each_case_was_in_the_network(
    incomplete_root, trained_run, attcl, here
):
    _, _, err = attcl("complete", "--ori", incomplete_root, "-w", trained_run, "-v")
    assert len(re.findall(r"^Phantom_0000\d: \d+\.\d s in the network$", err, re.M)) == 3


def test_running_again_says_that_nothing_is_left(incomplete_root, trained_run, attcl, here):
    command = ("complete", "--ori", incomplete_root, "-w", trained_run)
    assert attcl(*command)[0] == 0
    assert attcl(*command)[:2] == (
        0,
        "out: nothing to do, 4 volumes are there already\nout/report.html: open it in a browser\n",
    )
    (here / "out/Phantom_00003/Phantom_00003_t2.nii.gz").unlink()
    assert attcl(*command)[:2] == (
        0,
        "out: 1 volume written, 3 were there already\nout/report.html: open it in a browser\n",
    )


def test_a_dataset_without_missing_modalities_is_told_apart_from_a_finished_output(
    phantom_root, attcl, trained_run, here
):
    command = ("complete", "--ori", phantom_root, "-w", trained_run)
    reason = "nothing is missing: every case has flair, t1, t1ce and t2\n"
    code, out, err = attcl(*command)
    assert (code, out) == (0, f"{phantom_root}: nothing to do\n{reason}")
    assert f"no volume was read: attcl info {phantom_root} checks" in err
    assert f"hide some: attcl prepare-splits {phantom_root}\n" in err
    assert attcl(*command, "-n")[1].endswith(f"0 volumes to make, 0 done; {FREQUENT}\n{reason}")
    _, out, _ = attcl(*command, "-n", "--target", "T1")
    assert out.endswith("--target T1: every case has t1\n")


def test_a_part_without_missing_modalities_does_not_speak_for_the_others(
    incomplete_root, attcl, trained_run, here
):
    command = ("complete", "--ori", incomplete_root, "-w", trained_run, "-n")
    _, out, _ = attcl(*command, "--num-parts", "4", "--part-id", "3")
    reason = "nothing is missing: every case of this part has flair, t1, t1ce and t2\n"
    assert out.endswith(reason)


def test_a_patient_who_lacks_nothing_is_shown_how_to_test(phantom_root, attcl, trained_run, here):
    patient = phantom_root / "Phantom_00000"
    _, _, err = attcl("complete", "-i", patient, "-w", trained_run, "--target", "t1", "-n")
    command = err.strip().removeprefix("note: to test, make t1 from the others: attcl ")
    code, out, err = attcl(*command.split(), "-w", trained_run, "-n")
    assert code == 0 and "1 volume to make, 0 done" in out, (command, err)


def test_linked_originals_are_counted(incomplete_root, trained_run, attcl, here):
    command = ("complete", "--ori", incomplete_root, "-w", trained_run, "--link-originals")
    code, _, err = attcl(*command)
    assert (code, "out: 16 originals linked" in err) == (0, True)  # 12 volumes, 4 label maps
    code, out, _ = attcl(*command, "--json")
    assert json.loads(out)["linked"] == 0


def test_a_submission_says_where_its_records_are(gappy, trained_run, attcl, here):
    root = gappy("brats2023", [("t1ce",), (), (), ()])
    command = ("complete", "--ori", root, "-w", trained_run, "--layout", "brasyn-submission")
    code, out, err = attcl(*command, "-d", "cpu")
    assert (code, out) == (
        0,
        "out: 1 volume written, 0 were there already\nout-labels/report.html: open it in a browser\n",
    ), err
    assert "out-labels: side-cars and run.json" in err
    assert (here / "out-labels/run.json").is_file()


def test_run_json_records_the_arguments_that_were_given(
    incomplete_root, trained_run, here, monkeypatch
):
    argv = ["attcl", "complete", "--ori", str(incomplete_root), "-w", str(trained_run), "-d", "cpu"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        main(argv[1:])
    assert json.loads(Path("out/run.json").read_text())["argv"] == argv


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--link-originals",), ("--json",)], ids=str)
def test_a_dry_run_shows_the_plan_and_writes_nothing(
    options, incomplete_root, trained_run, attcl, here
):
    before = states(here)
    code, out, _ = attcl("complete", "--ori", incomplete_root, "-w", trained_run, "-n", *options)
    assert code == 0
    assert out
    assert states(here) == before


def test_the_plan_is_shown_case_by_case(incomplete_root, trained_run, attcl, here):
    command = ("complete", "--ori", incomplete_root, "-w", trained_run, "-n")
    _, out, _ = attcl(*command, "--json")
    plan = json.loads(out)
    assert plan["modal_list"] == ["flair", "t1", "t1ce", "t2"]
    assert (plan["volumes"], plan["done"], plan["failed"]) == (4, 0, {})
    assert [(job["case"][-1], job["source"], job["targets"]) for job in plan["jobs"]] == [
        ("0", "flair", ["t2"]),
        ("1", "flair", ["t1", "t1ce"]),
        ("3", "flair", ["t2"]),
    ]
    assert plan["jobs"][0]["files"] == ["Phantom_00000/Phantom_00000_t2.nii.gz"]
    assert "weights" not in plan["jobs"][0]  # of one model
    _, out, _ = attcl(*command)
    assert ["Phantom_00001", "flair", "t1,", "t1ce", "2"] in [
        line.split() for line in out.splitlines()
    ]
    assert out.endswith("4 volumes to make, 0 done; sources by frequency: flair, t1, t1ce, t2\n")


def test_the_plan_names_the_cases_that_cannot_be_done(one_bad, trained_run, attcl, here):
    command = ("complete", "--ori", one_bad, "-w", trained_run, "-n", "--keep-going")
    code, out, err = attcl(*command)
    assert code == 0
    note, error, *_ = err.splitlines()
    assert note.startswith("note: t2 of Phantom_00001 cannot be read")
    assert error.startswith(f"error: {one_bad / BAD}: ")
    assert "2 volumes to make, 0 done, cases that cannot be done: 1; " in out
    _, out, _ = attcl(*command, "--json")
    assert list(json.loads(out)["failed"]) == ["Phantom_00001"]


# --- weights ----------------------------------------------------------------------------------------------------------


def put_run(folder: Path, run: Path, *, age: int = 0) -> Path:
    """Copy the weights of a run, so that they are `age` seconds old; return the file."""
    file = folder / WEIGHTS_FILE
    folder.mkdir(parents=True)
    file.write_bytes((run / WEIGHTS_FILE).read_bytes())
    os.utime(file, (1_700_000_000 - age, 1_700_000_000 - age))
    return file


def test_the_newest_run_is_taken_and_named(incomplete_root, trained_run, attcl, here):
    put_run(here / "runs/older", trained_run, age=1)
    newer = put_run(here / "runs/newer", trained_run)
    _, _, err = attcl("complete", "--ori", incomplete_root)
    assert err.startswith(f"weights: runs/newer/{WEIGHTS_FILE} (4 steps on 3 cases)\n")
    assert json.loads(Path("out/run.json").read_text())["weights"] == {
        "name": "newer",
        "sha256": sha256(newer),
    }


def test_without_a_run_and_fitting_weights_an_error_says_what_to_do(incomplete_root, attcl, here):
    code, _, err = attcl("complete", "--ori", incomplete_root)
    assert code == 2
    first, hint = err.splitlines()
    assert first.startswith(
        f"error: --weights: no weights given, and none of those found fit {incomplete_root}"
    )
    assert f"attcl train --data {incomplete_root}" in hint and "attcl weights list" in hint
    assert not Path("out").exists()


def test_weights_of_phantoms_refuse_others_unless_forced(write_case, attcl, here):
    write_case(here / "other", ["A/A_flair.nii.gz", "A/A_t1.nii.gz"])
    command = ("complete", "--ori", "other", "-w", BUNDLED, "--target", "t2", "--dry-run")
    code, _, err = attcl(*command)
    assert code == 1
    assert err.startswith(f"error: other: weights {BUNDLED} know simulated phantoms only")
    assert err.splitlines()[1].startswith("hint: ") and "--force" in err
    code, _, err = attcl(*command, "--force")
    assert code == 0
    assert err.startswith(f"warning: weights {BUNDLED} know simulated phantoms only")


def test_run_json_says_how_the_weights_were_chosen(incomplete_root, trained_run, attcl, here):
    put_run(here / "runs/mine", trained_run)
    for arguments, chosen in (((), "newest run"), (("-w", "runs/mine", "--overwrite"), "named")):
        code, _, err = attcl("complete", "--ori", incomplete_root, "--target", "t1", *arguments)
        assert code == 0, err
        assert json.loads(Path("out/run.json").read_text())["weights_chosen"] == chosen


def test_weights_given_several_times_are_asked_in_turn(
    mixed, dedicated_run, trained_run, attcl, here
):
    command = ("complete", "--ori", mixed, "-w", dedicated_run, "-w", trained_run, "-d", "cpu")
    code, out, err = attcl(*command, "--dry-run", "--json")
    assert code == 0, err
    assert [(job["source"], job["weights"]) for job in json.loads(out)["jobs"]] == [
        ("flair, t1, t2", "dedicated"),
        ("flair", "tiny"),
    ]
    _, out, _ = attcl(*command, "--dry-run")
    assert ["case", "source", "weights", "targets", "files"] in [
        line.split() for line in out.splitlines()
    ]
    code, out, err = attcl(*command)
    assert (code, out) == (
        0,
        "out: 3 volumes written, 0 were there already\nout/report.html: open it in a browser\n",
    ), err
    record = json.loads(Path("out/run.json").read_text())
    assert record["weights"]["name"] == "dedicated"
    assert [item["name"] for item in record["further_weights"]] == ["tiny"]


def test_a_target_that_no_weights_make_is_an_error_that_says_what_they_make(
    mixed, dedicated_run, attcl, here
):
    command = ("complete", "--ori", mixed, "-w", dedicated_run, "-d", "cpu")
    code, out, err = attcl(*command)
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert lines[0] == (
        f"error: {dedicated_run / WEIGHTS_FILE} makes t1ce, not t1, "
        "expected a model for t1 of 1 case: Phantom_00001"
    )
    assert any(line.startswith("hint: ") and "-w FIRST -w SECOND" in line for line in lines)
    assert not (here / "out").exists()
    code, out, err = attcl(*command, "--keep-going")
    assert (code, out) == (
        3,
        "out: 1 volume written, 0 were there already\nout/report.html: open it in a browser\n",
    )
    assert "out: 1 of 2 cases failed, expected all" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-w", "nothing"), "--weights: 'nothing' is no file"),
        (("--samples", "2"), "--samples: 2 with weights of plave"),
        (("--layout", "brasyn-submission"), "--layout brasyn-submission: case 'Phantom_00000'"),
        (("--layout", "brasyn-submission", "--link-originals"), "--link-originals: "),
        (("--slices", "9:5"), "--slices: '9:5', expected all or FIRST:STOP"),
        (("--slices", "some"), "--slices: 'some', expected all or FIRST:STOP"),
        (("--part-id", "2"), "--part-id: 2, expected 1 to --num-parts (1)"),
        (("--target", "t9"), "--target: modality 't9'"),
        (("--uncertainty",), "--uncertainty: of 0 samples"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused_in_one_line(
    options, message, mixed, dedicated_run, attcl, here
):
    before = states(here)
    code, out, err = attcl("complete", "--ori", mixed, "-w", dedicated_run, *options)
    assert (code, out) == (2, ""), err
    assert err.startswith(f"error: {message}")
    assert "hint: " in err
    assert states(here) == before


def test_results_of_other_weights_are_refused(incomplete_root, trained_run, attcl, here):
    assert attcl("complete", "--ori", incomplete_root, "-w", trained_run)[0] == 0
    side_car = here / "out/Phantom_00000/Phantom_00000_t2.json"
    document = json.loads(side_car.read_text())
    document["weights"]["sha256"] = "0" * 64
    side_car.write_text(json.dumps(document))
    command = ("complete", "--ori", incomplete_root, "-w", trained_run)
    code, _, err = attcl(*command)
    lines = err.splitlines()
    assert code == 1
    assert lines[0].startswith(
        "error: out/Phantom_00000/Phantom_00000_t2.nii.gz: made by weights 000000000000"
    )
    assert lines[1].startswith("hint: choose another --cpl")
    bundled = find_weights("phantom-tiny")
    document["weights"] = {"name": bundled.name, "sha256": bundled.sha256}
    side_car.write_text(json.dumps(document))
    hint = attcl(*command)[2].splitlines()[1]
    assert hint.startswith("hint: go on with the same weights: -w phantom-tiny; or choose")
    shutil.copytree(trained_run, "runs/before")
    document["weights"] = {"name": "before", "sha256": sha256(trained_run / "weights.safetensors")}
    side_car.write_text(json.dumps(document))
    hint = attcl("complete", "--ori", incomplete_root, "-w", "phantom-tiny")[2].splitlines()[1]
    assert hint.startswith("hint: go on with the same weights: -w runs/before; or choose")


def test_synthetic_volumes_are_no_sources(here, incomplete_root, trained_run, attcl):
    command = ("complete", "-w", trained_run, "-q", "--ori")
    assert attcl(*command, incomplete_root)[0] == 0
    code, _, err = attcl(*command, "out", "--cpl", "again")
    assert code == 1
    assert err.startswith("error: out: ") and "synthetic, as the side-car says" in err
    assert not (here / "again").exists()
    made = (
        "synthetic, as the side-cars say: 4 of 4 volumes; complete takes none of them as a source"
    )
    assert made in attcl("info", "out")[1].splitlines()
    # The command that completes a patient alone would be refused here.
    code, out, _ = attcl("info", "out/Phantom_00001")
    assert (code, "2 of 2 volumes" in out, "attcl complete" in out) == (0, True, False)
    assert "side-car" not in attcl("info", incomplete_root)[1]


# --- cases that fail --------------------------------------------------------------------------------------------------


def test_by_default_one_bad_case_keeps_all_from_starting(one_bad, trained_run, attcl, here):
    code, out, err = attcl("complete", "--ori", one_bad, "-w", trained_run)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {one_bad / BAD}: ")
    assert not (here / "out").exists()


def test_keep_going_does_the_sound_cases_and_exits_with_3(one_bad, trained_run, attcl, here):
    code, out, err = attcl("complete", "--ori", one_bad, "-w", trained_run, "--keep-going")
    assert (code, out) == (
        3,
        "out: 2 volumes written, 0 were there already\nout/report.html: open it in a browser\n",
    )
    assert f"error: {one_bad / BAD}: " in err
    assert "error: out: 1 of 3 cases failed, expected all" in err
    assert "hint: see out/run.json; fix the cases and run the same command again" in err


def test_json_counts_the_cases_that_failed_on_the_way(
    incomplete_root, trained_run, attcl, here, monkeypatch
):
    def fail(*_: object, **__: object) -> None:
        raise AttclError("lost, expected it", code="lost")

    monkeypatch.setattr(AttclGan, "synthesise", fail)
    code, out, _ = attcl(
        "complete", "--ori", incomplete_root, "-w", trained_run, "--keep-going", "--json"
    )
    assert (code, json.loads(out)["failed"]) == (3, 3)

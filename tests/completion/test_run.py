"""`complete` as a function: its result, its record, running again, cases that fail; it says nothing by itself."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
from completers import (
    LACKING,
    content,
    expected_files,
    images,
    outputs,
    own_scale,
    phantom_file,
)
from helpers import states

from attcl_cli.completion.jobs import CompletionPlan
from attcl_cli.completion.run import CompletionResult, complete
from attcl_cli.data import derivative
from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError, UsageError, single_problems
from attcl_cli.methods.attcl_gan import AttclGan
from attcl_cli.methods.weights import BUNDLED, WEIGHTS_FILE
from attcl_cli.progress import Silent


class Listener(Silent):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.errors: list[AttclError] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def fail(self, error: AttclError) -> None:
        self.errors.append(error)


def record_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def cases_in(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Return case -> status and sorted outputs, as the record says; each case is there once."""
    cases = record_in(folder)["cases"]
    assert len({case["id"] for case in cases}) == len(cases)
    return {case["id"]: (case["status"], sorted(case["outputs"])) for case in cases}


# --- the result -------------------------------------------------------------------------------------------------------


def test_the_function_returns_what_was_done_and_prints_nothing(gappy, weights, tmp_path, capfd):
    result = complete(gappy(), tmp_path / "out", weights=weights.path, device="cpu")
    assert capfd.readouterr() == ("", "")
    assert isinstance(result, CompletionResult)
    assert is_dataclass(result) and isinstance(result.plan, CompletionPlan)
    assert (result.written, result.done_before, result.linked, result.failed) == (7, 0, 0, ())
    assert (result.output, result.device) == (tmp_path / "out", "cpu")
    assert result.record == tmp_path / "out/run.json"
    assert result.plan.models == (weights,)
    with pytest.raises(AttributeError):
        result.written = 0


def test_paths_may_be_strings(gappy, trained_run, tmp_path):
    result = complete(str(gappy()), str(tmp_path / "out"), weights=str(trained_run))
    assert (result.written, result.output) == (7, tmp_path / "out")


def test_a_finished_output_holds_the_volumes_their_side_cars_run_json_and_the_page(finished):
    assert set(content(finished["cpl"])) == expected_files() | {
        "run.json",
        "log.txt",
        "report.html",
    }
    assert cases_in(finished["cpl"]) == {
        f"Phantom_{case:05d}": ("done", [phantom_file(case, name) for name in names])
        for case, names in enumerate(LACKING)
        if names
    }


@pytest.mark.parametrize("options", [{}, {"link_originals": True}, {"keep_going": True}], ids=str)
def test_a_dry_run_plans_and_writes_nothing(options, gappy, weights, tmp_path, capfd):
    root = gappy()
    before = states(tmp_path)
    result = complete(root, tmp_path / "out", weights=weights.path, dry_run=True, **options)
    assert (result.plan.volumes, result.written, result.linked) == (7, 0, 0)
    assert states(tmp_path) == before
    assert capfd.readouterr() == ("", "")


def test_a_dry_run_names_the_cases_that_cannot_be_done(one_bad, weights, tmp_path):
    result = complete(
        one_bad, tmp_path / "out", weights=weights.path, dry_run=True, keep_going=True
    )
    assert [case for case, _ in result.failed] == ["Phantom_00001"]
    assert not (tmp_path / "out").exists()


def test_modalities_may_be_spelled_otherwise(gappy, weights, tmp_path):
    result = complete(
        gappy(), tmp_path / "out", weights=weights.path, targets=["T1c"], dry_run=True
    )
    assert [list(job.outputs) for job in result.plan.jobs] == [["t1ce"], ["t1ce"]]


def test_an_unknown_target_is_refused(gappy, weights, tmp_path):
    with pytest.raises(UsageError, match="--target: modality 't9'") as caught:
        complete(gappy(), tmp_path / "out", weights=weights.path, targets=["t9"])
    assert caught.value.code == "unknown-modality"


@pytest.mark.parametrize(("parts", "part"), [(2, 0), (2, 3), (1, 2)])
def test_a_part_beyond_the_parts_is_refused(parts, part, gappy, weights, tmp_path):
    with pytest.raises(UsageError) as caught:
        complete(gappy(), tmp_path / "out", weights=weights.path, num_parts=parts, part_id=part)
    assert caught.value.code == "part-out-of-range"


# --- weights ----------------------------------------------------------------------------------------------------------


def test_without_weights_the_newest_run_is_taken_and_named(
    gappy, weights, other_weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for age, (name, found) in enumerate({"newer": weights, "older": other_weights}.items()):
        file = tmp_path / "runs" / name / WEIGHTS_FILE
        file.parent.mkdir(parents=True)
        file.write_bytes(found.path.read_bytes())
        os.utime(file, (1_700_000_000 - age, 1_700_000_000 - age))
    listener = Listener()
    result = complete(gappy(), "out", dry_run=True, progress=listener)
    assert [model.sha256 for model in result.plan.models] == [weights.sha256]
    assert listener.said == [f"weights: runs/newer/{WEIGHTS_FILE} (4 steps on 3 cases)"]


def test_weights_of_phantoms_refuse_others_unless_forced(gappy, write_case, tmp_path):
    listener = Listener()
    complete(gappy(), tmp_path / "out", weights=BUNDLED, dry_run=True, progress=listener)
    assert listener.said == []
    write_case(tmp_path / "other", ["A/A_flair.nii.gz", "A/A_t1.nii.gz"])
    arguments = {"weights": BUNDLED, "targets": ["t2"], "dry_run": True, "progress": listener}
    with pytest.raises(AttclError) as caught:
        complete(tmp_path / "other", tmp_path / "out", **arguments)
    assert caught.value.code == "phantom-weights-on-patients"
    complete(tmp_path / "other", tmp_path / "out", force=True, **arguments)
    (warning,) = listener.said
    assert warning.startswith("warning: weights phantom-tiny know simulated phantoms only")


def test_weights_that_are_not_there_are_refused(gappy, weights, tmp_path):
    with pytest.raises(UsageError, match="'nothing' is no file"):
        complete(gappy(), tmp_path / "out", weights=[weights.path, "nothing"])
    assert not (tmp_path / "out").exists()


# --- running again ----------------------------------------------------------------------------------------------------


def test_running_again_touches_nothing(finished):
    before = states(finished["cpl"])
    result = complete(**finished)
    assert (result.written, result.done_before, result.plan.jobs) == (0, 7, ())
    assert states(finished["cpl"]) == before


def test_a_deleted_output_is_made_again_and_nothing_else(finished):
    before = states(finished["cpl"])
    gone = phantom_file(3, "t1")
    (finished["cpl"] / gone).unlink()
    result = complete(**finished)
    assert (result.written, result.done_before) == (1, 6)
    after = states(finished["cpl"])
    timed = {"run.json", "log.txt"}
    assert {name: data for name, (_, data) in after.items() if name not in timed} == {
        name: data for name, (_, data) in before.items() if name not in timed
    }
    touched = {name for name in after if after[name][0] != before[name][0]}
    assert touched == {
        gone,
        gone.replace(".nii.gz", ".json"),
        "Phantom_00003",
        "run.json",
        "log.txt",
        "report.html",
    }


def test_the_record_of_a_second_run_names_the_volumes_that_were_there(finished):
    first = cases_in(finished["cpl"])
    (finished["cpl"] / phantom_file(3, "t1ce")).unlink()
    complete(**finished)
    second = cases_in(finished["cpl"])
    assert {name: files for name, (_, files) in second.items()} == {
        name: files for name, (_, files) in first.items()
    }
    assert {name: status for name, (status, _) in second.items()} == {
        "Phantom_00000": "present",
        "Phantom_00001": "present",
        "Phantom_00003": "done",
    }


def test_the_record_of_a_run_killed_after_its_last_file_is_finished(finished):
    path = finished["cpl"] / "run.json"
    record = record_in(finished["cpl"])
    path.write_text(json.dumps({**record, "status": "running", "exit_code": None, "cases": []}))
    result = complete(**finished)
    assert result.written == 0
    assert (record_in(finished["cpl"])["status"], record_in(finished["cpl"])["exit_code"]) == (
        "done",
        0,
    )
    assert {status for status, _ in cases_in(finished["cpl"]).values()} == {"present"}


def test_a_record_that_was_removed_is_written_again_of_what_lies_there(finished):
    first = cases_in(finished["cpl"])
    before = states(finished["cpl"])
    (finished["cpl"] / "run.json").unlink()
    assert complete(**finished).written == 0
    record = record_in(finished["cpl"])
    assert cases_in(finished["cpl"]) == {
        name: ("present", files) for name, (_, files) in first.items()
    }
    assert (record["status"], record["exit_code"], record["device"]) == ("done", 0, "")
    assert record["trained_on"] and record["weights"]  # `score` reads them
    after = states(finished["cpl"])
    assert {name for name in after if after[name] != before[name]} == {"run.json"}


def test_no_record_is_written_where_nothing_lies(phantom_root, tmp_path):
    complete(phantom_root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overwrite_makes_all_again_with_other_weights(finished, other_weights, tmp_path):
    other = {**finished, "weights": other_weights.path}
    result = complete(**other, overwrite=True)
    assert (result.written, result.done_before) == (7, 0)
    complete(**{**other, "cpl": tmp_path / "fresh"})
    assert outputs(finished["cpl"]) == outputs(tmp_path / "fresh")


def test_parts_keep_a_record_each(gappy, weights, tmp_path):
    arguments = {"ori": gappy(), "weights": weights.path}
    complete(**arguments, cpl=tmp_path / "one")
    for part in (2, 1):
        complete(**arguments, cpl=tmp_path / "two", num_parts=2, part_id=part)
    names = ("run.json", "run-1of2.json", "run-2of2.json")
    records = {
        *names,
        *(name.replace("run", "report").replace("json", "html") for name in names),
        *(name.replace("run", "log").replace("json", "txt") for name in names),
    }
    one, two = (
        {name: data for name, data in content(tmp_path / folder).items() if name not in records}
        for folder in ("one", "two")
    )
    assert one == two
    done = [
        {
            case["id"]
            for case in json.loads((tmp_path / f"two/run-{part}of2.json").read_text())["cases"]
        }
        for part in (1, 2)
    ]
    assert done == [{"Phantom_00000"}, {"Phantom_00001", "Phantom_00003"}]
    assert not (tmp_path / "two/run.json").exists()
    assert {path.name for path in (tmp_path / "two").glob("*.html")} == {
        "report-1of2.html",
        "report-2of2.html",
    }


# --- the record -------------------------------------------------------------------------------------------------------


def test_the_record_holds_the_options(gappy, weights, tmp_path):
    root = gappy()
    complete(
        root, tmp_path / "out", weights=weights.path, targets=["t1ce"], slices=(3, 20), samples=2,
        uncertainty=True, keep_going=True, device="cpu",
    )  # fmt: skip
    record = record_in(tmp_path / "out")
    assert record["config"] == {
        "ori": str(root),
        "cpl": str(tmp_path / "out"),
        "layout": "brats",
        "targets": ["t1ce"],
        "slices": [3, 20],
        "samples": 2,
        "uncertainty": True,
        "mirror": "auto",
        "planes": "axial",
        "average": False,
        "intensities": "auto",
        "even": "auto",
        "guide": "auto",
        "part": [1, 1],
        "keep_going": True,
        "overwrite": False,
    }
    assert (record["command"], record["device"]) == ("complete", "cpu")
    assert record["seed"] == weights.info.settings.seed


# --- cases that fail --------------------------------------------------------------------------------------------------


def test_keep_going_does_the_sound_cases(one_bad, weights, tmp_path):
    out = tmp_path / "out"
    listener = Listener()
    result = complete(one_bad, out, weights=weights.path, keep_going=True, progress=listener)
    ((case, error),) = result.failed
    assert (case, result.written) == ("Phantom_00001", 5)
    assert listener.errors == [error]
    assert set(outputs(out)) == {name for name in expected_files() if "Phantom_00001" not in name}
    record = record_in(out)
    assert {name: status for name, (status, _) in cases_in(out).items()} == {
        "Phantom_00000": "done",
        "Phantom_00001": "failed",
        "Phantom_00003": "done",
    }
    (failed,) = (case for case in record["cases"] if case["status"] == "failed")
    assert phantom_file(1, "t2") in failed["error"]
    assert failed["code"] == error.code
    assert (record["status"], record["exit_code"]) == ("incomplete", 3)


def test_a_failed_case_keeps_what_an_earlier_run_made(finished):
    (finished["cpl"] / phantom_file(1, "t1")).unlink()
    bad = finished["ori"] / phantom_file(1, "t2")
    bad.write_bytes(bad.read_bytes()[:-300])
    complete(**finished, keep_going=True)
    assert cases_in(finished["cpl"])["Phantom_00001"] == ("failed", [phantom_file(1, "t1ce")])


def test_a_case_that_fails_in_the_network_stops_the_run_and_the_record_says_so(
    gappy, weights, tmp_path, monkeypatch
):
    real = AttclGan.synthesise

    def failing(method, sources, targets, **options):
        if tuple(targets) == LACKING[1]:
            raise AttclError("lost, expected it", code="lost")
        return real(method, sources, targets, **options)

    monkeypatch.setattr(AttclGan, "synthesise", failing)
    with pytest.raises(AttclError, match="lost"):
        complete(gappy(), tmp_path / "out", weights=weights.path)
    record = record_in(tmp_path / "out")
    assert (record["status"], record["exit_code"]) == ("failed", 1)
    assert list(cases_in(tmp_path / "out")) == ["Phantom_00000"]


# --- the range of volumes that an earlier run made ------------------------------------------------------------------


def notes_of_range(said: list[str]) -> list[str]:
    return [text for text in said if text.startswith("note: ") and "range" in text]


def test_a_run_says_whose_range_new_volumes_get_if_some_cannot_be_read(one_bad, weights, tmp_path):
    listener = Listener()
    complete(
        one_bad, tmp_path / "out", weights=weights.path, keep_going=True, progress=listener,
    )  # fmt: skip
    (note,) = notes_of_range(listener.said)
    assert "t2 of Phantom_00001 cannot be read" in note
    assert "intensity range of the others" in note
    assert note.removeprefix("note: ") in (tmp_path / "out/report.html").read_text()


def test_after_a_repair_the_volumes_that_have_another_range_are_named_and_kept(
    gappy, weights, tmp_path
):
    root, out = gappy(), tmp_path / "out"
    arguments = {"ori": root, "cpl": out, "weights": weights.path}
    bad = root / phantom_file(1, "t2")
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-300])
    complete(**arguments, keep_going=True)
    bad.write_bytes(whole)
    before = images(out)
    listener = Listener()
    result = complete(**arguments, keep_going=True, progress=listener)
    assert (result.written, result.failed) == (2, ())
    (note,) = notes_of_range(listener.said)
    assert "t2: 1 volume made before (Phantom_00000)" in note
    assert "--overwrite" in note
    assert {name: data for name, data in images(out).items() if name in before} == before

    listener = Listener()
    complete(**arguments, overwrite=True, progress=listener)
    assert not notes_of_range(listener.said)
    complete(**arguments | {"cpl": tmp_path / "undisturbed"})
    assert images(out) == images(tmp_path / "undisturbed")


def test_volumes_of_another_range_are_named_if_the_dataset_grew(gappy, weights, tmp_path):
    root, aside = gappy(lacking=((), ("t1", "t1ce"), ("t2",), ("t2",))), tmp_path / "aside"
    arguments = {"ori": root, "cpl": tmp_path / "out", "weights": weights.path}
    (root / "Phantom_00000").rename(aside)
    (root / "Phantom_00002").rename(tmp_path / "later")
    complete(**arguments)
    aside.rename(root / "Phantom_00000")
    (tmp_path / "later").rename(root / "Phantom_00002")
    listener = Listener()
    assert complete(**arguments, progress=listener).written == 1
    (note,) = (text for text in notes_of_range(listener.said) if text.startswith("note: t2: "))
    assert "1 volume made before (Phantom_00003) has another" in note
    low, high = own_scale(root, "t2").low, own_scale(root, "t2").high
    assert f"expected int16 from {low:.4g} to {high:.4g}: " in note
    assert "added, removed, changed" in note


def without_stored(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != "stored"}


@pytest.mark.parametrize("change", [dict, without_stored], ids=["ours", "of an earlier version"])
def test_nothing_is_said_of_ranges_that_agree_or_are_not_known(change, finished):
    for path in finished["cpl"].glob("*/*.json"):
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    (finished["cpl"] / phantom_file(3, "t1")).unlink()
    listener = Listener()
    complete(**finished, progress=listener)
    assert not notes_of_range(listener.said)


def test_a_volume_that_is_damaged_now_does_not_speak_against_those_that_were_made_with_it(finished):
    bad = finished["ori"] / phantom_file(1, "t2")
    bad.write_bytes(bad.read_bytes()[:-300])
    (finished["cpl"] / phantom_file(3, "t1")).unlink()
    listener = Listener()
    assert complete(**finished, progress=listener).written == 1
    assert not notes_of_range(listener.said)

    (finished["cpl"] / phantom_file(0, "t2")).unlink()
    listener = Listener()
    complete(**finished, progress=listener)
    (note,) = notes_of_range(listener.said)
    assert "t2 of Phantom_00001 cannot be read" in note


def test_ranges_are_not_asked_for_if_nothing_is_made(finished, monkeypatch):
    def refused(*_: object) -> None:
        raise AssertionError("a volume was looked at")

    monkeypatch.setattr("attcl_cli.completion.styles.read_record", refused)
    assert complete(**finished).written == 0


def images_and_side_cars(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in outputs(folder).items() if "/" in name}


# --- names ------------------------------------------------------------------------------------------------------------


def test_volumes_keep_their_names_if_the_originals_are_decompressed(finished):
    """A dataset decides the ending of new files; those of an earlier run are found under the old one."""
    made = images_and_side_cars(finished["cpl"])
    for path in finished["ori"].rglob("*.nii.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    result = complete(**finished, device="cpu")
    assert (result.written, result.done_before) == (0, 7)
    assert complete(**finished, device="cpu", overwrite=True).written == 7
    assert images_and_side_cars(finished["cpl"]).keys() == made.keys()
    found = derivative.named_in(open_dataset(finished["ori"]), finished["cpl"])  # as score does
    assert str(found.place(found.cases[0], "t2")[0]) == phantom_file(0, "t2")


@pytest.mark.parametrize("layout", ["brats", "slices"])
def test_volumes_keep_their_names_if_further_cases_spell_the_modality_otherwise(
    layout, gappy, weights, tmp_path
):
    root = gappy(layout, [("t2",), ("t2",), (), ("t2",)])
    request = {"weights": weights.path, "device": "cpu"}
    complete(root, tmp_path / "out", **request)
    made = images_and_side_cars(tmp_path / "out")
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if layout == "brats" and path.name.startswith("Phantom_00002"):
            for case in ("Further_1", "Further_2"):
                name = path.name.replace("Phantom_00002", case).replace("_t2.", "_T2.")
                (root / case).mkdir(exist_ok=True)
                shutil.copy(path, root / case / name)
        elif layout == "slices" and path.name.startswith("Phantom00002_"):
            folder = root / path.parent.name.replace("t2", "T2")
            folder.mkdir(exist_ok=True)
            for case in ("Further1", "Further2"):
                shutil.copy(path, folder / path.name.replace("Phantom00002", case))
    assert open_dataset(root).spellings["t2"] == "T2"
    result = complete(root, tmp_path / "out", **request)
    assert (result.written, result.done_before) == (0, 3)
    assert images_and_side_cars(tmp_path / "out") == made


# --- links ------------------------------------------------------------------------------------------------------------


def test_link_originals_makes_the_output_a_complete_dataset(gappy, weights, tmp_path):
    root, out = gappy(), tmp_path / "out"
    result = complete(root, out, weights=weights.path, link_originals=True)
    whole = open_dataset(out)
    assert [whole.missing(case) for case in whole.cases] == [()] * 4
    assert [bool(case.segmentation) for case in whole.cases] == [True] * 4
    linked = [path for path in out.rglob("*") if path.is_symlink()]
    assert {path.resolve() for path in linked} == set(root.rglob("*.nii.gz"))
    assert result.linked == len(linked)
    before = states(out)
    assert complete(root, out, weights=weights.path, link_originals=True).linked == 0
    assert states(out) == before


def test_links_follow_a_dataset_that_was_moved_or_corrected(phantom_root, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(phantom_root, tmp_path / "in")
    links = complete(tmp_path / "in", out, link_originals=True).linked
    shutil.copytree(phantom_root, elsewhere)  # both there: links lead to the old one
    assert complete(elsewhere, out, link_originals=True).linked == links
    elsewhere.rename(tmp_path / "moved")  # links lead nowhere
    assert complete(tmp_path / "moved", out, link_originals=True).linked == links
    linked = {path.resolve() for path in out.rglob("*") if path.is_symlink()}
    assert linked == set((tmp_path / "moved").rglob("*.nii.gz"))


def test_a_file_in_the_place_of_a_link_is_named_and_kept(gappy, weights, phantom_root, tmp_path):
    """A synthetic volume whose original arrived later, and somebody's own file; a copy of the original is fine."""
    root, out = gappy(lacking=[("t2",), (), (), ()]), tmp_path / "out"
    complete(root, out, weights=weights.path, link_originals=True)
    late = phantom_file(0, "t2")
    shutil.copy(phantom_root / late, root / late)
    own, copy = out / phantom_file(1, "t1"), out / phantom_file(1, "t2")
    for file, data in ((own, b"mine"), (copy, copy.read_bytes())):
        file.unlink()
        file.write_bytes(data)
    before = states(out)
    with pytest.raises(AttclError) as caught:
        complete(root, out, weights=weights.path, link_originals=True)
    assert [(it.code, it.message.split(": ")[0]) for it in single_problems(caught.value)] == [
        ("no-place-for-link", str(out / late)),
        ("no-place-for-link", str(own)),
    ]
    assert states(out) == before
    for file in (own, out / late, (out / late).with_name("Phantom_00000_t2.json")):
        file.unlink()
    assert complete(root, out, weights=weights.path, link_originals=True).linked == 2


def test_another_vocabulary_in_the_output_is_not_replaced_by_linking(gappy, tmp_path):
    root, out = gappy(lacking=[()] * 4), tmp_path / "out"
    (root / "modalities.toml").write_text('[modalities]\nt2 = ["t2"]\nflair = ["flair"]\n')
    out.mkdir()
    (out / "modalities.toml").write_text("# mine")
    with pytest.raises(AttclError, match=r"modalities.toml: another file than") as caught:
        complete(root, out, link_originals=True)
    assert caught.value.code == "no-place-for-link"
    assert (out / "modalities.toml").read_text() == "# mine"


def test_linked_originals_bring_the_names_of_their_modalities(gappy, tmp_path):
    root, out = gappy(lacking=[()] * 4), tmp_path / "out"
    for path in root.rglob("*_t2.nii.gz"):
        path.rename(path.with_name(path.name.replace("_t2.", "_weird.")))
    tokens = {"flair": "flair", "t1": "t1", "t1ce": "t1ce", "t2": "weird"}
    lines = [f'{name} = ["{token}"]' for name, token in tokens.items()]
    (root / "modalities.toml").write_text("\n".join(["[modalities]", *lines]))
    complete(root, out, link_originals=True)
    assert open_dataset(out).counts() == open_dataset(root).counts() == dict.fromkeys(tokens, 4)

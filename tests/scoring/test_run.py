"""`attcl score` and `scoring.run.score`: results, streams, files, and the networks that they need."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import REPOSITORY
from score_files import HIDDEN, figures_of, first_completed, rows_of, spoil

from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError, UsageError
from attcl_cli.progress import Silent
from attcl_cli.run_record import RunRecord
from attcl_cli.scoring import feature_weights, report, rows
from attcl_cli.scoring.pairs import plan_comparison, plan_directions
from attcl_cli.scoring.run import _record_weights, _weights_of, score


def test_the_function_returns_what_it_wrote(folders):
    result = score(str(folders.ori), folders.cpl, truth=folders.truth, output=folders.scores)
    assert result.output == folders.scores
    assert (result.split, result.missing) == ("all", ())
    assert result.metrics == ("ssim", "psnr", "nmse", "gms", "ssim-brasyn")
    assert result.comparison.volumes == 4
    assert len(result.rows) == len(rows_of(folders.scores))
    assert len(result.figures) == len(figures_of(folders.scores))
    assert result.figure("ssim").mean == pytest.approx(1)
    assert result.figure("nmse", group="t2", prediction="zeros", region="brain").mean == 1
    assert result.figure("psnr").n_infinite == 4
    with pytest.raises(KeyError):
        result.figure("fid")


def test_the_function_returns_what_is_missing(folders):
    first_completed(folders).unlink()
    result = score(
        folders.ori, folders.cpl, truth=folders.truth, output=folders.scores, allow_missing=True
    )
    assert result.missing == (("Phantom_00000", "t2"),)
    assert result.figure("ssim").n_missing == 1


def test_a_dry_run_measures_and_writes_nothing(folders):
    result = score(
        folders.ori, folders.cpl, truth=folders.truth, output=folders.scores, dry_run=True
    )
    assert result.comparison.volumes == 4
    assert result.rows == () and result.figures == ()
    assert not folders.scores.exists()


def test_the_page_carries_the_callers_title_and_notes(folders):
    score(
        folders.ori,
        folders.cpl,
        truth=folders.truth,
        output=folders.scores,
        metrics=["psnr"],
        title="My study",
        notes=["Of phantoms."],
    )
    page = (folders.scores / "report.html").read_text()
    assert "<h1>My study</h1>" in page and "<p>Of phantoms.</p>" in page


def test_volumes_made_in_some_slices_alone_are_a_note(scored, folders):
    for name, said in {"t1": [8, 12], "t1ce": "all"}.items():
        side_car = folders.cpl / "Phantom_00001" / f"Phantom_00001_{name}.json"
        side_car.write_text(json.dumps({"synthetic": True, "target": name, "slices": said}))
    code, _, err = scored("--psnr")
    note = "1 of 4 completed volumes has slices 8:12 alone, as made with --slices"
    assert code == 0 and f"note: {note}" in err
    page = (folders.scores / "report.html").read_text()
    assert note in page
    assert " 1 volume was made in slices 8:12 only: scores count all, pictures show these." in page


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.mark.parametrize("same", [True, False])
def test_weights_that_draw_samples_are_not_taken_for_those_that_made_the_volumes(
    same, folders, tmp_path
):
    label = first_completed(folders).with_name("Phantom_00000_t2.json")
    label.write_text(json.dumps({"weights": {"name": "old", "sha256": "abc"}}))
    data, truth = open_dataset(folders.ori), open_dataset(folders.truth)
    comparison = plan_comparison(data, truth, folders.cpl, None)
    drawing = SimpleNamespace(name="new", sha256="abc" if same else "def", path=tmp_path / "new")
    record, said = RunRecord(tmp_path / "run.json", "score"), Said()
    _record_weights(record, comparison, drawing, said)
    assert record.weights["name"] == "new"
    assert record.extra["completed_by"] == [{"name": "old", "sha256": "abc"}]
    assert _weights_of(comparison, record) == "old"
    note = "note: samples are drawn by new, but the volumes were made by old: name those weights with -w"
    assert said.lines[1:] == ([] if same else [note])


def test_one_sample_has_no_distance_to_another(folders):
    with pytest.raises(UsageError) as caught:
        score(folders.ori, folders.cpl, truth=folders.truth, samples=1)
    assert caught.value.code == "too-few-samples"


def test_weights_that_make_nothing_are_refused(folders):
    with pytest.raises(
        UsageError, match="--weights: runs/mine, but nothing is made here"
    ) as caught:
        score(folders.ori, folders.cpl, truth=folders.truth, weights="runs/mine")
    assert caught.value.code == "weights-not-used"


def test_slices_too_small_for_lpips_are_refused_before_a_network_is_loaded(
    folders, tmp_path, write_nifti
):
    ori, truth, cpl = (tmp_path / name for name in ("small", "whole", "made"))
    for root, names in ((ori, ("flair",)), (truth, ("flair", "t1")), (cpl, ("t1",))):
        for number, name in enumerate(names):
            volume = np.random.default_rng(number).integers(1, 99, (28, 40, 9)).astype(np.int16)
            write_nifti(root / f"A/A_{name}.nii.gz", volume)
    score(ori, cpl, truth=truth, output=tmp_path / "scores", metrics=["ssim"], dry_run=True)
    with pytest.raises(AttclError, match="slices of 28x40 pixels, expected 31 or more") as caught:
        score(ori, cpl, truth=truth, output=tmp_path / "scores", metrics=["lpips"], dry_run=True)
    assert caught.value.code == "slices-too-small"


def test_samples_that_no_metric_looks_at_are_refused(folders):
    with pytest.raises(UsageError) as caught:
        score(folders.ori, folders.cpl, truth=folders.truth, metrics=["ssim"], samples=10)
    assert caught.value.code == "samples-not-scored"
    assert "--fid" in caught.value.hint


# --- files that change while scores are made ---

FILES = {
    "a truth": ("truth", "Phantom_00001/Phantom_00001_t1.nii.gz"),
    "a label map": ("truth", "Phantom_00001/Phantom_00001_seg.nii.gz"),
    "a synthetic volume": ("cpl", "Phantom_00001/Phantom_00001_t1.nii.gz"),
    "a source": ("ori", "Phantom_00001/Phantom_00001_flair.nii.gz"),
}
MOMENTS = {"before it is scored": (rows, "score_cases"), "before the page": (report, "write_pages")}


@pytest.fixture
def own_truth(folders, phantom_root, tmp_path) -> SimpleNamespace:
    """Return `folders` with a truth that a test may change."""
    folders.truth = tmp_path / "truth"
    shutil.copytree(phantom_root, folders.truth)
    return folders


@pytest.fixture
def score_while(own_truth, monkeypatch) -> Callable[..., AttclError]:
    """Return `score_while(change, moment)`, the error of a run during which something happens at a moment."""

    def run(change: Callable[[], object], moment: str) -> AttclError:
        module, name = MOMENTS[moment]
        real = getattr(module, name)

        def changed(*arguments: object, **options: object) -> object:
            change()
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, changed)
        places = {"truth": own_truth.truth, "output": own_truth.scores}
        with pytest.raises(AttclError) as caught:
            score(own_truth.ori, own_truth.cpl, **places, metrics=["psnr"])
        return caught.value

    return run


@pytest.mark.parametrize(
    ("moment", "kind"),
    [*(("before it is scored", kind) for kind in FILES), ("before the page", "a truth")],
)
def test_a_file_that_changes_in_mid_run_ends_it(moment, kind, score_while, own_truth):
    folder, file = FILES[kind]
    path = getattr(own_truth, folder) / file
    error = score_while(lambda: spoil(path, lambda data: data[:, ::-1]), moment)
    assert error.code == "file-changed"
    assert error.message.startswith(f"{path}: has changed since it was checked")
    record = json.loads((own_truth.scores / "run.json").read_text())
    assert (record["status"], record["exit_code"], record["code"]) == ("failed", 1, "file-changed")


def test_a_truth_that_vanishes_in_mid_run_is_named_as_gone(score_while, own_truth):
    path = own_truth.truth / FILES["a truth"][1]
    error = score_while(path.unlink, "before it is scored")
    assert error.message.startswith(f"{path}: is gone since it was checked")


def test_a_volume_that_changes_is_not_translated_in_any_direction(own_truth):
    comparison = plan_directions(open_dataset(own_truth.truth), None)
    spoil(own_truth.truth / FILES["a truth"][1], lambda data: data[:, ::-1])
    for case in comparison.cases:
        changed = case.case == "Phantom_00001"
        with pytest.raises(AttclError, match="has changed") if changed else nullcontext():
            rows._read(case)


# --- the command ---


def test_the_truth_scores_perfectly_against_itself(scored, folders):
    code, out, err = scored("--ssim", "--psnr", "--nmse")
    assert code == 0, err
    synthetic = [row for row in rows_of(folders.scores) if row["prediction"] == "synthetic"]
    assert {(row["case"], row["modality"]) for row in synthetic} == HIDDEN
    for row in synthetic:
        expected = {"ssim": 1.0, "psnr": math.inf, "nmse": 0.0, "ssim-brasyn": 1.0}[row["metric"]]
        # without tumour tissue in a phantom's mask there would be no value; every phantom has some
        assert float(row["value"]) == pytest.approx(expected, abs=1e-6)
    figures = figures_of(folders.scores)
    psnr = figures["all", "synthetic", "psnr", "brain"]
    assert (psnr["mean"], psnr["n"], psnr["n_infinite"], psnr["unit"]) == (None, 0, 4, "dB")
    assert figures["all", "synthetic", "ssim", "tumour"]["mean"] == pytest.approx(1)
    assert "inf" in out


def test_a_second_run_says_what_it_replaces(scored, folders):
    assert scored("--psnr")[0] == 0
    _, _, err = scored("--nmse")
    assert "scores of an earlier run are replaced (psnr)" in err


@pytest.mark.parametrize(
    "name", ["scores.csv", "summary.json", "report.html", "montage.png", "run.json"]
)
def test_results_of_others_are_not_replaced(name, scored, folders):
    folders.scores.mkdir()
    (folders.scores / name).write_text("[]")
    code, _, err = scored("--psnr")
    assert code == 2
    assert f"{folders.scores / name}: not written by attcl" in err
    assert (folders.scores / name).read_text() == "[]"


def test_the_streams_hold_a_table_of_80_columns_or_one_document(scored, folders):
    _, out, err = scored("--ssim", "--psnr", "--nmse", "--baselines")
    *table, last = out.splitlines()  # the last line is a path
    assert len(table) > 12 and max(map(len, table)) <= 80
    assert "report.html" in last and "Phantom_00000" in err
    _, out, _ = scored("--json")
    document = json.loads(out)
    assert document["volumes"] == 4 and document["scores"][0]["mean"] is not None
    assert scored("-q")[1:] == ("", "")
    code, out, _ = scored("--dry-run", "-o", folders.scores / "never")
    assert code == 0 and "would score 4 volumes" in out
    assert not (folders.scores / "never").exists()
    for name in ("report.html", "montage.png", "scores.csv", "summary.json", "run.json"):
        assert (folders.scores / name).stat().st_size > 100, name
    assert (folders.scores / "scores.csv").read_text().splitlines()[0].split(",")[:6] == [
        "case", "modality", "source", "region", "metric", "value",
    ]  # fmt: skip


def test_all_networks_that_are_out_of_reach_are_named_together(
    scored, folders, tmp_path, monkeypatch
):
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    code, _, err = scored("--fid", "--lpips", "--offline")
    assert code == 1
    assert all(file.name in err for file in feature_weights.FILES.values())
    assert scored("--fid", "--lpips", "--dry-run")[0] == 0  # nothing is fetched for a plan


@pytest.mark.parametrize("flag", ["--fid", "--lpips"])
def test_offline_the_missing_network_is_named_before_anything_slow(flag, folders, tmp_path):
    script = (
        "import sys\nfrom attcl_cli.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n"
        "    print(stop.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "score", flag, "--offline", "--truth", str(folders.truth),
         "--ori", str(folders.ori), "--cpl", str(folders.cpl)],
        env={"PYTHONPATH": str(REPOSITORY), "PATH": "", "TORCH_HOME": str(tmp_path / "torch")},
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert done.stdout == "1 False\n"
    record = feature_weights.FILES["inception" if flag == "--fid" else "alexnet"]
    for part in (record.name, record.sha256, str(tmp_path / "torch"), record.url):
        assert part in done.stderr
    assert not (tmp_path / "scores").exists()

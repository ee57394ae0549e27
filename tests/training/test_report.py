"""The page of a run and its progress in words: what they show, when they are written, and what they never change."""

from __future__ import annotations

import html
import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SMALL_NETWORKS, SMALL_RUN, small_settings
from PIL import Image
from training_runs import require_same_runs

from attcl_cli import devices
from attcl_cli.data import slices
from attcl_cli.data.prepare import prepare_splits
from attcl_cli.errors import AttclError, InterruptedRun, UsageError
from attcl_cli.files import sha256
from attcl_cli.methods.citations import references
from attcl_cli.methods.settings import resolve
from attcl_cli.methods.sources import AnyOne
from attcl_cli.progress import Silent
from attcl_cli.report.page import REPORT_FILE
from attcl_cli.report.sections import Curves, Images, Patterns
from attcl_cli.run_record import read_record
from attcl_cli.training import report
from attcl_cli.training.report import RunPage, Words, grouped, phases_of, read_statistics
from attcl_cli.training.run import train
from attcl_cli.training.state import STATE_FILE
from attcl_cli.training.stats import STATS_FILE
from attcl_cli.training.validation import CopyOfSource, make_validation

SMALL = {**SMALL_RUN, **SMALL_NETWORKS["attcl-gan"], "learning_rate_decay": 0.0, "lambda_ds": 0.0}
FACTS = {
    "device": "cpu",
    "precision": "fp32",
    "trained_on": ["a", "b", "c"],
    "present": [
        {"modalities": ["flair", "t1"], "cases": 2},
        {"modalities": ["flair"], "cases": 1},
    ],
    "validation": {"cases": 2, "copy_ssim": 0.31},
}


class Listener(Silent):
    """Notes what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def log(folder: Path, lines: Sequence[Mapping[str, float]]) -> None:
    (folder / STATS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))


def page_of(folder: Path, facts: Mapping[str, Any] = FACTS) -> RunPage:
    return RunPage(folder, small_settings(steps=1000), facts)


def shown(folder: Path) -> str:
    return (folder / REPORT_FILE).read_text()


def judged(*points: tuple[int, float]) -> list[dict[str, float]]:
    return [{"step": step, "validation_ssim": ssim} for step, ssim in points]


# --- what the page shows ----------------------------------------------------------------------------------------------


def test_the_verdict_names_the_last_figure_the_best_one_and_that_of_a_copy(tmp_path):
    log(tmp_path, judged((800, 0.42), (900, 0.41)))
    page_of(tmp_path).running(900, 720.0)
    assert (
        "In-brain SSIM on the validation cases 0.410 at step 900, best 0.420 at step 800; "
        "a copy of the source reaches 0.310." in shown(tmp_path)
    )


def test_the_last_figure_may_be_the_best(tmp_path):
    log(tmp_path, judged((800, 0.41), (1000, 0.42)))
    page_of(tmp_path).running(1000)
    assert "0.420 at step 1,000, the best so far; a copy" in shown(tmp_path)
    page_of(tmp_path).done()
    assert "0.420 at step 1,000, the best of the run; a copy" in shown(tmp_path)


def test_no_figure_is_shown_that_the_run_does_not_have(tmp_path):
    log(tmp_path, [{"step": 5, "seconds_a_step": 0.1, "g_adv": 1.0}])
    page_of(tmp_path, {}).running(5)
    text = shown(tmp_path)
    assert "Not validated: there is no validation case with two modalities" in text
    assert "copy of the source" not in text and "Validation" not in text


def test_a_running_page_reads_itself_again_and_a_finished_one_does_not(tmp_path):
    page = page_of(tmp_path)
    page.running(900, 720.0)
    assert '<meta http-equiv="refresh" content="30">' in shown(tmp_path)
    assert "running, step 900 of 1,000, about 12 min left" in shown(tmp_path)
    assert not page.is_done()
    page.done()
    assert 'http-equiv="refresh"' not in shown(tmp_path)
    assert "<dd>done, 1,000 steps</dd>" in shown(tmp_path)
    assert page.is_done()


def test_the_page_of_a_stopped_run_says_how_to_resume(tmp_path):
    page_of(tmp_path).broken_off(InterruptedRun("stopped", code="stopped"))
    assert f"interrupted; resume with: attcl train --resume {tmp_path}" in shown(tmp_path)
    page_of(tmp_path).broken_off(AttclError("loss g is nan", code="loss-not-finite"))
    assert "failed: loss g is nan; resume with" in shown(tmp_path)
    assert 'http-equiv="refresh"' not in shown(tmp_path)


def test_curves_hold_the_validation_with_the_level_of_a_copy_and_the_losses(tmp_path):
    log(
        tmp_path,
        [
            {"step": 5, "seconds_a_step": 0.5, "d_real": 1.0, "g_adv": 2.0},
            *judged((5, 0.4)),
            {"step": 10, "seconds_a_step": 0.5, "d_real": 3.0, "g_adv": 4.0},
        ],
    )
    page = page_of(tmp_path).page("running")
    validation, losses = (each for each in page.sections if isinstance(each, Curves))
    assert validation.curves[0].lines == {"in-brain SSIM": [(5, 0.4)]}
    assert validation.curves[0].level == {"copy of the source": 0.31}
    assert {curve.title: curve.lines for curve in losses.curves} == {
        "d": {"d_real": [(5, 1.0), (10, 3.0)]},
        "g": {"g_adv": [(5, 2.0), (10, 4.0)]},
    }
    assert page.facts["seconds per step"] == "0.5"


def test_the_losses_that_a_method_names_have_the_first_chart(tmp_path):
    log(tmp_path, [{"step": 5, "d_real": 1.0, "g_reference_pair": 2.0, "g_latent_adv": 3.0}])
    (losses,) = (
        each
        for each in page_of(tmp_path).page("x").sections
        if isinstance(each, Curves) and each.heading == "Losses"
    )
    assert list(losses.curves[0].lines) == ["g_latent_adv", "g_reference_pair"]
    assert [curve.title for curve in losses.curves[1:]] == ["d", "g"]


def test_pictures_are_the_newest_and_the_first_one(tmp_path):
    (tmp_path / "samples").mkdir()
    for step in (5, 1_000_000, 20):
        Image.new("RGB", (2, 2)).save(tmp_path / "samples" / f"step-{step:06d}.png")
    (images,) = (each for each in page_of(tmp_path).page("x").sections if isinstance(each, Images))
    assert list(images.images) == ["step 1,000,000, the newest", "step 5, the first"]


def test_patterns_count_the_training_cases(tmp_path):
    (patterns,) = (
        each for each in page_of(tmp_path).page("x").sections if isinstance(each, Patterns)
    )
    assert patterns.counts == {("flair", "t1"): 2, ("flair",): 1}
    assert list(patterns.modalities) == ["flair", "t1"]


def test_the_methods_paragraph_is_that_of_a_finished_run_alone(tmp_path):
    log(tmp_path, judged((800, 0.42), (1000, 0.41)))
    page = page_of(tmp_path, {**FACTS, "simulated": True})
    page.running(900)
    assert "Methods, for a paper" not in shown(tmp_path)
    page.done()
    assert "on 3 simulated cases for 1,000 steps" in shown(tmp_path)
    assert "2 validation cases were kept (0.420, step 800; a copy of the source reached 0.310)" in (
        shown(tmp_path)
    )
    assert "Trained on simulated phantoms" in shown(tmp_path)


@pytest.mark.parametrize("method", ["attcl-gan", "plave", "cyclegan", "unet"])
def test_every_kind_of_method_has_a_page(method, tmp_path):
    RunPage(tmp_path, resolve(preset="tiny", method=method), FACTS).done()
    assert "Training of" in shown(tmp_path)
    assert all(html.escape(each, quote=False) in shown(tmp_path) for each in references(method))


def test_losses_are_grouped_by_their_first_words_with_six_lines_at_most():
    names = ["d_real", "d_fake", *(f"g_one_{i}" for i in range(4)), *(f"g_two_{i}" for i in "abc")]
    assert grouped(names) == {"d": names[:2], "g_one": names[2:6], "g_two": names[6:]}
    many = [f"g_{i}" for i in range(8)]
    assert grouped(many) == {"g (1)": many[:6], "g (2)": many[6:]}


def test_damaged_lines_are_left_out(tmp_path):
    log(tmp_path, judged((5, 0.4)))
    with (tmp_path / STATS_FILE).open("a") as file:
        file.write('[1]\n{"g": 2}\n{"step": 6, "g": "x", "h": 1}\n{"step": 7, "lo')
    statistics = read_statistics(tmp_path)
    assert (statistics.validation, statistics.losses) == ([(5, 0.4)], {"h": [(6, 1)]})


def test_a_page_of_100_000_lines_is_written_within_seconds_and_stays_small(tmp_path):
    losses = {f"{part}_{index}": 1.234567 for part in "dg" for index in range(6)}
    log(
        tmp_path,
        [{"step": step, "seconds_a_step": 0.1, **losses} for step in range(1, 100_001)]
        + judged(*((step, step / 1e6) for step in range(1000, 100_001, 1000))),
    )
    statistics = read_statistics(tmp_path)
    assert len(statistics.losses["d_0"]) <= 600
    assert statistics.losses["d_0"][-1][0] == 100_000
    assert statistics.best == (100_000, 0.1)
    clock = time.process_time()
    page_of(tmp_path).running(100_000)
    assert time.process_time() - clock < 5
    assert len(shown(tmp_path)) < 500_000


# --- when the page is written -----------------------------------------------------------------------------------------


@pytest.fixture
def data(phantom_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepared cases in the current folder: 2 to train on, 1 to validate, 1 to test."""
    monkeypatch.chdir(tmp_path)
    Path("ratio.toml").write_text('hidden = [["t1ce", "t2"], ["t1"]]')
    prepare_splits(phantom_root, ratio="ratio.toml", sizes=(2, 1, 1))
    return tmp_path / "data"


def begin(data: Path, output: str = "run", **options: Any) -> Listener:
    listener = Listener()
    overrides = {**SMALL, "steps": 4, "save_every": 2, **options.pop("overrides", {})}
    train(
        data,
        output=output,
        preset="tiny",
        overrides=overrides,
        device="cpu",
        progress=listener,
        **options,
    )
    return listener


def test_a_run_leaves_a_page_and_its_record_says_what_a_copy_reaches(data):
    said = begin(data).lines
    text = shown(Path("run"))
    record = read_record(Path("run"))
    assert record["validation"]["cases"] == 1
    copy = record["validation"]["copy_ssim"]
    assert f"a copy of the source reaches {copy:.3f}." in text
    kept = read_statistics(Path("run")).best[1]
    assert record["validation"]["ssim"] == pytest.approx(kept, abs=1e-6)
    assert "<dd>done, 4 steps</dd>" in text and "<dt>validated on</dt><dd>1 case</dd>" in text
    assert sum(item["cases"] for item in record["present"]) == 2
    spoken = [line for line in said if "in-brain SSIM" in line]
    assert re.match(
        rf"step 2 of 4: in-brain SSIM on validation 0\.\d+, the best so far; copy {copy:.3f}; \d+ s left",
        spoken[0],
    )
    assert spoken[1].startswith("step 4 of 4: ") and "left" not in spoken[1]
    assert any(line.startswith("run/report.html: ") for line in said)


def test_what_a_copy_reaches_outlives_a_kill_after_the_last_step(data, monkeypatch):
    killed = []
    monkeypatch.setattr(slices, "remove_caches", lambda folder: killed.append(read_record(folder)))
    begin(data)
    assert killed[0]["status"] == "running"
    assert killed[0]["validation"].items() <= read_record(Path("run"))["validation"].items()
    assert "copy_ssim" in killed[0]["validation"]


def test_the_record_says_how_much_memory_of_a_gpu_a_run_held(data, monkeypatch):
    begin(data)
    assert "gpu_memory_mb" not in read_record(Path("run"))
    monkeypatch.setattr(devices, "peak_memory_mb", lambda device: 512.5)
    begin(data, output="second")
    assert read_record(Path("second"))["gpu_memory_mb"] == 512.5


def test_a_page_that_cannot_be_written_is_said_once_and_changes_no_result(data, monkeypatch):
    begin(data)
    refused = []

    def refuse(path: Path, page: Any) -> None:
        refused.append(path)
        raise AttclError(f"{path}: not written (No space left on device)", code="file-not-written")

    with monkeypatch.context() as patch, pytest.raises(AttclError, match="No space left"):
        patch.setattr(report, "write_page", refuse)
        listener = Listener()
        train(
            data,
            output="other",
            preset="tiny",
            overrides={**SMALL, "steps": 4, "save_every": 2},
            device="cpu",
            progress=listener,
        )
    assert len(refused) == 3  # at the start, at the checkpoint, at the end
    assert sum("no page for now" in line for line in listener.lines) == 1
    require_same_runs(Path("run"), Path("other"))
    assert read_record(Path("other"))["status"] == "failed"
    train(resume="other", device="cpu")
    assert (read_record(Path("other"))["status"], page_done("other")) == ("done", True)


def test_a_record_that_is_damaged_is_refused_before_a_page_is_made_of_it(data):
    begin(data)
    record = read_record(Path("run"))
    Path("run", REPORT_FILE).unlink()
    Path("run/run.json").write_text(json.dumps({**record, "present": [{"cases": "many"}]}))
    with pytest.raises(AttclError) as caught:
        train(resume="run", device="cpu")
    assert caught.value.code == "invalid-record"


def page_done(folder: str) -> bool:
    return "<dd>done, 4 steps</dd>" in shown(Path(folder))


def test_the_page_changes_no_byte_of_weights_and_checkpoint(data, monkeypatch):
    begin(data)
    with monkeypatch.context() as patch:
        patch.setattr(report.RunPage, "running", lambda *_: None)
        patch.setattr(report.RunPage, "done", lambda *_: Path("without", REPORT_FILE).touch())
        begin(data, "without")
    assert not Path("without", REPORT_FILE).read_bytes()
    require_same_runs(Path("run"), Path("without"))
    for name in ("weights.safetensors", STATE_FILE):
        assert sha256(Path("run", name)) == sha256(Path("without", name))


def test_a_run_that_is_stopped_at_a_checkpoint_leaves_its_page_and_is_resumed_to_a_finished_one(
    data, monkeypatch
):
    def stop(*_: Any) -> None:
        raise InterruptedRun("run: stopped after step 2 of 4", code="stopped")

    with monkeypatch.context() as patch, pytest.raises(InterruptedRun):
        patch.setattr(report.Words, "mark", stop)
        begin(data)
    assert "interrupted; resume with: attcl train --resume run" in shown(Path("run"))
    train(resume="run", device="cpu")
    begin(data, "whole")
    timed = re.compile(r"<dt>seconds per step</dt><dd>[^<]*")
    assert timed.sub("", shown(Path("run"))) == timed.sub("", shown(Path("whole")))


def test_packed_slices_have_a_page_too(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(Path(store.data.filename).parent, Path("packed") / slices.TRAINING_FOLDER)
    begin(Path("packed"), overrides={"steps": 2})
    assert "<dd>done, 2 steps</dd>" in shown(Path("run"))
    assert "Not validated" in shown(Path("run"))


def test_packed_slices_of_other_patients_do_not_resume_a_run(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("packed", "others"):
        shutil.copytree(Path(store.data.filename).parent, Path(folder) / slices.TRAINING_FOLDER)
    index = Path("others") / slices.TRAINING_FOLDER / slices.INDEX_FILE
    document = json.loads(index.read_text())
    index.write_text(json.dumps({**document, "cases": [f"{it}_2" for it in document["cases"]]}))
    begin(Path("packed"), overrides={"steps": 2})
    before = Path("run/weights.json").read_bytes()
    with pytest.raises(UsageError) as caught:
        train(resume="run", data="others", overrides={"steps": 4}, device="cpu")
    assert caught.value.code == "resumed-run-changed"
    assert Path("run/weights.json").read_bytes() == before


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_validation_is_one_line_with_the_best_the_copy_and_the_time_left():
    words = Words(3000, best=(800, 0.42), copy=0.31)
    assert words.validated(900, 0.41, 720.0) == (
        "step 900 of 3,000: in-brain SSIM on validation 0.410, best 0.420 at step 800; copy 0.310; 12 min left"
    )
    assert words.validated(1000, 0.43, None) == (
        "step 1,000 of 3,000: in-brain SSIM on validation 0.430, the best so far; copy 0.310"
    )


def test_the_time_left_follows_the_pace_since_the_last_checkpoint():
    now = [0.0]
    words = Words(100, clock=lambda: now[0])
    assert words.seconds_left(0) is None
    now[0] = 20.0
    assert words.seconds_left(10) == pytest.approx(180.0)
    words.mark(10)
    now[0] = 60.0
    assert words.seconds_left(20) == pytest.approx(320.0)


def test_phases_are_said_when_they_change_also_in_a_resumed_run():
    phases = [(0, "true pairs alone teach"), (540, "the adversary joins")]
    words = Words(600, phases)
    assert words.phase(0) == (
        "step 0: true pairs alone teach until step 540; then the adversary joins"
    )
    assert [words.phase(step) for step in (1, 539, 541)] == [""] * 3
    assert words.phase(540) == "step 540: the adversary joins"
    assert Words(600, phases, first=300).phase(300).startswith("step 300: true pairs alone teach")
    assert Words(600).phase(0) == ""


@pytest.mark.parametrize(
    ("method", "overrides", "expected"),
    [
        ("attcl-gan", {"coarse": 0.0, "supervised": 0.0}, []),
        (
            "attcl-gan",
            {"coarse": 0.0, "supervised": 0.9},
            [(0, "true pairs alone teach"), (90, "the adversary and the other losses join")],
        ),
        ("attcl-gan", {"image_size": 32, "coarse": 0.5, "supervised": 0.5}, [0, 50]),
        ("attcl-gan", {"image_size": 32, "coarse": 0.5, "supervised": 0.9}, [0, 50, 90]),
        ("plave", {"plave_pretraining": 0.4, "plave_supervised": 0.3}, [0, 40, 70]),
        (
            "plave",
            {"plave_pretraining": 0.1, "plave_coarse": 0.4, "plave_supervised": 0.6},
            [0, 10, 50, 70],
        ),
        ("unet", {}, []),
    ],
)
def test_methods_name_their_phases(method, overrides, expected):
    settings = small_settings(method, steps=100, **overrides)
    phases = phases_of(settings)
    begins = [item if isinstance(item, int) else item[0] for item in expected]
    assert [begin for begin, _ in phases] == begins
    if expected and not isinstance(expected[0], int):
        assert phases == expected


def test_a_copy_scores_as_its_middle_slices_do(store):
    score = make_validation(store, AnyOne(store.modalities), torch.device("cpu"))
    assert 0 < score(CopyOfSource(0, 4)) < 1
    image = torch.arange(6.0).reshape(1, 3, 1, 2)
    copied = CopyOfSource(1, 4).synthesise({"t1": image, "t2": -image}, ["flair"])
    assert torch.equal(copied["flair"], image[:, 1:2])

"""The study as Snakemake runs it: from simulated patients to tables, killed and run again, with a job that fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from plan import LOGGED, Study, read_study
from report import write_study
from results import collect

from attcl_cli.cli.terminal import show_error
from attcl_cli.errors import AttclError
from attcl_cli.scoring.feature_weights import FILES, locate

snakemake = pytest.importorskip("snakemake", reason="snakemake is not installed")

HERE = Path(__file__).resolve().parents[2] / "examples" / "study"
SLURM = HERE / "profiles" / "slurm"
SNAKEMAKE = [sys.executable, "-m", "snakemake", "-s", str(HERE / "Snakefile")]
# The smallest study that has every stage.
TINY = {
    "title": "A study of a minute",
    "output": "study",
    "datasets": {"phantom": {"simulate": 6, "voxel_mm": 8, "sizes": "3/1/2"}},
    "methods": {"attcl-gan": {"method": "attcl-gan", "title": "AttCL-GAN"}},
    "train": {
        "preset": "tiny",
        "steps": 2,
        "options": ["--set", "image_size=32", "--set", "canvas=32", "--set", "batch_size=2"],
    },
    "segment": {"preset": "tiny", "steps": 2},
    "metrics": ["ssim", "fid"],
    "fid_network": "effnet-lite0",
    "device": "cpu",
}

CELL = "phantom/ratio1/all/seed0"


def write(path: Path, study: dict) -> Path:
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def command(config: Path, *options: str) -> list[str]:
    return [*SNAKEMAKE, "--configfile", str(config), "--cores", "2", *options]


def run(config: Path, cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return quietly(command(config, *options), cwd)


def quietly(words: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command; what it writes to stderr is in stdout, too: a dry run of Snakemake has its messages there."""
    return subprocess.run(
        words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def results(folder: Path) -> dict[str, bytes]:
    """Return name -> bytes of all tables, the page and the text, but for the costs, which are times."""
    heading = "What each method takes"
    page = (folder / "study" / "study.html").read_text()
    page, costs = re.subn(rf"<section><h2>{heading}</h2>.*?</section>", "", page, flags=re.DOTALL)
    assert costs == 1
    text, costs, _ = (folder / "study" / "study.md").read_text().partition(f"### {heading}")
    assert costs
    tables = (folder / "study" / "tables").iterdir()
    return {
        "study.html": page.encode(),
        "study.md": text.encode(),
        **{path.name: path.read_bytes() for path in sorted(tables) if path.stem != "costs"},
    }


def kill_once(begun: Path, config: Path, cwd: Path) -> None:
    """Run a study, and kill it with all of its jobs as soon as a file is there."""
    started = time.monotonic()
    process = subprocess.Popen(
        command(config),
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not begun.exists() and process.poll() is None and time.monotonic() - started < 300:
        time.sleep(0.05)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    unlocked = run(config, cwd, "--unlock")
    assert unlocked.returncode == 0, unlocked.stdout


@pytest.mark.slow
def test_a_study_ends_with_tables_and_a_page_and_a_killed_one_with_the_same(tmp_path):
    config = write(tmp_path / "tiny.yaml", TINY)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()

    first = run(config, whole)
    assert first.returncode == 0, first.stdout
    found = results(whole)
    assert {*found} == {"study.html", "study.md"} | {
        f"{table}.{ending}"
        for ending in ("csv", "md", "tex")
        for table in (
            *("table-1-counts", "table-2-ssim", "table-2-fd-effnet"),
            *("directions-ssim", "directions-fd-effnet"),
            *("table-3-segmentation", "table-3-differences"),
            *("plave-table-1-ssim", "completed-ssim", "completed-differences"),
        )
    }
    for text in (found["study.html"].decode(), found["study.md"].decode()):
        assert (
            "SSIM of completed volumes in the brain, phantom, ratio1, training cases all: " in text
        )
        assert "the best of what needs no training" in text
        assert "9 of 9" in text
        assert "What is missing" not in text

    again = run(config, whole)
    assert "Nothing to be done" in again.stdout
    longer = write(tmp_path / "longer.yaml", TINY | {"train": TINY["train"] | {"steps": 3}})
    changed = run(longer, whole)
    assert changed.returncode == 1
    assert "train-attcl-gan.command: the job was run with '--steps 2', expected" in changed.stdout
    assert "'--steps 3' as the study says now" in " ".join(changed.stdout.split())
    (whole / "study/jobs" / CELL / "score-attcl-gan.done").unlink()  # its results are made anew
    assert re.search(r"^score +1$", run(config, whole, "-n").stdout, re.MULTILINE)

    cell = killed / "study" / CELL
    for begun in ("run/config.toml", "out/run.json", "segment/run.json"):
        kill_once(cell / "attcl-gan" / begun, config, killed)
    finished = run(config, killed)
    assert finished.returncode == 0, finished.stdout
    assert results(killed) == found


@pytest.mark.slow
def test_jobs_that_fail_leave_the_others_and_the_page_says_which_and_why(tmp_path, monkeypatch):
    """A method that crashes, and a network of FID that may not be downloaded."""
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    broken = {"method": "unet", "options": ["--modalities", "no-such.toml"]}
    study = {
        **TINY,
        "methods": {**TINY["methods"], "broken": broken},
        "segment": None,
        "fid_network": "inception",
        "offline": True,
    }
    study["methods"]["attcl-gan"] = {**TINY["methods"]["attcl-gan"], "directions": False}
    study["train"] = {**TINY["train"], "steps": 50}
    config = write(tmp_path / "broken.yaml", study)
    changes = ["output=changed", "train={steps: 2}"]
    outcome = run(config, tmp_path, "--config", *changes)
    assert outcome.returncode != 0
    assert "report.py" not in outcome.stdout  # no error of its own, beside those of the jobs
    # what the command line changed is what the page reads
    assert not (tmp_path / "study").exists()
    kept = yaml.safe_load((tmp_path / "changed" / "study.yaml").read_text())
    assert kept["train"] == TINY["train"]
    page = (tmp_path / "changed" / "study.html").read_text()
    assert "What is missing" in page
    assert "no-such.toml" in page
    assert "waits for train broken" in page
    assert "not downloaded (the run is offline)" in page
    assert "<dd>3 of 8</dd>" in page
    assert "Figure 3. Patients in rows, methods in columns" in page
    assert "AttCL-GAN" in (tmp_path / "changed/tables/plave-table-1-ssim.md").read_text()
    text = (tmp_path / "changed" / "study.md").read_text()
    assert f"| {CELL} | complete broken | waits for train broken |" in text


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("ATTCL_STUDY"), reason="takes many minutes: set ATTCL_STUDY=1 to run it"
)
def test_the_study_of_make_study_has_every_job_done_and_its_tables(tmp_path):
    """`phantom.yaml` from end to end, as it is but for coarser phantoms and two steps in place of sixty."""
    config = HERE / "phantom.yaml"
    changes = ["datasets={phantom: {voxel_mm: 8}}", "train={steps: 2}", "segment={steps: 2}"]
    outcome = run(config, tmp_path, "--config", *changes)
    assert outcome.returncode == 0, outcome.stdout
    study = yaml.safe_load(config.read_text())
    folder = tmp_path / study["output"]
    jobs = len(list(read_study(study).jobs()))
    assert f"<dd>{jobs} of {jobs}</dd>" in (folder / "study.html").read_text()
    assert f"{jobs} of {jobs}." in (folder / "study.md").read_text()
    assert {path.name for path in (folder / "tables").iterdir()} == {
        f"{table}.{ending}"
        for ending in ("csv", "md", "tex")
        for table in (
            *("table-1-counts", "table-2-fd-effnet", "table-2-ssim", "table-3-segmentation"),
            *("directions-fd-effnet", "directions-ssim"),
            *("table-3-differences", "section-5.5-small-data", "plave-table-1-ssim"),
            *("completed-ssim", "completed-differences", "costs"),
        )
    }
    assert "Nothing to be done" in run(config, tmp_path, "--config", *changes).stdout


def test_without_any_result_everything_is_named_as_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = write_study(read_study(TINY))
    assert missing == 9
    page = Path("study/study.html").read_text()
    assert "not run" in page
    assert "waits for splits" in page
    assert "their segmenters are missing" in page


# --- What is missing, and why -----------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    """Return a study whose patients are simulated, but of which nothing else was run."""
    monkeypatch.chdir(tmp_path)
    plan = read_study(TINY)
    end(plan.simulated("phantom"))
    return plan


def end(done: Path) -> Path:
    """Say that a job is done; return the file."""
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
    return done


def logged(study: Study, text: str, *job: str) -> str:
    """Write the log of a job of the cell; return why the job is missing."""
    log = study.log(study.done(CELL, *job))
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return why(study, *job)


def why(study: Study, stage: str, of: str = "") -> str:
    (found,) = [it for it in collect(study).missing if (it.stage, it.of) == (stage, of)]
    return found.reason


def run_logged(command: str, log: Path) -> int:
    """Run a job's shell as Snakemake does."""
    text = LOGGED.replace(":q}", "}").format(
        params=SimpleNamespace(command=command), log=shlex.quote(str(log))
    )
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; {text}"], check=False, capture_output=True
    ).returncode


def test_a_method_that_crashes_is_named_with_its_last_error(study):
    text = "error: first\nhint: x\nerror: steps: no memory\nhint: y\nexit status 1\n"
    assert logged(study, text, "splits") == "steps: no memory"


def test_a_missing_network_for_fid_is_named(study, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ATTCL_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for job in (("splits", ""), ("train", "attcl-gan"), ("complete", "attcl-gan")):
        end(study.done(CELL, *job))
    with pytest.raises(AttclError) as caught:
        locate(FILES["inception"], offline=True)
    show_error(caught.value)
    reason = logged(study, capsys.readouterr().err + "exit status 1\n", "score", "attcl-gan")
    assert FILES["inception"].name in reason
    assert "not downloaded (the run is offline)" in reason
    # what needs no network was scored all the same
    scores = study.folder(CELL, "score", "attcl-gan") / "scores.csv"
    scores.parent.mkdir(parents=True)
    scores.write_text(
        "case,source,modality,prediction,metric,region,value\nP,flair,t1,synthetic,ssim,whole,0.75\n"
    )
    figure = {"group": "all", "prediction": "synthetic", "region": "whole", "metric": "ssim"}
    summarised(scores, {**figure, "n": 1, "n_undefined": 0, "n_infinite": 0})
    write_study(study)
    page = Path("study/study.html").read_text()
    (row,) = re.findall(r"<td[^>]*>score attcl-gan</td>(.*?)</tr>", page, flags=re.DOTALL)
    assert "not downloaded (the run is offline)" in row
    assert "the metrics without a network have left is shown" in row
    assert "0.750" in Path("study/tables/plave-table-1-ssim.md").read_text()


@pytest.mark.parametrize(
    ("command", "status", "reason"),
    [
        ("echo step 7 >&2; kill -9 $BASHPID", 137, "killed by SIGKILL: out of memory, or stopped"),
        ("echo step 7 >&2; kill -15 $BASHPID", 143, "killed by SIGTERM; its last words: step 7"),
        ("echo step 7 >&2; exit 5", 5, "failed with exit status 5; its last words: step 7"),
        ("exit 5", 5, "failed with exit status 5, without a message: the disk may be full"),
    ],
)
def test_a_job_that_said_nothing_is_named_with_how_it_ended(study, command, status, reason):
    log = study.log(study.done(CELL, "splits"))
    log.parent.mkdir(parents=True)
    assert run_logged(command, log) == status
    assert why(study, "splits").startswith(reason)


def test_what_an_earlier_call_said_is_named_as_such(study):
    assert logged(study, "error: no memory\n", "splits") == "no memory"
    os.utime(study.log(study.done(CELL, "splits")), (1, 1))  # no clock is too coarse for that
    study.keep()  # the next call begins
    assert why(study, "splits") == "not tried again by the last call; before it: no memory"
    assert logged(study, "error: no memory\n", "splits") == "no memory"


def test_on_a_full_disk_a_job_fails_with_its_own_status_and_the_page_says_so(study):
    assert run_logged("echo error: x >&2; exit 4", Path("/dev/full")) == 4
    reason = logged(study, "", "splits")
    assert reason == "broken off, without a message: the disk may be full"


def test_splits_that_wait_for_their_simulated_patients_say_why(study):
    done = study.simulated("phantom")
    done.unlink()
    study.log(done).write_text("OSError: No space left on device\nexit status 1\n")
    assert why(study, "splits") == (
        "waits for simulated patients: failed with exit status 1; its last words: OSError: No space left on device"
    )
    assert why(study, "train", "attcl-gan") == "waits for splits"


def summarised(table: Path, *figures: dict[str, object]) -> None:
    table.with_name("summary.json").write_text(json.dumps({"scores": figures}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, r"done, but .*scores\.csv: not readable as CSV .*; remove .*score-attcl-gan.done"),
        (
            "case,metric\nP,ssim\n",
            r"done, but its results are not read \(KeyError\('prediction'\)\)",
        ),
        (
            "case,modality,region,metric,value,prediction\nP,t1,brain,ssim,0.5,synthetic\n",
            r"done, but .*scores\.csv: 1 rows of synthetic, brain, ssim, expected 3 as summary\.json has; remove .*",
        ),
    ],
    ids=["gone", "damaged", "cut off"],
)
def test_results_that_are_damaged_or_gone_are_named_and_cost_no_other_its_place(
    study, text, reason
):
    end(study.done(CELL, "score", "attcl-gan"))
    if text is not None:
        path = study.folder(CELL, "score", "attcl-gan") / "scores.csv"
        path.parent.mkdir(parents=True)
        path.write_text(text)
        figure = {"group": "all", "prediction": "synthetic", "region": "brain", "metric": "ssim"}
        summarised(path, {**figure, "n": 1, "n_undefined": 1, "n_infinite": 1})
    end(study.done(CELL, "reference", "real"))
    path = study.folder(CELL, "reference", "real") / "segment.csv"
    path.parent.mkdir(parents=True)
    path.write_text("case,region,metric,value,input\nP,WT,dice,0.5,real\n")
    summarised(path, {"input": "real", "region": "WT", "metric": "dice", "n": 1, "n_undefined": 0})
    results = collect(study)
    (found,) = [it for it in results.missing if (it.stage, it.of) == ("score", "attcl-gan")]
    assert re.match(reason, found.reason)
    assert results.cases == {(CELL, "real", "WT", "dice"): {"P": 0.5}}
    assert write_study(study) == 8


def test_a_distance_of_sets_has_no_rows_and_is_no_damage(study):
    end(study.done(CELL, "score", "attcl-gan"))
    path = study.folder(CELL, "score", "attcl-gan") / "scores.csv"
    path.parent.mkdir(parents=True)
    path.write_text(
        "case,modality,region,metric,value,prediction\nP,t1,slices,lpips,0.5,synthetic\n"
    )
    figure = {"group": "all", "prediction": "synthetic", "region": "slices"}
    counts = {"n_undefined": 0, "n_infinite": 0}
    lpips = {**figure, **counts, "metric": "lpips", "n": 1}
    summarised(path, lpips, {**figure, **counts, "metric": "fd-effnet", "n": 46})
    assert "score" not in {it.stage for it in collect(study).missing}
    summarised(path, {**lpips, "n": 2})
    assert "1 rows of synthetic, slices, lpips, expected 2" in why(study, "score", "attcl-gan")


def test_of_many_missing_jobs_the_page_says_how_many_it_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = write_study(read_study({**TINY, "seeds": [*range(30)]}))
    assert missing == 30 * 9
    assert "The first 200 of 270." in Path("study/study.html").read_text()


def test_the_study_of_make_study_plans_every_job(tmp_path):
    makefile = (HERE.parents[1] / "Makefile").read_text()
    assert "--configfile examples/study/phantom.yaml --cores all" in makefile
    outcome = run(HERE / "phantom.yaml", tmp_path, "-n")
    assert outcome.returncode == 0, outcome.stdout
    jobs = list(read_study(yaml.safe_load((HERE / "phantom.yaml").read_text())).jobs())
    assert len(jobs) == 2 * (1 + 3 + 3 * 5)
    assert f"total {len(jobs) + 3}" in " ".join(outcome.stdout.split())
    assert not (tmp_path / "study-phantom").exists()


def test_the_study_of_the_papers_plans_on_a_folder_of_243_patients(tmp_path, names_alone):
    study = yaml.safe_load((HERE / "paper.yaml").read_text())
    names_alone(tmp_path / "BRATS2021", 243)
    config = write(tmp_path / "paper.yaml", study)
    outcome = run(config, tmp_path, "-n")
    assert outcome.returncode == 0, outcome.stdout
    jobs = list(read_study(study).jobs())
    assert len(jobs) == 18 * (
        1 + 3 + 23 * 5 - 11
    )  # those of Table 4 and Figure 4 alone: no directions
    assert f"total {len(jobs) + 2}" in " ".join(outcome.stdout.split())


def test_the_short_study_of_the_guide_plans_with_its_minutes_and_steps(tmp_path, names_alone):
    guide = (HERE.parents[1] / "docs" / "guides" / "study.md").read_text()
    (line,) = re.findall(r"^snakemake .*cohort\.yaml.*$", guide, flags=re.MULTILINE)
    words = [word.replace("examples/study", str(HERE)) for word in shlex.split(line)[1:]]
    names_alone(tmp_path / "COHORT", 20)
    shown = ["-n", "-p", "--quiet", "host"]
    outcome = quietly([sys.executable, "-m", "snakemake", *words, *shown], tmp_path)
    assert outcome.returncode == 0, outcome.stdout
    assert "total 31" in " ".join(outcome.stdout.split())  # one scenario of five methods
    commands = re.findall(r"-m attcl_cli [^;]*", outcome.stdout)
    assert sum(" --preset small --minutes 10 " in command for command in commands) == 5
    assert sum(" --preset small --steps 300 " in command for command in commands) == 5 + 3
    assert "-o study-short/cohort/ratio1/all/seed0/data" in outcome.stdout
    assert not (tmp_path / "study-short").exists()


def test_names_with_spaces_and_signs_run_like_others(tmp_path):
    (tmp_path / "hide-t1+t2.toml").write_text('hidden = [["t1"], ["t2"]]')
    study = {**TINY, "output": "a study", "ratios": ["hide-t1+t2.toml"], "subsets": ["1"]}
    config = write(tmp_path / "tiny.yaml", study)
    outcome = run(config, tmp_path, "--until", "splits")
    assert outcome.returncode == 0, outcome.stdout
    assert (tmp_path / "a study/phantom/hide-t1+t2/all/seed0/data/splits.json").is_file()


@pytest.mark.slow
def test_another_title_makes_the_page_anew_and_so_does_a_study_without_the_method_that_failed(
    tmp_path,
):
    study = {**TINY, "output": "study", "segment": None, "metrics": ["ssim"]}
    wrong = {"method": "plave", "options": ["--set", "plave_target=pd"]}  # found by training alone
    config = write(tmp_path / "tiny.yaml", {**study, "methods": {**TINY["methods"], "p": wrong}})
    assert run(config, tmp_path, "--keep-going").returncode == 1
    page, text = tmp_path / "study/study.html", tmp_path / "study/study.md"
    assert "expected one of flair" in text.read_text()
    write(config, study)
    assert run(config, tmp_path).returncode == 0
    assert "waits for train p" not in text.read_text() and "A study of a minute" in page.read_text()
    assert "Nothing to be done" in run(config, tmp_path).stdout
    write(config, {**study, "title": "Another question"})
    assert run(config, tmp_path).returncode == 0
    assert "Another question" in page.read_text() and "Another question" in text.read_text()


def test_a_missing_dataset_ends_the_plan_with_its_name(tmp_path):
    shutil.copy(HERE / "cohort.yaml", tmp_path)
    outcome = run(tmp_path / "cohort.yaml", tmp_path, "-n")
    assert outcome.returncode == 1
    assert "datasets: cohort: COHORT, no such folder" in outcome.stdout
    assert "Traceback" not in outcome.stdout


def test_snakemake_without_a_study_says_how_to_name_one(tmp_path):
    outcome = quietly([*SNAKEMAKE, "-n"], tmp_path)
    assert outcome.returncode == 1
    assert "no study: add --configfile" in outcome.stdout


def test_the_slurm_profile_passes_the_plugin_s_own_checks(tmp_path, names_alone):
    plugin = pytest.importorskip(
        "snakemake_executor_plugin_slurm", reason="the plugin for Slurm is not installed"
    )
    from snakemake_executor_plugin_slurm import utils, validation

    profile = yaml.safe_load((SLURM / "config.yaml").read_text())
    assert profile["executor"] == "slurm"
    settings = {
        key.removeprefix("slurm-").replace("-", "_"): value
        for key, value in profile.items()
        if key.startswith("slurm-")
    }
    validation.validate_executor_settings(plugin.ExecutorSettings(**settings))
    needs = read_study(yaml.safe_load((HERE / "paper.yaml").read_text())).needs("train")
    resources = _Resources(
        profile["default-resources"] | {"gpu": needs.gpu, "mem_mb": needs.mem_mb}
    )
    job = SimpleNamespace(resources=resources, threads=needs.threads)
    validation.validate_slurm_extra(job)
    assert utils.set_gres_string(job).strip() == "--gpus=1"
    names_alone(tmp_path / "BRATS2021", 243)
    outcome = run(
        HERE / "paper.yaml", tmp_path, "-n", "--workflow-profile", str(SLURM), "--quiet", "all"
    )
    assert outcome.returncode == 0, outcome.stdout


class _Resources(dict):
    """Resources of a job as Snakemake hands them to a plugin: keys, and attributes."""

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

"""`attcl score`: every hidden truth is compared, by the right numbers, and nothing that is missing goes unsaid."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers import alexnet_state
from skimage.metrics import structural_similarity

from attcl_cli.data import volumes
from attcl_cli.data.dataset import open_dataset
from attcl_cli.data.splits import read_splits
from attcl_cli.scoring import feature_networks, feature_store, feature_weights, metrics, pairs
from attcl_cli.scoring import rows as score

REPOSITORY = Path(__file__).resolve().parents[2]
HIDDEN = {  # what conftest's incomplete_root lacks
    ("Phantom_00000", "t2"),
    ("Phantom_00001", "t1"),
    ("Phantom_00001", "t1ce"),
    ("Phantom_00003", "t2"),
}


@pytest.fixture
def folders(incomplete_root, phantom_root, tmp_path, monkeypatch) -> SimpleNamespace:
    """A dataset with holes, its truth, and a completed folder that holds the truth itself."""
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    for case, modality in HIDDEN:
        file = Path(case) / f"{case}_{modality}.nii.gz"
        (out / case).mkdir(parents=True, exist_ok=True)
        shutil.copy(phantom_root / file, out / file)
    return SimpleNamespace(
        ori=incomplete_root, truth=phantom_root, cpl=out, scores=tmp_path / "scores"
    )


@pytest.fixture
def scored(attcl, folders):
    """`scored("--ssim")` runs the command and is (code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        places = ["--ori", folders.ori, "--cpl", folders.cpl, "--truth", folders.truth]
        return attcl("score", *places, "-o", folders.scores, "-d", "cpu", *arguments)

    return run


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "scores.csv").open() as stream:
        return list(csv.DictReader(stream))


def figures_of(folder: Path) -> dict[tuple[str, str, str, str], dict[str, object]]:
    """(group, prediction, metric, region) -> figure."""
    document = json.loads((folder / "summary.json").read_text())
    return {
        tuple(item[key] for key in ("group", "prediction", "metric", "region")): item
        for item in document["scores"]
    }


def spoil(file: Path, change) -> None:
    """Replaces a volume's numbers by `change(numbers)`."""
    image = nib.load(file)
    data = change(np.asarray(image.dataobj).astype(np.float32))
    nib.save(nib.Nifti1Image(data.astype(np.int16), image.affine, image.header), file)


def first_made(folders: SimpleNamespace) -> Path:
    return folders.cpl / "Phantom_00000" / "Phantom_00000_t2.nii.gz"


def test_the_truth_scores_perfectly_against_itself(scored, folders):
    code, out, err = scored("--ssim", "--psnr", "--nmse")
    assert code == 0, err
    synthetic = [row for row in rows_of(folders.scores) if row["prediction"] == "synthetic"]
    assert {(row["case"], row["modality"]) for row in synthetic} == HIDDEN
    for row in synthetic:
        wanted = {"ssim": 1.0, "psnr": math.inf, "nmse": 0.0, "ssim-brasyn": 1.0}[row["metric"]]
        # without tumour tissue in a phantom's mask there would be no value; every phantom has some
        assert float(row["value"]) == pytest.approx(wanted, abs=1e-6)
    figures = figures_of(folders.scores)
    psnr = figures["all", "synthetic", "psnr", "brain"]
    assert (psnr["mean"], psnr["n"], psnr["n_infinite"], psnr["unit"]) == (None, 0, 4, "dB")
    assert figures["all", "synthetic", "ssim", "tumour"]["mean"] == pytest.approx(1)
    assert "inf" in out


def test_the_image_scores_are_those_of_other_tools(scored, folders):
    spoil(first_made(folders), lambda data: np.where(data > 0, data * 0.5 + 60, 0) ** 1.1)
    assert scored("--ssim", "--psnr", "--nmse")[0] == 0
    name = "Phantom_00000/Phantom_00000_t2.nii.gz"
    truth, made = (
        np.asarray(nib.load(root / name).dataobj).astype(np.float64)
        for root in (folders.truth, folders.cpl)
    )
    brain = truth != 0

    def unit(image):
        low, high = np.percentile(image[brain], [0.5, 99.5])
        return np.where(brain, np.clip((image - low) / (high - low), 0, 1), 0)

    x, y = unit(made), unit(truth)
    _, similarity = structural_similarity(
        x, y, data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True
    )
    segmentation = nib.load(folders.truth / "Phantom_00000" / "Phantom_00000_seg.nii.gz")
    masks = {
        "brain": brain,
        "whole": np.ones_like(brain),
        "tumour": np.asarray(segmentation.dataobj) > 0,
    }
    found = {
        (row["metric"], row["region"]): float(row["value"])
        for row in rows_of(folders.scores)
        if (row["case"], row["prediction"]) == ("Phantom_00000", "synthetic")
    }
    for region, mask in masks.items():
        error = ((x - y)[mask] ** 2).mean()
        assert found["ssim", region] == pytest.approx(similarity[mask].mean(), abs=1e-5)
        assert found["psnr", region] == pytest.approx(10 * np.log10(1 / error), abs=1e-3)
        if region != "whole":  # the same figure as in the brain: nothing is added outside
            energy = (y[mask] ** 2).sum()
            assert found["nmse", region] == pytest.approx(
                ((x - y)[mask] ** 2).sum() / energy, rel=1e-4
            )


def test_a_missing_volume_is_an_error_unless_it_may_be_counted(scored, folders):
    first_made(folders).unlink()
    code, out, err = scored("--ssim")
    assert (code, out) == (1, "")
    assert "t2 of Phantom_00000 was not completed, expected" in err and "--allow-missing" in err
    assert not folders.scores.exists()

    code, _, err = scored("--ssim", "--allow-missing")
    assert code == 3
    assert "1 of 4 hidden volumes not there, counted" in err
    figures = figures_of(folders.scores)
    assert figures["t2", "synthetic", "ssim", "brain"]["n_missing"] == 1
    assert figures["t2", "synthetic", "ssim", "brain"]["n"] == 1
    assert figures["all", "synthetic", "ssim", "brain"]["n_missing"] == 1
    document = json.loads((folders.scores / "summary.json").read_text())
    assert document["missing"] == [{"case": "Phantom_00000", "modality": "t2"}]
    assert json.loads((folders.scores / "run.json").read_text())["status"] == "done"


def test_all_missing_volumes_are_counted_too(scored, folders):
    for file in folders.cpl.rglob("*.nii.gz"):
        file.unlink()
    code, _, err = scored("--allow-missing", "--ssim")
    assert code == 3
    assert "4 of 4 hidden volumes not there" in err
    figure = figures_of(folders.scores)["t1ce", "synthetic", "ssim", "brain"]
    assert (figure["mean"], figure["n"], figure["n_missing"]) == (None, 0, 1)
    page = (folders.scores / "report.html").read_text()
    assert "t1ce of Phantom_00001" in page


def test_a_volume_of_another_shape_is_named(scored, folders):
    file = first_made(folders)
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), file)
    code, _, err = scored()
    assert code == 1
    assert str(file) in err and "39x40x26 against 40x40x26" in err


def test_a_segmentation_of_another_shape_is_named(scored, folders, tmp_path):
    truth = tmp_path / "truth"
    shutil.copytree(folders.truth, truth)
    file = truth / "Phantom_00000" / "Phantom_00000_seg.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[:-1], image.affine), file)
    code, _, err = scored("--truth", truth)
    assert code == 1
    assert str(file) in err


def test_without_a_tumour_its_scores_are_undefined_and_counted(scored, folders, tmp_path):
    truth = tmp_path / "truth"
    shutil.copytree(folders.truth, truth)
    spoil(truth / "Phantom_00000" / "Phantom_00000_seg.nii.gz", np.zeros_like)
    (truth / "Phantom_00003" / "Phantom_00003_seg.nii.gz").unlink()
    assert scored("--truth", truth, "--ssim")[0] == 0
    figure = figures_of(folders.scores)["t2", "synthetic", "ssim", "tumour"]
    assert (figure["mean"], figure["n"], figure["n_undefined"]) == (None, 0, 1)
    empty = [row for row in rows_of(folders.scores) if row["value"] == ""]
    assert {row["case"] for row in empty} == {"Phantom_00000"}
    assert {row["region"] for row in empty} == {"tumour"}


def test_baselines_stand_beside_the_method(scored, folders):
    assert scored("--ssim")[0] == 0
    predictions = {row["prediction"] for row in rows_of(folders.scores) if row["metric"] == "ssim"}
    assert predictions == {"synthetic", "copy", "mean", "zeros"}
    figures = figures_of(folders.scores)
    assert figures["all", "zeros", "ssim", "brain"]["mean"] < 0.05
    # the case without t2 has three sources, so their mean is no copy of one
    assert (
        figures["t2", "mean", "ssim", "brain"]["mean"]
        != figures["t2", "copy", "ssim", "brain"]["mean"]
    )
    spread = figures["t2", "copy", "ssim", "brain"]
    values = [
        float(row["value"])
        for row in rows_of(folders.scores)
        if (row["modality"], row["metric"], row["region"], row["prediction"])
        == ("t2", "ssim", "brain", "copy")
    ]
    assert spread["sd"] == pytest.approx(np.std(values, ddof=1))
    assert figures["t1", "copy", "ssim", "brain"]["sd"] is None  # of one volume


def test_the_label_says_which_source_a_copy_is_made_of(scored, folders):
    label = folders.cpl / "Phantom_00001" / "Phantom_00001_t1.json"
    label.write_text(json.dumps({"source": {"modality": "t2"}}))
    assert scored("--ssim")[0] == 0
    sources = {(row["case"], row["modality"]): row["source"] for row in rows_of(folders.scores)}
    assert sources["Phantom_00001", "t1"] == "t2"
    assert sources["Phantom_00001", "t1ce"] == "flair"  # the first of the modalities by frequency


def test_a_damaged_label_counts_as_none(scored, folders):
    label = folders.cpl / "Phantom_00001" / "Phantom_00001_t1.json"
    label.write_text('{"source": {"modality": "t2"')
    code, _, err = scored("--ssim")
    assert code == 0, err
    sources = {(row["case"], row["modality"]): row["source"] for row in rows_of(folders.scores)}
    assert sources["Phantom_00001", "t1"] == "flair"


def test_splits_choose_the_cases_and_name_the_truth(attcl, phantom_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attcl("prepare-splits", phantom_root, "--sizes", "3/0/1")[0] == 0
    made = read_splits(tmp_path / "data")
    for split in ("train", "test"):
        for item in made.splits[split]:
            for name in item.hidden:
                file = Path(item.case) / f"{item.case}_{name}.nii.gz"
                (tmp_path / "out" / item.case).mkdir(parents=True, exist_ok=True)
                shutil.copy(phantom_root / file, tmp_path / "out" / file)
    assert attcl("score", "-q")[0] == 0
    assert {row["case"] for row in rows_of(tmp_path / "scores")} == set(made.names("test"))
    assert attcl("score", "-q", "--split", "all", "-o", "everything")[0] == 0
    assert len({(row["case"], row["modality"]) for row in rows_of(tmp_path / "everything")}) == 8
    code, _, err = attcl("score", "--split", "val")
    assert code == 1 and "nothing is hidden in the val split" in err
    code, _, err = attcl("score", "--split", "tset")
    assert code == 2 and "'tset'" in err
    code, _, err = attcl("score", "--cpl", "nowhere")
    assert code == 1 and "nowhere: no such folder, expected the completed volumes" in err


def test_the_wrong_places_are_refused(attcl, scored, folders, tmp_path):
    code, _, err = attcl("score", "--ori", folders.ori, "--cpl", folders.cpl)
    assert code == 2 and "--truth" in err and "splits.json" in err
    code, _, err = scored("-o", folders.ori / "scores")
    assert code == 2 and "--output" in err
    code, _, err = scored("--truth", tmp_path / "nowhere")
    assert code == 1 and "nowhere: no such folder" in err
    code, _, err = scored("--truth", folders.ori)
    assert code == 2 and "is the incomplete dataset itself" in err
    other = tmp_path / "other"
    shutil.copytree(folders.truth / "Phantom_00000", other / "Someone")
    for file in (other / "Someone").iterdir():
        file.rename(file.with_name(file.name.replace("Phantom_00000", "Someone")))
    code, _, err = scored("--truth", other)
    assert code == 2 and "holds none of the 4 cases" in err
    code, _, err = scored("--split", "val")
    assert code == 2 and "no splits.json says which cases these are" in err


def test_a_damaged_volume_is_to_be_made_again(scored, folders):
    file = first_made(folders)
    file.write_bytes(file.read_bytes()[:2000])
    code, _, err = scored()
    assert code == 1
    assert str(file) in err and "remove this file and run attcl complete again" in err


def test_a_second_run_says_what_it_replaces(scored, folders):
    assert scored("--psnr")[0] == 0
    _, _, err = scored("--nmse")
    assert "scores of an earlier run are replaced (psnr)" in err


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


# --- feature networks ---


@pytest.fixture(scope="module")
def effnet():
    return feature_networks.load_network("effnet-lite0")


class Counting:
    """The real network, which notes how many slices it was shown."""

    def __init__(self, network):
        self.network, self.seen = network, 0
        self.name, self.sha256, self.dim = network.name, network.sha256, network.dim

    def __call__(self, slices):
        self.seen += len(slices)
        return self.network(slices)


def plan_of(folders: SimpleNamespace) -> pairs.Plan:
    return pairs.plan(open_dataset(folders.ori), open_dataset(folders.truth), folders.cpl, None)


def distances_of(folders, tmp_path, network, name: str, *, batch_size: int = 32, cache=None):
    measures = score.Measures(
        ("fd-effnet", "kd-effnet"), embed=network, batch_size=batch_size, cache=cache
    )
    folder = tmp_path / name
    folder.mkdir()
    plan = plan_of(folders)
    rows = [row for found in score.run(plan, measures, folder=folder) for row in found]
    assert rows == []  # a distance of sets is no score of a volume
    return {
        (item.group, item.metric): item
        for item in score.summarise(rows, plan, measures, folder=folder)
    }


def test_distances_of_sets_are_zero_for_the_truth_and_do_not_depend_on_batches(
    folders, tmp_path, effnet
):
    spoiled = first_made(folders)
    network = Counting(effnet)
    cache = tmp_path / "cache"
    same = distances_of(folders, tmp_path, network, "same", cache=cache)
    first_seen = network.seen
    assert same["all", "fd-effnet"].mean == pytest.approx(0, abs=1e-6)
    assert same["all", "fd-effnet"].n == first_seen / 2
    assert math.isnan(same["all", "fd-effnet"].sd)
    assert same["t2", "fd-effnet"].network == "effnet-lite0"

    rng = np.random.default_rng(0)
    spoil(
        spoiled,
        lambda data: np.where(data > 0, rng.permutation(data.ravel()).reshape(data.shape), 0),
    )
    one = distances_of(folders, tmp_path, network, "one", cache=cache)
    # only generated slices were shown: the real ones come from the cache
    assert network.seen - first_seen == first_seen / 2
    assert one["t2", "fd-effnet"].mean > 1
    vectors = [
        np.concatenate([np.load(path) for path in sorted(folder.glob("*.npy"))])
        for folder in (cache, tmp_path / "one")
    ]
    kernel = metrics.kernel_distance(*vectors)
    assert one["all", "kd-effnet"].mean == pytest.approx(kernel, rel=1e-4)
    assert one["all", "kd-effnet"].mean != pytest.approx(one["all", "fd-effnet"].mean, rel=0.1)
    assert one["t1", "fd-effnet"].mean == pytest.approx(0, abs=1e-6)
    other = distances_of(folders, tmp_path, network, "other", batch_size=5)
    for key, figure in one.items():
        assert other[key].mean == pytest.approx(figure.mean, rel=1e-3, abs=1e-4), key


def test_the_network_sees_what_a_png_of_the_real_volumes_window_would_hold(folders, effnet):
    job = next(job for job in plan_of(folders).jobs if job.case == "Phantom_00000")
    _, (shown,) = score.compare(job)
    indices = feature_store.shown_slices(shown.brain)
    depth = len(shown.brain)
    assert indices.min() >= round(0.2 * depth) and indices.max() < round(125 / 155 * depth)
    grey = feature_store.grey(shown.raw, shown.scale, shown.brain, indices)
    assert grey.dtype == np.uint8 and (grey.min(), grey.max()) == (0, 255)
    truth = volumes.load(job.targets[0].truth).data
    low, high = np.percentile(truth[truth != 0], [0.5, 99.5])
    np.testing.assert_array_equal(
        grey,
        np.rint(np.clip((truth[indices] - low) / (high - low), 0, 1) * (truth[indices] != 0) * 255),
    )


@pytest.fixture
def alexnet(tmp_path, monkeypatch) -> Path:
    """A stand-in for LPIPS' backbone, of random weights, where a user's own would lie."""
    record = feature_weights.FILES["alexnet"]
    folder = tmp_path / "networks"
    folder.mkdir()
    path = folder / record.name
    torch.save(alexnet_state(), path)
    content = path.read_bytes()
    stand_in = feature_weights.FeatureFile(
        record.name, record.url, len(content), hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(feature_weights.FILES, "alexnet", stand_in)
    monkeypatch.setenv("ATTCL_WEIGHTS", str(folder))
    return path


def test_lpips_is_the_mean_over_slices_of_the_packages(alexnet, scored, folders):
    spoil(first_made(folders), lambda data: np.where(data > 0, data * 0.5 + 60, 0))
    code, _, err = scored("--lpips", "--offline")
    assert code == 0, err
    found = {(row["case"], row["modality"]): float(row["value"]) for row in rows_of(folders.scores)}
    assert set(found) == HIDDEN
    job = next(job for job in plan_of(folders).jobs if job.case == "Phantom_00000")
    _, (shown,) = score.compare(job)
    indices = feature_store.shown_slices(shown.brain)
    slices = [
        torch.from_numpy(
            feature_store.grey(image, shown.scale, shown.brain, indices).astype(np.float32) / 255
        )[:, None]
        for image in (shown.raw, shown.raw_truth)
    ]
    expected = feature_networks.load_perceptual(offline=True).distance(*slices).mean()
    assert found["Phantom_00000", "t2"] == pytest.approx(float(expected), rel=1e-4)
    assert found["Phantom_00001", "t1"] == 0
    figure = figures_of(folders.scores)["all", "synthetic", "lpips", "slices"]
    assert figure["network"] == "lpips-alex" and not figure["higher_is_better"]
    assert figure["network_sha256"] == hashlib.sha256(alexnet.read_bytes()).hexdigest()


def test_diversity_is_a_metric_of_its_own(alexnet, scored, folders, trained_run):
    code, _, err = scored("--lpips-diversity", "--samples", 3, "-w", trained_run)
    assert code == 0, err
    figures = figures_of(folders.scores)
    diversity = figures["all", "synthetic", "lpips-diversity", "slices"]
    assert diversity["higher_is_better"] and diversity["mean"] > 0 and diversity["n"] == 4
    assert not any(metric == "lpips" for _, _, metric, _ in figures)


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


# --- directions ---


def test_directions_translate_every_real_volume_into_every_other(scored, folders, trained_run):
    shutil.rmtree(folders.cpl)  # nothing completed is read
    code, out, err = scored("--directions", "-w", trained_run, "--ssim")
    assert code == 0, err
    rows = [row for row in rows_of(folders.scores) if row["prediction"] == "synthetic"]
    assert len({(row["case"], row["source"], row["modality"]) for row in rows}) == 4 * 12
    assert "flair->t1ce" in out
    record = json.loads((folders.scores / "run.json").read_text())
    assert record["weights"]["sha256"]


def test_a_direction_scores_what_complete_writes(attcl, scored, folders, trained_run):
    shutil.rmtree(folders.cpl)
    assert (
        attcl("complete", "--ori", folders.ori, "--cpl", folders.cpl, "-w", trained_run, "-q")[0]
        == 0
    )
    key = ("Phantom_00000", "flair", "t2", "brain", "ssim", "synthetic")

    def value() -> float:
        names = ("case", "source", "modality", "region", "metric", "prediction")
        return next(
            float(row["value"])
            for row in rows_of(folders.scores)
            if tuple(row[name] for name in names) == key
        )

    assert scored("--ssim")[0] == 0
    written = value()
    assert scored("--directions", "-w", trained_run, "--ssim")[0] == 0
    # Rounded to integers on disk, and its brain made of all modalities that are there.
    assert value() == pytest.approx(written, abs=0.02)


def test_a_case_that_the_splits_list_is_never_left_out(attcl, phantom_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert attcl("prepare-splits", phantom_root, "--sizes", "3/0/1")[0] == 0
    lost = read_splits(tmp_path / "data").names("test")[0]
    shutil.rmtree(tmp_path / "data" / lost)
    (tmp_path / "out").mkdir()
    code, _, err = attcl("score")
    assert code == 1 and f"data: no case {lost}" in err

"""The benchmarks run, at their smallest size, and print the figures that they promise."""

from __future__ import annotations

import re

import pytest
from helpers import REPOSITORY, fresh_python


def shares_in(line: str) -> dict[str, float]:
    """Return the shares that a line lists, in per cent."""
    return {name: float(part) for name, part in re.findall(r"(\w+) (\d+\.\d)%", line)}


def rounded(printed: str) -> tuple[float, float]:
    """Return the least and the greatest number that rounds to what is printed; a count is exact."""
    digits = printed.partition(".")[2]
    half = 0.5 * 10 ** -len(digits) if digits else 0.0
    return float(printed) - half, float(printed) + half


def may_be_ratio(printed: str, above: str, below: str, scale: float = 1) -> bool:
    """Return whether a ratio agrees with the figures beside it, however few digits each has."""
    ratio, above_range, below_range = rounded(printed), rounded(above), rounded(below)
    low = scale * above_range[0] / below_range[1]
    high = scale * above_range[1] / max(below_range[0], 1e-9)
    return ratio[0] <= high and low <= ratio[1]


@pytest.mark.slow
def test_the_benchmark_of_completion_prints_its_ratios():
    options = (
        "--preset tiny --cases 3 --voxel-mm 6 --slices 8:16 --literal-slices 6 --device cpu "
        "--memory-cases 2 6 --memory-voxel-mm 8 --turns 1"
    )
    output = fresh_python("benchmarks/complete.py", *options.split())
    rows = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in output.splitlines()[1:])
    assert rows["ours"].endswith("s for 6 volumes")
    # 3 cases have 2 modalities of 8 slices each; all 4 modalities are made of each
    assert "extrapolated from 6 of 48 source slices" in rows["Algorithm 1 to the letter"]
    assert 0 < float(rows["of that not in the network"].rstrip("%")) < 100
    parts = shares_in(rows["shares, which overlap"])
    assert list(parts) == ["network", "decode", "encode", "copy", "wait"]
    assert parts.pop("copy") < 10  # on a CPU there is nothing to copy
    assert all(0 < part < 100 for part in parts.values())
    assert parts["network"] + parts["wait"] <= 100.1  # never at the same time; each is rounded
    assert float(rows["Algorithm 1 / ours"]) > 1
    assert 0.8 < float(rows["memory 6 / 2 cases"]) < 1.25
    for figure in ("seconds", "peak"):
        ratio, where = rows[f"freed memory given back / kept: {figure}"].split(" ", 1)
        assert float(ratio) > 0
        assert where == "(8 mm, preset tiny, CPU)"


@pytest.mark.slow
def test_the_benchmark_of_scores_finds_the_figures_of_the_other_tools():
    output = fresh_python("benchmarks/score.py", "--cases", 1, "--voxel-mm", 4, "--without-fid")
    *lines, last = output.splitlines()[2:]
    rows = [re.split(r"  +", line.strip()) for line in lines]
    assert len(rows) == 3
    assert re.match(r"from files: \d+\.\d\d s for 1 volumes on cpu: ", last)
    parts = shares_in(last)
    assert list(parts) == ["network", "decode", "encode", "metrics", "wait"]
    assert all(0 < part < 100 for part in parts.values())
    for _name, _theirs, _ours, ratio, *figures in rows:
        assert float(ratio) > 0
        assert float(figures[0]) == pytest.approx(float(figures[1]), rel=1e-4)


@pytest.mark.slow
def test_the_benchmark_of_slices_shows_that_memory_does_not_grow():
    options = ("--cases", 2, 8, "--large-cases", 4, 24)
    output = fresh_python("benchmarks/slices.py", *options)
    rows = [re.split(r"  +", line.strip()) for line in output.splitlines()[1:]]
    assert [row[:3] for row in rows] == [
        ["32", "2", "112"],
        ["32", "8", "448"],
        ["256", "4", "224"],
        ["256", "24", "1344"],
    ]
    peaks = [float(row[4].removesuffix(" MB")) for row in rows]
    assert peaks[3] - peaks[2] < 40  # 157 MB more on disk


@pytest.mark.slow
def test_the_benchmark_of_plave_prints_its_table_and_resumes(tmp_path):
    options = (
        "--cases 4 --test-cases 4 --voxel-mm 6 --image-size 32 --device cpu --batch-size 2 "
        "--set plave_pretraining=0.25 --set plave_blocks=1"
    )
    for steps in (2, 4):
        place = ("--steps", steps, "--output", tmp_path / "bench")
        output = fresh_python("benchmarks/plave.py", *options.split(), *place)
        lines = output.splitlines()
        for name in ("attcl-gan", "plave", "mean of sources"):
            rows = [re.split(r"  +", line) for line in lines if line.startswith(f"{name}  ")]
            assert [len(row) for row in rows] == [5, 5]  # SSIM and PSNR, four targets
        assert any(line.startswith(f"plave: {steps} steps") for line in lines)
        assert re.search(r"segmentation head, Dice .*WT \d\.\d+, TC \d\.\d+, ET \d\.\d+", output)


@pytest.mark.slow
def test_the_benchmark_of_training_prints_its_ratio():
    options = "--preset tiny --image-size 16 --batch-size 2 --repeats 1 --device cpu"
    output = fresh_python("benchmarks/train.py", *options.split())
    seconds = dict(re.findall(r"^(\w[\w, -]+\w) +(\d+\.\d+) s per step", output, re.MULTILINE))
    assert set(seconds) == {"plain StarGAN v2", "ours, StarGAN v2", "ours, AttCL-GAN"}
    (printed_ratio,) = re.findall(
        r"^plain / ours, StarGAN v2: (\d+\.\d+) times", output, re.MULTILINE
    )
    assert may_be_ratio(printed_ratio, seconds["plain StarGAN v2"], seconds["ours, StarGAN v2"])


@pytest.mark.slow
def test_the_benchmark_of_a_small_step_prints_a_ratio_per_part():
    output = fresh_python("benchmarks/small_step.py", "--repeats", "1")
    parts = re.findall(
        r"^(\w[\w, ]+\w) +plain (\d+\.\d+) s, ours (\d+\.\d+) s: (\d+\.\d+) times",
        output,
        re.MULTILINE,
    )
    assert [name for name, *_ in parts] == [
        "norms, forward and backward",
        "orthogonal kernels",
        "10 coarse steps beside drawing",
    ]
    for _, plain, ours, ratio in parts:
        assert may_be_ratio(ratio, plain, ours)


@pytest.mark.slow
def test_the_benchmark_of_variants_prints_a_line_per_variant(tmp_path):
    options = (
        "--cases 2 --test-cases 2 --voxel-mm 6 --image-size 32 --device cpu --batch-size 2 "
        "--variants attcl-gan stargan-v2+cut"
    )
    for steps in (2, 4):
        place = ("--steps", steps, "--output", tmp_path / "bench")
        output = fresh_python("benchmarks/variants.py", *options.split(), *place)
        for name in ("attcl-gan", "stargan-v2+cut"):
            (line,) = (line for line in output.splitlines() if line.startswith(f"{name} "))
            assert re.search(r"yes +\d\.\d+ -> \d\.\d+ +-?\d\.\d+ +\d+\.\d+ / \d+\.\d+", line)


@pytest.mark.slow
def test_the_benchmark_of_many_cases_measures_each_command():
    output = fresh_python("benchmarks/many_cases.py", "--cases", 8, 16, "--whole")
    rows = [re.split(r"  +", line.strip()) for line in output.splitlines()[1:]]
    pages = [row for row in rows if row[0] == "page of complete"]
    assert [row[1] for row in pages] == ["8", "16"]
    costs = [row for row in rows if row not in pages]
    assert {row[0] for row in costs} == {
        "info", "info, again", "prepare-splits", "complete --dry-run", "train --dry-run",
        "complete", "complete, again", "score",
    }  # fmt: skip
    for _name, cases, seconds, milliseconds, megabytes in costs:
        assert may_be_ratio(milliseconds, seconds, cases, scale=1000)
        assert float(megabytes) > 20


@pytest.mark.slow
def test_the_benchmark_of_files_compares_every_side_with_attcl():
    options = ("--rounds", 2, "--shape", 24, 24, 16, "--against", REPOSITORY, "--parts", "sides")
    lines = fresh_python("benchmarks/files.py", *options).splitlines()[3:]
    assert [re.split("  +", line)[0] for line in lines] == ["attcl", "nibabel", "other checkout"]
    ratios = [re.findall(r"\d s +(\d+\.\d+)", line) for line in lines]
    assert ratios[0] == ["1.00", "1.00"]
    assert all(float(ratio) > 0 for line in ratios for ratio in line)


@pytest.mark.slow
def test_the_benchmark_of_files_compares_levels_and_finds_that_zlib_writes_the_same_bytes():
    options = ("--rounds", 7, "--shape", 48, 48, 24, "--parts", "levels")
    lines = fresh_python("benchmarks/files.py", *options).splitlines()[3:]
    figures = {
        " ".join(line.split()[:2]): [float(it) for it in re.findall(r"(?:s|MB) +(\d+\.\d+)", line)]
        for line in lines
    }
    zlib = ["zlib 1", "zlib 6", "zlib 9"]
    assert list(figures)[:3] == zlib
    assert figures["zlib 1"] == [1, 1, 1]
    assert figures["zlib 9"][0] > 1  # seconds
    assert figures["zlib 9"][1] < 1  # size
    assert all(line.endswith("same bytes") for line in lines if line.startswith("zlib"))
    pytest.importorskip("isal", reason="isal is not installed")
    assert list(figures) == [*zlib, "isal 0", "isal 1", "isal 2", "isal 3"]


@pytest.mark.slow
def test_the_benchmark_of_files_compares_threads_with_processes_and_finds_a_kept_lock():
    options = ("--rounds", 1, "--shape", 48, 48, 24, "--volumes", 2, "--parts", "workers")
    lines = fresh_python("benchmarks/files.py", *options).splitlines()[4:]
    rows = [re.split("  +", line.strip()) for line in lines[:4]]
    assert [row[0] for row in rows] == ["read", "read, Python busy", "write", "write, Python busy"]
    for row in rows:
        threads, processes = (re.search(r"(\d+\.\d+) s", cell)[1] for cell in row[1:3])
        assert may_be_ratio(row[3], processes, threads)
    pauses = {
        line[:33].strip(): [float(it) for it in re.findall(r"(\d+\.\d+) s", line)]
        for line in lines[6:]
    }
    kept, took = pauses.pop("a call that keeps Python's lock")
    assert kept > 0.5 * took
    assert [name.split(", ")[1] for name in pauses] == ["unpack", "pack", "read", "write"]


@pytest.mark.slow
def test_the_benchmark_of_a_cluster_prints_its_rates_and_its_model():
    pytest.importorskip("ray", reason="Ray is not installed")
    options = (
        "--cases 16 --voxel-mm 8 --memory-cases 8 16 --full-voxel-mm 8 "
        "--patients 1000 --gpus 1 8 --gpu-seconds 100 --disk-mb 1000"
    )
    output = fresh_python("benchmarks/scale.py", *options.split())
    assert re.search(r"^1 workers: [\d,]+ cases per hour, efficiency 1.00", output, re.MULTILINE)
    two = re.search(r"^2 workers: [\d,]+ cases per hour, efficiency ([\d.]+)", output, re.MULTILINE)
    assert two and float(two[1]) < 4  # more than 1 by chance alone: 16 cases, a busy machine
    assert re.search(r"^driver, peak of many / few cases: [01]\.\d+$", output, re.MULTILINE)
    # nothing but the GPUs limits, at 100 s per case
    assert "1,000 patients on 1 GPUs: 1,666.7 minutes, limited by workers" in output
    assert "1,000 patients on 8 GPUs: 208.3 minutes, limited by workers" in output


@pytest.mark.slow
def test_the_benchmark_of_gradients_prints_each_way_beside_the_first():
    options = "--preset tiny --image-size 32 --batch-size 1 --steps 2"
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    lines = fresh_python(*launch, "benchmarks/gradients.py", *options.split()).splitlines()
    assert lines[0].startswith("2 processes on cpu, ")
    figures = dict(re.findall(r"^([a-z ]+?) +(\d+\.\d+) s ", "\n".join(lines[1:]), re.MULTILINE))
    assert list(figures) == ["sent meanwhile", "sent afterwards", "not sent"]
    ratio = lines[2].split()[-1]
    assert may_be_ratio(ratio, figures["sent afterwards"], figures["sent meanwhile"])


@pytest.mark.slow
def test_the_benchmark_of_gradients_says_how_several_processes_are_started():
    with pytest.raises(AssertionError, match="torchrun --nproc-per-node 2"):
        fresh_python("benchmarks/gradients.py")

"""`attcl weights`: the list, a card, and files that are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from attcl_cli.files import sha256
from attcl_cli.methods.weights import (
    BUNDLED,
    METADATA_KEY,
    WEIGHTS_FILE,
    named_weights,
    read_metadata,
)


@pytest.fixture
def run(trained_run: Path, here: Path) -> Path:
    """A run of one's own, which may be damaged."""
    return Path(shutil.copytree(trained_run, Path("runs/mine")))


def sound_named_ones() -> list[str]:
    assert {BUNDLED, "brain-many", "brain-attcl"} <= named_weights().keys()
    return [f"{name}: sound" for name in named_weights()]


def spoil(run: Path) -> None:
    """Write a number that is not finite into the weights, and make their card agree."""
    file = run / WEIGHTS_FILE
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, file, {METADATA_KEY: json.dumps(read_metadata(file))})
    card = file.with_suffix(".json")
    card.write_text(json.dumps({**json.loads(card.read_text()), "sha256": sha256(file)}))


def test_the_list_says_what_each_is_for(run, attcl):
    code, out, err = attcl("weights", "list")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["name", "trained", "on", "method", "sources", "modalities", "pixels"]
    described = ["AttCL-GAN", "one", "flair,", "t1,", "t1ce,", "t2"]
    assert [BUNDLED, "48", "phantoms", *described, "64"] in lines
    assert ["brain-attcl", "15", "patients", *described, "256"] in lines
    assert [str(run), "3", "cases", *described, "16"] in lines
    assert max(map(len, out.splitlines())) <= 80
    assert out.endswith("\nattcl weights show NAME: data, terms, scores and limits of one\n")


def test_the_list_as_json_has_all_of_it(run, attcl):
    items = json.loads(attcl("weights", "list", "--json")[1])["weights"]
    found = {item["name"]: item for item in items}
    assert found[BUNDLED]["kind"] == "phantom"
    assert found[BUNDLED]["voxel_mm"] == 4
    assert found[str(run)]["sha256"] == sha256(run / WEIGHTS_FILE)
    assert found[str(run)]["steps"] == 4


def test_a_run_that_was_stopped_is_listed_as_such(run, attcl):
    (run / "run.json").write_text('{"status": "stopped"}')
    _, out, _ = attcl("weights", "list")
    assert "- runs/mine: not finished (stopped), taken only if it is named" in out.splitlines()


def test_show_names_data_terms_limits_and_scores(attcl, here):
    code, out, _ = attcl("weights", "show", BUNDLED)
    assert code == 0
    for words in (
        "48 simulated phantoms",
        "Apache-2.0",
        "of no use on patients",
        ": ssim, brain",
    ):
        assert words in " ".join(out.split())
    card = json.loads(attcl("weights", "show", BUNDLED, "--json")[1])
    assert card["scores"][0]["beside"] == {"copy": 0.337}
    rows = [line.split() for line in out.splitlines()]
    assert ["17.2", "11.9"] in [row[-2:] for row in rows]
    assert ["0.796", "0.337"] in [row[-2:] for row in rows]


def test_show_has_a_table_per_metric_with_the_baselines_beside(attcl, here):
    data, sources = "2 patients with multiple sclerosis (openms)", "t1, t1ce, t2"
    card = json.loads(attcl("weights", "show", "brain-many", "--json")[1])
    wanted = (data, sources, "flair", "psnr (dB), brain")
    keys = ("data", "sources", "target", "metric")
    score = next(item for item in card["scores"] if tuple(map(item.get, keys)) == wanted)
    baselines = ("copy", "quantile-matched copy", "mean of sources")
    figures = [score["value"], *(score["beside"][name] for name in baselines)]
    assert len(set(figures[1:])) == 3, "baselines that can be told apart"

    lines = attcl("weights", "show", "brain-many")[1].splitlines()
    begins = lines.index(f"{data} (n = 2): {wanted[-1]} (higher is better)")
    heads = [head.strip() for head in lines[begins + 1].split("  ") if head.strip()]
    assert heads[-3:] == list(baselines)
    row = next(line for line in lines[begins:] if line.startswith(f"{sources}  "))
    assert row.split()[3:] == ["flair", *(f"{figure:.1f}" for figure in figures)]
    directions = [line for line in lines if line.startswith("flair, t1, t2  ")]
    assert len(directions) == 2 * 4  # data, metrics


@pytest.mark.parametrize(
    ("metric", "better", "digits"),
    [("ssim, brain", "higher", 3), ("fd-effnet", "lower", 1)],
)
def test_show_has_means_of_one_and_of_several_sources(attcl, here, metric, better, digits):
    data = "5 test patients of BraTS"
    scores = json.loads(attcl("weights", "show", "brain-many", "--json")[1])["scores"]
    chosen = [it for it in scores if (it["data"], it["metric"]) == (data, metric)]
    lines = attcl("weights", "show", "brain-many")[1].splitlines()
    begins = lines.index(f"{data} (n = 5): {metric} ({better} is better)")
    for label, several in (("mean of one ", False), ("mean of several", True)):
        row = next(line for line in lines[begins:] if line.startswith(label))
        values = [it["value"] for it in chosen if ("," in it["sources"]) == several]
        assert len(values) == (4 if several else 12)
        assert row.removeprefix(label).split()[0] == f"{sum(values) / len(values):.{digits}f}"


def test_the_card_is_a_table_of_plain_words(run, attcl):
    rows = [" ".join(line.split()) for line in attcl("weights", "show", run)[1].splitlines()]
    assert {"image size 16", "trained on 3 cases (--json names them)", "steps 4"} <= set(rows)
    assert not any("_" in row.split()[0] for row in rows)


def test_show_takes_a_run_without_a_card_of_its_own(run, attcl):
    code, out, _ = attcl("weights", "show", run, "--json")
    assert code == 0
    assert json.loads(out)["kind"] == "run"
    assert "terms" not in json.loads(out)


def test_a_folder_of_weights_that_is_not_there_is_said(attcl, here, monkeypatch):
    monkeypatch.setenv("ATTCL_WEIGHTS", "mistyped")
    note = "ATTCL_WEIGHTS: mistyped is no folder, expected one with weights"
    assert f"- {note}" in attcl("weights", "list")[1].splitlines()
    assert json.loads(attcl("weights", "list", "--json")[1])["notes"] == [note]
    monkeypatch.setenv("ATTCL_WEIGHTS", ".")
    assert "ATTCL_WEIGHTS" not in attcl("weights", "list")[1]


def test_sound_weights_verify(run, attcl):
    code, out, err = attcl("weights", "verify")
    assert (code, err) == (0, "")
    assert out.splitlines() == [*sound_named_ones(), "runs/mine: sound"]


def cut(run: Path) -> None:
    data = (run / WEIGHTS_FILE).read_bytes()
    (run / WEIGHTS_FILE).write_bytes(data[:-8])


def cut_without_card(run: Path) -> None:
    cut(run)
    (run / "weights.json").unlink()


@pytest.mark.parametrize(
    ("damage", "code_of_error", "words"),
    [
        (cut, "weights-changed", "SHA-256"),
        (cut_without_card, "weights-unreadable", "not readable as safetensors"),
        (spoil, "weights-not-finite", "hold NaN or infinity"),
    ],
)
def test_damaged_weights_end_with_code_1(damage, code_of_error, words, run, attcl):
    damage(run)
    code, out, err = attcl("weights", "verify")
    assert code == 1
    assert out.splitlines() == [*sound_named_ones(), "runs/mine: damaged"]
    assert err.startswith(f"error: {run / WEIGHTS_FILE}: ") and words in err
    code, out, _ = attcl("weights", "verify", "runs/mine", "--json")
    document = json.loads(out)
    (item,) = document["weights"]
    assert (code, item["sound"]) == (1, False)
    assert (document["code"], document["exit_code"]) == (code_of_error, 1)
    assert words in item["problem"]


def test_damaged_weights_are_listed_and_not_shown(run, attcl):
    cut(run)
    code, out, _ = attcl("weights", "list")
    assert code == 0
    assert any(line.startswith(f"- {run / WEIGHTS_FILE}: SHA-256") for line in out.splitlines())
    code, _, err = attcl("weights", "show", "runs/mine")
    assert code == 1 and "SHA-256" in err


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_name_of_nothing_is_wrong_usage(command, attcl, here):
    code, out, err = attcl("weights", command, "nothing")
    assert (code, out) == (2, "")
    assert err.startswith("error: weights: 'nothing' is no file and no known name")
    assert err.endswith("hint: attcl weights list shows those that are found\n")


def test_a_misspelt_name_is_answered_with_the_command_that_was_meant(attcl, phantom_root):
    hint = "hint: did you mean phantom-tiny? attcl {}\n".format
    for words in ("weights show {}", f"complete --ori {phantom_root} -w {{}} -n"):
        err = attcl(*words.format("phantom-tyni").split())[2]
        assert err.endswith(hint(words.format("phantom-tiny")))


def test_weights_alone_shows_its_help(attcl):
    code, out, err = attcl("weights")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: attcl weights")

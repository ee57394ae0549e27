"""Weights that are damaged, missing or do not fit, through the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import refusal, states


@pytest.fixture
def copied_weights(trained_run: Path, tmp_path: Path) -> Path:
    """Weights and card, to be spoiled."""
    for name in ("weights.safetensors", "weights.json"):
        shutil.copyfile(trained_run / name, tmp_path / name)
    return tmp_path / "weights.safetensors"


def test_weights_with_another_hash_than_their_card_are_refused(
    copied_weights, incomplete_root, attcl, tmp_path
):
    data = bytearray(copied_weights.read_bytes())
    data[-1] ^= 1
    copied_weights.write_bytes(data)
    lines = refusal(
        attcl(
            "complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", copied_weights
        ),
        code=1,
        names=f"{copied_weights}: SHA-256 ",
        hint="copy the weights again",
    )
    assert "as its card weights.json says" in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_card_that_is_no_json_is_named(copied_weights, incomplete_root, attcl, tmp_path):
    card = copied_weights.with_suffix(".json")
    for content in ("{", "[]"):
        card.write_text(content)
        refusal(
            attcl(
                "complete",
                "--ori",
                incomplete_root,
                "--cpl",
                tmp_path / "out",
                "-w",
                copied_weights,
            ),
            code=1,
            names=f"{card}: " if content == "{" else str(copied_weights),
        )


def no_safetensors(path: Path) -> None:
    path.write_text("not a tensor\n")


def cut_off_weights(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def no_bytes(path: Path) -> None:
    path.write_bytes(b"")


def others_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)


def described_by_nonsense(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path, metadata={"attcl": "nonsense"})


def of_another_method(path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()["attcl"])
    document["settings"]["method"] = "magic"
    save_file(load_file(path), path, metadata={"attcl": json.dumps(document)})


@pytest.mark.parametrize(
    "spoil",
    [
        no_safetensors,
        cut_off_weights,
        no_bytes,
        others_safetensors,
        described_by_nonsense,
        of_another_method,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_a_file_that_is_no_weights_is_named(
    spoil, copied_weights, incomplete_root, attcl, tmp_path
):
    copied_weights.with_suffix(".json").unlink()
    spoil(copied_weights)
    refusal(
        attcl(
            "complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", copied_weights
        ),
        code=1,
        names=f"{copied_weights}: ",
    )
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_know_a_needed_modality_are_refused(
    incomplete_root, tiny_settings, attcl, tmp_path
):
    import torch

    from attcl_cli.data.intensities import Scale
    from attcl_cli.methods import METHODS
    from attcl_cli.methods.weights import WeightsInfo, save_weights

    known = ("flair", "t1")
    method = METHODS["attcl-gan"](tiny_settings, known)
    size = tiny_settings.image_size
    method.remember_references({name: torch.zeros(1, 1, size, size) for name in known})
    info = WeightsInfo(
        settings=tiny_settings,
        modalities=known,
        scales=dict.fromkeys(known, Scale(0.0, 100.0)),
        references={},
        trained_on=(),
        steps=0,
    )
    path = tmp_path / "two.safetensors"
    save_weights(path, method, info)
    command = ("complete", "--ori", incomplete_root, "--cpl", tmp_path / "out", "-w", path)
    lines = refusal(attcl(*command), code=1, names=f"{path} makes flair, t1, not ", hint="--target")
    errors = [line for line in lines if line.startswith("error: ")]
    assert "a model for t1ce of 1 case: Phantom_00001" in errors[0]
    assert "a model for t2 of 2 cases: Phantom_00000, Phantom_00003" in errors[1]
    assert not (tmp_path / "out").exists()
    assert attcl(*command, "--target", "t1")[0] == 0


def test_weights_that_are_not_there_are_named(incomplete_root, trained_run, attcl, elsewhere):
    (elsewhere / "empty").mkdir()
    for name in ("nowhere", "empty", "nowhere.safetensors"):
        refusal(
            attcl("complete", "--ori", incomplete_root, "-w", name),
            code=2,
            names=f"--weights: {name!r} is no file",
        )
    assert set(states(elsewhere)) == {"empty"}


def test_without_any_weights_the_next_step_is_to_train(
    incomplete_root, attcl, elsewhere, monkeypatch
):
    from attcl_cli.methods import weights as checkpoint

    monkeypatch.setattr(checkpoint, "weights_folders", list)
    refusal(
        attcl("complete", "--ori", incomplete_root),
        code=2,
        names="--weights: no weights given",
        hint="attcl train",
    )
    assert states(elsewhere) == {}

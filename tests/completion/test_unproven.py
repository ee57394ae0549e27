"""Volumes without a side-car: kept if they hold the bytes that are made again, otherwise never touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from completers import completed, content, make, phantom_file, plan_of
from helpers import states
from PIL import Image, PngImagePlugin

from attcl_cli.completion.plan import notes_of_unproven
from attcl_cli.errors import AttclError

LACKING = (("t1ce",), ("t1", "t2"), (), ())


@pytest.fixture(params=["brats", "slices"])
def made(request, gappy, weights, tmp_path) -> SimpleNamespace:
    """A completed dataset, and what lies in its output: a file per volume or per slice."""
    ori, cpl = gappy(request.param), tmp_path / "out"
    completed(ori, cpl, weights)
    return SimpleNamespace(ori=ori, cpl=cpl, before=content(cpl))


def first_image(folder: Path) -> Path:
    """Return a volume, or a slice in the middle of one."""
    images = sorted([*folder.rglob("*t1.nii.gz"), *folder.rglob("t1/*.png")])
    return images[len(images) // 2]


def side_cars(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.json"))


def other_voxels(path: Path) -> None:
    """Change voxels, and nothing else that a file says of itself, as an editor of images does."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            text = PngImagePlugin.PngInfo()
            text.add_text("Description", image.info["Description"])
            pixels = np.asarray(image).copy()
        pixels[0, 0] += 1
        Image.fromarray(pixels).save(path, pnginfo=text)
        return
    image = nib.load(path)
    data = np.asanyarray(image.dataobj).copy()
    data[0, 0, 0] += 1
    nib.save(type(image)(data, image.affine, image.header), path)


def lose_all_side_cars(folder: Path) -> None:
    for path in side_cars(folder):
        path.unlink()


def lose_a_side_car_and_an_image(folder: Path) -> None:
    for path in side_cars(folder):
        path.unlink()
    first_image(folder).unlink()


def lose_images(folder: Path) -> None:
    for path in [*folder.rglob("*.nii.gz"), *folder.rglob("*.png")]:
        path.unlink()


@pytest.mark.parametrize(
    "lose",
    [lose_all_side_cars, lose_a_side_car_and_an_image, lose_images],
    ids=lambda it: it.__name__,
)
def test_whatever_was_removed_the_same_command_ends_with_the_same_bytes(
    lose: Callable[[Path], None], made, weights
):
    lose(made.cpl)
    kept = {
        name: state for name, state in states(made.cpl).items() if name.endswith((".gz", ".png"))
    }
    completed(made.ori, made.cpl, weights)
    assert content(made.cpl) == made.before
    after = states(made.cpl)
    assert {name: after[name] for name in kept} == kept  # not written again


def test_a_volume_without_a_side_car_that_is_compared_is_named(made, weights):
    assert notes_of_unproven(plan_of(made.ori, made.cpl, weights)) == []
    lose_all_side_cars(made.cpl)
    plan = plan_of(made.ori, made.cpl, weights)
    assert plan.present == {}
    (note,) = notes_of_unproven(plan)
    assert note.startswith(f"3 volumes without a side-car ({made.cpl}")
    assert "kept if not a byte differs" in note


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_volume_with_other_voxels_is_never_replaced(overwrite, made, weights):
    path = first_image(made.cpl)
    other_voxels(path)
    lose_all_side_cars(made.cpl)
    mine = path.read_bytes()
    with pytest.raises(AttclError) as caught:
        completed(made.ori, made.cpl, weights, overwrite=overwrite)
    assert caught.value.code == "not-made-by-attcl"
    assert caught.value.message.startswith(f"{path}: has no side-car ")
    assert "other bytes than this run makes" in caught.value.message
    assert "move that file away" in caught.value.hint
    assert path.read_bytes() == mine
    name = caught.value.message.split("side-car ")[1].split()[0]
    assert name.endswith(".json")
    assert not list(made.cpl.rglob(name))
    assert not list(made.cpl.rglob(".*"))


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_volume_that_says_nothing_of_attcl_is_refused_before_anything_is_made(
    overwrite, made, phantoms, weights
):
    path = first_image(made.cpl)
    layout = "slices" if path.suffix == ".png" else "brats"
    shutil.copyfile(phantoms(layout) / path.relative_to(made.cpl), path)
    lose_all_side_cars(made.cpl)
    before = states(made.cpl)
    with pytest.raises(AttclError) as caught:
        plan_of(made.ori, made.cpl, weights, overwrite=overwrite)
    assert caught.value.code == "not-made-by-attcl"
    assert states(made.cpl) == before


def test_a_volume_of_other_weights_is_refused(gappy, weights, other_weights, tmp_path):
    """It says the same of itself: only its voxels tell."""
    root = gappy(lacking=[("t2",), (), (), ()])
    completed(root, tmp_path / "out", other_weights)
    lose_all_side_cars(tmp_path / "out")
    before = states(tmp_path / "out")
    with pytest.raises(AttclError, match="other bytes") as caught:
        completed(root, tmp_path / "out", weights)
    assert caught.value.message.startswith(f"{tmp_path / 'out' / phantom_file(0, 't2')}: ")
    after = states(tmp_path / "out")
    assert {name: data for name, (_, data) in after.items()} == {
        name: data for name, (_, data) in before.items()
    }


def test_a_side_car_of_another_run_that_comes_meanwhile_is_the_end_of_the_doubt(made, weights):
    lose_all_side_cars(made.cpl)
    plan = plan_of(made.ori, made.cpl, weights)
    completed(made.ori, made.cpl, weights)  # the other run
    make(plan)
    assert content(made.cpl) == made.before

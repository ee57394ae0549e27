"""A segmenter starts from its seed, predicts in the case's grid, and its weights file is enough to use it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segmenters import BRATS_2021, first_case, info_of, plan_of
from torch import nn

from attcl_cli.errors import AttclError, UsageError
from attcl_cli.segmentation import slices
from attcl_cli.segmentation.inputs import Size
from attcl_cli.segmentation.network import (
    Segmenter,
    in_parts,
    load_segmenter,
    load_tensors,
    make_network,
    most_probable,
    predict,
    read_info,
    save_segmenter,
    size_of,
    weights_file,
)

CPU = torch.device("cpu")


class Threshold(nn.Module):
    """Says class 2 where the first channel is bright, otherwise background."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images[:, :1]
        empty = torch.full_like(bright, -9.0)
        return torch.cat([-bright, empty, bright, empty], dim=1)


def test_a_network_is_a_function_of_its_seed_and_leaves_the_global_one_alone(packed):
    settings = info_of(packed).settings
    state = torch.random.get_rng_state()
    first, again, other = (
        make_network(changed, 4).state_dict()
        for changed in (settings, settings, settings.model_copy(update={"seed": 1}))
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_logits_have_a_channel_per_class_and_the_images_size(packed):
    network = make_network(info_of(packed).settings, 4).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 4, 40, 40)).shape == (2, 4, 40, 40)


def test_a_prediction_is_the_most_probable_class_inside_the_brain_alone(study, packed):
    case = first_case(study, "completed")
    classes = predict(Segmenter(Threshold(), info_of(packed), CPU), case)
    expected = np.where(case.brain & (case.images[:, 0] > 0), 2, 0)
    np.testing.assert_array_equal(classes, expected)
    assert classes.dtype == np.uint8 and expected.any()


def test_a_smaller_networks_probabilities_are_enlarged_to_the_cases_resolution(study, packed):
    info = info_of(packed, image_size=24, canvas=48)
    assert size_of(info.settings) == Size(24, 48)
    sample = plan_of(study, "flair", size=Size(24, 48)).inputs["flair"].splits["train"][0]
    case = slices.load(sample, size_of(info.settings), BRATS_2021)
    classes = predict(Segmenter(Threshold(), info, CPU), case)
    assert classes.shape == case.brain.shape and set(np.unique(classes)) == {0, 2}


@pytest.mark.parametrize("count", [0, 1, 32, 33, 155])
def test_slices_are_computed_in_equal_parts(count):
    parts = in_parts(np.arange(count))
    assert [row for part in parts for row in part] == list(range(count))
    assert all(0 < len(part) <= 32 for part in parts)


def test_probabilities_are_interpolated_before_the_choice():
    images = np.zeros((1, 1, 2, 2), dtype=np.float32)
    images[0, 0, 0, 0] = 1
    assert most_probable(Threshold(), images, CPU).tolist() == [[[2, 0], [0, 0]]]
    enlarged = most_probable(Threshold(), images, CPU, enlarge=2)
    assert enlarged.shape == (1, 4, 4) and enlarged[0, 0, 0] == 2 and enlarged[0, 3, 3] == 0


# --- the weights file ---


def test_saved_weights_give_the_same_prediction(study, untrained, tmp_path):
    info = replace(untrained.info, steps=7, validated_on=("a",))
    save_segmenter(tmp_path / "weights.safetensors", untrained.network, info)
    restored = load_segmenter(tmp_path, CPU)  # the folder will do
    assert restored.info == info == read_info(tmp_path / "weights.safetensors")
    case = first_case(study, "completed")
    np.testing.assert_array_equal(predict(restored, case), predict(untrained, case))
    assert not any(weight.requires_grad for weight in restored.network.parameters())


def test_the_weights_of_another_shape_are_refused(untrained, packed, tmp_path):
    wider = info_of(packed, width=6)
    assert not load_tensors(
        make_network(wider.settings, 4), dict(untrained.network.named_parameters())
    )
    save_segmenter(tmp_path / "weights.safetensors", untrained.network, wider)
    with pytest.raises(AttclError) as error:
        load_segmenter(tmp_path, CPU)
    assert error.value.code == "weights-do-not-fit"


def test_missing_weights_are_named_and_segmenters_in_the_folder_offered(untrained, tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist") as error:
        weights_file(tmp_path / "nowhere")
    assert error.value.code == "weights-missing"
    for name in ("completed", "flair"):
        save_segmenter(tmp_path / name / "weights.safetensors", untrained.network, untrained.info)
    with pytest.raises(UsageError) as error:
        read_info(tmp_path)
    assert error.value.hint == f"name one of {tmp_path / 'completed'}, {tmp_path / 'flair'}"


def test_weights_of_another_kind_are_refused(trained_run, tmp_path):
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"no tensors")
    bare = tmp_path / "bare.safetensors"
    save_file({"a": torch.zeros(1)}, bare)
    for path in (trained_run, garbage, bare):
        with pytest.raises(AttclError, match="not readable as a segmenter") as error:
            read_info(path)
        assert error.value.code == "not-a-segmenter"


def test_weights_of_an_earlier_version_lack_new_settings_and_are_read(untrained, tmp_path):
    import json

    from attcl_cli.segmentation.network import METADATA_KEY

    path = tmp_path / "weights.safetensors"
    save_segmenter(path, untrained.network, untrained.info)
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, framework="pt") as file:
        document = json.loads(file.metadata()[METADATA_KEY])
    del document["settings"]["learning_rate_decay"]
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(document)})
    assert read_info(path) == untrained.info

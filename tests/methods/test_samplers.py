"""Every method hands its settings to the sampler that draws its batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import small_settings
from slice_stores import FOUR, store_of_cases

from attcl_cli.methods import METHODS

COMMON = {"seed": 3, "batch_size": 5, "mirror": 0.2, "crop": 16, "augment": 0.3, "warp": 0.1}


@pytest.mark.parametrize(
    ("method", "changes", "expected"),
    [
        (
            "attcl-gan",
            {
                "pair_targets": 0.6,
                "missing_targets": 0.35,
                "supervised": 0.75,
                "context": 1,
                "sources": "many",
                "alone": 0.7,
            },
            {"pair_targets": 0.6, "paired_until": 3, "context": 1, "many": True, "alone": 0.7},
        ),
        (
            "plave",
            {
                "plave_leave_out": 0.6,
                "plave_alone": 0.7,
                "plave_gamma": 0.25,
                "plave_tumour_slices": 0.35,
                "missing_targets": 0.45,
            },
            {"leave_out": 0.6, "alone": 0.7, "gamma": 0.25, "tumour_slices": 0.35, "context": 0},
        ),
        (
            "plave",
            {"plave_target": "t1ce", "plave_leave_out": 0.6, "plave_alone": 0.7},
            {"leave_out": 0, "alone": 0},
        ),
        (
            "unet",
            {"unet_alone": 0.7, "unet_gamma": 0.25, "missing_targets": 0.45},
            {"leave_out": 1, "alone": 0.7, "gamma": 0.25, "context": 0},
        ),
        *(
            (
                name,
                {"pair_targets": 0.6, "missing_targets": 0.35, "jitter": 0.1},
                {"pair_targets": 0.6, "jitter": 0.1, "others": True, "many": False, "context": 0},
            )
            for name in ("attgan", "superstargan")
        ),
        *(
            (
                name,
                {"augment": 0.0, "lambda_pair": weight, "jitter": 0.1},  # sources are targets, too
                {"paired": weight > 0, "jitter": 0.1},
            )
            for name in ("cyclegan", "u-gat-it", "attentiongan", "msa-gan")
            for weight in (0.0, 2.0)
        ),
    ],
)
def test_a_sampler_is_given_the_settings_of_the_run(
    method: str, changes: dict[str, Any], expected: dict[str, Any]
):
    settings = small_settings(method, **{**COMMON, "image_size": 32, **changes})  # of 4 steps
    sampler = METHODS[method](settings, FOUR).sampler(store_of_cases({"A": FOUR}))
    values = vars(sampler)
    wanted = {name: changes.get(name, value) for name, value in COMMON.items()} | expected
    if "augment" not in values:  # of pairs
        del wanted["augment"]
    assert {name: values[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("method", "drawn"),
    [
        *((name, "y_ref") for name in ("attcl-gan", "attgan", "superstargan")),
        *((name, "target") for name in ("plave", "unet")),
    ],
)
def test_targets_are_what_cases_lack_if_all_of_them_are_to_be(method: str, drawn: str):
    pairs = {"pair_targets": 1.0} if drawn == "y_ref" else {}
    settings = small_settings(method, image_size=32, missing_targets=1.0, **pairs)
    cases = {"A": ("flair", "t1"), "B": ("flair", "t1ce"), "C": ("flair", "t2")}
    sampler = METHODS[method](settings, FOUR).sampler(store_of_cases(cases))
    targets = np.concatenate([sampler.rows(step)[drawn] for step in range(100)])
    shares = np.bincount(targets, minlength=4) / len(targets)
    assert shares == pytest.approx([0, *[1 / 3] * 3], abs=0.1)

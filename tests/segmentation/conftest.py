"""Fixtures of several files in this folder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from segmenters import BRATS_2021, SIZE, info_of, plan_of

from attcl_cli.segmentation import slices
from attcl_cli.segmentation.network import Segmenter, make_network
from attcl_cli.segmentation.slices import SegmentationStore


@pytest.fixture
def packed(study: SimpleNamespace, tmp_path: Path) -> SegmentationStore:
    """The training slices of input `incomplete`."""
    samples = plan_of(study, "incomplete").inputs["incomplete"].splits["train"]
    return slices.build(samples, tmp_path / "slices", size=SIZE, convention=BRATS_2021, workers=0)


@pytest.fixture
def untrained(packed: SegmentationStore) -> Segmenter:
    """A segmenter of four channels at its random start."""
    info = info_of(packed)
    network = make_network(info.settings, len(info.channels)).eval()
    return Segmenter(network, info, torch.device("cpu"))

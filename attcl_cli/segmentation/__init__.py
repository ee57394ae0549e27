"""Tumour segmentation as the judge of completion: train, predict, score, and export for other segmenters.

Loads nothing: `attcl --help` lists the formats without torch.
"""

from __future__ import annotations

from collections.abc import Mapping

EXPORTS: Mapping[str, str] = {"nnunet": "attcl_cli.segmentation.nnunet"}
"""The formats of `attcl export`: name -> the module that writes it."""

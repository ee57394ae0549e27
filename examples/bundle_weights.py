"""Make a pair of bundled weights from a finished run: python bundle_weights.py RUN NAME --card CARD.toml [-o weights].

Writes NAME.safetensors, a copy of the run's weights, and NAME.json, its card: what the weights say of themselves, with
the fields of CARD.toml (weights/README.md lists them). Put the pair into the folder that ATTCL_WEIGHTS names, or into
weights/ of a checkout, and NAME can be given to -w.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from pathlib import Path

from pydantic import ValidationError

import attcl_cli
from attcl_cli.files import copy_whole, read_json, write_json
from attcl_cli.methods.bundled import MOST_MB, Card, look_up


def main(run: str, name: str, card: Path, output: Path) -> Path:
    """Write the pair, and return the weights file."""
    found = look_up(run, flag="RUN")
    if found.problem is not None:
        raise found.problem
    if not found.finished:
        sys.exit(f"error: {run}: not finished ({found.status}), expected a finished run")
    size = found.path.stat().st_size / 1e6
    if size > MOST_MB:
        sys.exit(f"error: {found.path}: {size:.1f} MB, expected {MOST_MB} MB at most")
    try:
        fields = Card.model_validate(tomllib.loads(card.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:  # also what is no UTF-8 or no TOML
        sys.exit(f"error: {card}: {error}")
    own = read_json(found.path.with_suffix(".json"))
    target = output / f"{name}.safetensors"
    for file in (target, target.with_suffix(".json")):
        if file.exists():
            sys.exit(f"error: {file}: exists, expected a new name")
    copy_whole(found.path, target)
    note = {"sha256": own["sha256"], "note": fields.title}
    write_json(
        target.with_suffix(".json"), {**note, **fields.model_dump(mode="json"), **own, **note}
    )
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="the folder of a finished run")
    parser.add_argument("name", help="such as brain-many")
    parser.add_argument("--card", type=Path, required=True, help="TOML file with the card's fields")
    parser.add_argument("-o", "--output", type=Path, default=Path("weights"))
    options = parser.parse_args()
    try:
        written = main(options.run, options.name, options.card, options.output)
    except attcl_cli.AttclError as error:
        sys.exit(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
    print(json.dumps({"weights": str(written), "card": str(written.with_suffix(".json"))}))

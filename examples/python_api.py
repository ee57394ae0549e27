"""Completes a dataset from Python, and shows what was made from what: python python_api.py DATA OUT WEIGHTS."""

from __future__ import annotations

import sys
from pathlib import Path

from attcl_cli import devices
from attcl_cli.completion import plan as planning
from attcl_cli.completion import run as complete
from attcl_cli.data.dataset import open_dataset
from attcl_cli.errors import AttclError
from attcl_cli.methods import weights as checkpoint


def main(data: Path, output: Path, weights_name: str) -> None:
    """Plans, shows the plan, and runs it."""
    dataset = open_dataset(data)
    weights = checkpoint.find_weights(weights_name)
    plan = planning.plan(dataset, output, weights)
    print(f"{plan.volumes} volumes to make; sources by frequency: {', '.join(plan.modal_list)}")
    device = devices.select("auto")
    method = checkpoint.load_method(weights, device)
    for case in complete.run(plan, method, device=device):
        print(case.case, *case.outputs)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    except AttclError as error:
        sys.exit(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))

"""Complete a dataset from Python, and show what was made from what: python python_api.py DATA OUT WEIGHTS."""

from __future__ import annotations

import sys

import attcl_cli


def main(data: str, output: str, weights: str) -> None:
    """Show the plan, run it, and show what was written."""
    plan = attcl_cli.complete(data, output, weights=weights, dry_run=True).plan
    print(f"{plan.volumes} volumes to make; sources by frequency: {', '.join(plan.modal_list)}")
    result = attcl_cli.complete(data, output, weights=weights)
    for job in plan.jobs:
        files = [str(file) for files in job.outputs.values() for file in files]
        print(job.case.id, f"from {', '.join(job.sources)}:", *files)
    print(f"{result.written} volumes written to {result.output}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except attcl_cli.AttclError as error:
        sys.exit(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))

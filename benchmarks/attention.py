"""Memory and time of the contrastive part at 256x256: chunked entropies against the full matrix of Eq 6.

Each variant runs in its own process, on the features of preset `paper` (layer 1: 128 x 128 x 128, layer 2:
256 x 64 x 64, layer 3: 512 x 32 x 32). Memory is the growth of the process' peak beyond its inputs.

    python benchmarks/attention.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

LAYERS = {1: (128, 128), 2: (256, 64), 3: (512, 32)}  # layer -> channels, side
PATCHES = 256


def measure(kind: str, layers: list[int], repeats: int) -> dict[str, float]:
    """Return seconds and peak megabytes of selecting and routing once, best of `repeats`."""
    import torch

    from attcl_cli.methods.networks import patches

    generator = torch.Generator().manual_seed(0)
    inputs = {
        layer: torch.randn(1, LAYERS[layer][1] ** 2, LAYERS[layer][0], generator=generator)
        for layer in layers
    }

    def dense(rows: torch.Tensor) -> torch.Tensor:
        importance = (rows @ rows.transpose(1, 2) / rows.shape[-1] ** 0.5).softmax(dim=-1)
        entropies = -(importance * torch.log(importance.clamp_min(1e-30))).sum(dim=-1)
        chosen = entropies.argsort(dim=1)[:, :PATCHES]
        return torch.take_along_dim(importance, chosen[..., None], dim=1) @ rows

    def chunked(rows: torch.Tensor) -> torch.Tensor:
        chosen = patches.select(patches.row_entropies(rows), PATCHES)
        return patches.importance_rows(rows, chosen) @ rows

    run = {"dense": dense, "chunked": chunked}[kind]
    warm = torch.randn(1, 64, 8)
    run(warm)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    with torch.no_grad():
        for _ in range(repeats):
            clock = time.perf_counter()
            for rows in inputs.values():
                run(rows)
            seconds.append(time.perf_counter() - clock)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(seconds), "megabytes": peak / 1024}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", default="1,2,3", help="which contrastive layers together")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, layers = options.child
        print(
            json.dumps(measure(kind, [int(layer) for layer in layers.split(",")], options.repeats))
        )
        return
    print(f"{'layers':<8} {'variant':<8} {'seconds':>8} {'peak MB':>8}")
    for layers in dict.fromkeys((options.layers, "2")):
        measured = {}
        for kind in ("dense", "chunked"):
            command = [
                sys.executable,
                __file__,
                "--repeats",
                str(options.repeats),
                "--child",
                kind,
                layers,
            ]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            row = measured[kind] = json.loads(answer)
            print(f"{layers:<8} {kind:<8} {row['seconds']:>8.3f} {row['megabytes']:>8.1f}")
        dense, chunked = measured["dense"], measured["chunked"]
        memory = dense["megabytes"] / max(chunked["megabytes"], 0.1)
        speed = dense["seconds"] / chunked["seconds"]
        print(f"{layers:<8} dense / chunked: memory {memory:.1f} times, time {speed:.2f} times")


if __name__ == "__main__":
    main()

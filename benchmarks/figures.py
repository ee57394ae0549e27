"""Draw the networks of every method from the modules themselves: a box per block, placed by the resolution it leaves.

A completed slice and a training step of the published set-up run without computing; forward hooks note what each module
returns. Blocks are drawn in the order of their calls; what is added or concatenated between them is not shown.

    python benchmarks/figures.py
    python benchmarks/figures.py --methods unet --output /tmp
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

from shapes import PUBLISHED_METHODS, example_store, made, slices_for, translations, without_values
from torch import Tensor, nn

from attcl_cli.methods import METHODS
from attcl_cli.methods.base import Method
from attcl_cli.methods.settings import Settings, resolve, title_of

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods" / "figures"

_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)  # a block has one at least
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST_SIZES = (
    2  # of the maps that a block gets and its layers return; what has more is drawn by its parts
)
_MAPS = 4  # dimensions: images and feature maps, (B, C, H, W)
_MARGIN, _TITLE, _GAP = 12, 26, 6  # pixels
_ROW, _BOX = 24, 20  # from one resolution to the next; height of a box
_COLOURS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#8a8a00")


@dataclass(frozen=True)
class Block:
    """A block of a network.

    Attributes:
        kind: the name of its class.
        channels: of what it returns.
        side: its height, in pixels; 0: no map but a vector.
    """

    kind: str
    channels: int
    side: int


@dataclass(frozen=True)
class Network:
    """A network, or several of one shape.

    Attributes:
        name: without the numbers of the modalities.
        count: how many there are.
        parameters: of each.
        blocks: in the order in which they are called first; those of equal kind and size one after the other.
    """

    name: str
    count: int
    parameters: int
    blocks: tuple[Block, ...]


@dataclass
class _Call:
    """The first call of a module: when, what it got first and what it returned; None if that was no single tensor."""

    number: int
    input: Tensor | None = None
    output: Tensor | None = None


def main() -> None:
    """Draw, and print the paths."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--methods", nargs="+", choices=PUBLISHED_METHODS, default=PUBLISHED_METHODS
    )
    parser.add_argument("--output", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.methods:
        path = options.output / file_name(name)
        path.write_text(figure(name), encoding="utf-8")
        print(path)


def file_name(name: str) -> str:
    """Return the name of the file of a method, or of `method:variant`."""
    return f"{name.rpartition(':')[2]}.svg"


def figure(name: str) -> str:
    """Return the figure of a method, or of `method:variant`, an SVG."""
    settings = published(name)
    title = f"{title_of(settings)}: networks at {settings.image_size} pixels"
    return drawing(title, networks_of(settings))


def published(text: str) -> Settings:
    """Return the published settings of a method, or of `method:variant`, two slices per step; PLAVE's for T1ce."""
    name, _, variant = text.partition(":")
    kind = METHODS[name].settings_class
    changes: dict[str, Any] = {"batch_size": 2, "epochs": 0}
    if "plave_target" in kind.model_fields:
        changes["plave_target"] = "t1ce"
    preset = "published" if "published" in kind.presets else "paper"
    settings = resolve(preset=preset, method=name, variant=variant or None, overrides=changes)
    settled: Settings = METHODS[name].settled(settings, example_store(16))
    return settled


def networks_of(settings: Settings) -> list[Network]:
    """Return the networks that a completed slice and the last step of a run call, those of equal shape once."""
    with without_values():
        method = made(settings)
    last = settings.steps - 1
    batch = method.sampler(example_store(settings.image_size)).batch(last)
    target, sources = translations(method)[0]
    with _noted(method) as calls, without_values():
        method.synthesise(slices_for(method, sources, 1), [target])
        method.train()
        method.training_step(batch.part(slice(0, len(batch))), last)
    return _grouped(method, calls)


def drawing(title: str, networks: Sequence[Network]) -> str:
    """Return an SVG: a network per lane, from left to right, a row per resolution."""
    kinds = list(dict.fromkeys(block.kind for network in networks for block in network.blocks))
    colours = {kind: _COLOURS[index % len(_COLOURS)] for index, kind in enumerate(kinds)}
    parts: list[str] = [_text(_MARGIN, 18, title, size=15)]
    top, right = 34, 10 * len(title)
    for network in networks:
        lane, width, height = _lane(network, colours, top)
        parts += lane
        top += height
        right = max(right, width)
    x = _MARGIN
    for kind in kinds:
        if x > max(right, 600):
            x, top = _MARGIN, top + 18
        parts += [_box(x, top, 12, 12, colours[kind], kind), _text(x + 16, top + 10, kind)]
        x += 28 + 7 * len(kind)
    width, height = max(right, x) + _MARGIN, top + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _lane(network: Network, colours: Mapping[str, str], top: int) -> tuple[list[str], int, int]:
    """Return the elements of a network, the right edge, and the height."""
    several = f"{network.count} x " if network.count > 1 else ""
    title = f"{several}{network.name}, {network.parameters / 1e6:,.2f} million parameters"
    parts = [_text(_MARGIN, top + 14, f"{title} each" if several else title, size=12)]
    sides = sorted({block.side for block in network.blocks}, reverse=True)
    rows = {side: top + _TITLE + _ROW * index for index, side in enumerate(sides)}
    for side, y in rows.items():
        parts.append(_text(_MARGIN, y + 14, str(side) if side else "vector"))
    x = _MARGIN + 46
    for block, run in groupby(network.blocks):
        times = len(list(run))
        text = f"{block.channels}" + (f" x{times}" if times > 1 else "")
        width = 14 + 7 * len(text)
        size = f"{block.side} pixels" if block.side else "a vector"
        hint = f"{block.kind}: {block.channels} channels, {size}"
        parts.append(_box(x, rows[block.side], width, _BOX, colours[block.kind], hint))
        parts.append(_text(x + 7, rows[block.side] + 14, text, colour="#ffffff"))
        x += width + _GAP
    return parts, x, _TITLE + _ROW * len(sides) + 8


def _box(x: int, y: int, width: int, height: int, colour: str, hint: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{colour}">'
        f"<title>{escape(hint)}</title></rect>"
    )


def _text(x: int, y: int, text: str, *, size: int = 11, colour: str = "#222222") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}">{escape(text)}</text>'


@contextmanager
def _noted(method: Method) -> Iterator[dict[nn.Module, _Call]]:
    """Note the first call of every module while this is entered."""
    calls: dict[nn.Module, _Call] = {}

    def before(module: nn.Module, inputs: tuple[object, ...]) -> None:
        first = inputs[0] if inputs else None
        image = first.detach() if isinstance(first, Tensor) else None
        calls.setdefault(module, _Call(len(calls), image))

    def after(module: nn.Module, _inputs: object, output: object) -> None:
        call = calls[module]
        if call.output is None and isinstance(output, Tensor):
            call.output = output.detach()

    handles = []
    for module in method.modules():
        handles += [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after),
        ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _grouped(method: Method, calls: Mapping[nn.Module, _Call]) -> list[Network]:
    """Return the networks with weights; those that have parameters of equal names and shapes are one of several."""
    groups: dict[tuple[object, ...], list[tuple[str, nn.Module]]] = {}
    for name, network in method.networks().items():
        shapes = tuple((key, tuple(it.shape)) for key, it in network.named_parameters())
        if shapes:
            plain = re.sub(r"(_\d+)+$", "", name).replace("_", " ")
            groups.setdefault((plain, shapes), []).append((plain, network))
    networks = []
    for members in groups.values():
        name, _ = members[0]
        called = [blocks for _, network in members if (blocks := _blocks(network, calls))]
        parameters = sum(it.numel() for it in members[0][1].parameters())
        networks.append(Network(name, len(members), parameters, called[0] if called else ()))
    return networks


def _blocks(network: nn.Module, calls: Mapping[nn.Module, _Call]) -> tuple[Block, ...]:
    """Return the blocks of a network in the order of their calls."""
    chosen = [it for part in network.children() for it in _parts(part, calls)]
    if not chosen:
        chosen = _parts(network, calls)
    chosen.sort(key=lambda module: calls[module].number)
    return tuple(_block(module, calls[module].output) for module in chosen)


def _block(module: nn.Module, output: Tensor | None) -> Block:
    if output is None:
        raise ValueError(f"{type(module).__name__}: returned no tensor, expected one")
    maps = output.ndim == _MAPS
    return Block(
        _kind(module), output.shape[1] if maps else output.shape[-1], output.shape[2] if maps else 0
    )


def _kind(module: nn.Module) -> str:
    """Return the name of a module's class; a convolution whose weights are normed has another one in torch."""
    return type(module).__name__.removeprefix("Parametrized").lstrip("_")


def _parts(module: nn.Module, calls: Mapping[nn.Module, _Call]) -> list[nn.Module]:
    """Return the called modules that a module is drawn as: itself, or the parts of what is large or returns several."""
    own = [it for it in module.modules() if isinstance(it, _LAYERS) and it in calls]
    if not own:
        return []
    call = calls.get(module)
    whole = call is not None and call.output is not None and type(module) not in _CONTAINERS
    seen = [call.input if call else None, *(calls[it].output for it in own)]
    sizes = {it.shape[2:] for it in seen if it is not None and it.ndim == _MAPS}
    if whole and len(sizes) <= _MOST_SIZES:
        return [module]
    return [it for part in module.children() for it in _parts(part, calls)]


if __name__ == "__main__":
    main()

"""The methods by name. A new one is a new file here and a line in `_BUILT_IN`; nothing else changes.

Loads no method before it is asked for: `attcl --help` lists them without torch.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from attcl_cli.errors import AttclError

if TYPE_CHECKING:
    from attcl_cli.methods.base import Method

ENTRY_POINTS = "attcl.methods"
"""The entry point group by which another package adds its methods: `name = "package.module:Class"`."""

# Name -> (title, what it needs, module:class)
_BUILT_IN: Mapping[str, tuple[str, str, str]] = {
    "attcl-gan": (
        "AttCL-GAN",
        "all that a case has, or one source",
        "attcl_cli.methods.attcl_gan:AttclGan",
    ),
    "plave": ("PLAVE", "all that a case has", "attcl_cli.methods.plave:Plave"),
    "unet": ("U-Net", "the yardstick: all that a case has", "attcl_cli.methods.unet:Unet"),
    "attgan": ("AttGAN", "one source per volume", "attcl_cli.methods.attgan:Attgan"),
    "superstargan": (
        "SuperstarGAN",
        "one source per volume",
        "attcl_cli.methods.superstargan:Superstargan",
    ),
    "cyclegan": ("CycleGAN", "one source per volume", "attcl_cli.methods.cyclegan:CycleGan"),
    "u-gat-it": ("U-GAT-IT", "one source per volume", "attcl_cli.methods.u_gat_it:UGatIt"),
    "attentiongan": (
        "AttentionGAN",
        "one source per volume",
        "attcl_cli.methods.attentiongan:AttentionGan",
    ),
    "msa-gan": (
        "MSA-GAN (re-specified)",
        "re-specified: one source per volume",
        "attcl_cli.methods.msa_gan:MsaGan",
    ),
    "w2gan": (
        "W2GAN (re-specified)",
        "re-specified: one source per volume",
        "attcl_cli.methods.w2gan:W2Gan",
    ),
}

VARIANTS: Mapping[str, str] = {
    "stargan-v2": "attcl-gan",
    "aca-gan": "plave",
    "ae-gan": "plave",
    "auto-gan": "plave",
}
"""Published method -> the method of which it is a variant."""

RE_SPECIFIED = frozenset({"w2gan", "msa-gan", "auto-gan"})
"""Methods and variants of whose authors we found no code: their layers and losses are our specification."""


class Registry(Mapping[str, "type[Method]"]):
    """Name -> class of a method, loaded when it is looked up."""

    def __getitem__(self, name: str) -> type[Method]:
        """Load the class of a method.

        Raises:
            KeyError: there is no method of that name.
            AttclError: the package that brings it is broken.
        """
        path = _BUILT_IN[name][2] if name in _BUILT_IN else _added()[name]
        module, _, attribute = path.partition(":")
        try:
            method: type[Method] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise AttclError(
                f"method {name}: {path} cannot be loaded ({error}), expected a class in an installed package",
                "install the package that brings the method again, or remove it",
                code="method-not-loadable",
            ) from error
        return method

    def __contains__(self, name: object) -> bool:
        """Return whether there is a method of that name, without loading it."""
        return name in _BUILT_IN or name in _added()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, our own methods first."""
        return iter(dict.fromkeys([*_BUILT_IN, *_added()]))

    def __len__(self) -> int:
        """Return the number of methods."""
        return len(list(iter(self)))

    def built_in(self, name: str) -> bool:
        """Return whether a method is ours: it has the common presets alone."""
        return name in _BUILT_IN

    def title(self, name: str) -> str:
        """Return what people call a method; its name if it comes from another package."""
        return _BUILT_IN[name][0] if name in _BUILT_IN else name

    def listing(self) -> str:
        """Return the names for --help, with what each needs."""
        return ", ".join(
            f"{name} ({_BUILT_IN[name][1]})" if name in _BUILT_IN else name for name in self
        )


METHODS = Registry()


def _added() -> Mapping[str, str]:
    """Return the methods of other installed packages: name -> module:class."""
    return _added_on(tuple(sys.path))


@lru_cache(maxsize=1)
def _added_on(_path: tuple[str, ...]) -> Mapping[str, str]:
    """Return `_added` of a search path; a look at all installed packages takes 25 ms."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}

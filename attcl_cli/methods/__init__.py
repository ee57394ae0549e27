"""The methods by name. A new one is a new file here and a line in `_BUILT_IN`; nothing else changes.

Loads no method before it is asked for: `attcl --help` lists them without torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attcl_cli.methods.base import Method

ENTRY_POINTS = "attcl.methods"
"""The entry point group by which another package adds its methods: `name = "package.module:Class"`."""

# Name -> (title, what it needs, module:class)
_BUILT_IN: Mapping[str, tuple[str, str, str]] = {
    "attcl-gan": ("AttCL-GAN", "one source per volume", "attcl_cli.methods.attcl_gan:AttclGan"),
    "plave": ("PLAVE", "all that a case has", "attcl_cli.methods.plave:Plave"),
}


class Registry(Mapping[str, "type[Method]"]):
    """Name -> class of a method, loaded when it is looked up."""

    def __getitem__(self, name: str) -> type[Method]:
        """Load the class of a method.

        Raises:
            KeyError: there is no method of that name.
        """
        path = _BUILT_IN[name][2] if name in _BUILT_IN else _added()[name].value
        module, _, attribute = path.partition(":")
        found: type[Method] = getattr(importlib.import_module(module), attribute)
        return found

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, our own methods first."""
        return iter(dict.fromkeys([*_BUILT_IN, *_added()]))

    def __len__(self) -> int:
        """Return the number of methods."""
        return len(list(iter(self)))

    def title(self, name: str) -> str:
        """Return what people call a method; its name if it comes from another package."""
        return _BUILT_IN[name][0] if name in _BUILT_IN else name

    def listing(self) -> str:
        """Return the names for --help, with what each needs."""
        return ", ".join(
            f"{name} ({_BUILT_IN[name][1]})" if name in _BUILT_IN else name for name in self
        )


METHODS = Registry()


def _added() -> dict[str, EntryPoint]:
    """Return the methods of other installed packages by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}

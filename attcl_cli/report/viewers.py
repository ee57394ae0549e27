"""Which viewers a page can have. Light: the command line reads the names for its help.

How they look is left to `sections`, `niivue` and the templates.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from attcl_cli.errors import UsageError

ViewerName: TypeAlias = Literal["slices", "niivue"]
VIEWERS: tuple[str, ...] = get_args(ViewerName)
SLICES, NIIVUE = VIEWERS


def require_viewer(name: str) -> None:
    """Refuse a name that is no viewer.

    Raises:
        UsageError: it is not in `VIEWERS`.
    """
    if name not in VIEWERS:
        raise UsageError(
            f"--viewer: unknown viewer {name!r}, expected {' or '.join(VIEWERS)}",
            "slices is always in the page; niivue adds NiiVue for the worst volumes",
            code="unknown-viewer",
        )

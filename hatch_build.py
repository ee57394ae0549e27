"""Metadata of the package that depend on where the project is published: its addresses, and links of the README.

`repository-code` in CITATION.cff is the one place that names the repository. A package index has none of its files:
there, a relative link of the README leads nowhere, so each becomes absolute. As long as no repository is named, the
links become plain text, and the picture is left out with its caption.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[([^]]*)\]\(([^)]+)\)\n\n(\*[^\n]+\*)\n\n")
_LINK = re.compile(r"\[([^]]+)\]\((?!https?://|#)([^)]+)\)")
_PAPER = "https://arxiv.org/abs/2502.19390"


class MetadataHook(MetadataHookInterface):
    """Adds `urls` and `readme`."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """See hatchling."""
        root = Path(self.root)
        repository = repository_of((root / "CITATION.cff").read_text(encoding="utf-8"))
        readme = (root / "README.md").read_text(encoding="utf-8")
        metadata["urls"] = urls(repository)
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": for_index(readme, repository),
        }


def repository_of(citation: str) -> str:
    """Return the address of the repository that CITATION.cff names, without a slash at its end; "" if it names none."""
    match = re.search(r"^repository-code: *[\"']?(https://[^\s\"']+)", citation, re.MULTILINE)
    return match[1].rstrip("/") if match else ""


def urls(repository: str) -> dict[str, str]:
    """Return label -> address, as a package index lists them."""
    own = {
        "Repository": repository,
        "Documentation": f"{repository}/tree/HEAD/docs",
        "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }
    return {**(own if repository else {}), "Paper of PLAVE": _PAPER}


def for_index(readme: str, repository: str) -> str:
    """Return the README with absolute links, or, without a repository, with neither relative links nor the picture."""
    if not repository:
        return _LINK.sub(r"\1", _PICTURE.sub("", readme))
    pictured = _PICTURE.sub(rf"![\1]({repository}/raw/HEAD/\2)\n\n\3\n\n", readme)
    return _LINK.sub(rf"[\1]({repository}/blob/HEAD/\2)", pictured)

"""Weights on disk: self-describing safetensors, written whole, loaded without running any code.

Knows which method a file needs and rebuilds it. Leaves to `training` which tensors these are.
"""

from __future__ import annotations

import difflib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator
from safetensors import safe_open

from attcl_cli import __version__
from attcl_cli.data.background import BackgroundOption
from attcl_cli.data.intensities import Scale
from attcl_cli.data.records import ScaleDocument
from attcl_cli.documents import Count, Document, Finite, Items, Name, shown, validated
from attcl_cli.errors import UNSEEN, AttclError, UsageError, first_line
from attcl_cli.files import parse_json, read_json, sha256, write_json, write_whole
from attcl_cli.methods import METHODS
from attcl_cli.methods.finite import require_finite_tensors
from attcl_cli.methods.settings import Settings, parse, parse_first_schema, title_of, to_tables
from attcl_cli.methods.sources import AllPresent, SeenTogether, SourceRule

if TYPE_CHECKING:  # a name of nothing is reported before torch is loaded
    import torch
    from torch import Tensor

    from attcl_cli.methods.base import Method

SCHEMA_VERSION = 2
# Schema -> how its settings are read. The first one had the settings of every method, flat.
_SETTINGS_READERS: Mapping[int, Callable[[Mapping[str, Any]], Settings]] = {
    1: parse_first_schema,
    2: parse,
}

BUNDLED = "phantom-tiny"
WEIGHTS_FILE = "weights.safetensors"
METADATA_KEY = "attcl"  # our entry among a safetensors file's metadata

_REFERENCE = "reference"
_USUAL = 1024  # no setting of a network of a usual size is greater
_MOST_MODALITIES = 256
_COPY = "copy the file again from its source, or train again"


class _InfoDocument(Document):
    """What a weights file says of itself, of every schema."""

    settings: dict[str, Any]
    modalities: Annotated[Items[Name], Field(min_length=1, max_length=_MOST_MODALITIES)]
    scales: dict[Name, ScaleDocument]
    references: dict[Name, dict[str, Any]]
    trained_on: Items[str]
    steps: Count
    attcl_version: str
    quantiles: dict[Name, Annotated[Items[Finite], Field(min_length=2)]] = Field({})
    training_statistics: dict[Name, dict[str, Items[Finite]]] = Field({})
    background: BackgroundOption = "auto"

    @model_validator(mode="after")
    def _agrees(self) -> _InfoDocument:
        lacking = [name for name in self.modalities if name not in self.scales]
        if lacking:
            raise ValueError(f"scales: none of {lacking[0]}, expected one per modality")
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError("modalities: one of them twice, expected each once")
        return self


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says of itself.

    Attributes:
        settings: those of the training run.
        modalities: the domains, in the networks' order.
        scales: modality -> intensities that -1 and 1 stand for in completed volumes.
        references: modality -> which slice of which training case fixed its style.
        trained_on: ids of the training cases.
        steps: how many training steps the weights have seen.
        attcl_version: of the program that wrote them.
        quantiles: modality -> quantiles in the brain of its training volumes, at evenly spaced levels, in [-1, 1]: what
            completion may give the volumes that it makes of this modality; a modality may lack them.
        training_statistics: modality -> training case -> the vector of its volume (`data.volume_statistics`), by which
            completion notices a case that is unlike them; empty: nothing is said.
        background: what was background in the training volumes (`volumes.load`).
    """

    settings: Settings
    modalities: tuple[str, ...]
    scales: Mapping[str, Scale]
    references: Mapping[str, Mapping[str, Any]]
    trained_on: tuple[str, ...]
    steps: int
    attcl_version: str = __version__
    quantiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    training_statistics: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    background: BackgroundOption = "auto"

    @property
    def method(self) -> type[Method]:
        """The class of the method."""
        return METHODS[self.settings.method]

    @cached_property
    def rule(self) -> SourceRule:
        """The rule that says what these weights make from what.

        Of several sources, only those are taken that a training case had together with the target.
        """
        rule = self.method.sources(self.settings, self.modalities)
        return SeenTogether(rule, self.patterns) if isinstance(rule, AllPresent) else rule

    @cached_property
    def patterns(self) -> frozenset[frozenset[str]]:
        """The modalities of each training case; empty if the file does not say."""
        cases: dict[str, set[str]] = {}
        if all(name in self.training_statistics for name in self.modalities):
            for name, vectors in self.training_statistics.items():
                for case in vectors:
                    cases.setdefault(case, set()).add(name)
        return frozenset(map(frozenset, cases.values()))


@dataclass(frozen=True)
class Weights:
    """A weights file, found and verified; `load_method` makes a method of it.

    Attributes:
        name: what `run.json` calls it.
        path: the file.
        sha256: of its bytes.
        info: what it says of itself.
    """

    name: str
    path: Path
    sha256: str
    info: WeightsInfo


def weights_folders() -> list[Path]:
    """Return the folders of named weights: ATTCL_WEIGHTS, a checkout's `weights/`, the installed package's."""
    package = Path(__file__).resolve().parents[1]
    folders = [package.parent / "weights", package / "weights"]
    if os.environ.get("ATTCL_WEIGHTS"):
        folders.insert(0, Path(os.environ["ATTCL_WEIGHTS"]))
    return [folder for folder in folders if folder.is_dir()]


def note_of_folder() -> str:
    """Return that ATTCL_WEIGHTS names no folder, if so; otherwise "". Downloads may make it: so it is no error."""
    named = os.environ.get("ATTCL_WEIGHTS")
    if not named or Path(named).is_dir():
        return ""
    return f"ATTCL_WEIGHTS: {named} is no folder, expected one with weights"


def named_weights() -> dict[str, Path]:
    """Return name -> file of all weights that can be asked for by name."""
    files: dict[str, Path] = {}
    for folder in weights_folders():
        for path in sorted(folder.glob("*.safetensors")):
            files.setdefault(path.stem, path)
    return files


def find_weights(name: str, *, flag: str = "--weights") -> Weights:
    """Find and verify weights; `bundled.choose_weights` says which a dataset takes if none are named.

    Args:
        name: a bundled name, a file, or a run's folder.
        flag: the option that names them.

    Raises:
        UsageError: there is nothing of that name.
        AttclError: the file is damaged: not safetensors, not ours, or not the bytes that its card describes; or its
            name leads to no file.
    """
    place = named_weights().get(name) or Path(name)
    path = place / WEIGHTS_FILE if place.is_dir() else place
    if not path.is_file():
        if place.suffix == ".safetensors" and os.path.lexists(place):
            raise _no_file(place)
        note = note_of_folder()
        close = difflib.get_close_matches(name, named_weights(), n=1)
        raise UsageError(
            f"{flag}: {name!r} is no file and no known name, "
            f"expected a run's folder, a .safetensors file or one of {_known_names()}{note and f' ({note})'}",
            f"did you mean {close[0]}?"
            if close
            else "attcl weights list shows those that are found",
            code="unknown-weights",
            instead=(name, close[0]) if close else None,
        )
    digest = sha256(path)
    card = path.with_suffix(".json")
    if card.is_file():
        described = read_json(card)
        expected = described.get("sha256") if isinstance(described, dict) else None
        if expected != digest:
            raise AttclError(
                f"{path}: SHA-256 {digest[:16]}..., "
                f"expected {str(expected)[:16]}... as its card {card.name} says",
                "copy the weights again from their source; do not use these",
                code="weights-changed",
            )
    name = path.parent.name if path.name == WEIGHTS_FILE else path.stem
    return Weights(name=name, path=path, sha256=digest, info=_read_info(path))


def require_same_file(weights: Weights) -> None:
    """Raise an error if the file of weights is no more the one that was found: of another machine, or changed since.

    Volumes would name other weights than those that made them.

    Raises:
        AttclError: its bytes are others.
    """
    if not weights.path.is_file():  # which loading reports
        return
    digest = sha256(weights.path)
    if digest != weights.sha256:
        raise AttclError(
            f"{weights.path}: SHA-256 {digest} on {platform.node()}, expected {weights.sha256}",
            "put the same file at this path on every machine, and run the same command again",
            code="weights-differ",
        )


def load_method(weights: Weights, device: torch.device) -> Method:
    """Return the method with these weights on a device, in eval mode, ready for `synthesise`.

    Raises:
        AttclError: the tensors do not fit the settings that the file states.
    """
    import torch  # noqa: PLC0415

    info = weights.info
    stored = read_tensors(weights.path)
    _require_plausible(weights, stored)
    method = info.method(info.settings, info.modalities)
    require_finite_tensors(stored, weights.path, saving=False)
    tensors = {
        key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in stored.items()
    }
    for name, network in method.stored_networks().items():
        try:
            network.load_state_dict(tensors_below(f"{name}.", tensors))
        except RuntimeError as error:
            raise _misfit(weights, first_line(error)) from error
        # As the slices are (`completion.inference`): a sixth faster on a CPU than rearranging them in every layer.
        network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    method.eval().requires_grad_(requires_grad=False)
    method.references = tensors_below(f"{_REFERENCE}.", tensors)
    lacking = sorted(set(info.modalities) - set(method.references))
    if method.styled and lacking:
        raise AttclError(
            f"{weights.path}: no reference of {', '.join(lacking)}, expected a file that attcl wrote",
            "copy the file again from its source, or train again",
            code="weights-without-reference",
        )
    return method


def save_weights(path: Path, method: Method, info: WeightsInfo, *, note: str = "") -> None:
    """Write `method`'s inference networks as float16 (integer buffers as they are) and their card, `<stem>.json`.

    The card is written last: after a kill between the two the weights stand for themselves until the next save.
    """
    import torch  # noqa: PLC0415
    from safetensors.torch import save as to_safetensors  # noqa: PLC0415

    tensors = {
        f"{name}.{key}": value
        for name, network in method.stored_networks().items()
        for key, value in network.state_dict().items()
    }
    tensors |= {f"{_REFERENCE}.{name}": value for name, value in method.references.items()}
    half = {
        key: value.detach()
        .to("cpu", torch.float16 if value.is_floating_point() else value.dtype)
        .contiguous()
        for key, value in tensors.items()
    }
    require_finite_tensors(half, path, saving=True)  # float16 ends at 65,504
    document = _info_to_json(info)
    card = path.with_suffix(".json")
    # Without a card a file stands for itself; with a stale one it would be refused.
    card.unlink(missing_ok=True)
    write_whole(
        path, to_safetensors(half, {METADATA_KEY: json.dumps({**document, **_measured(info)})})
    )
    # Beside the name: a title also says whether a method had to be specified anew.
    title = {"method_title": title_of(info.settings)}
    write_json(card, {"sha256": sha256(path), "note": note, **title, **document})


def _require_plausible(weights: Weights, stored: Mapping[str, Tensor]) -> None:
    """Refuse settings of networks that are larger than the tensors of the file, before memory is taken for them.

    Those of usual sizes are built at once, since building them without memory takes seconds to prepare.
    """
    import torch  # noqa: PLC0415

    info = weights.info
    own = to_tables(info.settings).get(info.settings.method, {})
    if all(value <= _USUAL for value in own.values() if isinstance(value, int)):
        return
    try:
        with torch.device("meta"):
            method = info.method(info.settings, info.modalities)
    except Exception as error:  # torch raises what it likes on impossible sizes
        raise _misfit(weights, first_line(error)) from error
    for name, network in method.stored_networks().items():
        expected = {key: value.shape for key, value in network.state_dict().items()}
        if expected != {
            key: value.shape for key, value in tensors_below(f"{name}.", stored).items()
        }:
            raise _misfit(weights, f"{name} is of another size")


def _misfit(weights: Weights, why: str) -> AttclError:
    return AttclError(
        f"{weights.path}: tensors do not fit its own settings ({why}), "
        "expected a file that attcl wrote",
        _COPY,
        code="weights-do-not-fit",
    )


def _no_file(place: Path) -> AttclError:
    found = "a folder" if place.is_dir() else "no plain file"
    if not place.exists():
        found = "a link that leads nowhere"
    return AttclError(
        f"{place}: {found}, expected a file of weights",
        "copy the file again from its source, or remove it",
        code="weights-unreadable",
    )


def _known_names() -> str:
    return ", ".join(named_weights()) or "(none bundled)"


def _info_to_json(info: WeightsInfo) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "attcl_version": info.attcl_version,
        "method": info.settings.method,
        "modalities": list(info.modalities),
        "steps": info.steps,
        "scales": {name: asdict(scale) for name, scale in info.scales.items()},
        "references": dict(info.references),
        "trained_on": list(info.trained_on),
        "settings": to_tables(info.settings),
        **({"background": info.background} if info.background != "auto" else {}),
    }


def _measured(info: WeightsInfo) -> dict[str, Any]:
    """Return what was measured on the training volumes: long lists of numbers, which the card leaves out."""
    measured = {
        "quantiles": dict(info.quantiles),
        "training_statistics": {
            name: dict(cases) for name, cases in info.training_statistics.items()
        },
    }
    return {name: values for name, values in measured.items() if values}


def _read_info(path: Path) -> WeightsInfo:
    document = read_metadata(path)
    version = document.get("schema_version")
    reader = _SETTINGS_READERS.get(version) if type(version) is int else None
    if reader is None:
        raise AttclError(
            f"{path}: schema_version {shown(version)}, expected {SCHEMA_VERSION} or lower",
            "use the version of attcl that wrote it, or train again",
            code="weights-of-another-schema",
        )
    record = validated(
        _InfoDocument,
        document,
        name=f"{path}: its description is incomplete",
        expected="a file that attcl wrote",
        hint=_COPY,
        code="weights-description-incomplete",
    )
    try:
        settings = reader(record.settings)
    except AttclError as error:
        if error.code == "unknown-method":
            raise AttclError(
                f"{path}: made by method {shown(document.get('method'))}, "
                f"expected one of {', '.join(METHODS)}",
                "install the package that brings the method",
                code="method-not-installed",
            ) from error
        raise AttclError(
            f"{path}: its description is incomplete ({error}), expected a file that attcl wrote",
            _COPY,
            code="weights-description-incomplete",
        ) from error
    return WeightsInfo(
        settings=settings,
        modalities=record.modalities,
        scales={name: Scale(scale.low, scale.high) for name, scale in record.scales.items()},
        references=record.references,
        trained_on=record.trained_on,
        steps=record.steps,
        attcl_version=record.attcl_version,
        quantiles=record.quantiles,
        training_statistics=record.training_statistics,
        background=record.background,
    )


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; the gate through which every one passes.

    Raises:
        AttclError: not readable as safetensors.
    """
    try:
        with _named_in_utf8(path) as name, safe_open(name, framework="pt") as file:
            yield file
    except (AttclError, MemoryError):
        raise
    except Exception as error:  # what the library raises on a damaged file is not documented
        permission = isinstance(error, PermissionError)
        raise AttclError(
            f"{path}: not readable as safetensors ({first_line(error)}), expected weights that attcl wrote",
            "allow yourself to read it (chmod u+r)"
            if permission
            else "copy the file again from its source",
            code="weights-unreadable",
        ) from error


@contextmanager
def _named_in_utf8(path: Path) -> Iterator[Path]:
    """Give a file a name that safetensors can open, which knows UTF-8 alone."""
    if not UNSEEN.search(str(path)):
        yield path
        return
    with path.open("rb") as stream:
        place = Path(f"/proc/self/fd/{stream.fileno()}")
        yield place if place.exists() else path


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what a safetensors file by attcl says of itself.

    Raises:
        AttclError: not readable as safetensors, or by somebody else.
    """
    with opened(path) as file:
        metadata = file.metadata() or {}
    try:
        document = parse_json(metadata.get(METADATA_KEY, ""), allow_nan=True)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise AttclError(
            f"{path}: safetensors without a description by attcl, expected weights that attcl wrote",
            "use a run's weights.safetensors",
            code="weights-of-somebody-else",
        )
    return document


def tensors_below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with the prefix, without it."""
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in tensors.items()
        if key.startswith(prefix)
    }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file by name; errors as `opened`."""
    with opened(path) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict

"""Settings of a training run: the common ones, how presets, files and the command line add up, TOML in and out.

Each method owns a subclass of `Settings` beside its code, with its presets and variants. What a setting does is
documented where it is used. Knows no network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from attcl_cli.documents import clipped
from attcl_cli.errors import AttclError, UsageError, nearest, raise_all
from attcl_cli.files import read_toml
from attcl_cli.methods import METHODS, RE_SPECIFIED, VARIANTS
from attcl_cli.methods.presets import DEFAULT_METHOD, DEFAULT_PRESET, FURTHER_PRESETS, PRESETS
from attcl_cli.methods.setting_fields import Decay, Positive, Rate, Share, Weight, setting

SliceSpan = Literal["middle", "all"]
Model = TypeVar("Model", bound=BaseModel)

SECTIONS = ("run", "image", "optimiser")
"""The tables that common settings stand in on disk; those of a method stand in a table named as it is."""

_LARGEST = 2**63
_MOST_SIZE = 8192  # voxels; a slice of this side takes 256 MB
_LEAST_SIZE = 16  # pixels; the deepest networks of today end at 4x4

# Kind of error (pydantic's) -> how such a value is written.
_WRITTEN = {
    "tuple_type": "lists are written [1, 2]; ",
    "bool_parsing": "expected true or false; ",
}


class Settings(BaseModel):
    """The settings that every method has; frozen, and an unknown key is an error.

    A method's own class adds what it needs, its presets, and its variants.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Preset -> what it changes in the defaults, over `PRESETS`; a name that `PRESETS` lacks is a further preset."""

    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Variant -> the switches that it sets: the rows of a paper's ablation."""

    earlier: ClassVar[Mapping[str, Any]] = {"keep": "best", "ema_warm_up": True}
    """Setting -> what was done before there was such a setting, if that is not its default.

    A run and its weights state every setting: one that they lack is younger than they are.
    """

    method: str = setting(DEFAULT_METHOD, "The method that is trained.", section="run", fixed=True)
    seed: int = setting(
        0, "Seed of weights, sampling and latent codes.", section="run", fixed=True, ge=0
    )
    steps: Positive = setting(100_000, "Training iterations.", section="run")
    epochs: int = setting(
        0, "Passes over the training slices, which set steps. 0: steps counts.", section="run", ge=0
    )
    batch_size: Positive = setting(8, "Slices per iteration.", section="run")
    micro_batch: int = setting(
        0,
        "Slices that go through the networks at once; gradients of the parts add up. 0: the whole batch.",
        section="run",
        ge=0,
    )
    keep: Literal["last", "best"] = setting(
        "last",
        "Weights that a run leaves: the last, or those that validation scores best, if it can (ours).",
        section="run",
    )
    log_every: Positive = setting(10, "Steps between lines of stats.jsonl.", section="run")
    save_every: Positive = setting(500, "Steps between checkpoints.", section="run")
    sample_every: Positive = setting(500, "Steps between sample pictures.", section="run")

    image_size: Positive = setting(
        256,
        "Side of the square slices that the networks see, in pixels.",
        section="image",
        fixed=True,
    )
    canvas: Positive = setting(
        256,
        "Side of the square that slices are padded to, in voxels; averaged down to image_size.",
        section="image",
        fixed=True,
        le=_MOST_SIZE,
    )
    slice_span: SliceSpan = setting(
        "middle",
        "Axial slices that training draws from: the middle ones (31 to 124 of 155), or all.",
        section="image",
        fixed=True,
    )
    keep_background: bool = setting(
        default=False,
        description="Keep the sources' background in training, as completion does (ours).",
        section="image",
    )
    mirror: Share = setting(0.0, "Share of slices mirrored left to right (ours).", section="image")
    crop: int = setting(
        0,
        "Side of the random squares that training cuts out of the slices, in pixels; 0: whole slices (ours).",
        section="image",
        fixed=True,
        ge=0,
    )
    augment: Share = setting(
        0.0,
        "Share of slices whose sources get another contrast, shading and noise (ours).",
        section="image",
    )
    warp: Share = setting(
        0.0,
        "Share of slices that are turned, resized and bent, with all that belongs to them (ours).",
        section="image",
    )

    learning_rate: Rate = setting(1e-4, "Adam step of the networks.", section="optimiser")
    learning_rate_decay: Share = setting(
        0.0,
        "Share of the steps, the last ones, over which all Adam steps fall linearly to 0 (ours).",
        section="optimiser",
    )
    warm_up: int = setting(
        0,
        "Steps over which the learning rates first rise to their full values (ours).",
        section="optimiser",
        ge=0,
    )
    beta1: Decay = setting(0.0, "Adam: decay of the mean of the gradients.", section="optimiser")
    beta2: Decay = setting(0.99, "Adam: decay of the mean of their squares.", section="optimiser")
    weight_decay: Weight = setting(
        1e-4,
        "Weight decay: added to the gradient by Adam; with `muon`, times the learning rate per step.",
        section="optimiser",
    )
    ema_decay: Decay = setting(
        0.999, "Decay of the averaged weights that completion uses.", section="optimiser"
    )
    ema_warm_up: bool = setting(
        default=False,
        description="The averaged weights forget faster at first (ours).",
        section="optimiser",
    )

    @model_validator(mode="after")
    def _require_fitting_sizes(self) -> Settings:
        if self.image_size < _LEAST_SIZE or self.image_size & (self.image_size - 1):
            raise ValueError(
                f"image_size: {self.image_size}, expected a power of two of at least {_LEAST_SIZE}"
            )
        if self.canvas % self.image_size:
            raise ValueError(
                f"canvas: {self.canvas}, expected a multiple of image_size ({self.image_size})"
            )
        side = self.crop
        if side and (side < _LEAST_SIZE or side & (side - 1) or side > self.image_size):
            raise ValueError(
                f"crop: {side}, expected 0 or a power of two from {_LEAST_SIZE} "
                f"to image_size ({self.image_size})"
            )
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of these settings before a run starts, in a sentence each."""
        return ()

    @property
    def side(self) -> int:
        """The side of the squares that training sees, in pixels."""
        return self.crop or self.image_size


def settings_of(method: str) -> type[Settings]:
    """Return the settings class of a method.

    Raises:
        UsageError: there is no such method.
    """
    require_method(method)
    return METHODS[method].settings_class


def require_names(method: str | None, preset: str | None, file: Path | None) -> None:
    """Check the names of a method and a preset before the method, and with it torch, is loaded.

    A method may have presets of its own, and a file may name a method: `resolve` checks all.

    Args:
        method: None: what the file says, otherwise AttCL-GAN.
        preset: None: the usual one.
        file: a TOML file of settings.

    Raises:
        UsageError: there is no such method or preset.
    """
    if method is not None:
        require_method(method)
    elif file is not None:
        return
    if preset in FURTHER_PRESETS:
        return
    if preset is not None and METHODS.built_in(method or DEFAULT_METHOD):
        require_preset(preset, PRESETS)


def require_method(method: str) -> None:
    """Check the name of a method, without loading it.

    Raises:
        UsageError: there is no such method.
    """
    if method not in METHODS:
        variant = method.lower()
        raise UsageError(
            f"--method: unknown method {clipped(repr(method))}, expected one of {', '.join(METHODS)}",
            f"it is a variant: --method {VARIANTS[variant]} --variant {variant}"
            if variant in VARIANTS
            else nearest(clipped(method), METHODS),
            code="unknown-method",
        )


def preset_names(kind: type[Settings] = Settings) -> list[str]:
    """Return the presets of a method's settings class, the common ones first."""
    return list(dict.fromkeys([*PRESETS, *kind.presets]))


def fixed_names(kind: type[BaseModel]) -> list[str]:
    """Return the settings that a resumed run must keep."""
    return [name for name, field in kind.model_fields.items() if _extra(field).get("fixed")]


def section_of(name: str, kind: type[Settings], method: str) -> str:
    """Return the table that a setting stands in on disk."""
    return str(_extra(kind.model_fields[name]).get("section") or method)


def resolve(
    *,
    preset: str = DEFAULT_PRESET,
    method: str | None = None,
    variant: str | None = None,
    file: Path | None = None,
    before: Settings | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Build the settings of a run: the method's defaults, preset, TOML file, variant, overrides; later ones win.

    Args:
        preset: one of `preset_names`.
        method: a name of `METHODS`; None: what the file says, otherwise AttCL-GAN.
        variant: a variant of the method; None: none.
        file: a TOML file of settings, as `dump` writes it; it may name its own `preset`.
        before: the settings of a run to resume, which the file and the overrides change.
        overrides: single settings, values as TOML would give them.

    Raises:
        UsageError: unknown method, preset, variant or key (with the nearest known one), another method's key, wrong
            type or bound; all at once.
    """
    chosen: dict[str, Any] = before.model_dump() if before is not None else {}
    tables: dict[str, str] = {}
    if file is not None:
        values, tables = read_settings(file)
        if "preset" in values:  # a preset begins anew
            chosen, preset = {}, str(values.pop("preset"))
        chosen |= values
    single = dict(overrides or {})
    name = method or single.get("method") or chosen.get("method") or DEFAULT_METHOD
    kind = settings_of(str(name))
    require_preset(preset, preset_names(kind))
    prefix = f"{file}: " if file is not None else ""
    _require_own_tables(tables, str(name), prefix)
    origins = {key: prefix for key in tables if key not in single}
    raise_all(
        [
            *_foreign({**chosen, **single}, kind, name, origins),
            *_misplaced(tables, kind, name, prefix),
        ]
    )
    merged = {
        **PRESETS.get(preset, {}),
        **kind.presets.get(preset, {}),
        **chosen,
        **(_variant(kind, name, variant) if variant is not None else {}),
        **single,
        "method": name,
    }
    return validated(kind, merged, origins)


def parse(values: Mapping[str, Any], *, origin: str = "") -> Settings:
    """Validate settings given flat or in tables, as a run's file or weights state them.

    What they lack did not exist when they were written (`Settings.earlier`).

    Args:
        values: the settings.
        origin: what an error begins with, such as `config.toml: `.

    Raises:
        UsageError: each complaint names its key; all at once.
    """
    flat, _ = _flatten(values, origin)
    kind = settings_of(str(flat.get("method", DEFAULT_METHOD)))
    return validated(kind, {**kind.earlier, **flat}, dict.fromkeys(flat, origin))


def parse_first_schema(values: Mapping[str, Any], *, origin: str = "") -> Settings:
    """Validate the settings of a run or of weights of version 0.1's first schema.

    These were flat and held the settings of every method: those of other methods are dropped.
    """
    flat, _ = _flatten(values, origin)
    kind = settings_of(str(flat.get("method", DEFAULT_METHOD)))
    others = {key for other in METHODS for key in METHODS[other].settings_class.model_fields}
    foreign = others - set(kind.model_fields)
    own = {key: value for key, value in flat.items() if key not in foreign}
    return validated(kind, {**kind.earlier, **own}, dict.fromkeys(own, origin))


def read_settings(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a TOML file of settings.

    Returns:
        Setting -> value, and setting -> the table that it stood in ("" at the top).

    Raises:
        UsageError: the file is missing or no TOML.
    """
    expected = "a file of settings, such as a run's config.toml"
    return _flatten(read_toml(file, expected=expected), f"{file}: ")


def read_run_settings(file: Path) -> Settings:
    """Read the `config.toml` that a run wrote, also of the first schema.

    Raises:
        UsageError: the file is missing, no TOML, or not what a run writes.
    """
    document = read_toml(file, expected="the config.toml of a run")
    read = parse if "run" in document else parse_first_schema
    return read(document, origin=f"{file}: ")


def validated(
    kind: type[Model], values: Mapping[str, Any], origins: Mapping[str, str] = MappingProxyType({})
) -> Model:
    """Validate a dict as a model of settings.

    Args:
        kind: the model.
        values: setting -> value.
        origins: setting -> what an error begins with, such as `config.toml: `; others have nothing before them.

    Raises:
        UsageError: each complaint names its key, what was found and what is expected; all at once.
    """
    unknown = [
        UsageError(
            f"{origins.get(key, '')}setting {clipped(key)!r}: no such setting, "
            "expected one of those that --dry-run lists",
            nearest(clipped(key), kind.model_fields),
            code="unknown-setting",
        )
        for key in values
        if key not in kind.model_fields
    ]
    raise_all(unknown)
    raise_all(
        [
            problem
            for key, value in values.items()
            for problem in _converted(kind, key, value, origins.get(key, ""))
        ]
    )
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problems: list[AttclError] = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            text = item["msg"].removeprefix("Value error, ")
            problems.append(
                UsageError(
                    f"{_origin(origins, item['loc'])}setting {key}: "
                    f"found {clipped(repr(item['input']))}, {_expected(text)}"
                    if key
                    else f"{_origin(origins, text.split(':')[:1])}setting {text}",
                    _WRITTEN.get(item["type"], "") + "--dry-run shows every setting",
                    code="invalid-setting",
                )
            )
        raise_all(problems)
        raise


def _origin(origins: Mapping[str, str], place: Sequence[int | str]) -> str:
    """Return what an error about a place in the settings begins with."""
    return origins.get(str(place[0]), "") if place else ""


def _converted(kind: type[BaseModel], key: str, value: Any, origin: str) -> list[UsageError]:
    """Return a problem if a value would be taken for another number (true for 1), or is one that no computer has."""
    number = kind.model_fields[key].annotation in (int, float)
    too_large = isinstance(value, int) and abs(value) >= _LARGEST
    if not number or not (isinstance(value, bool) or too_large):
        return []
    found = "a number of dozens of digits" if too_large else str(value).lower()
    return [
        UsageError(
            f"{origin}setting {key}: found {found}, expected a number"
            + (" of fewer than 20 digits" if too_large else ""),
            "--dry-run shows every setting",
            code="invalid-setting",
        )
    ]


def require_preset(preset: str, known: Iterable[str]) -> None:
    """Check the name of a preset.

    Raises:
        UsageError: it is none of the known ones.
    """
    names = list(known)
    if preset not in names:
        raise UsageError(
            f"--preset: unknown preset {clipped(repr(preset))}, expected one of {', '.join(names)}",
            "paper is the published set-up of this method"
            if preset == "published" and "paper" in names
            else nearest(clipped(preset), names),
            code="unknown-preset",
        )


def variant_of(settings: Settings) -> str:
    """Return the variant whose switches some settings have; "" if they have those of none, or of the method itself."""
    fitting = [
        name
        for name, switches in settings.variants.items()
        if all(getattr(settings, key) == value for key, value in switches.items())
    ]
    return "" if settings.method in fitting else next(iter(fitting), "")


def title_of(settings: Settings) -> str:
    """Return what people call the method of some settings, with its variant."""
    variant = variant_of(settings)
    said = f", variant {variant}" if variant else ""
    return (
        METHODS.title(settings.method)
        + said
        + (" (re-specified)" if variant in RE_SPECIFIED else "")
    )


def notes_of(settings: Settings) -> tuple[str, ...]:
    """Return what a user should know before a run starts: whose specification the method is, and of the settings."""
    ours = {settings.method, variant_of(settings)} & RE_SPECIFIED
    return (
        *(
            f"{name}: we found no code of its authors; layers and losses are our specification (docs/methods)"
            for name in sorted(ours)
        ),
        *settings.notes,
    )


def to_tables(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings as they stand on disk: table -> setting -> value, in the order of the class."""
    tables: dict[str, dict[str, Any]] = {name: {} for name in (*SECTIONS, settings.method)}
    for name, value in settings.model_dump(mode="json").items():
        tables[section_of(name, type(settings), settings.method)][name] = value
    return {name: table for name, table in tables.items() if table}


def dump(settings: Settings) -> str:
    """Return the settings as TOML: every key, in tables."""
    return tomli_w.dumps(to_tables(settings))


def explain(settings: Settings) -> str:
    """Return the settings as TOML with what each one does."""
    lines = []
    for table, values in to_tables(settings).items():
        lines += ["", f"[{table}]"]
        for name, value in values.items():
            description = type(settings).model_fields[name].description
            line = tomli_w.dumps({name: value}).strip()
            lines.append(f"{line}  # {description}" if description else line)
    return "\n".join(lines).strip()


def _variant(kind: type[Settings], method: str, variant: str) -> Mapping[str, Any]:
    """Return the switches of a variant."""
    if variant not in kind.variants:
        title = METHODS.title(method)
        if not kind.variants:
            raise UsageError(
                f"--variant: {variant!r} with method {method}, expected none: {title} has no variants",
                "leave out --variant; single settings are changed with --set",
                code="unknown-variant",
            )
        raise UsageError(
            f"--variant: unknown variant {variant!r} of {title}, expected one of {', '.join(kind.variants)}",
            nearest(variant, kind.variants),
            code="unknown-variant",
        )
    return kind.variants[variant]


def _flatten(
    document: Mapping[str, Any], origin: str = ""
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return setting -> value, and setting -> table."""
    values: dict[str, Any] = {}
    tables: dict[str, str] = {}
    for name, value in document.items():
        entries = value if isinstance(value, dict) else {name: value}
        table = name if isinstance(value, dict) else ""
        for key, entry in entries.items():
            if key in values:
                raise UsageError(
                    f"{origin}setting {clipped(key)}: given twice, expected once",
                    "leave one of them out",
                    code="setting-given-twice",
                )
            values[key], tables[key] = entry, table
    return values, tables


def _require_own_tables(tables: Mapping[str, str], method: str, prefix: str) -> None:
    """Raise a `UsageError` if a file has a table of another method, or of nothing that is known."""
    strange = [
        name for name in dict.fromkeys(tables.values()) if name not in {"", *SECTIONS, method}
    ]
    problems: list[AttclError] = [
        UsageError(
            f"{prefix}[{name}]: the table of {METHODS.title(name)}, found it with method {method}, "
            f"expected --method {name}",
            f"add --method {name}, or leave the table out",
            code="setting-of-another-method",
        )
        if name in METHODS
        else UsageError(
            f"{prefix}[{clipped(name)}]: no such table, expected {', '.join(f'[{it}]' for it in (*SECTIONS, method))}",
            nearest(clipped(name), [*SECTIONS, method]),
            code="unknown-table",
        )
        for name in strange
    ]
    raise_all(problems)


def _foreign(
    values: Mapping[str, Any], kind: type[Settings], method: str, origins: Mapping[str, str]
) -> list[AttclError]:
    """Return a problem for each setting that this method does not have."""
    problems: list[AttclError] = []
    for key in values:
        if key in kind.model_fields:
            continue
        owners = [other for other in METHODS if key in METHODS[other].settings_class.model_fields]
        if owners:
            # Several methods may have a setting of that name: the first is enough to know what it is for.
            problems.append(
                UsageError(
                    f"{origins.get(key, '')}setting {key}: is {METHODS.title(owners[0])}'s, "
                    f"found it with method {method}, "
                    f"expected --method {owners[0]}",
                    f"add --method {owners[0]}, or leave it out",
                    code="setting-of-another-method",
                )
            )
        else:
            problems.append(
                UsageError(
                    f"{origins.get(key, '')}setting {clipped(key)!r}: no such setting, "
                    "expected one of those that `attcl train --dry-run` lists",
                    nearest(clipped(key), kind.model_fields),
                    code="unknown-setting",
                )
            )
    return problems


def _misplaced(
    tables: Mapping[str, str], kind: type[Settings], method: str, prefix: str
) -> list[AttclError]:
    """Return a problem for each setting that stands in another table than its own."""
    return [
        UsageError(
            f"{prefix}setting {key}: found in [{table}], expected in [{section_of(key, kind, method)}]",
            "move it, or write it above all tables",
            code="setting-in-another-table",
        )
        for key, table in tables.items()
        if table and key in kind.model_fields and table != section_of(key, kind, method)
    ]


def _expected(text: str) -> str:
    """Return pydantic's complaint in our words: `Input should be ...` -> `expected ...`."""
    ours = re.sub(r"^(Input|Value) should be ", "expected ", text)
    return ours[0].lower() + ours[1:]


def _extra(field: FieldInfo) -> Mapping[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}

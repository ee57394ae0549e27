"""How a setting is declared: its types and bounds, its description, the table that it stands in.

How settings are read and checked is left to `settings`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]


def setting(
    default: Any,
    description: str,
    *,
    section: str = "",
    fixed: bool = False,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
) -> Any:
    """Declare a setting.

    Args:
        default: its value in preset `paper`, the published set-up, unless the method's preset says otherwise.
        description: one sentence; `--dry-run` and the reference show it.
        section: one of `SECTIONS`; empty: the method's own.
        fixed: a resumed run keeps it, since networks, data or random numbers depend on it.
        gt: the value is greater than this.
        ge: the value is at least this.
        lt: the value is less than this.
        le: the value is at most this.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"section": section, "fixed": fixed},
        gt=gt,
        ge=ge,
        lt=lt,
        le=le,
    )

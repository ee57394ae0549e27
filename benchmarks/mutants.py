"""The changes that `mutate.py` tries: one expression of a source file, changed as a slip of the hand would change it.

Knows Python's syntax, and what losses, networks and gradients are called; runs nothing.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

KINDS: Mapping[str, str] = {
    "sign": "the weight of a loss changes its sign",
    "drop": "the weight of a loss is 0",
    "network": "one network in the place of another",
    "detach": "a gradient flows that should not, or the other way round",
    "swap": "one of a pair in the place of the other: real and fake, source and target, mean and sum",
    "order": "the first two arguments of a call change places",
    "keyword": "an argument given by name is left out",
    "call": "a call whose result nobody takes is left out",
    "arithmetic": "another operator, no minus, a comparison turned round, a condition negated",
    "number": "another number, a switch the other way",
}
"""What a change can be, the most telling kinds first."""

NETWORKS = (
    "generator",
    "mapping",
    "style_encoder",
    "discriminator",
    "attention",
    "heads",
    "segmenter",
    "autoencoder",
)
_PAIRS = (
    ("real_loss", "fake_loss"),
    ("image_loss", "structure_loss"),
    ("branch_loss", "fused_loss"),
    ("x_ref", "x_ref2"),
    ("x_ref", "x_src"),
    ("y_ref", "y_src"),
    ("x_pair", "x_src"),
    ("z", "z2"),
    ("_latent", "_reference"),
    ("_latent_style2", "_reference_style2"),
    ("latent_fake", "reference_fake"),
    ("style_org", "style"),
    ("fake_features", "features"),
    ("fake_refined", "refined"),
    ("source", "fake"),
    ("rows", "fake_rows"),
    ("query", "key"),
    ("fused", "mixed"),
    ("mixed", "following"),
    ("attended", "mixed"),
    ("branch", "last"),
    ("gamma", "beta"),
    ("mean", "sum"),
    ("amax", "amin"),
    ("max", "min"),
    ("clamp_min", "clamp_max"),
    ("all", "any"),
    ("zeros_like", "ones_like"),
    ("sigmoid", "tanh"),
    ("softmax", "log_softmax"),
)
# Names of what carries no gradient anyway.
_DATA = {
    "x_org",
    "x_pair",
    "has_pair",
    "y_ref",
    "x_fake2",
    "x_real",
    "true",
    "everywhere",
    "labels",
    "has_labels",
    "present",
    "branch",
    "last",
}
_SYMMETRIC = {"style_loss", "diversity_loss", "cycle_loss", "zip", "min", "max", "isinstance"}
_OPERATORS: Mapping[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
}
# Types, texts of errors, and the tables of settings, which `test_settings` compares with the papers.
_PASSED_OVER = ("annotation", "returns", "type_params")

Change = tuple[str, ast.AST, str]
"""Kind, the node that changes, and the text in its place."""


@dataclass(frozen=True)
class Mutant:
    """A source file with one change.

    Attributes:
        file: its name below `attcl_cli/methods`.
        kind: of `KINDS`.
        place: name of the function.
        line: number of the changed line, from 1.
        before, after: what was changed.
        source: the whole changed text.
    """

    file: str
    kind: str
    place: str
    line: int
    before: str
    after: str
    source: str

    @cached_property
    def key(self) -> str:
        """What names the mutant in a results file: the same as long as function and line stay as they are."""
        text = "\n".join((self.file, self.kind, self.place, self.before, self.after))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Return all changes of a file, by kind and then by line; a few of them are no Python."""
    tree = ast.parse(source)
    lines = source.encode().splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    whole = source.encode()
    mutants: dict[str, Mutant] = {}
    for place, (kind, node, text) in _changes(tree):
        start = starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        changed = (whole[:start] + text.encode() + whole[end:]).decode()
        before, after = _lines_that_differ(source, changed)
        mutant = Mutant(file, kind, place, node.lineno, before, after, changed)  # type: ignore[attr-defined]
        if changed != source:
            mutants.setdefault(mutant.key, mutant)
    order = list(KINDS)
    return sorted(mutants.values(), key=lambda one: (order.index(one.kind), one.line))


@dataclass(frozen=True)
class _Scope:
    """What is known where a node stands: the function's name, its variables, and the file's networks."""

    place: str
    names: frozenset[str]
    networks: tuple[str, ...]

    def within(self, node: ast.FunctionDef | ast.ClassDef) -> _Scope:
        """Return the scope of what stands in a function or a class."""
        names = {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
        names |= {item.arg for item in ast.walk(node) if isinstance(item, ast.arg)}
        place = f"{self.place}.{node.name}".lstrip(".")
        return replace(self, place=place, names=frozenset(names))


def _changes(tree: ast.Module) -> Iterator[tuple[str, Change]]:
    networks = tuple(
        name
        for name in NETWORKS
        if any(isinstance(node, ast.Attribute) and node.attr == name for node in ast.walk(tree))
    )
    for scope, node in _nodes(tree, _Scope("", frozenset(), networks)):
        for find in _FINDERS:
            for change in find(node, scope):
                yield scope.place, change


def _nodes(node: ast.AST, scope: _Scope) -> Iterator[tuple[_Scope, ast.AST]]:
    """Yield what may change."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return
    if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
        return
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        scope = scope.within(node)
    yield scope, node
    for field, value in ast.iter_fields(node):
        if field in _PASSED_OVER:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child, scope)


# --- kinds of change --------------------------------------------------------------------------------------------------


def _weights(node: ast.AST, _scope: _Scope) -> Iterator[Change]:
    """Find `terms["name"] = (weight, loss)` and the like."""
    values: list[ast.expr] = []
    if isinstance(node, ast.Dict):
        values = node.values
    elif isinstance(node, ast.DictComp) or (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
    ):
        values = [node.value]
    for value in values:
        if isinstance(value, ast.Tuple) and len(value.elts) == 2:
            weight = value.elts[0]
            if isinstance(weight, ast.Constant) and not weight.value:
                continue  # a figure that is reported and not minimised
            yield "sign", weight, f"-({ast.unparse(weight)})"
            yield "drop", weight, f"0 * ({ast.unparse(weight)})"


def _networks(node: ast.AST, scope: _Scope) -> Iterator[Change]:
    own = scope.networks
    if isinstance(node, ast.Constant) and node.value in own:
        for other in own:
            if other != node.value:
                yield "network", node, repr(other)
    elif isinstance(node, (ast.Tuple, ast.List)):
        for index, item in enumerate(node.elts):
            if isinstance(item, ast.Starred) or (
                isinstance(item, ast.Constant) and item.value in own
            ):
                yield "network", node, _with(node, lambda new, at=index: new.elts.pop(at))
    elif isinstance(node, ast.Attribute) and node.attr in own and _is_self(node.value):
        other = own[(own.index(node.attr) + 1) % len(own)]
        yield "network", node, _with(node, lambda new: setattr(new, "attr", other))


def _gradients(node: ast.AST, _scope: _Scope) -> Iterator[Change]:
    if not isinstance(node, ast.Call):
        return
    name = _name_of(node.func)
    if name == "detach" and isinstance(node.func, ast.Attribute):
        yield "detach", node, ast.unparse(node.func.value)
    elif name in {"frozen", "no_grad"}:
        yield "detach", node, "torch.enable_grad()"
    elif name == "contrast" or (
        isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "losses"
    ):
        for argument in node.args:
            if not isinstance(argument, ast.Starred) and _subject(argument) not in _DATA:
                yield "detach", argument, f"({ast.unparse(argument)}).detach()"


def _pairs(node: ast.AST, scope: _Scope) -> Iterator[Change]:
    field = "attr" if isinstance(node, ast.Attribute) else "id"
    name = getattr(node, field, None)
    if not isinstance(getattr(node, "ctx", None), ast.Load) or name is None:
        return
    for pair in _PAIRS:
        if name in pair:
            other = pair[1 - pair.index(name)]
            if field == "id" and other not in scope.names:
                continue  # any test would catch an unknown name
            yield "swap", node, _with(node, lambda new, to=other: setattr(new, field, to))


def _calls(node: ast.AST, _scope: _Scope) -> Iterator[Change]:
    if isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Yield)):
        yield "call", node, "pass" if isinstance(node.value, ast.Call) else "yield None"
    if not isinstance(node, ast.Call):
        return
    if len(node.args) > 1 and _name_of(node.func) not in _SYMMETRIC:

        def turn(new: ast.Call) -> None:
            new.args[:2] = new.args[1::-1]

        yield "order", node, _with(node, turn)
    for index, keyword in enumerate(node.keywords):
        if keyword.arg and keyword.arg != "device":  # which a test on a CPU cannot miss
            yield "keyword", node, _with(node, lambda new, at=index: new.keywords.pop(at))


def _operators(node: ast.AST, _scope: _Scope) -> Iterator[Change]:
    kind = "arithmetic"
    if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in _OPERATORS:
        to = _OPERATORS[type(node.op)]
        yield kind, node, _with(node, lambda new: setattr(new, "op", to()))
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in _OPERATORS:
        to = _OPERATORS[type(node.ops[0])]
        yield kind, node, _with(node, lambda new: new.ops.__setitem__(0, to()))
    elif isinstance(node, ast.UnaryOp):
        yield kind, node, f"({ast.unparse(node.operand)})"
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield kind, node.test, f"(not ({ast.unparse(node.test)}))"
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield kind, test, f"(not ({ast.unparse(test)}))"


def _numbers(node: ast.AST, _scope: _Scope) -> Iterator[Change]:
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield "number", node, repr(not node.value)
    elif isinstance(node.value, int):
        yield "number", node, repr(node.value + 1)
    elif isinstance(node.value, float):
        yield "number", node, repr(2 * node.value or 1.0)


_FINDERS: tuple[Callable[[ast.AST, _Scope], Iterator[Change]], ...] = (
    _weights,
    _networks,
    _gradients,
    _pairs,
    _calls,
    _operators,
    _numbers,
)

# --- syntax -----------------------------------------------------------------------------------------------------------


def _with(node: ast.AST, change: Callable[..., object]) -> str:
    """Return the text of a changed copy; in brackets, as it may stand in another expression."""
    new = copy.deepcopy(node)
    change(new)
    text = ast.unparse(new)
    bracketed = isinstance(node, (ast.BinOp, ast.BoolOp, ast.Compare))
    return f"({text})" if bracketed else text


def _name_of(node: ast.expr) -> str:
    return str(getattr(node, "attr", getattr(node, "id", "")))


def _subject(argument: ast.expr) -> str:
    """Return the name of what is passed, in whatever precision: `x` of `x.float()`."""
    call = isinstance(argument, ast.Call) and isinstance(argument.func, ast.Attribute)
    return _name_of(argument.func.value if call else argument)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _lines_that_differ(before: str, after: str) -> tuple[str, str]:
    """Return what two texts do not share at their begin and end, in whole lines, each on one line."""
    old, new = before.splitlines(), after.splitlines()
    shortest = min(len(old), len(new))
    first = next((n for n in range(shortest) if old[n] != new[n]), shortest)
    rest = shortest - first
    last = next((n for n in range(rest) if old[-1 - n] != new[-1 - n]), rest)
    parts = (old[first : len(old) - last], new[first : len(new) - last])
    before, after = (" ".join(" ".join(part).split()) for part in parts)
    return before, after

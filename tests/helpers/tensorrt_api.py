"""Our calls of TensorRT, read from our source and compared with the API of every version.

`references` walks a module's syntax tree. It knows what is TensorRT's from where it comes from:
the module ``trt``, what its calls return by their signatures, and annotations ``trt.X`` of
arguments, attributes and our own functions. An expression that could be TensorRT's and whose type
is not known is a finding as well, so that nothing goes unchecked.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["API", "DATA", "Finding", "Owners", "check_source", "owners_of"]

DATA: Final = Path(__file__).resolve().parents[1] / "data" / "tensorrt_api"

_PROPERTIES: Final = {
    "ITensor.dtype": "DataType",
    "ITensor.shape": "Dims",
    "Weights.dtype": "DataType",
}
"""What properties hold, where that is used further: the bindings do not say."""

_ALIASES: Final = {"IParserError": "ParserError", "Severity": "ILogger"}
_MODULE: Final = "trt"
_DUNDER: Final = frozenset({"__version__"})


@functools.cache
def _load() -> dict[tuple[int, int], dict[str, Any]]:
    tables = [json.loads(path.read_text()) for path in DATA.glob("*.json")]
    return {
        tuple(int(part) for part in table["version"].split(".")[:2]): table  # type: ignore[misc]
        for table in tables
    }


class API:
    """The API of one version."""

    def __init__(self, version: tuple[int, int]) -> None:
        self.version = version
        self.table = _load()[version]

    @staticmethod
    def versions(library: str = "tensorrt") -> list[tuple[int, int]]:
        """Return the versions of a library that there are data of."""
        return sorted(
            version
            for version, table in _load().items()
            if table.get("library", "tensorrt") == library
        )

    def has(self, owner: str, name: str) -> bool:
        """Whether a class has a member, or an enumeration; ``trt`` is the module itself."""
        if owner == _MODULE:
            known = {*self.table["classes"], *self.table["enums"], *self.table["functions"]}
            return name in known or name in _DUNDER
        if owner in self.table["enums"]:
            return name in self.table["enums"][owner] or name == "name"
        return name in self.table["classes"].get(owner, {})

    def signatures(self, owner: str, name: str) -> list[str] | None:
        """Return the overloads of a method; None of what is none."""
        found = self.table["classes"].get(owner, {}).get(name)
        return found if isinstance(found, list) else None

    def methods(self) -> set[str]:
        return {
            name
            for members in self.table["classes"].values()
            for name, kind in members.items()
            if isinstance(kind, list) and not name.startswith("__")
        }


@dataclass(frozen=True)
class Finding:
    """Something that a version lacks, or that is unknown."""

    line: int
    text: str


@dataclass
class Owners:
    """Names in our own code that return or hold a value of TensorRT's.

    Attributes:
        functions: Our functions and methods by name → the class of TensorRT that they return.
        attributes: Attributes of our classes: ``Log.logger`` → ``ILogger``.
        classes: Our classes.
    """

    functions: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)


def _annotated(node: ast.expr | None) -> str | None:
    """Return X of an annotation ``trt.X``, ``trt.X | None``; our own classes by their name."""
    if isinstance(node, ast.BinOp):
        return _annotated(node.left) or _annotated(node.right)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == _MODULE else None
    return None


def owners_of(sources: list[str]) -> Owners:
    """Collect what our functions return and our classes hold."""
    found = Owners()
    for source in sources:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (kind := _annotated(node.returns)):
                found.functions[node.name] = kind
            if isinstance(node, ast.ClassDef):
                found.classes.add(node.name)
                for each in ast.walk(node):
                    if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Attribute):
                        kind = _annotated(each.annotation)
                        if kind:
                            found.attributes[f"{node.name}.{each.target.attr}"] = kind
    return found


def check_source(
    source: str,
    owners: Owners,
    since: dict[str, tuple[int, int]],
    library: str = "tensorrt",
) -> tuple[list[Finding], list[str]]:
    """Return what is wrong with a module's use of TensorRT, and every reference that was checked.

    Args:
        source: The module.
        owners: See `owners_of`.
        since: The table of guards: ``Class.MEMBER`` → the first version that has it.
        library: The library whose versions are compared.
    """
    checker = _Checker(owners, since, library)
    checker.visit(ast.parse(source))
    return checker.findings, checker.checked


class _Checker(ast.NodeVisitor):
    def __init__(self, owners: Owners, since: dict[str, tuple[int, int]], library: str) -> None:
        self.owners, self.since = owners, since
        self.apis = [API(version) for version in API.versions(library)]
        self.common = set.union(*(api.methods() for api in self.apis))
        self.findings: list[Finding] = []
        self.checked: list[str] = []
        self.scopes: list[dict[str, str]] = [{}]
        self.guards: list[str] = []
        self.classes: list[str] = []

    # -- what an expression is ----------------------------------------------------------------

    def kind(self, node: ast.expr | None) -> str | None:
        """Return ``trt``, ``class X`` or ``X`` (a value of that class); None of anything else."""
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self.scopes) if node.id in s), None)
        if isinstance(node, ast.Attribute):
            return self._of_attribute(node)
        if isinstance(node, ast.Call):
            return self._of_call(node)
        return None

    def _of_attribute(self, node: ast.Attribute) -> str | None:
        if isinstance(node.value, ast.Name) and node.value.id == "self" and self.classes:
            found = next(
                (
                    self.owners.attributes[f"{name}.{node.attr}"]
                    for name in reversed(self.classes)
                    if f"{name}.{node.attr}" in self.owners.attributes
                ),
                None,
            )
            if found:
                return found
        owner = self.kind(node.value)
        if owner is None:
            return None
        if owner == _MODULE:
            return None if node.attr in _DUNDER else f"class {node.attr}"
        if owner.startswith("own "):
            return self.owners.attributes.get(f"{owner[4:]}.{node.attr}")
        if owner.startswith("class "):
            return owner[6:]  # a member of an enumeration
        return _PROPERTIES.get(f"{owner}.{node.attr}")

    def _of_call(self, node: ast.Call) -> str | None:
        if isinstance(node.func, ast.Name) and (found := self._of_own(node.func.id)):
            return found
        target = self.kind(node.func)
        if target is not None and target.startswith("class "):
            return target[6:]
        if not isinstance(node.func, ast.Attribute):
            return None
        own = isinstance(node.func.value, ast.Name) and node.func.value.id == "self"
        if own and node.func.attr in self.owners.functions:
            return self.owners.functions[node.func.attr]
        owner = self.kind(node.func.value)
        if owner is not None and owner.startswith("own ") and owner[4:] not in self.owners.classes:
            return owner  # what a function of an imported module returns
        told = owner is not None and owner != _MODULE and not owner.startswith(("class ", "own "))
        return self._returned(str(owner), node.func.attr) if told else None

    def _of_own(self, name: str) -> str | None:
        """Return what a function or class of ours, called by its name alone, returns."""
        if name == "import_tensorrt":
            return _MODULE
        return f"own {name}" if name in self.owners.classes else self.owners.functions.get(name)

    def _returned(self, owner: str, method: str) -> str | None:
        for api in self.apis:
            for signature in api.signatures(owner, method) or ():
                name = re.split(r"::|\.", signature.rpartition("-> ")[2])[-1]
                name = _ALIASES.get(name, name)
                if api.has(_MODULE, name):
                    return name
        return None

    # -- where values come from ---------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        for each in node.names:
            name = each.asname or each.name.partition(".")[0]
            self.scopes[-1][name] = _MODULE if each.name == "tensorrt" else f"own {each.name}"

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            kind = self.kind(base)
            if kind is not None and kind.startswith("class "):
                self._check_subclass(node, kind[6:])
        self.classes.append(node.name)
        self.generic_visit(node)
        self.classes.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope: dict[str, str] = {}
        for each in (*node.args.args, *node.args.kwonlyargs):
            kind = _annotated(each.annotation)
            if kind is not None:
                scope[each.arg] = kind
            elif (
                isinstance(each.annotation, ast.Name) and each.annotation.id in self.owners.classes
            ):
                scope[each.arg] = f"own {each.annotation.id}"
        self.scopes.append(scope)
        for statement in node.body:
            self.visit(statement)
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        kind = self.kind(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name) and kind is not None:
                self.scopes[-1][target.id] = kind
            else:
                self.visit(target)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        name = _guard(node.test)
        if name is None:
            self.generic_visit(node)
            return
        self._check_guard(name, node.lineno)
        self.guards.append(name)
        for statement in node.body:
            self.visit(statement)
        self.guards.pop()
        for statement in node.orelse:
            self.visit(statement)

    def _check_guard(self, name: str, line: int) -> None:
        owner, _, member = name.partition(".")
        for api in self.apis:
            if (api.version >= self.since[name]) != api.has(owner, member):
                self.findings.append(Finding(line, f"the guard {name} is wrong of {api.version}"))

    # -- what is checked ----------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self.kind(node.value)
        if owner is None:
            return
        if owner.startswith("own "):
            return
        owner = owner.removeprefix("class ")
        name = f"{owner}.{node.attr}"
        self.checked.append(name)
        if name in self.guards:
            return
        for api in self.apis:
            if not api.has(owner, node.attr):
                self.findings.append(Finding(node.lineno, f"{api.version} has no {name}"))

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        target = self.kind(node.func)
        if target is not None and target.startswith("class "):
            self._check_arguments(node, target[6:], "__init__")
            return
        if not isinstance(node.func, ast.Attribute):
            return
        owner = self.kind(node.func.value)
        if owner is None:
            self._check_untold(node, node.func)
        elif owner != _MODULE and not owner.startswith(("class ", "own ")):
            self._check_arguments(node, owner, node.func.attr)

    def _check_untold(self, node: ast.Call, function: ast.Attribute) -> None:
        """A method of TensorRT's name on a value that may be anything."""
        own = isinstance(function.value, ast.Name) and function.value.id in ("self", "cls", "super")
        if (
            function.attr in self.common
            and not own
            and not isinstance(function.value, ast.Constant)
        ):
            text = f"cannot tell of what {ast.unparse(function)} is a method"
            self.findings.append(Finding(node.lineno, text))

    def _check_arguments(self, node: ast.Call, owner: str, method: str) -> None:
        keywords = [each.arg for each in node.keywords]
        for api in self.apis:
            overloads = api.signatures(owner, method)
            if overloads is None:
                if f"{owner}.{method}" not in self.guards:
                    text = f"{api.version}: {owner}.{method} is not a method"
                    self.findings.append(Finding(node.lineno, text))
                continue
            if not any(_takes(each, len(node.args), keywords) for each in overloads):
                text = f"{api.version}: {owner}.{method} does not take {ast.unparse(node)}"
                self.findings.append(Finding(node.lineno, text))

    def _check_subclass(self, node: ast.ClassDef, owner: str) -> None:
        for each in node.body:
            if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
                self.checked.append(f"{owner}.{each.name}")
                own = [argument.arg for argument in each.args.args[1:]]
                for api in self.apis:
                    overloads = api.signatures(owner, each.name) or []
                    if not any(_arguments(sig)[0] == own for sig in overloads):
                        text = f"{api.version}: {owner}.{each.name} has other arguments than {own}"
                        self.findings.append(Finding(each.lineno, text))


def _guard(test: ast.expr) -> str | None:
    """Return the name of ``has(version, "Class.MEMBER")``."""
    if (
        isinstance(test, ast.Call)
        and isinstance(test.func, ast.Name)
        and test.func.id == "has"
        and len(test.args) == 2
        and isinstance(test.args[1], ast.Constant)
    ):
        return str(test.args[1].value)
    return None


@functools.cache
def _arguments(signature: str) -> tuple[list[str], int]:
    """Return the arguments of a signature after ``self``, and how many have no default."""
    inner = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(inner):
        depth += (letter in "([<{") - (letter in ")]>}")
        if letter == "," and depth == 0:
            parts.append(inner[start:at])
            start = at + 1
    parts.append(inner[start:])
    rows = [part.strip() for part in parts if part.strip()][1:]
    names = [row.partition(":")[0].strip() for row in rows]
    return names, sum(" = " not in row for row in rows)


def _takes(signature: str, positional: int, keywords: list[str | None]) -> bool:
    names, required = _arguments(signature)
    if None in keywords or positional > len(names):
        return False
    given = {*names[:positional], *keywords}
    named = set(keywords) <= set(names[positional:])
    return named and set(names[:required]) <= given

"""Small mistakes in Python: a condition, a call, `and` for `or`, a comparison, a number."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from lua_mutations import Mutation

_FLIPPED: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
}  # fmt: skip
#: Nobody promises what is logged.
_LOGS = re.compile(r"(?:log|logger|_log)\.")


def mutations(text: str) -> Iterator[Mutation]:
    """Every mistake that this module knows to make in a module."""
    return iter(_Finder(text).found)


class _Finder(ast.NodeVisitor):
    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = [0]
        for line in text.encode().splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._bytes = text.encode()
        self.found: list[Mutation] = []
        self.visit(ast.parse(text))

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        if not isinstance(node.test, ast.Constant):
            self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            call = self._source(node)
            if _LOGS.match(call):
                return
            self._add(*self._span(node), "pass", f"no `{' '.join(call.split())[:60]}`")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            start, end = self._span(left)[1], self._span(right)[0]
            between = self._bytes[start:end].decode()
            self._add(start, end, re.sub(rf"\b{old}\b", new, between, count=1), f"`{old}` is `{new}`")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            if type(op) in _FLIPPED:
                old, new = _FLIPPED[type(op)]
                start, end = self._span(left)[1], self._span(right)[0]
                self._add(start, end, self._bytes[start:end].decode().replace(old, new, 1), f"`{old}` is `{new}`")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) in {int, float}:
            source = self._source(node)
            self._add(*self._span(node), f"({source} + 1)", f"{source} is one more")

    def visit_match_case(self, node: ast.match_case) -> None:
        # A pattern has numbers of its own grammar.
        for part in (*([node.guard] if node.guard else []), *node.body):
            self.visit(part)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """What stands within an f-string has no place of its own before Python 3.12."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_arguments(self, node: ast.arguments) -> None:
        for default in (*node.defaults, *node.kw_defaults):
            if default is not None:
                self.visit(default)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.visit(node.args)
        for statement in node.body:
            self.visit(statement)

    def _negate(self, test: ast.expr) -> None:
        self._add(*self._span(test), f"(not ({self._source(test)}))", f"not `{self._source(test)[:60]}`")

    def _source(self, node: ast.stmt | ast.expr) -> str:
        start, end = self._span(node)
        return self._bytes[start:end].decode()

    def _span(self, node: ast.stmt | ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._lines[node.lineno - 1] + node.col_offset, self._lines[node.end_lineno - 1] + node.end_col_offset

    def _add(self, start: int, end: int, new: str, what: str) -> None:
        before, behind = len(self._bytes[:start].decode()), len(self._bytes[:end].decode())
        self.found.append(Mutation(before, behind, new, what))

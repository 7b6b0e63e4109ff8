"""Rules of the Metal Shading Language that clang does not know, found in the text."""

import re

from tests.metal_host.errors import MetalSourceError
from tests.metal_host.source import closing, split, without_comments

_SPACES = r"\b(device|constant|threadgroup|thread)\b"
_NOT_CALLS = ("if", "for", "while", "switch", "return", "sizeof", "decltype", "static_assert")
_BANNED = (
    (r"\bkernel\s+(?!void\b)\w+", "a kernel returns void"),
    (r"\[\[\s*kernel\s*\]\]\s*(?!void\b|decltype\b)\w+", "a kernel returns void"),
    (r"\bdouble\b", "'double' is not supported"),
    (r"\bgoto\b", "goto is not supported"),
    (r"\b(new|delete)\b", "new and delete are not supported"),
    (r"\b(virtual|dynamic_cast|typeid|thread_local|try|throw|catch)\b", "not supported"),
    (r"\bstd::", "the C++ standard library is not available"),
    (r"\blong\s+long\b", "'long long' is not supported"),
    (r"\[\s*[&=]\s*\]\s*\(", "lambdas are not supported before Metal 3.2"),
    (r"\bfunction_constant\b", "function constants cannot be set through compile_shader"),
)


def lint(source: str) -> list[str]:
    """Return what is wrong with the source as an author wrote it."""
    errors = [] if source.isascii() else ["PyTorch hands the source over as ASCII"]
    if not re.search(r"#\s*include\s*<metal_stdlib>", source):
        errors.append("#include <metal_stdlib> is missing")
    text = without_comments(source)
    for pattern, why in _BANNED:
        for m in re.finditer(pattern, text):
            errors.append(f"line {_line(text, m.start())}: '{m[0]}': {why}")
    functions = _functions(text)
    errors += _parameters_without_space(text, functions)
    errors += _variables_outside_constant(text)
    return errors + _recursion(text, functions)


def lint_syntax_tree(dump: str) -> list[str]:
    """Return conversions in clang's syntax tree that clang makes and Metal refuses."""
    errors = []
    for line in dump.splitlines():
        if "Cast" not in line:
            continue
        implicit = "ImplicitCastExpr" in line and "part_of_explicit_cast" not in line
        if implicit and re.search(
            r"'(?:\w+':')?__bf16' <(?:FloatingCast|IntegralToFloating)>", line
        ):
            errors.append(f"implicit conversion to bfloat ({_place(line)})")
        if "CStyleCastExpr" in line and "<AddressSpaceConversion>" in line:
            errors.append(f"a cast changes the address space ({_place(line)})")
    return errors


def _place(line: str) -> str:
    found = re.search("<[^>]*>", line)
    return found[0] if found else "?"


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _functions(text: str) -> list[tuple[str, int, int, int]]:
    """Return (name, start of parameters, their end, end of body) of every definition."""
    found = []
    for m in re.finditer(r"\b([A-Za-z_]\w*)\s*\(", text):
        if m[1] in _NOT_CALLS or re.search(r"\boperator\s*$", text[: m.start()][-12:]):
            continue
        try:
            end = closing(text, m.end() - 1)
        except MetalSourceError:
            continue
        opening = re.match(r"\s*(const\s*)?\{", text[end + 1 :])
        if opening:
            brace = end + opening.end()
            found.append((m[1], m.end(), end, closing(text, brace, "{}")))
    return found


def _parameters_without_space(text: str, functions: list[tuple[str, int, int, int]]) -> list[str]:
    errors = []
    for name, start, end, _ in functions:
        for parameter in split(text[start:end]):
            bare = re.sub(r"\[\[.*?\]\]", "", parameter)
            if re.search(r"[*&]", bare) and not re.search(_SPACES, bare):
                shown = " ".join(bare.split())
                errors.append(
                    f"line {_line(text, start)}: parameter '{shown}' of '{name}' needs an address "
                    "space"
                )
    return errors


def _recursion(text: str, functions: list[tuple[str, int, int, int]]) -> list[str]:
    """Follow calls by name. Overloads that call each other look like recursion: name them apart."""
    names = {name for name, *_ in functions}
    calls: dict[str, set[str]] = {name: set() for name in names}
    for name, _, end, stop in functions:
        calls[name] |= names & set(
            re.findall(r"\b([A-Za-z_]\w*)\s*(?:<[^<>;()]*>\s*)?\(", text[end:stop])
        )
    reach = {name: set(called) for name, called in calls.items()}
    for _ in names:
        for name in names:
            reach[name] |= {far for near in reach[name] for far in reach[near]}
    return [
        f"'{name}' may call itself; recursion is not supported"
        for name in sorted(names)
        if name in reach[name]
    ]


def _variables_outside_constant(text: str) -> list[str]:
    """Find program-scope variables that are not in the constant address space."""
    flat = re.sub(r"\[\[.*?\]\]", lambda m: " " * len(m[0]), text, flags=re.S)
    flat = re.sub(r"(?m)^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", lambda m: re.sub(r"[^\n]", " ", m[0]), flat)
    errors, start = [], 0
    for i, statement in _program_scope(flat):
        start = i
        if not statement or re.match(
            r"(using|typedef|template|struct|enum|static_assert|namespace)\b", statement
        ):
            continue
        if "(" in statement.split("=")[0]:
            continue  # the declaration of a function
        if not re.search(r"\bconstant\b", statement):
            shown = " ".join(statement.split())[:60]
            errors.append(f"line {_line(flat, start)}: '{shown}' must be in the constant space")
    return errors


def _program_scope(flat: str) -> list[tuple[int, str]]:
    """Return (offset, text) of the statements that stand in no braces."""
    found, depth, start = [], 0, 0
    for i, c in enumerate(flat):
        if c == "{":
            depth += 1
        elif c == "}":
            depth -= 1
            if depth == 0 and not flat[i + 1 :].lstrip().startswith(";"):
                start = i + 1
        elif c == ";" and depth == 0:
            found.append((i, flat[start:i].strip()))
            start = i + 1
    return found

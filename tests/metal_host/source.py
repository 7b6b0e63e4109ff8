"""Read Metal source: find its kernels, and turn it into C++ that clang compiles."""

import re
from dataclasses import dataclass

from tests.metal_host import toolchain
from tests.metal_host.errors import MetalSourceError

# Attribute of a parameter to the field of mh_position that it reads.
POSITIONS = {
    "thread_position_in_grid": "in_grid",
    "thread_position_in_threadgroup": "in_group",
    "threadgroup_position_in_grid": "group",
    "threadgroups_per_grid": "groups",
    "threads_per_threadgroup": "group_size",
    "dispatch_threads_per_threadgroup": "full_group_size",
    "threads_per_grid": "grid",
    "thread_index_in_threadgroup": "index",
    "thread_index_in_simdgroup": "lane",
    "simdgroup_index_in_threadgroup": "simdgroup",
    "simdgroups_per_threadgroup": "simdgroups",
}
_VECTORS = ("in_grid", "in_group", "group", "groups", "group_size", "full_group_size", "grid")
_KERNEL = r"(?:\[\[\s*kernel\s*\]\]\s*void|\bkernel\s+void)\s+(\w+)\s*\("
# The declaration of a variable in threadgroup memory; a pointer to it is none.
_SHARED = (
    r"(?<=[;{}])(\s*(?:#line[^\n]*\n\s*)?)threadgroup(\s+[\w:<>,\s]*?)"
    r"(?P<name>\w+)(\s*(?:\[[^;]*\])?\s*;)"
)
_INSTANCE = (
    r'template\s*\[\[\s*host_name\s*\(\s*((?:"[^"]*"\s*)+)\)\s*\]\]\s*'
    r"\[\[\s*kernel\s*\]\]\s*decltype\s*\(\s*((\w+)\s*<[^;]*?>)\s*\)\s*\2\s*;"
)


@dataclass(frozen=True)
class Kernel:
    """A kernel that a host can name.

    Attributes:
        name: Its host name.
        callee: The C++ expression of its function.
        parameters: The text of each parameter.
    """

    name: str
    callee: str
    parameters: tuple[str, ...]


def without_comments(text: str) -> str:
    """Blank comments out; lines stay where they are."""
    blank = lambda m: re.sub(r"[^\n]", " ", m[0])  # noqa: E731
    return re.sub(r"//[^\n]*|/\*.*?\*/", blank, text, flags=re.S)


def closing(text: str, start: int, pair: str = "()") -> int:
    """Return where the bracket at ``start`` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == pair[0]) - (text[i] == pair[1])
        if depth == 0:
            return i
    raise MetalSourceError(f"a {pair[0]!r} is never closed")


def split(text: str) -> list[str]:
    """Split at the commas that stand in no bracket."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c in "(<[{") - (c in ")>]}")
        if c == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += c
    return [*parts, current] if current.strip() else parts


def preprocess(text: str) -> str:
    """Expand the source's own macros; the headers of Metal stay out, so its words survive."""
    bare = re.sub(r"(?m)^[ \t]*#[ \t]*include[ \t]*<metal_\w+>", "", text)
    done = toolchain.run(
        [toolchain.COMPILER, "-E", *toolchain.LANGUAGE[:3], "-D__METAL_VERSION__=310", "-"], bare
    )
    if done.returncode:
        raise MetalSourceError(done.stderr)
    marked = re.sub(r'(?m)^# (\d+) "<stdin>".*$', r'#line \1 "kernels.metal"', done.stdout)
    return re.sub(r'(?m)^# \d+ ".*$', "", marked)


def find_kernels(text: str) -> list[Kernel]:
    """Return the kernels of preprocessed source, those of templates by their instances."""
    found, templates = [], {}
    for m in re.finditer(_KERNEL, text):
        end = closing(text, m.end() - 1)
        parameters = tuple(split(text[m.end() : end]))
        templates[m[1]] = parameters
        is_template = re.search(r"template\s*<[^;{}]*>\s*$", text[: m.start()][-400:])
        if not is_template and text[end + 1 :].lstrip().startswith("{"):
            found.append(Kernel(m[1], m[1], parameters))
    for m in re.finditer(_INSTANCE, text):
        name = "".join(re.findall(r'"([^"]*)"', m[1]))
        found.append(Kernel(name, m[2], templates[m[3]]))
    return found


def to_cpp(text: str) -> str:
    """Rewrite what plain C++ does not have."""
    text = re.sub(r"#pragma METAL fp contract\(off\)", "#pragma clang fp contract(off)", text)
    text = re.sub(r"\[\[[^\[\]]*\]\]", "", text)
    return re.sub(_SHARED, r"\1MH_SHARED threadgroup\2\g<name>\4", text)


def shared_outside_kernels(text: str) -> list[str]:
    """Return the names of threadgroup variables that are declared in no kernel."""
    bodies = []
    for m in re.finditer(_KERNEL, text):
        end = closing(text, m.end() - 1)
        if text[end + 1 :].lstrip().startswith("{"):
            brace = text.index("{", end)
            bodies.append((brace, closing(text, brace, "{}")))
    declared = re.finditer(_SHARED, text)
    return [m["name"] for m in declared if not any(b < m.start("name") < e for b, e in bodies)]


def entry_point(kernel: Kernel, number: int) -> str:
    """Return C++ that calls ``kernel`` with buffers, and describes its parameters."""
    calls, descriptions, buffer = [], [], 0
    _check_positions(kernel)
    for i, text in enumerate(kernel.parameters):
        kind = f"mh::nth_t<{i}, F{number}>"
        attributes = re.findall(r"\[\[\s*(\w+)\s*(?:\(\s*(\w+)\s*\))?\s*\]\]", text)
        names = [name for name, _ in attributes]
        if position := next((n for n in names if n in POSITIONS), None):
            field = POSITIONS[position]
            address = f"mh_current->{field}" if field in _VECTORS else f"&mh_current->{field}"
            calls.append(f"mh::position<{kind}>({address})")
            descriptions.append(f"o[{i}].kind = 3;")
            continue
        if unknown := [n for n in names if n != "buffer"]:
            raise MetalSourceError(f"kernel '{kernel.name}': unknown attribute [[{unknown[0]}]]")
        if numbers := [int(value) for name, value in attributes if name == "buffer"]:
            buffer = numbers[0]
        calls.append(f"mh::argument<{kind}>::get(b[{buffer}])")
        descriptions.append(f"mh::argument<{kind}>::describe(o + {i}, {buffer});")
        buffer += 1
    count = len(kernel.parameters)
    return (
        f"typedef decltype({kernel.callee}) F{number};\n"
        f'extern "C" {{ void mh_entry_{number}(void* const* b) '
        f"{{ {kernel.callee}({', '.join(calls)}); }}\n"
        f"mh::parameter* mh_parameters_{number}() "
        f"{{ static mh::parameter o[{count}]; {' '.join(descriptions)} return o; }}\n"
        f"int mh_count_{number}() {{ return {count}; }} }}\n"
    )


def _check_positions(kernel: Kernel) -> None:
    """Raise unless the positions that have as many dimensions as the grid have one type."""
    types = {
        text.split()[0]
        for text in kernel.parameters
        for name in re.findall(r"\[\[\s*(\w+)\s*\]\]", text)
        if POSITIONS.get(name) in _VECTORS
    }
    if len(types) > 1:
        raise MetalSourceError(
            f"kernel '{kernel.name}': positions must have one type, got {sorted(types)}"
        )

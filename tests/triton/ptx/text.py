"""Take PTX text apart into instructions, labels and parameters."""

import re
from dataclasses import dataclass

_STATEMENT = re.compile(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]\s]+")


@dataclass(frozen=True)
class Instruction:
    """One instruction: it runs where ``predicate``, negated or not, is set."""

    opcode: str
    operands: tuple[str, ...]
    predicate: str | None
    negated: bool


@dataclass(frozen=True)
class Program:
    """The body of a kernel; ``labels`` say which instruction comes next after a jump."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    parameters: tuple[str, ...]
    lanes: int


def parse(text: str) -> Program:
    """Return the only kernel of a PTX module."""
    lines = [line.split("//")[0] for line in text.splitlines()]
    lines = [line for line in lines if not re.match(r"\s*\.(loc|file|reg|pragma)\b", line)]
    head, _, rest = "\n".join(lines).partition(".reqntid")
    body = rest[rest.index("{") + 1 : rest.index("$L__func_end")]
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in _statements(body):
        if label := re.fullmatch(r"(\$L\w+):", statement):
            labels[label[1]] = len(instructions)
        else:
            instructions.append(_instruction(statement))
    return Program(
        instructions=tuple(instructions),
        labels=labels,
        parameters=tuple(re.findall(r"\.param \.(\w+)", head)),
        lanes=int(rest.split("{")[0].split(",")[0]),
    )


def _statements(body: str) -> list[str]:
    """Return labels and instructions; a scope of inline assembly loses its braces."""
    body = re.sub(r"(\$L\w+:)", r"\1;", body)
    # Braces of a scope stand in front of a statement, those of a vector inside.
    parts = [re.sub(r"^(?:\s*[{}])+(?=\s*(?:[a-z.@$]|$))", "", part) for part in body.split(";")]
    parts = [part.strip() for part in parts]
    return [part for part in parts if part and not part.startswith(".reg")]


def _instruction(statement: str) -> Instruction:
    found = _STATEMENT.fullmatch(statement)
    if not found:
        raise NotImplementedError(f"PTX statement {statement!r}")
    negated, predicate, opcode, operands = found.groups()
    return Instruction(opcode, tuple(_OPERAND.findall(operands)), predicate, negated == "!")

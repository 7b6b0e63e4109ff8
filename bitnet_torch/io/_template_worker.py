"""The program of the process that renders one chat template; see :mod:`.template_process`.

It is run as a file, isolated, and imports nothing of this package. Stdin holds a JSON object:
``paths`` to import jinja2 from, ``memory`` (bytes) and ``characters`` at most, ``template`` and
``context``. Stdout gets one: ``{"text": ...}`` or ``{"error": kind, "message": ...}``.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any


def main() -> None:
    """Serve one request."""
    request = json.loads(sys.stdin.buffer.read())
    sys.path.extend(request["paths"])
    _limit_memory(request["memory"])
    json.dump(_answer(request), sys.stdout)


def _limit_memory(size: int) -> None:
    # macOS takes the limit and does not keep it; there, as on Windows, the parent watches.
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(request: dict[str, Any]) -> dict[str, str]:
    import jinja2

    try:
        return _render(request)
    except Refused as error:
        return {"error": "refused", "message": str(error)}
    except MemoryError:
        return {"error": "limit", "message": f"takes more than {request['memory']} bytes of memory"}
    except Exception as error:  # noqa: BLE001  # contained: what a template raises is its own fault
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        return {"error": "wrong", "message": f"{type(error).__name__}{where}: {error}"[:2000]}


class Refused(Exception):
    """What ``raise_exception`` of a template raises."""


def _render(request: dict[str, Any]) -> dict[str, str]:
    template = _environment().from_string(request["template"])
    pieces: list[str] = []
    left = request["characters"]
    for piece in template.generate(**request["context"]):
        left -= len(piece)
        if left < 0:
            message = f"gives more than {request['characters']} characters"
            return {"error": "limit", "message": message}
        pieces.append(piece)
    return {"text": "".join(pieces)}


def _environment() -> Any:
    """Return the environment of transformers' ``apply_chat_template``."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlocks(Extension):
        """Passes ``{% generation %}`` blocks through; they mark the answers, for training."""

        tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlocks, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise Refused(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)


if __name__ == "__main__":
    main()

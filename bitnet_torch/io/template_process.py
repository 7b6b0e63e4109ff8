"""Rendering a template in a process of its own, which is ended when it exceeds its limits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil

from bitnet_torch.diagnostics.extras import require
from bitnet_torch.errors import CheckpointError, ConfigurationError, GenerationError

_WORKER = Path(__file__).with_name("_template_worker.py")
_SECONDS_BETWEEN_LOOKS = 0.02


@dataclass(frozen=True)
class TemplateLimits:
    """How much one rendering may take.

    Attributes:
        seconds: Wall time, the start of the process included.
        memory_bytes: Of the whole process; Python and jinja2 alone take about 40 million.
        characters: Length of the text.
    """

    seconds: float = 10.0
    memory_bytes: int = 512 << 20
    characters: int = 4 << 20


def render_apart(request: str, limits: TemplateLimits, origin: str) -> str:
    """Return the text of a template.

    Args:
        request: JSON object of ``template`` and ``context``.
        limits: Of the rendering.
        origin: The file that the template is from, for errors.

    Raises:
        GenerationError: The template refused its arguments, by ``raise_exception``.
        CheckpointError: It is wrong, or exceeds a limit.
        MissingDependencyError: jinja2 is not installed.
    """
    settings = {
        "paths": _paths(),
        "memory": limits.memory_bytes,
        "characters": limits.characters,
        **json.loads(request),
    }
    answer = _answer_of(json.dumps(settings).encode(), limits, origin)
    if "text" in answer:
        return answer["text"]
    message = answer["message"]
    if answer["error"] == "refused":
        raise GenerationError(f"{origin}: the chat template refuses the messages: {message}")
    verb = "" if answer["error"] == "limit" else "cannot be rendered: "
    raise _error(origin, f"{verb}{message}")


def _answer_of(request: bytes, limits: TemplateLimits, origin: str) -> dict[str, str]:
    if not sys.executable:
        raise ConfigurationError("a chat template needs a Python executable; sys.executable is ''")
    # Isolated, and without the site packages but those it is told: nothing else is imported.
    command = [sys.executable, "-I", "-S", str(_WORKER)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            out, err = _watch(process, request, limits, origin)
        finally:
            process.kill()
    try:
        answer: dict[str, str] = json.loads(out)
    except ValueError:
        # The process died before it could say why: a stack or a memory that ran over.
        last = err.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise _error(
            origin, f"ended its process with status {process.returncode}: {last}"
        ) from None
    return answer


def _watch(
    process: subprocess.Popen[bytes], request: bytes, limits: TemplateLimits, origin: str
) -> tuple[bytes, bytes]:
    deadline = time.monotonic() + limits.seconds
    unsent: bytes | None = request
    while True:
        try:
            return process.communicate(unsent, timeout=_SECONDS_BETWEEN_LOOKS)
        except subprocess.TimeoutExpired:
            # What was not taken yet is kept; to give it again would be an error.
            unsent = None
            if time.monotonic() > deadline:
                raise _error(origin, f"takes more than {limits.seconds} seconds") from None
            if _resident_bytes(process.pid) > limits.memory_bytes:
                raise _error(
                    origin, f"takes more than {limits.memory_bytes} bytes of memory"
                ) from None


def _resident_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def _paths() -> list[str]:
    """Return the folders that jinja2 and what it needs are in."""
    require("jinja2", extra="hf")
    specs = map(find_spec, ("jinja2", "markupsafe"))
    origins = [Path(s.origin).parents[1] for s in specs if s is not None and s.origin is not None]
    return [str(folder) for folder in dict.fromkeys(origins)]


def _error(origin: str, what: str) -> CheckpointError:
    return CheckpointError(f"{origin}: the chat template {what}", file=origin)

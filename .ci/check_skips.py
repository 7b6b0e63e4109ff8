"""Fail if a test was skipped for any reason but absent hardware."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET

ALLOWED = (
    "no CUDA device",
    "no Apple GPU",
    # Not hardware: it has no wheels, and .ci/run says that it goes without.
    "no llama-cpp-python (extra peers)",
    *(f"no {isa} on this CPU" for isa in ("avxvnni", "avx512vnni", "neondot")),
)


def main(paths: list[str]) -> int:
    """Print every skip that is not allowed; return 1 if there is one, or if no test ran."""
    cases = [case for path in paths for case in ET.parse(path).iter("testcase")]
    wrong = [
        f"{case.get('classname')}::{case.get('name')}: {skip.get('message')}"
        for case in cases
        for skip in case.iter("skipped")
        if (skip.get("message") or "") not in ALLOWED
    ]
    print("\n".join(wrong) or f"{len(cases)} tests, no skip but for absent hardware")
    return 1 if wrong or not cases else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

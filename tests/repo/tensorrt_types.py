"""Types of TensorRT for `make check`: a copy of tensorrt-stubs that parses, in ``.mypy_stubs``.

Five signatures of the published stubs have a parameter called ``in``, and one default value is not
Python; nothing of ours uses them.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from pathlib import Path

TARGET = Path(__file__).parents[2] / ".mypy_stubs"


def main() -> None:
    """Write the copy. Exits with 1 when the stubs are not installed."""
    site = Path(sysconfig.get_paths()["purelib"])
    sources = sorted(site.glob("tensorrt/*.pyi")) + sorted(site.glob("tensorrt_bindings/*.pyi"))
    if not sources:
        sys.exit("error: tensorrt-stubs are not installed: make setup")
    for source in sources:
        text = source.read_text(encoding="utf-8")
        text = re.sub(r"\bin: ", "in_: ", text)
        # "path: str = None, more: int" is not Python either.
        text = re.sub(r"(def [^\n]* = [^,\n]*), (\w+: \w+)(?=[,)])", r"\1, \2 = ...", text)
        text = re.sub(r" = <[^\n]*?>(?=[,)\n])", " = ...", text)
        target = TARGET / source.relative_to(site)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

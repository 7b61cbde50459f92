"""The corpus to begin with: for each target pieces of recordings that every clone has, and one line of each event.

Writes fuzz/corpus/TARGET/; the first byte of an input is the chunk size (reader) or the kind of event (body).
"""

from __future__ import annotations

import hashlib
import lzma
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "fuzz" / "corpus"
LINE = re.compile(rb"^.*?\[\d+\] \S+ +[\d.]+: (\w+): (.*)$")
LINES_A_PIECE = 12


def keep(target: str, data: bytes) -> None:
    """Write one input under the name of its digest."""
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    """Every event once, and the beginning of each recording."""
    seen: set[bytes] = set()
    for path in sorted((ROOT / "tests" / "data" / "traces").glob("*/*/trace.txt.xz")):
        lines = lzma.decompress(path.read_bytes()).split(b"\n")
        piece = b"\n".join(lines[:LINES_A_PIECE])
        keep("reader", b"\x1f" + piece)
        keep("columns", piece)
        for text in lines:
            found = LINE.match(text)
            if found is not None and found[1] not in seen:
                seen.add(found[1])
                keep("reader", b"\x07" + text)
                keep("columns", text)
                for kind in range(80):
                    keep("body", bytes([kind]) + found[2])


if __name__ == "__main__":
    main()

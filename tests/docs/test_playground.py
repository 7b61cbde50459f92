"""The playground page: its blocks run in order, and print what stands below them."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "playground.md"
PAIR = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def printed(text: str) -> list[tuple[str, str]]:
    """Each block's output, with what the page says."""
    session: dict[str, object] = {"__name__": "__page__"}
    found = []
    for number, block in enumerate(PAIR.finditer(text), 1):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block[1], f"playground block {number}", "exec"), session)
        found.append((out.getvalue(), block[2] or ""))
    return found


def written_again(text: str) -> str:
    """The page with the outputs of now."""
    outputs = iter(printed(text))

    def block(match: re.Match[str]) -> str:
        out = next(outputs)[0]
        return f"```python\n{match[1]}```\n" + (f"```text\n{out}```\n" if out else "")

    return PAIR.sub(block, text)


def test_every_block_prints_what_the_page_says() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("KVM_MMU_WRITE_PLAYGROUND") == "1":
        PAGE.write_text(written_again(text), encoding="utf-8")
        text = PAGE.read_text(encoding="utf-8")
    blocks = printed(text)
    assert len(blocks) >= 10
    for out, said in blocks:
        assert out == said


def test_the_page_shows_every_subject() -> None:
    said = " ".join(said for _, said in printed(PAGE.read_text(encoding="utf-8")))
    for event in ("unsync", "sync", "prepare_zap", "get_page", "emulate", "inject_pf"):
        assert f"'{event}'" in said

"""Pages of docs/ that are run: their Python, block by block, prints what they show.

``python tests/test_docs.py`` runs them and writes what they print into the pages.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = ("worked_example.md",)
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", flags=re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
# what was learned differs in the last digits from machine to machine
ABSOLUTE, RELATIVE = 0.1, 0.1


def run(page: Path) -> list[tuple[str, str, str]]:
    """Code, what the page shows, and what it prints, of every block; all in one namespace."""
    names: dict[str, object] = {"__name__": "__main__"}
    found = []
    for code, shown in BLOCK.findall(page.read_text()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(page), "exec"), names)
        found.append((code, shown, printed.getvalue()))
    return found


def same(shown: str, printed: str) -> bool:
    """Whether two texts differ at most in the last digits of numbers with a point."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(_near(*pair) for pair in pairs)


def _near(shown: str, printed: str) -> bool:
    if "." not in shown + printed:
        return shown == printed
    a, b = (float(text.replace(",", "")) for text in (shown, printed))
    return abs(a - b) <= ABSOLUTE + RELATIVE * abs(a)


@pytest.mark.parametrize("name", PAGES)
def test_pages_show_what_they_print(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = run(ROOT / "docs" / name)
    assert len(blocks) >= 5
    for code, shown, printed in blocks:
        assert same(shown, printed), f"{code}\nshows\n{shown}\nbut prints\n{printed}"


def test_only_last_digits_may_differ() -> None:
    assert same("U (1000, 8): 0.41  -1.20\n", "U (1000, 8):  0.43 -1.18\n")
    assert not same("U (1000, 8)\n", "U (1000, 9)\n")
    assert not same("conversion 0.41\n", "conversion 0.61\n")
    assert not same("a view\n", "a cart\n")
    assert not same("3.0\n", "")


def write(page: Path) -> None:
    """Run a page, and write what it prints into it."""
    blocks = iter(run(page))

    def with_output(match: re.Match[str]) -> str:
        code, _, printed = next(blocks)
        told = f"\n```text\n{printed}```\n" if printed else ""
        return f"```python\n{code}```\n{told}"

    page.write_text(BLOCK.sub(with_output, page.read_text()))


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests
    os.chdir(tempfile.mkdtemp())
    for name in PAGES:
        write(ROOT / "docs" / name)

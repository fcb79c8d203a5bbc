"""The Python of the pages in docs/ runs from top to bottom, and prints what the pages show."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(<!-- not run.*?-->\n)?```python\n(.*?)```\n(?:\n```\n(.*?)```\n)?", re.DOTALL)
NUMBER = re.compile(r"\d[\d.,]*")
NEXT = "-- next block"
WITH_CODE = [page for page in sorted(DOCS.glob("*.md")) if "```python" in page.read_text("utf-8")]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_every_block_runs_and_prints_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    blocks = BLOCK.findall(page.read_text("utf-8"))
    for skipped, code, _ in blocks:
        compile(code, page.name, "exec")
        assert not skipped or "Client" in code, "only what needs a cluster is not run"
    run = [(code, shown) for skipped, code, shown in blocks if not skipped]
    script = tmp_path / "page.py"
    script.write_text(f"\nprint({NEXT!r})\n".join(code for code, _ in run))
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.split(f"{NEXT}\n")
    assert len(printed) == len(run)
    for text, (code, shown) in zip(printed, run, strict=True):
        if shown:
            assert words(text) == words(shown), code
            # Another processor rounds differently, and a tie may fall the other way.
            assert numbers(text) == pytest.approx(numbers(shown), abs=2), code


def words(text: str) -> list[str]:
    """Without numbers, and the widths of columns that follow from them."""
    return re.sub("--+", "--", NUMBER.sub("#", text)).split()


def numbers(text: str) -> list[float]:
    return [float(one.replace(",", "").rstrip(".")) for one in NUMBER.findall(text)]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_within_a_page_and_to_files_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors
        elif "://" not in target:
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`((?:python )?(?:tools|tests|fitact_fx)/[\w/]+\.py)", text):
        assert (page.parents[1] / name.removeprefix("python ")).exists(), name

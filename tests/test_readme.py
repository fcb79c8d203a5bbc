"""The README's examples run as they stand, one behind the other, and print what the README shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
NUMBER = re.compile(r"[\d.][\d.,]*")
NEXT = "-- next"
# The first block, and every one that says behind which it runs: (code, what it prints or "").
BLOCKS = re.findall(
    r"<!-- (?:tests/test_readme.py|and this)[^>]*-->\n```python\n(.*?)```\n(?:\n```\n(.*?)```)?", README, re.DOTALL
)
EXAMPLE, PROTECTIONS, FAULTS, CAMPAIGN = range(4)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that the blocks ran in, and what each of them printed."""
    pytest.importorskip("sklearn", reason="the example's digits are scikit-learn's")
    folder = tmp_path_factory.mktemp("readme")
    code = f"\nprint({NEXT!r})\n".join(block for block, _ in BLOCKS)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=folder)
    assert run.returncode == 0, run.stderr
    printed = run.stdout.split(f"{NEXT}\n")
    assert len(printed) == len(BLOCKS) == CAMPAIGN + 1
    return folder, printed


def numbers(text):
    return [float(n.replace(",", "").rstrip(".")) for n in NUMBER.findall(text)]


def test_the_example_prints_what_the_readme_shows(ran):
    printed, shown = ran[1][EXAMPLE], BLOCKS[EXAMPLE][1]
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    # Another processor rounds differently while training, so the figures are held to a few points.
    assert numbers(printed) == pytest.approx(numbers(shown), abs=6)


def test_the_protections_behind_it_run_and_print_nothing(ran):
    assert ran[1][PROTECTIONS] == BLOCKS[PROTECTIONS][1] == ""


def test_the_faults_behind_it_run_too_and_print_what_the_readme_shows(ran):
    assert ran[1][FAULTS] == BLOCKS[FAULTS][1]  # drawn, and so the same on every machine
    assert (ran[0] / "trial3.safetensors").is_file()


def test_the_campaign_behind_it_runs_too_and_prints_what_the_readme_shows(ran):
    printed, shown = ran[1][CAMPAIGN], BLOCKS[CAMPAIGN][1]
    words = [re.sub(r"[-\s]+", " ", NUMBER.sub("#", text)) for text in (printed, shown)]
    assert words[0] == words[1]
    # The faults are the same everywhere, and the training is not: a mean may be some points off.
    assert numbers(printed) == pytest.approx(numbers(shown), abs=15)
    assert (ran[0] / "run.db").is_file()


def test_the_example_is_as_short_as_it_says():
    assert len([line for line in BLOCKS[EXAMPLE][0].splitlines() if line.strip()]) <= 15

"""The README's examples run as they stand and print what the README shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
NUMBER = re.compile(r"[\d.]+")


def blocks():
    """The example and, behind it, what the README says it prints."""
    example, shown = re.search(r"```python\n(.*?)```\n+```\n(.*?)```", README, re.DOTALL).groups()
    return example, shown


def test_the_example_prints_what_the_readme_shows():
    pytest.importorskip("sklearn", reason="the example's digits are scikit-learn's")
    example, shown = blocks()
    run = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert NUMBER.sub("#", run.stdout) == NUMBER.sub("#", shown)
    # Another processor rounds differently while training, so the figures are held to a few points.
    printed, expected = ([float(n) for n in NUMBER.findall(text)] for text in (run.stdout, shown))
    assert printed == pytest.approx(expected, abs=6)


def test_the_faults_behind_it_run_too_and_print_what_the_readme_shows(tmp_path):
    pytest.importorskip("sklearn", reason="the example's digits are scikit-learn's")
    example, _ = blocks()
    (faults, shown), *rest = re.findall(
        r"behind the example above -->\n```python\n(.*?)```\n+```\n(.*?)```", README, re.DOTALL
    )
    assert not rest
    code = f"{example}\nprint('-- faults')\n{faults}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.partition("-- faults\n")[2] == shown  # drawn, and so the same on every machine
    assert (tmp_path / "trial3.safetensors").is_file()


def test_the_campaign_behind_it_runs_too_and_prints_what_the_readme_shows(tmp_path):
    pytest.importorskip("sklearn", reason="the example's digits are scikit-learn's")
    example, _ = blocks()
    ((campaign, shown),) = re.findall(
        r"and this, behind that -->\n```python\n(.*?)```\n+```\n(.*?)```", README, re.DOTALL
    )
    code = f"{example}\nfrom fitact_fx.faults import BitFlip\nprint('-- campaign')\n{campaign}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    printed = run.stdout.partition("-- campaign\n")[2]
    words = [re.sub(r"[-\s]+", " ", NUMBER.sub("#", text)) for text in (printed, shown)]
    assert words[0] == words[1]
    # The faults are the same everywhere, and the training is not: a mean may be some points off.
    found, expected = ([float(n) for n in NUMBER.findall(text)] for text in (printed, shown))
    assert found == pytest.approx(expected, abs=15)
    assert (tmp_path / "run.db").is_file()


def test_the_example_is_as_short_as_it_says():
    example, _ = blocks()
    assert len([line for line in example.splitlines() if line.strip()]) <= 15

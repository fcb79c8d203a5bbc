"""Which models can be hardened? One small one, random weights, of everything in torchvision, timm and Hugging Face.

    python tools/coverage_sweep.py                                     # all, the page into tools/results/
    python tools/coverage_sweep.py --resume rows.jsonl                 # the same, in as many sittings as it takes
    python tools/coverage_sweep.py --suite timm --models 'vit_*' --json   # some of them, on the screen

It needs timm and transformers: pip install -e '.[sweep]'. For each model, in evaluation mode and with one bound
per layer:

1. `harden` finds a graph and at least one site;
2. with infinite bounds the outputs are the model's own, bit for bit;
3. `torch.compile` takes the hardened model and gives the same but for rounding;
4. how many calls stay unprotected is counted.

`tools/coverage_check.py` does the checks, in a process per model; `tools/coverage_<suite>.py` names the models.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from coverage_case import Case
from coverage_check import Row, all_cases
from coverage_page import exceptions, page, summary, table
from tqdm import tqdm

SUITES = ("torchvision", "timm", "huggingface")
RESULTS = Path(__file__).parent / "results" / "coverage_sweep.md"
CHECK = Path(__file__).with_name("coverage_check.py")


def rows_of(cases: Sequence[Case], options: Any) -> list[Row]:
    """A row per case, in the order of the cases; those that the file to resume from holds are not run again."""
    rows = finished(options.resume)
    missing = [case for case in cases if case.path not in rows]
    for case, row in _running(missing, options):
        rows[case.path] = row
        if options.resume is not None:
            with options.resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        tqdm.write(f"{case.path}: {'; '.join(row.problems) or row.frontend}", file=sys.stderr)
    return [rows[case.path] for case in cases]


def finished(file: Path | None) -> dict[str, Row]:
    """The rows in a file of an earlier sitting, by suite/name."""
    if file is None or not file.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    return {f"{row.suite}/{row.model}": row for row in rows}


def _running(cases: Sequence[Case], options: Any) -> Iterator[tuple[Case, Row]]:
    with ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(_row, case, options): case for case in cases}
        try:
            for future in tqdm(as_completed(running), total=len(running), unit="model"):
                yield running[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _row(case: Case, options: Any) -> Row:
    """The row of a process of its own; also where that takes too long, or is ended from outside."""
    command = [sys.executable, str(CHECK), case.path, "--backend", options.backend]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=options.limit, check=False)
    except subprocess.TimeoutExpired:
        return Row(case.suite, case.name, seconds=options.limit, problems=[f"not done after {options.limit} s"])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Row(case.suite, case.name, problems=[f"the process ended with {done.returncode}: {last}"])
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def _chosen(options: Any) -> list[Case]:
    chosen = [case for case in all_cases(options.suite) if any(fnmatchcase(case.name, g) for g in options.models)]
    if not chosen:
        sys.exit(f"no model of {', '.join(options.suite)} matches {' '.join(options.models)}")
    return chosen


def _options(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["*"], metavar="GLOB", help="only the models of these names")
    parser.add_argument("--suite", nargs="+", default=list(SUITES), choices=SUITES, help="only these suites")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="models at a time (default: 1)")
    parser.add_argument("--backend", default="aot_eager", help="of torch.compile (default: aot_eager; or inductor)")
    parser.add_argument("--limit", type=int, default=1800, metavar="SECONDS", help="for one model (default: 1800)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="keep every finished row there, and go on from it")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the sweep; exit status 1 if a model did not do what is promised."""
    options = _options(arguments)
    rows = rows_of(_chosen(options), options)
    everything = options.models == ["*"] and set(options.suite) == set(SUITES)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif not everything:
        print(summary(rows), table(rows), "\n".join(exceptions(rows)), sep="\n\n")
    if everything:
        backend = "" if options.backend == "aot_eager" else f" --backend {options.backend}"
        RESULTS.write_text(page(rows, f"python tools/coverage_sweep.py{backend}", options.backend), encoding="utf-8")
    return 0 if all(row.as_promised for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

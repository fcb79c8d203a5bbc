"""The house itself: which way imports go, what the wheel contains, what importing the library costs."""

import ast
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each line imports only from lines above it. A name is a module of fitact_fx or a whole folder; inside a
# folder modules may import each other as long as no cycle appears, but no pass imports another pass.
ORDER = """
unseen errors parameter_limits exchanging
writes repairs
guarded
nodes source ambience graph_lines
ownership options answers
granularity policies batches statistics dimensions traced
spec holdout codes
bounded injected
packing carrying thresholds clean_outputs
clean_accuracy losses probe
kinds signature modes guards
recurrence
spellings
naming refusals
places layout aliasing
sites hidden ways
frontends calls
call_table tracing faults ranges followers points plain_calls
sides confined percentiles budget asked_bounds fast_path
descent new_samples
passes learning searching progression hit_words
schemes injection faulty_outputs scrubbing lowered
recipe scheme_options
hardening
saving verification inspection coverage
campaigns models model_spec
replaying
reports
demo testing
fault_words
campaign_keys
campaign_file
campaign_data
campaign_words
cli_faults cli_coverage cli_plan cli_compare cli_report
cli_campaigns
cli __init__
__main__
"""
LINE = {room: number for number, line in enumerate(ORDER.split("\n")) for room in line.split()}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file, with passes/ under the name it is installed as."""
    found = {}
    for folder, package in ((root / "fitact_fx", "fitact_fx"), (root / "passes", "fitact_fx.passes")):
        for file in sorted(folder.rglob("*.py")):
            inside = file.relative_to(folder).with_suffix("").parts
            if package == "fitact_fx" and inside[0] == "passes":
                continue  # the symlink: passes/ is read where it really is
            found[".".join((package, *inside)).removesuffix(".__init__")] = file
    return found


def imported(name: str, file: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every import in a file, also those inside functions."""
    package = name if file.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)


def room(module: str) -> str:
    """`fitact_fx.faults.formats` -> `faults`, `fitact_fx` -> `__init__`."""
    return module.split(".")[1] if "." in module else "__init__"


def owner(target: str, known: dict[str, Path]) -> str:
    """The module that an imported name comes from: `fitact_fx.errors.FitactError` -> `fitact_fx.errors`."""
    while target not in known and "." in target:
        target = target.rpartition(".")[0]
    return target


def wrong_imports(root: Path) -> list[str]:
    """One sentence for everything that goes against ORDER in the tree under `root`."""
    files = modules(root)
    wrong = [
        f"{file.relative_to(root)} stands on no line of the order of imports; give {room(name)} one in ORDER"
        for name, file in files.items()
        if room(name) not in LINE
    ]
    siblings: dict[str, set[str]] = {}
    for name, file in files.items():
        for line, target in imported(name, file):
            complaint = _complaint(name, target, files, siblings)
            if complaint:
                wrong.append(f"{file.relative_to(root)}:{line} imports {complaint}")
    try:
        TopologicalSorter(siblings).prepare()
    except CycleError as cycle:
        wrong.append("modules import each other: " + " -> ".join(reversed(cycle.args[1])))
    return wrong


def _complaint(name: str, target: str, files: dict[str, Path], siblings: dict[str, set[str]]) -> str:
    top = target.partition(".")[0]
    if top == "passes":
        return f"{target}, which is installed as fitact_fx.{target}"
    if top != "fitact_fx":
        return ""
    module = owner(target, files)
    if module == "fitact_fx" and target.count(".") > 1:
        return f"{target}, which is in no file of this tree"
    if room(module) != room(name):
        later = LINE.get(room(module), 0) >= LINE.get(room(name), len(ORDER))
        return f"{module}, which stands on the same or a later line" if later else ""
    if "fitact_fx.passes" not in (name, module) and room(name) == "passes":
        return f"{module}, but no pass names another pass"
    siblings.setdefault(name, set()).add(module)
    return ""


def test_imports_go_one_way() -> None:
    assert not wrong_imports(ROOT), "\n" + "\n".join(wrong_imports(ROOT))


def planted(root: Path, **files: str) -> Path:
    """A tiny tree: `passes__folding="import x"` becomes passes/folding.py."""
    for name, text in {
        "fitact_fx____init__": "",
        "passes____init__": "",
        "fitact_fx__errors": "",
        **files,
    }.items():
        package, _, module = name.partition("__")
        file = root / package / f"{module.replace('__in_', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"passes__folding": "from fitact_fx.passes import Pass"}, None),
        (
            {"fitact_fx__sites": "\nfrom fitact_fx.ranges import X", "fitact_fx__ranges": ""},
            "fitact_fx/sites.py:2 imports fitact_fx.ranges, which stands on the same or a later line",
        ),
        (
            {
                "fitact_fx__tracing": "def f():\n    import fitact_fx.faults",
                "fitact_fx__faults__in___init__": "",
            },
            "fitact_fx/tracing.py:2 imports fitact_fx.faults, which stands on the same or a later line",
        ),
        (
            {"fitact_fx__sites": "from . import ranges", "fitact_fx__ranges": ""},
            "fitact_fx/sites.py:1 imports fitact_fx.ranges, which stands on the same or a later line",
        ),
        (
            {"fitact_fx__hardening": "import fitact_fx"},
            "fitact_fx/hardening.py:1 imports fitact_fx, which stands on the same or a later line",
        ),
        (
            {"passes__folding": "from fitact_fx.passes.bounding import Bounding", "passes__bounding": ""},
            "passes/folding.py:1 imports fitact_fx.passes.bounding, but no pass names another pass",
        ),
        (
            {"fitact_fx__hardening": "import passes.x"},
            "fitact_fx/hardening.py:1 imports passes.x, which is installed as fitact_fx.passes.x",
        ),
        (
            {"fitact_fx__hardening": "from fitact_fx.sites import Site"},
            "fitact_fx/hardening.py:1 imports fitact_fx.sites.Site, which is in no file of this tree",
        ),
        (
            {"fitact_fx__surprise": ""},
            "fitact_fx/surprise.py stands on no line of the order of imports; give surprise one in ORDER",
        ),
        (
            {
                "fitact_fx__faults__in_a": "from fitact_fx.faults import b",
                "fitact_fx__faults__in_b": "from fitact_fx.faults.a import x",
            },
            "modules import each other: fitact_fx.faults.a -> fitact_fx.faults.b -> fitact_fx.faults.a",
        ),
    ],
)
def test_a_wrong_import_is_named(tmp_path: Path, files: dict[str, str], complaint: str | None) -> None:
    assert wrong_imports(planted(tmp_path, **files)) == ([complaint] if complaint else [])


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a copy of this tree and the wheel built from that sdist."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("fitact_fx", "passes"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [sys.executable, "-m", "build", "--no-isolation", str(tree)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return tree / "dist"


def test_the_wheel_contains_every_package(distribution: Path) -> None:
    (wheel,) = distribution.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    on_disk = {name.replace(".", "/") for name, file in modules(ROOT).items() if file.stem == "__init__"}
    in_wheel = {str(Path(name).parent) for name in names if name.endswith("/__init__.py")}
    assert in_wheel == on_disk, "pyproject.toml lists its packages one by one; is a new one missing there?"
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"fitact_fx"}
    assert "fitact_fx/py.typed" in names


def test_the_sdist_ships_passes_once(distribution: Path) -> None:
    (sdist,) = distribution.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert "passes/__init__.py" in names
    assert not [name for name in names if name.startswith("fitact_fx/passes")]


def test_the_wheel_passes_the_checker(distribution: Path) -> None:
    (wheel,) = distribution.glob("*.whl")
    command = [
        sys.executable,
        "-m",
        "check_wheel_contents",
        "--config",
        str(ROOT / "pyproject.toml"),
        str(wheel),
    ]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def fresh_python(code: str, cwd: Path) -> str:
    """What `code` prints in an interpreter of its own, started in `cwd`."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_passes_are_imported_from_the_installed_wheel(distribution: Path, tmp_path: Path) -> None:
    (wheel,) = distribution.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    # The current folder comes first on the path, before any editable installation.
    assert fresh_python("import fitact_fx.passes as p; print(p.__file__)", tmp_path).startswith(str(tmp_path))


def test_importing_the_library_loads_nothing_optional_or_slow() -> None:
    slow = ("torchvision", "sklearn", "matplotlib", "scipy", "pandas")
    code = f"import sys, fitact_fx; print(*(name for name in {slow!r} if name in sys.modules))"
    assert fresh_python(code, ROOT) == ""

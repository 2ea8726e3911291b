"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "python" / "aisec_fast"
FAMILIES = ("adversarial", "clipping", "ghost", "hashing", "noise")
INTERNAL = ("update",)  # without a public module: `privacy` is its user
# One stream of SHA-256 is sequential: a GPU would only be slow (docs/hashing.md).
NOT_ON_CUDA = ("sha256_update", "sha256_output", "hash_files", "folder_entries", "open_beneath")


def test_import_is_light() -> None:
    heavy = ("torch", "scipy", "numba", "cupy", "matplotlib", "dp_accounting", "rich", "sklearn", "aisec_fast._core")
    families = ", ".join(f"aisec_fast.{family}" for family in FAMILIES)
    code = f"import sys, aisec_fast, {families}\nprint([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("family", [*FAMILIES, *INTERNAL])
def test_a_family_has_its_file_in_every_layer(family: str) -> None:
    for path in (
        f"src/cpp/kernels/{family}.cpp",
        f"src/cpp/bind_{family}.cpp",
        f"src/cuda/{family}_body.hpp",
        f"src/cuda/{family}.cu",
        f"src/cuda/{family}.cuh",
        f"python/aisec_fast/_numba/{family}.py",
        f"python/aisec_fast/_reference/{family}.py",
        f"tests/test_{family}.py",
        f"benchmarks/bench_{family}.py",
        f"docs/{family}.md",
    ):
        assert (ROOT / path).is_file(), f"{path} is missing"
    name = f"_{family}" if family in INTERNAL else family
    public = PACKAGE / f"{name}.py", PACKAGE / name / "__init__.py"  # a family with many parts is a folder
    assert any(path.is_file() for path in public), f"{public[0]} is missing"


def functions(path: Path) -> dict[str, list[str]]:
    """Public functions of a module or stub and their argument names."""
    tree = ast.parse(path.read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return {f.name: [argument.arg for argument in f.args.args] for f in found}


@pytest.mark.parametrize("family", [*FAMILIES, *INTERNAL, "files"])
def test_backends_have_the_same_functions(family: str) -> None:
    core, cuda = functions(PACKAGE / "_core.pyi"), functions(PACKAGE / "_cuda.pyi")
    numba = functions(PACKAGE / "_numba" / f"{family}.py")
    assert numba
    for name, arguments in numba.items():
        assert core[name] == arguments, name
        assert cuda.get(name) == (None if name in NOT_ON_CUDA else arguments), name


def test_stubs_are_current(tmp_path: Path) -> None:
    """What the stubs import is of no matter here, and takes mypy most of a minute: torch comes with the package."""
    modules = [name for name in ("_core", "_cuda") if importlib.util.find_spec(f"aisec_fast.{name}")]
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nfollow_imports = skip\n")
    run = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", f"--mypy-config-file={config}", *(f"aisec_fast.{m}" for m in modules)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "_core" in modules
    for module in modules:
        compiled = importlib.import_module(f"aisec_fast.{module}")
        for name, arguments in functions(PACKAGE / f"{module}.pyi").items():
            signature = getattr(compiled, name).__doc__.splitlines()[0]
            assert re.findall(r"(\w+): ", signature) == arguments, signature


def kernel_objects() -> dict[str, list[Path]]:
    """Object files of each instruction set in the newest build folder."""
    folders = sorted(ROOT.glob("build/cp*/CMakeFiles"), key=lambda folder: folder.stat().st_mtime)
    if not folders:
        pytest.skip("no build folder: the package was not built here")
    return {
        target.name.removeprefix("kernels_").removesuffix(".dir"): list(target.rglob("*.o"))
        for target in folders[-1].glob("kernels_*.dir")
    }


def test_instruction_sets_share_no_symbol() -> None:
    """A weak symbol defined in two of them would be merged, and the copy kept might use instructions the CPU lacks."""
    owners: dict[str, str] = {}
    objects = kernel_objects()
    assert set(objects) >= {"baseline"}
    for isa, files in objects.items():
        assert files
        for file in files:
            listing = subprocess.run(["nm", "--defined-only", file], capture_output=True, text=True, check=True).stdout
            for line in listing.splitlines():
                _, kind, symbol = line.split(maxsplit=2)
                assert kind not in "wWvVuC", f"weak symbol in {isa}: {line}"
                if kind.isupper():
                    assert owners.setdefault(symbol, isa) == isa, f"{symbol} is in {owners[symbol]} and {isa}"
    assert len(owners) >= 3 * len(objects)  # the tables and families were seen


def test_one_version_everywhere() -> None:
    import aisec_fast
    from aisec_fast import _core

    stated = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated
    newest = re.search(r"^## (?:\[)?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert {aisec_fast.__version__, _core.version, newest[1]} == {stated[1]}


def test_papers_name_files_that_exist() -> None:
    for paper in (
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")),
    ):
        text = (ROOT / paper).read_text()
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert ((ROOT / paper).parent / target).exists(), f"{paper} links to {target}"


def first_example(paper: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run the first example of a page with these names, and return all that it leaves."""
    example = re.search(r"```python\n(.+?)```", (ROOT / paper).read_text(), re.DOTALL)
    assert example
    exec(example[1], names)  # noqa: S102 - what our own page says
    return names


def test_the_example_of_attacks_runs() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 5)).eval()
    x = torch.rand(4, 3, 4, 4)
    left = first_example("docs/adversarial-attacks.md", {"model": model, "x": x, "y": model(x).argmax(1)})
    assert left["x_adv"].shape == x.shape
    assert 0 <= left["robust_accuracy"] <= 1


def test_the_example_of_pseudonyms_runs() -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    names = {"df": pandas.DataFrame({"email": ["a@b", "c@d"]}), "key": bytes(32), "data": b"abc", "offsets": [0, 1, 3]}
    left = first_example("docs/hashing-records.md", names)
    assert left["column"].to_pylist() == left["df"]["pseudonym"].tolist()
    assert "email" in str(left["df"])


def load_script(path: str) -> Any:
    """A script of ours that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_has_the_table_of_the_newest_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert load_script("benchmarks/table.py").readme(text) == text, "run: python benchmarks/table.py"


def test_the_guard_tells_what_became_slower() -> None:
    slower = load_script("benchmarks/guard/guard.py").slower
    committed = {"avx2 a": 1000, "avx2 b": 1000}
    assert slower({"avx2 a": 1050, "avx2 b": 10}, committed) == []
    assert len(slower({"avx2 a": 1051, "avx2 b": 1000}, committed)) == 1
    assert len(slower({"avx2 a": 1000, "avx2 b": 1000, "avx2 c": 1}, committed)) == 1
    assert len(slower({"avx2 a": 1000}, committed)) == 1

"""The house's walls: who imports whom, how big a file gets, what a start costs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kernels

ROOT = Path(__file__).parents[1]
MAX_LINES = 450
STANDARD = set(sys.stdlib_module_names)
SOURCES = sorted(
    path
    for folder in ("asr", "kernels", "scripts", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _sources(folder: str) -> list[Path]:
    return [path for path in SOURCES if path.is_relative_to(ROOT / folder)]


def _imports(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names taken from it) of every import, wherever in the file it stands."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *filter(None, [node.module])))
            yield module, tuple(alias.name for alias in node.names)


@pytest.mark.parametrize("path", _sources("kernels"), ids=_name)
def test_kernels_know_nothing_of_speech(path: Path) -> None:
    allowed = STANDARD | {"kernels", "torch", "triton", "numpy"}
    if path.is_relative_to(ROOT / "kernels" / "bench"):
        allowed |= {"matplotlib"}
    assert {module.split(".")[0] for module, _ in _imports(path)} <= allowed


def _attributes(path: Path, package: str) -> set[str]:
    """Every X of an expression `package.X`."""
    return {
        node.attr
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == package
    }


@pytest.mark.parametrize("path", _sources("asr"), ids=_name)
def test_asr_uses_only_public_names_of_kernels(path: Path) -> None:
    used = _attributes(path, "kernels")
    for module, names in _imports(path):
        assert not module.startswith("kernels."), f"{_name(path)} reaches into {module}"
        used |= set(names) if module == "kernels" else set()
    assert used <= set(getattr(kernels, "__all__", ())), f"{_name(path)}: not public in kernels"


def test_kernels_is_this_package_and_not_the_one_on_pypi() -> None:
    assert Path(kernels.__file__).parent == ROOT / "kernels", "use an environment of its own"


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{_name(path)} has {lines} lines; split it by subject"


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from asr.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'torchaudio', 'lhotse', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"
    assert "transcribe" in run.stdout

"""The rooms keep to themselves: imports point one way, stubs match the contract, torch stays out of the gateway."""

import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cache
import gateway

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def run(*command: str) -> str:
    """What a program of this environment says; fails the test with it when the program fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_imports_point_one_way() -> None:
    """Every import contract of pyproject.toml holds."""
    run("lint-imports", "--no-cache")


def test_stubs_are_those_of_the_contract(tmp_path: Path) -> None:
    """Generating them again changes nothing, and nothing is left of a message that is no more."""
    contracts = sorted(str(path.relative_to(ROOT)) for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    run(
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "-Iprotos",
        *outputs,
        f"--mypy_grpc_out=only_async:{tmp_path}",
        *contracts,
    )
    assert stubs(PROTOS) == stubs(tmp_path), "run `make protos`"


def test_a_gateway_does_without_torch() -> None:
    """Every module of the gateway and the cache can be imported, and none of them brings the inference libraries.

    Except the programs themselves, which run when imported; the import contracts speak for those.
    """
    names = [
        found.name
        for package in (cache, gateway)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not found.name.endswith("__main__")
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*sorted({'torch', 'diffusers', 'transformers', 'inference'} & set(sys.modules)))"
    )
    assert run(sys.executable, "-c", program).strip() == ""


@pytest.mark.parametrize(
    "room", ["cache", "gateway", "inference", "deploy", "tests/bench", "tests/chaos", "tests/fuzz"]
)
def test_a_rooms_readme_names_what_is_in_it(room: str) -> None:
    """Every module, file of settings and folder, as one goes looking for it."""
    readme, here = (ROOT / room / "README.md").read_text(), (ROOT / room).iterdir()
    names = [each.name for each in here if each.is_dir() or each.suffix in (".py", ".yaml")]
    named = [name for name in names if f"`{name}`" in readme or f"`{name}/" in readme]
    assert [] == sorted({name for name in names if not name.startswith(("_", ".", "test_"))} - set(named))


def stubs(folder: Path) -> dict[str, str]:
    """Generated files by name."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*_pb2*") if path.suffix != ".pyc"}

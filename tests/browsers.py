"""What the tests of the web need besides Python: Node with the page's packages, and a Chromium. Else they are skipped.

`make test` installs both where a package manager has them (`deploy/local/install.sh web browser`).
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "deploy" / "web"
_OLDEST_NODE = 20
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def node() -> str:
    """The `node` of this environment or of the system; the page and its stubs are built from what is there now."""
    found = shutil.which("node", path=str(Path(sys.executable).parent)) or shutil.which("node")
    version = _said(found, "--version") if found else ""
    if found is None or int(version.removeprefix("v").partition(".")[0] or 0) < _OLDEST_NODE:
        pytest.skip(f"no Node {_OLDEST_NODE} or newer here: run `make web`")
    if not (WEB / "node_modules" / ".installed").exists():
        pytest.skip("the packages of the web page are not installed: run `make web`")
    subprocess.run([found, "build.mjs"], cwd=WEB, env={**os.environ, "PYTHON": sys.executable}, check=True, timeout=60)
    return found


def browser() -> str:
    """A Chromium of the system."""
    for name in _BROWSERS:
        if (found := shutil.which(name)) and _said(found, "--version"):
            return found
    pytest.skip("no Chromium here: install your system's package of it")


def _said(program: str, *arguments: str) -> str:
    """What it printed; nothing if it failed, as placeholders for programs do."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() if done.returncode == 0 else ""

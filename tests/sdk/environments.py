"""Separate environments of Python and Node packages that the tests of this folder run, each installed once per lock file."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from installed import once

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "deploy" / "sdk-requirements.txt"
ENVIRONMENT = ROOT / ".sdk-environment"
BIN = ENVIRONMENT / "bin"
NODE_SOURCES = Path(__file__).parent / "node"
NODE = ROOT / ".sdk-node"
CPP = ROOT / ".sdk-cpp"
HEADERS = ("hiredis/hiredis.h", "nlohmann/json.hpp", "zlib.h")

needs_node = pytest.mark.skipif(shutil.which("npm") is None, reason="node and npm are not installed: install both")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None or not all(Path("/usr/include", header).exists() for header in HEADERS),
    reason="g++ or a library is not installed: run scripts/producers",
)


def python_environment() -> None:
    """Installs the clients of other venues and the generators."""
    once(ENVIRONMENT, REQUIREMENTS, _install_python)


def node_environment() -> None:
    """Installs the Node packages, and copies our programs next to them."""
    once(NODE, NODE_SOURCES / "package-lock.json", _install_node)
    for source in NODE_SOURCES.iterdir():
        shutil.copy(source, NODE)


def _install_python() -> None:
    pip = (BIN / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--requirement")
    subprocess.run((sys.executable, "-m", "venv", ENVIRONMENT), check=True)
    subprocess.run((*pip, REQUIREMENTS), check=True)


def _install_node() -> None:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(NODE_SOURCES / name, NODE)
    subprocess.run(("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"), cwd=NODE, check=True)

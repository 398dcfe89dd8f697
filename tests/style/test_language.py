"""The prose of the repository contains none of the idioms that hide the actor of a sentence."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IDIOMS = re.compile(
    r"\b(who|whom|whoever|told|said|asked|asks|nobody|somebody|anew|lest|goes on|makes way|of old|comes upon)\b", re.IGNORECASE
)
OTHERS = {".md", ".sql", ".toml", ".yaml", ".yml", ".service", ".conf", ".css", ".html"}
CHANGED_NAMES = "\n## Changed names\n"
FOLDERS = ("config", "deploy", "fundsvc", "scripts", "tests")
FILES = [
    path
    for path in (ROOT / "README.md", ROOT / "pyproject.toml", *(path for name in FOLDERS for path in (ROOT / name).rglob("*")))
    if path.is_file() and path != Path(__file__) and not {"versions", "swagger"} & set(path.parts)
]


def prose_of_python(text):
    """Returns the comments, the docstrings, and the names of tests with spaces."""
    comments = [
        token.string for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.COMMENT
    ]
    nodes = list(ast.walk(ast.parse(text)))
    strings = [node.value.value for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    names = [node.name.replace("_", " ") for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return "\n".join([*comments, *map(str, strings), *(name for name in names if name.startswith("test "))])


def prose(path):
    """Returns the prose of a file, without code in backticks and blocks."""
    text = path.read_text()
    if path.suffix == ".py":
        text = prose_of_python(text)
    elif path.suffix == ".md":
        text = re.sub(r"^ {4,}.*$", "", text, flags=re.MULTILINE)
    elif path.suffix == ".js":
        text = "\n".join(re.findall(r"//.*|^ */?\*.*", text, re.MULTILINE))
    return re.sub(r"`[^`]*`", "", text.split(CHANGED_NAMES)[0])


@pytest.mark.parametrize("suffix", sorted({".py", ".js", *OTHERS}))
def test_prose_contains_no_idioms(suffix):
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in FILES
        if path.suffix == suffix
        for line in prose(path).splitlines()
        if IDIOMS.search(line)
    ]
    assert found == []


def test_idioms_in_comments_docstrings_and_names_are_found():
    text = 'def test_who_asks():\n    """Is told."""\n    return asked  # nobody `said` it\n'
    assert IDIOMS.findall(re.sub(r"`[^`]*`", "", prose_of_python(text))) == ["nobody", "told", "who", "asks"]

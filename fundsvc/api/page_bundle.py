"""Joins the modules of the page into one script, so that a browser requests one file instead of thirty.

Each module becomes a function that returns its exports, in the order of their imports. The modules stay plain ES modules. They
may use two forms: `import { a, b } from "./module.js";`, and `export` before a function, class or constant.
"""

import re
from collections.abc import Mapping
from graphlib import TopologicalSorter

IMPORT = re.compile(r'^import \{([\w\s,]+)\} from "\./(\w+)\.js";$', re.MULTILINE)
EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
OTHER = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


def bundle(modules: Mapping[str, str]) -> str:
    """Returns one script with all modules, given by name without extension.

    Raises ValueError for an import or export in another form, and CycleError for modules that import each other.
    """
    graph = {name: [found[2] for found in IMPORT.finditer(text)] for name, text in sorted(modules.items())}
    return "\n".join(_function(name, modules[name]) for name in TopologicalSorter(graph).static_order())


def _function(name: str, text: str) -> str:
    exported = ", ".join(EXPORT.findall(text))
    body = EXPORT.sub("", IMPORT.sub(r"const {\1} = module_\2;", text))
    if other := OTHER.search(body):
        raise ValueError(f"page/{name}.js has {other[0]!r}: write imports and exports as the other modules do")
    return f"const module_{name} = (() => {{\n{body}return {{ {exported} }};\n}})();\n"

"""The code in an answer: what parses of it, and of that what the wanted function needs (EvalPlus, arXiv:2305.01210).

The rules are EvalPlus' own, with their edges, because published numbers rest on them.
"""

import ast
import warnings
from collections.abc import Iterator


def sanitize(text: str, entry_point: str) -> str:
    """The imports at the top level of the code in `text`, and the definitions that `entry_point` leads to by name.

    A definition is a class, an assignment, or a function that has a `return`: so a signature with nothing but its
    docstring does not hide the function that the model wrote below it. The first of a name counts, and decorated ones
    do not. Where nothing is left, all of the code.
    """
    code = longest_code(text)
    statements = tree.body if (tree := parsed(code)) else []
    imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom) and not future(node)]
    definitions: dict[str, ast.stmt] = {}
    for node in statements:
        if (name := defined(node)) is not None:
            definitions.setdefault(name, node)
    needed, waiting = set[str](), [entry_point]
    while waiting:
        if (name := waiting.pop()) in definitions and name not in needed:
            needed.add(name)
            waiting.extend(names(definitions[name]))
    kept = [*imports, *(node for name, node in definitions.items() if name in needed)]
    return "\n".join(ast.get_source_segment(code, node) or "" for node in kept) or code


def longest_code(text: str) -> str:
    """The consecutive lines, two or more, that parse and hold the most lines with text, the first such; else line 1."""
    lines = text.split("\n")
    filled = [0]
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    best, most = lines[0], 0
    for start in range(len(lines)):
        for end in range(len(lines), start + 1, -1):
            if filled[end] - filled[start] <= most:
                break
            if parsed(code := "\n".join(lines[start:end])):
                best, most = code, filled[end] - filled[start]
    return best


def parsed(code: str) -> ast.Module | None:
    """The tree of a piece of code, None if it is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model's "\d" is its own affair
        try:
            return ast.parse(code)
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return None


def future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def defined(node: ast.stmt) -> str | None:
    """The name that a statement defines."""
    match node:
        case ast.ClassDef(name=name, decorator_list=[]):
            return name
        case ast.FunctionDef(name=name, decorator_list=[]) | ast.AsyncFunctionDef(name=name, decorator_list=[]):
            return name if any(isinstance(inner, ast.Return) for inner in ast.walk(node)) else None
        case ast.Assign(targets=[ast.Name(id=name), *_]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


def names(node: ast.AST) -> Iterator[str]:
    """Every identifier inside, of attributes and arguments as well."""
    for inner in ast.walk(node):
        if not isinstance(inner, ast.Constant):
            yield from (value for _, value in ast.iter_fields(inner) if isinstance(value, str))

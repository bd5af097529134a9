"""Counts lines of code proper: no docstrings, no comments, no blank lines.

Run as `python -m benchmarks.lines [FOLDER]`. It prints a line per folder, without tests/, and the
sum. A line counts if a token of code lies on it; a string over several lines counts as many.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_SKIPPED = {"tests", "build"}
_SPACE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
_SPACE |= {tokenize.ENCODING, tokenize.ENDMARKER}


def count(source: str) -> int:
    """Returns the number of lines of code in a module's source."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _SPACE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and body and ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(body[0].lineno, body[0].end_lineno + 1))
    return len(lines)


def main(root: Path) -> None:
    """Prints the table."""
    folders: Counter[str] = Counter()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if parts[0] not in _SKIPPED and not any(part.startswith(".") for part in parts):
            folders["/".join(parts[:-1][:2]) or "."] += count(path.read_text(encoding="utf-8"))
    for folder, lines in sorted(folders.items()):
        print(f"{lines:7,}  {folder}")
    print(f"{sum(folders.values()):7,}  in all")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))

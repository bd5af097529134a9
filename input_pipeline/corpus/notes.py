"""What reading decides, counts and rejects: sentences for people, and rows that do not fit.

Here: grouping and counting, and printing each sentence once for each command. Not here: what is
decided or rejected (tables.py, conll.py, columns.py, sources.py).
"""

import warnings

_PRINTED: set[str] = set()  # a command reads the same files more than once


class Misfit(ValueError):
    """A row whose parts do not fit each other; it is dropped and counted under `reason`."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Notes:
    """Decisions about files, and sentences with a count and the first place."""

    def __init__(self) -> None:
        self._decided: dict[str, list[str]] = {}  # by path
        self._counted: dict[tuple[str, bool], tuple[int, str]] = {}

    def decide(self, path: str, decision: str) -> None:
        """Adds what was decided about a file, such as 'comma, no quotes, \\n line ends'."""
        self._decided.setdefault(path, []).append(decision)

    def count(self, sentence: str, where: str, *, warn: bool = False, count: int = 1) -> None:
        """Adds `count` cases of a sentence; the first place goes with it.

        Args:
            sentence: holds {count}, and has no full stop.
            where: 'file:line'.
            warn: the sentence is a warning: something may be wrong.
            count: how many cases.
        """
        cases, first = self._counted.get((sentence, warn), (0, where))
        self._counted[sentence, warn] = cases + count, first

    def report(self) -> None:
        """Prints what was decided and counted since the last call, and warns."""
        alike: dict[str, list[str]] = {}
        for path, decisions in self._decided.items():
            alike.setdefault(", ".join(decisions), []).append(path)
        for decisions, paths in alike.items():
            more = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
            _print_once(f"Read {paths[0]}{more}: {decisions}.")
        for (sentence, warn), (count, first) in self._counted.items():
            _print_once(f"{sentence.format(count=f'{count:,}')}, the first at {first}.", warn=warn)
        self._decided.clear()
        self._counted.clear()


def _print_once(line: str, *, warn: bool = False) -> None:
    if line not in _PRINTED:
        _PRINTED.add(line)
        warnings.warn(line, stacklevel=4) if warn else print(line)

"""What reading decides and counts, collected over all files and printed once for each command.

Here: the sentences' grouping and counting. Not here: what is decided (tables.py, conll.py,
columns.py, sources.py add it). Called by sources.py, which has them said.
"""

import warnings

_SAID: set[str] = set()  # a command reads the same files more than once


class Notes:
    """Decisions about files, and sentences with a count and the first place."""

    def __init__(self) -> None:
        self._decided: dict[str, list[str]] = {}  # by path
        self._counted: dict[tuple[str, bool], tuple[int, str]] = {}

    def decide(self, path: str, decision: str) -> None:
        """Adds what was decided about a file, such as 'comma, no quotes, \\n line ends'."""
        self._decided.setdefault(path, []).append(decision)

    def count(self, sentence: str, where: str, *, warn: bool = False, count: int = 1) -> None:
        """Counts one more case of a sentence, which holds {count}; the first place goes with it.

        Args:
            sentence: with {count}, without a full stop.
            where: file and line.
            warn: the sentence is a warning: something may be wrong.
            count: how many cases.
        """
        cases, first = self._counted.get((sentence, warn), (0, where))
        self._counted[sentence, warn] = cases + count, first

    def say(self) -> None:
        """Prints what was decided and counted since the last call, and warns."""
        alike: dict[str, list[str]] = {}
        for path, decisions in self._decided.items():
            alike.setdefault(", ".join(decisions), []).append(path)
        for decisions, paths in alike.items():
            others = f" and {len(paths) - 1:,} more" if len(paths) > 1 else ""
            _once(f"Read {paths[0]}{others}: {decisions}.", warn=False)
        for (sentence, warn), (count, first) in self._counted.items():
            _once(f"{sentence.format(count=f'{count:,}')}, the first at {first}.", warn=warn)
        self._decided.clear()
        self._counted.clear()


def _once(line: str, *, warn: bool) -> None:
    if line not in _SAID:
        _SAID.add(line)
        if warn:
            warnings.warn(line, stacklevel=4)
        else:
            print(line)

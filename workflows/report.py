"""--mode=report: finished runs side by side."""

from reporting.comparison import report

__all__ = ["report"]

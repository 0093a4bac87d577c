"""The end of what a program has said, for an error that quotes it."""

import re

_LINES = 20
# A frame of a Java stack trace: the lines between them tell what happened, and would not fit beside fifty of these.
_FRAME = re.compile(r"\s+(at \S+\(.*\)|\.\.\. \d+ more)$")


def tail(said: str) -> str:
    """The last lines, each on an indented line of its own; empty if it said nothing."""
    lines = [line for line in said.splitlines() if line.strip() and not _FRAME.match(line)]
    return "".join(f"\n  | {line}" for line in lines[-_LINES:])

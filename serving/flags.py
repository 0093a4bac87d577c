"""Types of command-line values that are checked as they are read."""

import argparse


def port(text: str) -> int:
    """0 to 65535; 0 means any free one."""
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port: 0 to 65535")
    return number


def count(text: str) -> int:
    """At least 1, within int32."""
    number = int(text)
    if not 1 <= number < 1 << 31:
        raise argparse.ArgumentTypeError(f"{number} is not a count: at least 1")
    return number


def positive(text: str) -> float:
    """Above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value

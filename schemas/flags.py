"""Types of command-line values that are checked as they are read, and how an address is written."""

import argparse
from typing import TypeVar

_N = TypeVar("_N", int, float)


def text(value: str) -> str:
    """Text that UTF-8 can spell, as ids in the logs are."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{value!r} is not UTF-8: give an id as it stands in the logs") from None
    return value


def port(value: str) -> int:
    """0 to 65535; 0 means any free one."""
    number = _number(int, value)
    if number is None or not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{value} is not a port: 0 to 65535")
    return number


def count(value: str) -> int:
    """At least 1, within int32."""
    number = _number(int, value)
    if number is None or not 1 <= number < 1 << 31:
        raise argparse.ArgumentTypeError(f"{value} is not a count: a whole number from 1 on")
    return number


def positive(value: str) -> float:
    """Above 0."""
    number = _number(float, value)
    if number is None or not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return number


def _number(kind: type[_N], value: str) -> _N | None:
    try:
        return kind(value)
    except ValueError:
        return None


def address(host: str, port: int) -> str:
    """HOST:PORT as gRPC reads it: an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

"""Types of command-line values: what they refuse, and how an address is written."""

import argparse

import pytest

from schemas import flags


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (flags.port, "65536", "65536 is not a port: 0 to 65535"),
        (flags.port, "http", "http is not a port: 0 to 65535"),
        (flags.count, "0", "0 is not a count: a whole number from 1 on"),
        (flags.count, "2.5", "2.5 is not a count: a whole number from 1 on"),
        (flags.positive, "nan", "nan is not a number above 0"),
        (flags.positive, "soon", "soon is not a number above 0"),
    ],
)
def test_a_value_that_cannot_be_used_is_told_with_what_can(kind, value, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(value)


def test_an_ipv6_host_is_written_in_brackets():
    assert flags.address("::1", 8500) == "[::1]:8500"
    assert flags.address("localhost", 8500) == "localhost:8500"

"""Ports that are held for servers: nobody else gets them, and the servers do."""

import socket
import sys

import pytest

from deploy.ports import Ports
from schemas.process import UserError


@pytest.fixture
def ports():
    found = Ports("127.0.0.1")
    yield found
    found.close()


def listen(port, family=socket.AF_INET, address="127.0.0.1"):
    """As a server does."""
    server = socket.socket(family)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    server.listen()
    return server


def test_free_ports_are_distinct_and_kept_from_who_asks_for_any(ports):
    taken = {ports.take(0, "--port") for _ in range(50)}
    assert len(taken) == 50
    others = [listen(0) for _ in range(50)]
    assert taken.isdisjoint(other.getsockname()[1] for other in others)
    for other in others:
        other.close()


def test_a_server_gets_its_port_as_often_as_it_starts(ports):
    port = ports.take(0, "--port")
    for _ in range(2):
        with listen(port), socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    # A JVM listens on IPv4 addresses by IPv6 sockets.
    with listen(port, socket.AF_INET6, "::ffff:127.0.0.1"), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass


def test_a_port_with_a_listener_is_refused_with_the_option(ports):
    with listen(0) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"^cannot listen on 127.0.0.1:{port}: .*; give another --rest_port"):
            ports.take(port, "--rest_port")
    assert ports.take(port, "--rest_port") == port


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(UserError, match=r"^cannot listen on 192\.0\.2\.1:80: "):
        Ports("192.0.2.1").take(80, "--port")


@pytest.mark.skipif(sys.platform != "linux", reason="ports are held on Linux only")
def test_closed_ports_are_anyones(ports):
    port = ports.take(0, "--port")
    plain = socket.socket()  # without SO_REUSEADDR, a held port is refused
    with pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    ports.close()
    plain.bind(("127.0.0.1", port))
    plain.close()

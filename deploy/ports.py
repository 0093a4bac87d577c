"""Ports of this machine, taken for servers before they start, so that nothing else takes them in between."""

import os
import socket
import sys

from schemas.process import UserError


class Ports:
    """Ports held for servers that listen on `host`, until `close`.

    A port is held by a socket that is bound to it and never listens. On Linux the kernel then gives the port to nobody who
    asks for any free one, and a server that names it, and sets SO_REUSEADDR as all of ours do, still gets it: as often as
    it is started again. Elsewhere the port is let go at once, and with bad luck another process is faster.
    """

    def __init__(self, host: str) -> None:
        self.host = host
        self._held: list[socket.socket] = []

    def take(self, port: int, option: str) -> int:
        """A port number: `port`, or a free one where that is 0.

        Args:
            port: 0 to 65535.
            option: that sets it, for the error.

        Raises:
            UserError: another process listens there, or the host is none of this machine's.
        """
        try:
            family, kind, _, _, address = socket.getaddrinfo(self.host, port, type=socket.SOCK_STREAM)[0]
            holder = socket.socket(family, kind)
            try:
                holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                holder.bind(address)  # refused where another listens, in spite of the option
            except OSError:
                holder.close()
                raise
        except OSError as error:
            reason = error.strerror or os.strerror(error.errno or 0)
            raise UserError(
                f"cannot listen on {self.host}:{port}: {reason}; give another {option} (0: any free one) or --host"
            ) from error
        number: int = holder.getsockname()[1]
        if sys.platform == "linux":
            self._held.append(holder)
        else:
            holder.close()
        return number

    def close(self) -> None:
        """Hold none of them any more."""
        while self._held:
            self._held.pop().close()

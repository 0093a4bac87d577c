"""TensorFlow is imported here without the notices it writes past every log setting."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Hold back what is written to file descriptor 2 in the block; all of it is shown if the block fails.

    TensorFlow's C++ side reports CPU features and missing GPU drivers there while it is imported and when it first looks
    for devices, which is done here too, before its own log level applies; later, each model it writes. For a process's
    start, while it has one thread.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow would import Keras, and with it Matplotlib: two seconds of every start, for what no command of ours uses.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    for name in ("tensorflow", "absl"):  # the session loader is called deprecated each time, a table's name unsupported
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
            if "tensorflow" in sys.modules:
                sys.modules["tensorflow"].config.list_physical_devices()
        except BaseException:
            held_back.seek(0)
            os.write(stderr, held_back.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)

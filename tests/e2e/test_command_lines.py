"""Every command's line: a wrong word is one line that names it, exit status 2, and nothing has been begun."""

import importlib
import subprocess
import sys

import pytest

from schemas.process import CommandParser, UserError

COMMANDS = [
    "pipelines.train",
    "pipelines.replay",
    "serving.server",
    "serving.rank",
    "serving.protoset",
    "bench.demo",
    "bench.join",
    "bench.kuairand",
    "bench.pipeline",
    "bench.rank",
    "bench.report",
    "bench.step",
    "deploy.down",
    "deploy.install",
    "deploy.up",
    "deploy.worker_pool",
]


@pytest.mark.parametrize("module", COMMANDS)
def test_a_wrong_word_is_named_before_what_is_missing(module):
    main = importlib.import_module(module).main
    remedy = f"; see python -m {module} --help"
    for word, message in (
        ("--no_such=1", "--no_such: no such option"),
        ("-q", "-q: no such option"),
        ("junk", "'junk' belongs to no option"),
    ):
        with pytest.raises(UserError) as refused:
            main([word])
        assert str(refused.value) == message + remedy


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--prt", "1"], r"^--prt: no such option \(did you mean --port\?\); see python -m it --help$"),
        (["--po", "1"], r"^--po: no such option \(did you mean --port\?\); see python -m it --help$"),
        (["--port", "x"], r"^argument --port: invalid int value: 'x'; see python -m it --help$"),
        (["--port"], r"^argument --port: expected one argument; see python -m it --help$"),
        ([], r"^the following arguments are required: --out; see python -m it --help$"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_nearest_option(argv, message):
    parser = CommandParser(prog="python -m it")
    parser.add_argument("--port", type=int)
    parser.add_argument("--out", required=True)
    with pytest.raises(UserError, match=message):
        parser.parse_args(argv)
    assert vars(parser.parse_args(["--out", "x"])) == {"port": None, "out": "x"}


def test_a_wrong_option_ends_the_process_with_one_line_and_status_2():
    done = subprocess.run([sys.executable, "-m", "serving.server", "--prt", "1"], capture_output=True, text=True, timeout=120)
    line = "error: --prt: no such option (did you mean --port?); see python -m serving.server --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)

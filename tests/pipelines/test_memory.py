"""The memory formula against what a real process takes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from model.keyed_rows import row_bytes
from model.table import EmbeddingTable
from pipelines import memory
from pipelines.batches import Kind
from pipelines.join import Join
from pipelines.memory import MIB, need
from pipelines.shard import ShardConfig
from schemas.config import load_config
from schemas.process import UserError

ROOT = Path(__file__).parents[2]
SIMULATOR = ROOT / "schemas" / "simulator.toml"
ROWS = 600_000


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """In a process of its own: memory that others have freed would count as nothing."""
    command = [sys.executable, str(ROOT / "tests/pipelines/memory_probe.py"), str(SIMULATOR), str(ROWS)]
    done = subprocess.run(
        [*command, str(tmp_path_factory.mktemp("probe"))],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_real_table_takes_what_the_formula_says(measured):
    told = need(load_config(SIMULATOR), measured["rows"], 0)
    # Above, at most what pages and the allocator round up; below, rows that have no mention in the journal any more.
    assert 0.8 * told.table < measured["table"] < 1.1 * told.table


def test_a_process_and_its_snapshots_stay_within_the_formula(measured):
    told = need(load_config(SIMULATOR), measured["rows"], 0)
    assert 0.6 * told.process < measured["process"] < told.process
    # One after the other here, and all at once in the formula.
    assert 0.3 * told.files < measured["files"] < told.files


def test_a_full_table_within_its_budget_is_within_the_formula():
    config, budget = load_config(SIMULATOR), 64 * MIB
    table = EmbeddingTable(config, table_bytes=budget)
    most = int(budget / row_bytes(config))
    assert table._arena.most <= most
    assert need(config, table._arena.most, 0).table <= budget * 1.01


def test_waiting_rows_are_those_of_the_joins_rings():
    """A real join and its rows, as full as a stream of this rate makes them."""
    config = load_config(SIMULATOR)
    for rate in (1, 50):
        rows = int(rate * Join(config).horizon / 1000)
        join = Join(config)
        shown = np.full(rows, Kind.FEATURES)
        keys, none, now = np.arange(1, rows + 1), np.full(rows, -1), np.zeros(rows, np.int64)
        join.apply(shown, keys, none, now, now, 0)
        store = memory.RowStore(config.width, 1, len(config.heads))
        assert memory.waiting_bytes(config, rate) == pytest.approx(join.nbytes + store.nbytes(rows), rel=0.01)


def test_more_of_anything_needs_more():
    config = load_config(SIMULATOR)
    least = need(config, 1000, 10)
    assert need(config, 2000, 10).total > least.total
    assert need(config, 1000, 10_000).waiting > least.waiting
    assert need(config, 1000, 10, ShardConfig(inputs_bytes=128 << 20)).beam - least.beam == 2 * (64 << 20)


def test_the_command_prints_parts_and_their_sum(capsys):
    assert memory.main(["--config", str(SIMULATOR), "--rows", "1000000"]) == 0
    sizes = [float(size.replace(",", "")) for size in re.findall(r"^ *([\d,]+) MiB", capsys.readouterr().out, re.MULTILINE)]
    assert len(sizes) == 8
    assert sum(sizes[:-1]) == pytest.approx(sizes[-1], abs=len(sizes))


def test_the_readme_shows_what_the_command_prints(capsys):
    text = (ROOT / "deploy" / "README.md").read_text()
    words = re.search(r"^\$ \S+ -m pipelines.memory (.*)$", text, re.MULTILINE)[1].split()
    words[1] = str(ROOT / words[1])
    assert memory.main(words) == 0

    def sizes(lines):
        found = re.findall(r"^ *([\d,]+) MiB  (\w+)", lines, re.MULTILINE)
        return {part: float(size.replace(",", "")) for size, part in found}

    printed = sizes(capsys.readouterr().out)
    assert len(printed) == 8
    assert sizes(text) == pytest.approx(printed, rel=0.05)


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--rows", "-1"], "--rows -1: give 0 or more"), (["--rows", "1", "--impressions_per_s", "nan"], "nan: give a rate")],
)
def test_what_makes_no_sense_is_one_line(words, said):
    with pytest.raises(UserError, match=said):
        memory.main(["--config", str(SIMULATOR), *words])

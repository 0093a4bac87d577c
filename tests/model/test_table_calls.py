"""Calls to an EmbeddingTable that come first, twice, or late in the life of versions."""

import subprocess
import sys

import numpy as np

from model.table import EmbeddingTable
from model.table_rows import TableRows
from tests.model.table_checks import CONFIG, SLOTS, USER, feature_id, put, table_of

# In a process of its own: here other tests may have compiled them.
_WARM_UP = """
from model import arena, cuckoo_kernels, journal, lookup, table
from tests.model.table_checks import table_of

table_of().warm_up()
kernels = [
    *(journal._last_mentions, journal._last_of_key, lookup.lookup_ids, lookup.find_ids, cuckoo_kernels.split_next),
    *(cuckoo_kernels.unstash, arena.keep_used, table.expire_rows, table.evict_rows),
]
print([kernel.__name__ for kernel in kernels if not kernel.signatures])
"""


def test_warm_up_compiles_what_is_called_under_the_lock():
    done = subprocess.run([sys.executable, "-c", _WARM_UP], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"


def test_an_id_that_is_given_twice_has_one_row():
    table = table_of()
    table.tick()
    rows = put(table, [feature_id(USER, 7), feature_id(USER, 8), feature_id(USER, 7)])
    assert rows[0] == rows[2] != rows[1] and len(table) == 2
    assert table.export(rows[:2]).counts.tolist() == [2, 1]
    table.load(table.export(rows[:0]), np.array([feature_id(USER, 7)]))
    assert (table.find(np.array([feature_id(USER, 7)])) <= len(SLOTS)).all()


def test_a_row_admitted_in_any_version_is_told():
    table = table_of()
    table.version = (1 << 32) - 1
    table.tick()
    put(table, [feature_id(USER, 7)])
    told = table.export(table.touched_since((1 << 32) - 1)).keys
    assert feature_id(USER, 7) in told


def test_shards_of_different_versions_united_are_at_the_latest():
    shards = []
    for ticks, first in ((10, 1), (100, 11)):
        shard = table_of()
        for _ in range(ticks):
            shard.tick()
        put(shard, [feature_id(USER, value) for value in range(first, first + 5)])
        shards.append(shard)
    rows = TableRows.union([shard.export(shard.touched_since(0)) for shard in shards])
    united = EmbeddingTable(CONFIG, capacity=1)
    united.restore(rows, shards[0].state(), shards[0].version, shard=(0, 1))
    assert united.version == 100
    versions = united.export(united.touched_since(0)).versions
    assert sorted(set(versions.tolist())) == [0, 10, 100]
    assert set(united.export(united.touched_since(10)).keys) == {feature_id(USER, value) for value in range(11, 16)}

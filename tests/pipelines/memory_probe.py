"""What a worker's parts take of a process's memory, each measured where it is at work: for test_memory.py.

python memory_probe.py CONFIG ROWS FOLDER    # prints JSON: resident bytes, by part
"""

import json
import sys
from pathlib import Path

import numpy as np

from model.export import export_state, write_version
from model.feature_ids import SLOT_SHIFT
from model.snapshot import merge, read_increment
from pipelines import train
from pipelines.learn import JoinAndLearn
from pipelines.learn_config import LearnConfig
from pipelines.state_files import StateFiles
from schemas.config import load_config

_AT_ONCE = 20_000


def resident(field="VmRSS"):
    """Bytes: VmRSS is now, VmHWM the most since the process began."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{field}:"))) * 1024


def fill(table, config, rows):
    """Rows for random ids of all slots."""
    rng = np.random.default_rng(0)
    slots = np.array([slot.slot for slot in config.slot_order], np.int64)
    while len(table) < rows:
        ids = (rng.choice(slots, _AT_ONCE) << SLOT_SHIFT) | rng.integers(1, 1 << 48, _AT_ONCE)
        unique = np.concatenate([[0], np.unique(ids)])
        table.tick()
        table.admit(unique, np.full(unique.size, 1000, np.int32), 10**12)


def main(config_file, rows, folder):
    assert train is not None  # a worker has all of the job's modules
    config = load_config(Path(config_file))
    step = JoinAndLearn(config, LearnConfig())
    process = resident()
    fill(step.trainer.table, config, rows)
    table = resident() - process
    files = StateFiles(folder, 0)
    first = files.write_segment("first-0", step.increment())
    second = files.write_segment("second-0", step.increment())
    state = merge([read_increment(files.directory, part) for part in (first, second)])
    files.write_segment("base-0", state)
    del state
    state = merge([read_increment(files.directory, first)])
    write_version(Path(folder) / "models", export_state(state, config), config)
    most = resident("VmHWM")
    print(json.dumps({"process": process, "table": table, "files": most - process - table, "rows": len(step.trainer.table)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

"""Feature configurations: read, checked, written, compared."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from schemas.config import (
    ConfigError,
    FeatureConfig,
    Head,
    ModelConfig,
    OptimizerConfig,
    Slot,
    check_compatible,
    load_config,
)

USER = Slot("user", 1, "user_id", "user", "id", "int")
VIDEO = Slot("video", 7, "video_id", "item", "id", "string", ttl_s=60)
TAGS = Slot("tags", 2, "tags", "item", "bag", "string", max_length=3, pooling="mean")
HOUR = Slot("hour", 9, "hour", "user", "bucket", "int", boundaries=(6.0, 12.0, 18.0))
CLICK = Head("click", "click", 60.0)
CONFIG = FeatureConfig("small", (USER, VIDEO, TAGS, HOUR), (CLICK,), ModelConfig(8, (4,)))

FILE = """
name = "small"

[model]
dim = 8
hidden = [4]

[[heads]]
name = "click"
action = "click"
window_s = 60

[[slots]]
slot = 1
name = "user"
source = "user_id"
side = "user"
kind = "id"
type = "int"

[[slots]]
slot = 7
name = "video"
source = "video_id"
side = "item"
kind = "id"
type = "string"
ttl_s = 60

[[slots]]
slot = 2
name = "tags"
side = "item"
kind = "bag"
type = "string"
max_length = 3
pooling = "mean"

[[slots]]
slot = 9
name = "hour"
side = "user"
kind = "bucket"
type = "int"
boundaries = [6, 12, 18]
"""


def read(folder: Path, text: str) -> FeatureConfig:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def test_a_file_is_read_and_its_defaults_are_those_of_the_classes(tmp_path: Path):
    assert read(tmp_path, FILE) == CONFIG


def test_the_columns_are_the_users_then_the_items():
    assert [slot.name for slot in CONFIG.slot_order] == ["user", "hour", "video", "tags"]
    assert (CONFIG.user_width, CONFIG.item_width, CONFIG.width) == (2, 4, 6)
    assert CONFIG.column_slot.tolist() == [0, 1, 2, 3, 3, 3]
    assert CONFIG.column_slot.dtype == np.int32
    assert CONFIG.num_slots == 4


@pytest.mark.parametrize("name", ["kuairand", "movielens", "simulator"])
def test_the_configurations_that_come_along(tmp_path: Path, name: str):
    config = load_config(Path(__file__).parents[2] / "schemas" / f"{name}.toml")
    assert config.name == name
    assert config.heads[0] == CLICK
    config.dump(tmp_path / "dumped.toml")
    again = load_config(tmp_path / "dumped.toml")
    assert again == config
    assert again.fingerprint == config.fingerprint


def test_awkward_names_and_numbers_survive_a_dump(tmp_path: Path):
    slot = dataclasses.replace(
        USER,
        name='quote " \\ newline \n é 😀 \x7f',
        optimizer=OptimizerConfig("adam", 1e-7, epsilon=3e-300),
        init_scale=1e22,
    )
    config = dataclasses.replace(CONFIG, slots=(slot, *CONFIG.slots[1:]))
    assert read(tmp_path, config.to_toml()) == config


def test_defaults_hold_for_every_slot_that_has_no_value_of_its_own(tmp_path: Path):
    defaults = "[defaults]\nttl_s = 5\noptimizer = { kind = 'adam', learning_rate = 1 }\n"
    config = read(tmp_path, FILE.replace("[model]", defaults + "[model]"))
    assert [slot.ttl_s for slot in config.slots] == [5, 60, 5, 5]
    assert {slot.optimizer for slot in config.slots} == {OptimizerConfig("adam", 1.0)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "bag"', 'kind = "list"', r"slot 'tags': kind = 'list' is unknown: use one of id, category"),
        ('kind = "bag"', 'knid = "bag"', r"slot 'tags': unknown key 'knid': did you mean 'kind'\?"),
        ("slot = 2\n", "", "slot 'tags': slot missing: add it"),
        ("slot = 2\n", "slot = 7\n", "slot number 7 is used twice: choose another"),
        ("slot = 2\n", "slot = 0\n", "slot 'tags': slot = 0 must be an integer from 1 to 32767"),
        ("slot = 2\n", "slot = 32768\n", "slot = 32768 must be an integer from 1 to 32767"),
        ("slot = 2\n", "slot = true\n", "slot = True must be an integer"),
        ('name = "tags"', 'name = "video"', "slot name 'video' is used twice"),
        ('name = "tags"', 'name = 5\nsource = "x"', "slot 2: name must be a string"),
        ("max_length = 3", "max_length = 0", "slot 'tags': max_length = 0 must be 1 or more"),
        ("ttl_s = 60", "max_length = 2", "slot 'video': max_length = 2 needs kind bag or text"),
        ("ttl_s = 60", "ttl_s = 0", "slot 'video': ttl_s = 0 must be 1 or more seconds: leave it out"),
        ("ttl_s = 60", "admission = 0", "slot 'video': admission = 0 must be 1 or more"),
        ("ttl_s = 60", "boundaries = [1]", "slot 'video': boundaries belong to kind bucket: remove them"),
        ("ttl_s = 60", "init_scale = -1", "slot 'video': init_scale = -1.0 must be a number of 0 or more"),
        ("ttl_s = 60", "init_scale = true", "slot 'video': init_scale = True must be a number"),
        ("ttl_s = 60", "optimizer = { kind = 'rmsprop' }", "slot 'video': optimizer: kind = 'rmsprop' is unknown"),
        ("ttl_s = 60", "optimizer = 3", "slot 'video': optimizer: must be a table"),
        ("ttl_s = 60", "optimizer = { beta1 = 1 }", r"slot 'video': optimizer: beta1 = 1.0 must lie in \[0, 1\)"),
        ("[6, 12, 18]", "[]", r"slot 'hour': kind bucket needs boundaries = \[...\]"),
        ("[6, 12, 18]", "6", "slot 'hour': kind bucket needs boundaries"),
        ("[6, 12, 18]", "[6, inf]", "slot 'hour': kind bucket needs boundaries"),
        ("[6, 12, 18]", "[16777216, 16777217]", "slot 'hour': boundaries must rise strictly, as float32"),
        ('type = "int"\nboundaries', 'type = "string"\nboundaries', "'string' does not suit kind 'bucket'"),
        ('name = "hour"', 'name = "hour"\nsource = "tags"', "source 'tags' is int .* and string .* by slot"),
        ("window_s = 60", "window_s = 0", "head 'click': window_s = 0.0 must be a number of seconds above 0"),
        ("window_s = 60", "", "head 'click': window_s missing: add it"),
        ("dim = 8", "dim = 0", "model: dim = 0 must be 1 or more"),
        ("hidden = [4]", "hidden = 4", "model: hidden = 4 must be a list of layer sizes"),
        ("hidden = [4]", "hidden = []", "model: hidden = .* must be a list of layer sizes"),
        ('name = "small"', "", "top level: name missing: add it"),
        ('name = "small"', 'name = ""', "name must be a string"),
        ("[model]", "[modle]", "top level: unknown key 'modle': did you mean 'model'?"),
        ('side = "user"', 'side = "item"', "no slot of side 'user': add one"),
        ("dim = 8", "dim = ", "not TOML"),
    ],
)
def test_what_cannot_be_used_is_refused_with_file_slot_and_remedy(tmp_path: Path, old: str, new: str, message: str):
    assert old in FILE
    with pytest.raises(ConfigError, match=message) as error:
        read(tmp_path, FILE.replace(old, new))
    assert str(error.value).startswith(f"{tmp_path / 'config.toml'}: ")
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no.toml: no such feature configuration: give the path"):
        load_config(tmp_path / "no.toml")
    with pytest.raises(ConfigError, match="is a folder: give the path of a TOML file"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "latin.toml")
    with pytest.raises(ConfigError, match=r"latin.toml/x: cannot be read \(Not a directory\): give the path"):
        load_config(tmp_path / "latin.toml" / "x")
    with pytest.raises(ConfigError, match=r"cannot be read \(File name too long\): give the path"):
        load_config(tmp_path / ("x" * 300))
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with pytest.raises(ConfigError, match=r"loop.toml: cannot be read \(Too many levels of symbolic links\): give"):
        load_config(tmp_path / "loop.toml")


def test_the_fingerprint_is_that_of_what_ids_and_rows_mean():
    assert 0 <= CONFIG.fingerprint < 2**63
    assert CONFIG.fingerprint == 4766432171344376724, "logs and snapshots of earlier versions carry it"

    def changed(**changes: object) -> int:
        return dataclasses.replace(CONFIG, **changes).fingerprint  # type: ignore[arg-type]

    assert changed(name="other", model=ModelConfig(8, (99,), 0.5, 3)) == CONFIG.fingerprint
    assert changed(heads=(Head("click", "click", 60),)) == CONFIG.fingerprint, "60 is 60.0"
    others = {
        changed(model=ModelConfig(16, (4,))),
        changed(heads=(CLICK, Head("like", "like", 60.0))),
        changed(slots=(USER, VIDEO, TAGS)),
        changed(slots=(USER, TAGS, VIDEO, HOUR)),
        changed(slots=(USER, dataclasses.replace(VIDEO, ttl_s=61), TAGS, HOUR)),
        CONFIG.fingerprint,
    }
    assert len(others) == 6


def test_records_of_a_configuration_with_fewer_slots_are_readable():
    shorter = dataclasses.replace(CONFIG, slots=CONFIG.slots[:2])
    reordered = dataclasses.replace(CONFIG, slots=(VIDEO, USER))
    assert shorter.fingerprint in CONFIG.readable_fingerprints
    assert CONFIG.fingerprint in CONFIG.readable_fingerprints
    assert reordered.fingerprint not in CONFIG.readable_fingerprints
    assert CONFIG.fingerprint not in shorter.readable_fingerprints


def test_slots_may_be_appended_and_nothing_else():
    shorter = dataclasses.replace(CONFIG, slots=CONFIG.slots[:3])
    check_compatible(CONFIG, CONFIG)
    check_compatible(shorter, CONFIG)
    check_compatible(CONFIG, dataclasses.replace(CONFIG, name="another label"))
    with pytest.raises(ConfigError, match="slot 'hour' is gone.*start anew"):
        check_compatible(CONFIG, shorter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": (USER, TAGS, VIDEO, HOUR)}, "slot 'video', number 2 of the list, is now 'tags'"),
        ({"slots": (USER, VIDEO, TAGS, dataclasses.replace(HOUR, ttl_s=9))}, "slot 'hour': ttl_s was None, is 9"),
        ({"heads": (CLICK, Head("like", "like", 1.0))}, "heads were click, are click, like"),
        ({"heads": (Head("click", "click", 90.0),)}, "head 'click': window_s was 60.0, is 90.0"),
        ({"model": ModelConfig(16, (4,))}, "model: dim was 8, is 16"),
    ],
)
def test_every_difference_is_named(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        check_compatible(CONFIG, dataclasses.replace(CONFIG, **changes))  # type: ignore[arg-type]


def test_buckets_are_float32_and_those_of_counts_are_powers_of_the_root_of_two():
    assert HOUR.buckets.dtype == np.float32
    count = Slot("n", 3, "n", "item", "log_count", "int").buckets
    assert count[:5] == pytest.approx([0, 2**0.5 - 1, 1, 2**1.5 - 1, 3])
    assert count[-1] == 2.0**63
    assert np.all(np.diff(count) > 0)

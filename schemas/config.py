"""The feature configuration: which slots a model reads, which heads it learns, and its size.

One TOML file configures the featuriser, the table, the model and the serving graph; what is derived from
it (column layout, fingerprint) is derived here, once, so that they cannot disagree.
"""

import dataclasses
import difflib
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from schemas.slots import (
    ConfigError,
    Head,
    Kind,
    ModelConfig,
    OptimizerConfig,
    Side,
    Slot,
    Type,
    need,
    need_unique,
)

__all__ = [
    "ConfigError",
    "FeatureConfig",
    "Head",
    "Kind",
    "ModelConfig",
    "OptimizerConfig",
    "Side",
    "Slot",
    "Type",
    "check_compatible",
    "load_config",
]

_T = TypeVar("_T")

#: Fields that slots and optimizers had not at first, and the values that say what was so then.
_LATER = {"admission_mode": "count", "min_rows": 0, "init": "normal"}
_LATER_OPTIMIZER = {"l1": 0.0, "l2": 0.0}


@dataclass(frozen=True)
class FeatureConfig:
    """The slots, heads and size of one model.

    Feature ids lie in int64[N, width]: the slots of `slot_order` (user side first, each side in the order of
    the file), each `max_length` columns wide, padded with 0.
    """

    name: str
    slots: tuple[Slot, ...]
    heads: tuple[Head, ...]
    model: ModelConfig = field(default_factory=ModelConfig)

    def __post_init__(self) -> None:
        need(isinstance(self.name, str) and self.name != "", "name must be a string")
        need(len(self.heads) > 0, "no heads: add a [[heads]] table with name, action and window_s")
        need_unique("head", "name", (head.name for head in self.heads))
        need_unique("slot", "name", (slot.name for slot in self.slots))
        need_unique("slot", "number", (slot.slot for slot in self.slots))
        for side in get_args(Side):
            need(any(slot.side == side for slot in self.slots), f"no slot of side {side!r}: add one")
        first_of_source: dict[str, Slot] = {}
        for slot in self.slots:
            first = first_of_source.setdefault(slot.source, slot)
            need(
                (slot.type, slot.kind == "bag") == (first.type, first.kind == "bag"),
                f"slot {slot.name!r}: source {slot.source!r} is {slot.type} ({slot.kind}) here and "
                f"{first.type} ({first.kind}) by slot {first.name!r}: a source has one type",
            )

    @cached_property
    def user_slots(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.side == "user")

    @cached_property
    def item_slots(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.side == "item")

    @cached_property
    def slot_order(self) -> tuple[Slot, ...]:
        return self.user_slots + self.item_slots

    @property
    def num_slots(self) -> int:
        return len(self.slots)

    @cached_property
    def user_width(self) -> int:
        """Wu, the id columns of the user side."""
        return sum(slot.max_length for slot in self.user_slots)

    @cached_property
    def item_width(self) -> int:
        """Wi, the id columns of the item side."""
        return sum(slot.max_length for slot in self.item_slots)

    @property
    def width(self) -> int:
        """W = Wu + Wi."""
        return self.user_width + self.item_width

    @cached_property
    def column_slot(self) -> NDArray[np.int32]:
        """int32[W]: the index into `slot_order` of each id column."""
        lengths = [slot.max_length for slot in self.slot_order]
        return np.repeat(np.arange(self.num_slots, dtype=np.int32), lengths)

    def slots_of(self, side: Side | None) -> tuple[Slot, ...]:
        """The slots of one side in column order, of both for None."""
        return {"user": self.user_slots, "item": self.item_slots, None: self.slot_order}[side]

    @cached_property
    def fingerprint(self) -> int:
        """63-bit hash of slots, heads and dim: what makes feature ids and rows comparable."""
        return self._fingerprint(len(self.slots))

    @cached_property
    def readable_fingerprints(self) -> frozenset[int]:
        """Fingerprints of this configuration and of those it may have grown from by appending slots."""
        return frozenset(self._fingerprint(count) for count in range(2, len(self.slots) + 1))

    def grown_from(self, fingerprint: int) -> "FeatureConfig | None":
        """The configuration with that fingerprint that this one is, or has grown from by appending slots; None if none is."""
        for count in range(len(self.slots), 1, -1):
            if self._fingerprint(count) == fingerprint:
                return dataclasses.replace(self, slots=self.slots[:count])
        return None

    def _fingerprint(self, slot_count: int) -> int:
        described = {
            "slots": [_described(slot) for slot in self.slots[:slot_count]],
            "heads": [dataclasses.asdict(head) for head in self.heads],
            "dim": self.model.dim,
        }
        canonical = json.dumps(_plain(described), sort_keys=True, separators=(",", ":"))
        return int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8], "little") >> 1

    def to_toml(self) -> str:
        """The configuration as TOML that `load_config` reads back as an equal one."""
        lines = [f"name = {_toml(self.name)}", "", "[model]"]
        lines += [f"{key} = {_toml(value)}" for key, value in dataclasses.asdict(self.model).items()]
        for title, parts in (("heads", self.heads), ("slots", self.slots)):
            for part in parts:
                lines += ["", f"[[{title}]]"]
                items = dataclasses.asdict(part).items()
                lines += [f"{key} = {_toml(value)}" for key, value in items if value is not None]
        return "\n".join(lines) + "\n"

    def dump(self, path: str | Path) -> None:
        """Write `to_toml()` to `path`."""
        Path(path).write_text(self.to_toml(), encoding="utf-8")


def _described(slot: Slot) -> dict[str, Any]:
    """A slot's fields, but for those that came later and say what was so before: logs and snapshots from then stay readable."""
    fields = dataclasses.asdict(slot)
    for of, later in ((fields, _LATER), (fields["optimizer"], _LATER_OPTIMIZER)):
        for name, before in later.items():
            if of[name] == before:
                del of[name]
    return fields


def _plain(value: Any) -> Any:
    # 60 and 60.0 in a file mean the same, so they must hash the same.
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, int) else value


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        # TOML's basic strings escape as JSON's do, but for DEL, which only TOML escapes.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def load_config(path: str | Path) -> FeatureConfig:
    """Read a feature configuration from a TOML file.

    The file holds `name`, `[model]`, `[[heads]]`, `[[slots]]` (or `slots = [{...}, ...]`), and may hold
    `[defaults]`: fields that every slot takes unless it gives its own. A slot's `source` is its name unless
    given; a slot's `optimizer` replaces that of the defaults whole.

    Raises:
        ConfigError: the file is missing or cannot be read, is not TOML, or a value in it cannot be used; names the
            file, the slot and the remedy.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        return _from_table(table)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such feature configuration: give the path of a TOML file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder: give the path of a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): give the path of a TOML file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 ({error.reason}): save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _from_table(table: Mapping[str, Any]) -> FeatureConfig:
    _check_keys("top level", table, {"name", "model", "heads", "slots", "defaults"}, {"name", "heads", "slots"})
    defaults = _table("defaults", table.get("defaults", {}))
    slots = tuple(_slot(row, defaults) for row in _tables("slots", table["slots"]))
    heads = tuple(_build(Head, f"head {row.get('name')!r}", row) for row in _tables("heads", table["heads"]))
    model = _build(ModelConfig, "model", _table("model", table.get("model", {})))
    return FeatureConfig(table["name"], slots, heads, model)


def _slot(row: Mapping[str, Any], defaults: Mapping[str, Any]) -> Slot:
    where = f"slot {row.get('name', row.get('slot'))!r}"
    fields = {"source": row.get("name"), **defaults, **row}
    if "optimizer" in fields:
        try:
            table = _table("optimizer", fields["optimizer"])
            fields["optimizer"] = _build(OptimizerConfig, "optimizer", table)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return _build(Slot, where, fields)


def _build(cls: type[_T], where: str, table: Mapping[str, Any]) -> _T:
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    required = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    _check_keys(where, table, {f.name for f in fields}, required)
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if hints[key] is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        values[key] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _check_keys(where: str, table: Mapping[str, Any], known: set[str], required: set[str]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"{where}: unknown key {key!r}: {remedy}")
    missing = sorted(required - table.keys())
    need(not missing, f"{where}: {', '.join(missing)} missing: add it")


def _table(where: str, value: Any) -> Mapping[str, Any]:
    need(isinstance(value, Mapping), f"{where}: must be a table")
    return value


def _tables(where: str, value: Any) -> list[Mapping[str, Any]]:
    need(isinstance(value, list), f"{where}: must be a list of tables: write [[{where}]]")
    return [_table(where, row) for row in value]


def check_compatible(old: FeatureConfig, new: FeatureConfig) -> None:
    """Check that state and logs made with `old` can be used with `new`.

    Slots may be appended at the end of the list; old records read them as absent. `name` is a label.

    Raises:
        ConfigError: anything else differs; the message names every difference and the remedy.
    """
    differences = _differences("model", old.model, new.model)
    for index, slot in enumerate(old.slots):
        if index >= len(new.slots):
            differences.append(f"slot {slot.name!r} is gone")
        elif new.slots[index].name != slot.name:
            differences.append(f"slot {slot.name!r}, number {index + 1} of the list, is now {new.slots[index].name!r}")
        else:
            differences += _differences(f"slot {slot.name!r}", slot, new.slots[index])
    old_heads, new_heads = [head.name for head in old.heads], [head.name for head in new.heads]
    if old_heads != new_heads:
        differences.append(f"heads were {', '.join(old_heads)}, are {', '.join(new_heads)}")
    else:
        for head, now in zip(old.heads, new.heads, strict=True):
            differences += _differences(f"head {head.name!r}", head, now)
    if differences:
        raise ConfigError(
            f"feature configuration {new.name!r} does not fit what was made: {'; '.join(differences)}: "
            "only slots appended at the end are compatible; restore the old values or start anew"
        )


def _differences(where: str, old: Any, new: Any) -> list[str]:
    before, now = dataclasses.asdict(old), dataclasses.asdict(new)
    return [f"{where}: {key} was {before[key]!r}, is {now[key]!r}" for key in before if before[key] != now[key]]

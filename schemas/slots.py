"""The parts of a feature configuration (slots, heads, optimizers, model size), each checked when made."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from schemas.process import UserError

Side = Literal["user", "item"]
Kind = Literal["id", "category", "bucket", "log_count", "bag", "text"]
Type = Literal["int", "string", "float"]
Pooling = Literal["sum", "mean"]
OptimizerKind = Literal["sgd", "adagrad", "adam", "ftrl"]
AdmissionMode = Literal["count", "probability"]
Init = Literal["normal", "uniform", "zeros"]

MAX_SLOT = 2**15 - 1
TYPES_OF_KIND: dict[str, tuple[str, ...]] = {
    "id": ("int", "string"),
    "category": ("int", "string"),
    "bucket": ("float", "int"),
    "log_count": ("int", "float"),
    "bag": ("int", "string"),
    "text": ("string",),
}
# Counts up to 2^63 in steps of a factor of sqrt(2); the first bucket is that of negative numbers.
LOG_COUNT_BOUNDARIES = (np.exp2(np.arange(127) / 2) - 1).astype(np.float32)


class ConfigError(UserError, ValueError):
    """A feature configuration, or a value given for one of its sources, that cannot be used."""


def need(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def need_unique(thing: str, what: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        need(value not in seen, f"{thing} {what} {value!r} is used twice: choose another")
        seen.add(value)


def _need_choice(where: str, name: str, value: object, literal: Any) -> None:
    choices = get_args(literal)
    need(value in choices, f"{where}: {name} = {value!r} is unknown: use one of {', '.join(choices)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclass(frozen=True)
class OptimizerConfig:
    """How the rows of a slot are updated.

    `sgd`, `adagrad` (Duchi et al. 2011), lazy `adam` (Kingma & Ba 2015) or `ftrl` (McMahan et al. 2013). Adagrad and FTRL
    read `initial_accumulator`, Adam the betas, FTRL `l1` and `l2`, Adagrad and Adam `epsilon`.
    """

    kind: OptimizerKind = "adagrad"
    learning_rate: float = 0.05
    initial_accumulator: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        _need_choice("optimizer", "kind", self.kind, OptimizerKind)
        for name in ("learning_rate", "initial_accumulator", "epsilon"):
            value = getattr(self, name)
            need(_is_number(value) and value > 0, f"optimizer: {name} = {value!r} must be a number above 0")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            need(_is_number(value) and 0 <= value < 1, f"optimizer: {name} = {value!r} must lie in [0, 1)")
        for name in ("l1", "l2"):
            value = getattr(self, name)
            need(_is_number(value) and value >= 0, f"optimizer: {name} = {value!r} must be a number of 0 or more")


@dataclass(frozen=True)
class Slot:
    """One feature: a source field, how its values become feature ids, and how their rows are kept.

    `source` names the raw field and `type` fixes what it holds. `max_length` is the number of id columns
    (more than 1 only for `bag` and `text`), `pooling` how a bag's rows become one.

    `admission` is the number of occurrences after which an id gets a row of its own: exactly, as far as a sketch counts
    (`admission_mode` "count"), or each with a probability by which 95 % have one by then ("probability": nothing is kept
    of those that have none). `ttl_s` is the seconds after which an unseen id loses its row (None: never), unless its slot
    has only `min_rows` of them. A new row's embedding is drawn as `init` says, `init_scale` being its standard deviation
    ("normal") or its bound ("uniform").
    """

    name: str
    slot: int
    source: str
    side: Side
    kind: Kind
    type: Type
    boundaries: tuple[float, ...] = ()
    max_length: int = 1
    pooling: Pooling = "sum"
    admission: int = 1
    admission_mode: AdmissionMode = "count"
    ttl_s: int | None = None
    min_rows: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    init: Init = "normal"
    init_scale: float = 0.01

    def __post_init__(self) -> None:
        where = f"slot {self.name!r}"
        need(isinstance(self.name, str) and self.name != "", f"slot {self.slot!r}: name must be a string")
        need(
            _is_int(self.slot, 1) and self.slot <= MAX_SLOT,
            f"{where}: slot = {self.slot!r} must be an integer from 1 to {MAX_SLOT}",
        )
        need(isinstance(self.source, str) and self.source != "", f"{where}: source must be a field's name")
        _need_choice(where, "side", self.side, Side)
        _need_choice(where, "kind", self.kind, Kind)
        _need_choice(where, "pooling", self.pooling, Pooling)
        types = TYPES_OF_KIND[self.kind]
        need(
            self.type in types,
            f"{where}: type = {self.type!r} does not suit kind {self.kind!r}: use {' or '.join(types)}",
        )
        self._check_boundaries(where)
        need(_is_int(self.max_length, 1), f"{where}: max_length = {self.max_length!r} must be 1 or more")
        need(
            self.max_length == 1 or self.is_bag,
            f"{where}: max_length = {self.max_length} needs kind bag or text: a {self.kind} has one value",
        )
        need(_is_int(self.admission, 1), f"{where}: admission = {self.admission!r} must be 1 or more")
        _need_choice(where, "admission_mode", self.admission_mode, AdmissionMode)
        _need_choice(where, "init", self.init, Init)
        need(_is_int(self.min_rows, 0), f"{where}: min_rows = {self.min_rows!r} must be 0 or more")
        need(
            self.ttl_s is None or _is_int(self.ttl_s, 1),
            f"{where}: ttl_s = {self.ttl_s!r} must be 1 or more seconds: leave it out to keep rows for ever",
        )
        need(
            _is_number(self.init_scale) and self.init_scale >= 0,
            f"{where}: init_scale = {self.init_scale!r} must be a number of 0 or more",
        )

    def _check_boundaries(self, where: str) -> None:
        if self.kind != "bucket":
            need(not self.boundaries, f"{where}: boundaries belong to kind bucket: remove them")
            return
        need(
            isinstance(self.boundaries, tuple) and self.boundaries != () and all(_is_number(b) for b in self.boundaries),
            f"{where}: kind bucket needs boundaries = [...], finite numbers",
        )
        # Compared as float32, as TF's Bucketize does: neighbours that float32 cannot tell apart are an error.
        need(
            bool(np.all(np.diff(np.asarray(self.boundaries, np.float32)) > 0)),
            f"{where}: boundaries must rise strictly, as float32: sort them and remove doubles",
        )

    @property
    def is_bag(self) -> bool:
        """Whether a row may hold several ids of this slot."""
        return self.kind in ("bag", "text")

    @property
    def buckets(self) -> NDArray[np.float32]:
        """Boundaries float32[B] of a `bucket` or `log_count` slot: bucket i is [b[i-1], b[i])."""
        return LOG_COUNT_BOUNDARIES if self.kind == "log_count" else np.asarray(self.boundaries, np.float32)


@dataclass(frozen=True)
class Head:
    """One prediction: whether `action` follows an impression within `window_s` seconds."""

    name: str
    action: str
    window_s: float

    def __post_init__(self) -> None:
        where = f"head {self.name!r}"
        need(isinstance(self.name, str) and self.name != "", "head: name must be a string")
        need(isinstance(self.action, str) and self.action != "", f"{where}: action must be a string")
        need(
            _is_number(self.window_s) and self.window_s > 0,
            f"{where}: window_s = {self.window_s!r} must be a number of seconds above 0",
        )


@dataclass(frozen=True)
class ModelConfig:
    """Size of the model: embedding dimension, hidden layers of the MLP, and how its dense part learns."""

    dim: int = 16
    hidden: tuple[int, ...] = (128, 64)
    dense_learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        need(_is_int(self.dim, 1), f"model: dim = {self.dim!r} must be 1 or more")
        need(
            isinstance(self.hidden, tuple) and self.hidden != () and all(_is_int(n, 1) for n in self.hidden),
            f"model: hidden = {self.hidden!r} must be a list of layer sizes, 1 or more each",
        )
        need(
            _is_number(self.dense_learning_rate) and self.dense_learning_rate > 0,
            f"model: dense_learning_rate = {self.dense_learning_rate!r} must be a number above 0",
        )
        need(_is_int(self.seed, 0), f"model: seed = {self.seed!r} must be 0 or more")

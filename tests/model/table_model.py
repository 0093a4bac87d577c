"""What an embedding table is to do, in plain NumPy: no index, no arena, no journal, no threads.

The ids there can be are known at first, so that each has an entry of its own in arrays, and any number of them is dealt with
at once. Arithmetic is float32 in the table's order: SGD and Adagrad come out bit for bit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.admission import AdmissionSketch
from model.feature_ids import SLOT_SHIFT, default_key, mix63
from model.table import EmbeddingTable
from schemas.config import FeatureConfig, Slot

PADDING = -1
_NEVER_S = 2**62
_GOLDEN = 0x9E3779B97F4A7C15
_LOW63 = 2**63 - 1


class TableModel:
    """Entries of a table: the slots' default rows first, then the ids of each slot, values 1 to V.

    Args:
        config: of the table.
        values: V, ids of each slot there can be.
        seed: of the table.
        sketch: counts occurrences as the table's does, where so many ids come that it does not count exactly; None: exactly.

    Attributes:
        keys int64[E], alive bool[E] (whether a row is there), values float32[E, 1 + dim], state float32[E, 2 (1 + dim)],
        steps, counts, seen_s int64[E]; expired, refused: counted so far.
    """

    def __init__(self, config: FeatureConfig, values: int, seed: int = 0, sketch: AdmissionSketch | None = None) -> None:
        self.slots: tuple[Slot, ...] = tuple(config.slot_order)
        self.width = 1 + config.model.dim
        self._values, self._sketch, self._seed = values, sketch, int(mix63(np.array([seed]))[0])
        numbers = np.array([slot.slot for slot in self.slots], np.int64)
        ids = (numbers[:, None] << SLOT_SHIFT) | np.arange(1, values + 1)
        self.keys = np.concatenate([[default_key(slot.slot) for slot in self.slots], ids.reshape(-1)]).astype(np.int64)
        self.slot = np.concatenate([np.arange(len(numbers)), np.repeat(np.arange(len(numbers)), values)])
        self._of_number = {int(number): s for s, number in enumerate(numbers)}
        entries = self.keys.size
        self.alive = self.keys < 0
        self.values, self.state = np.zeros((entries, self.width), np.float32), np.zeros((entries, 2 * self.width), np.float32)
        self.steps, self.counts, self.seen_s = (np.zeros(entries, np.int64) for _ in range(3))
        self._occurred = np.zeros(entries, np.int64)
        self._ttl_s = np.array([_NEVER_S if slot.ttl_s is None else slot.ttl_s for slot in self.slots])
        self.min_rows = np.array([slot.min_rows for slot in self.slots])
        self.clock_ms, self.expired, self.refused = -1, 0, 0
        self._start(np.arange(len(self.slots)))

    # Ids

    @property
    def ids(self) -> NDArray[np.int64]:
        """All ids there can be."""
        return self.keys[len(self.slots) :]

    @property
    def now_s(self) -> int:
        """The clock in whole seconds."""
        return max(0, self.clock_ms // 1000)

    def entry(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """An id's own entry; PADDING of id 0."""
        of_number = np.zeros(max(self._of_number) + 1, np.int64)
        of_number[list(self._of_number)] = list(self._of_number.values())
        own = len(self.slots) + of_number[ids >> SLOT_SHIFT] * self._values + (ids & ((1 << SLOT_SHIFT) - 1)) - 1
        return np.where(ids == 0, PADDING, own)

    def slot_rows(self) -> NDArray[np.int64]:
        """Ids of each slot that have a row."""
        return np.bincount(self.slot[self.alive & (self.keys > 0)], minlength=len(self.slots))

    def past(self, entries: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether their time to live has passed, in whole seconds, whatever their slot keeps at least."""
        return self.alive[entries] & (self.now_s - self.seen_s[entries] > self._ttl_s[self.slot[entries]])

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The entry that each id reads: its own, its slot's default, or PADDING."""
        own = self.entry(ids)
        slot = self.slot[own]
        spared = self.slot_rows()[slot] <= self.min_rows[slot]
        found = np.where(self.alive[own] & (spared | ~self.past(own)), own, slot)
        return np.where(ids == 0, PADDING, found)

    # What a batch does

    def admit(
        self,
        unique: NDArray[np.int64],
        occurrences: NDArray[np.int32],
        time_ms: int,
        version: int,
        there: NDArray[np.int64] | None = None,
    ) -> NDArray[np.int64]:
        """`EmbeddingTable.admit` at a version of the table; the entry that each id then reads.

        `there`: keys int64[R] that have a row then, where memory is short: others that pass were refused.
        """
        self.clock_ms = max(self.clock_ms, time_ms)
        own, slot = self.entry(unique), self.slot[self.entry(unique)]
        times = occurrences.astype(np.int64)
        rows = self.slot_rows()
        past = (own >= 0) & self.past(own) & (rows[slot] > self.min_rows[slot])
        goes = past.copy()
        for s in np.unique(slot[past]).tolist():
            if rows[s] - np.count_nonzero(past & (slot == s)) < self.min_rows[s]:
                self._spare(s, np.flatnonzero((own >= 0) & (slot == s)), unique, own, times, version, past, goes)
        self._let_go(own[goes])
        missing = np.flatnonzero((own >= 0) & ~self.alive[own] & (times > 0))
        seen = own[(own >= 0) & self.alive[own]]
        self.counts[seen] += times[(own >= 0) & self.alive[own]]
        self.seen_s[seen] = np.maximum(self.seen_s[seen], self.now_s)
        counts = self._passing(unique[missing], own[missing], times[missing], version)
        passes = counts > 0
        if there is not None:
            refused = passes & ~np.isin(self.keys[own[missing]], there)
            self.refused += int(np.count_nonzero(refused))
            passes &= ~refused
        new = own[missing[passes]]
        self._start(new)
        self.alive[new], self.counts[new], self.seen_s[new] = True, counts[passes], self.now_s
        return np.where(own == PADDING, PADDING, np.where(self.alive[own], own, slot))

    def _spare(self, s, members, unique, own, times, version, past, goes):
        """Of a slot near the least it keeps: one id after the other, as they come; `goes` bool[U] is changed."""
        rows = int(self.slot_rows()[s])
        for i in members.tolist():
            comes = past[i] or not self.alive[own[i]]
            if past[i]:
                goes[i] = rows > self.min_rows[s]
                rows -= int(goes[i])
                comes = bool(goes[i])
            if comes and times[i] > 0:
                rows += int(self._would_pass(unique[i : i + 1], own[i : i + 1], times[i : i + 1], version)[0] > 0)

    def _would_pass(self, ids, own, times, version):
        """`_passing` of ids whose occurrences are not counted yet, and are not now."""
        before = self._occurred[own].copy()
        if self._sketch is not None and self.slots[self.slot[own[0]]].admission_mode == "count":
            raise NotImplementedError("a slot counted by a sketch cannot keep a least number of rows here")
        counts = self._passing(ids, own, times, version)
        self._occurred[own] = before
        return counts

    def _passing(
        self, ids: NDArray[np.int64], own: NDArray[np.int64], times: NDArray[np.int64], version: int
    ) -> NDArray[np.int64]:
        """The count that each id without a row comes in with, 0 where it does not pass."""
        counts = times.copy()
        slot = self.slot[own]
        counted = np.array([s.admission > 1 and s.admission_mode == "count" for s in self.slots])[slot]
        self._occurred[own[counted]] += times[counted]
        sums = self._occurred[own[counted]]
        if self._sketch is not None:
            sums = self._sketch.count(ids[counted], times[counted].astype(np.int32))
        thresholds = np.array([s.admission for s in self.slots])[slot[counted]]
        counts[counted] = np.where(sums >= thresholds, sums, 0)
        drawn = np.array([s.admission_mode == "probability" for s in self.slots])[slot]
        missed = np.array([0.05 ** (1 / s.admission) for s in self.slots])[slot[drawn]]
        seed = np.uint64((self._seed + version * _GOLDEN) & _LOW63)
        draws = _unit(_mixed(mix63(ids[drawn]).view(np.uint64) ^ seed))
        counts[drawn] = np.where(draws >= _power(missed, times[drawn]), times[drawn], 0)
        return counts

    def _start(self, entries: NDArray[np.int64]) -> None:
        """Values and optimizer state of new rows; default rows start at zeros."""
        self.values[entries] = self.state[entries] = 0.0
        self.steps[entries] = self.counts[entries] = self.seen_s[entries] = 0
        x = mix63(np.abs(self.keys[entries]) ^ np.int64(self._seed)).view(np.uint64)
        steps = np.arange(1, self.width, dtype=np.uint64) * np.uint64(_GOLDEN)
        bits = _mixed(x[:, None] + steps)
        for s, slot in enumerate(self.slots):
            of_slot = self.slot[entries] == s
            if slot.optimizer.kind in ("adagrad", "ftrl"):
                self.state[entries[of_slot], : self.width] = slot.optimizer.initial_accumulator
            scale = float(np.float32(slot.init_scale))
            drawn = of_slot & (self.keys[entries] > 0)
            if slot.init == "uniform":
                self.values[entries[drawn], 1:] = (2.0 * _unit(bits[drawn]) - 1.0) * scale
            elif slot.init == "normal":
                self.values[entries[drawn], 1:] = _normal(bits[drawn]) * scale

    def pool(self, entries: NDArray[np.int64], columns: NDArray[np.int64], mean: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Weights and embeddings float64[N, S, 1 + dim] of entries int64[N, W], PADDING adds nothing.

        Args:
            columns: int64[W], the slot of each column; mean: bool[S], which slots average over what is no padding.
        """
        of_slot = columns == np.arange(mean.size)[:, None]
        values = np.where((entries == PADDING)[..., None], 0.0, self.values[entries].astype(np.float64))
        sums = np.einsum("nwd,sw->nsd", values, of_slot.astype(np.float64))
        present = np.einsum("nw,sw->ns", entries != PADDING, of_slot.astype(np.int64))
        return sums / np.where(mean, np.maximum(1, present), 1)[..., None]

    def update(self, entries: NDArray[np.int64], grads: NDArray[np.float32]) -> int:
        """`EmbeddingTable.update` of the rows of entries; gradients left out."""
        usable = (np.abs(grads) < np.float32(2.0**60)).all(1)  # a NaN compares false
        left_out = int(np.count_nonzero(~usable & (entries >= 0)))
        kept = usable & (entries >= 0)
        sums = np.zeros((len(self.slots), self.width), np.float32)
        to_default = kept & (entries < len(self.slots))
        np.add.at(sums, entries[to_default], grads[to_default])  # one after the other, in float32
        given = np.unique(entries[to_default])
        fits = (np.abs(sums[given]) < np.float32(2.0**60)).all(1)
        own = kept & (entries >= len(self.slots))
        all_entries, all_grads = np.append(entries[own], given[fits]), np.concatenate([grads[own], sums[given[fits]]])
        for s, slot in enumerate(self.slots):
            of_slot = self.slot[all_entries] == s
            self._learn(slot, all_entries[of_slot], all_grads[of_slot])
        return left_out + int(np.count_nonzero(~fits))

    def _learn(self, slot: Slot, at: NDArray[np.int64], g: NDArray[np.float32]) -> None:
        o, f, n = slot.optimizer, np.float32, self.width
        rate, epsilon, l1, l2 = f(o.learning_rate), f(o.epsilon), f(o.l1), f(o.l2)
        w, a, b = self.values[at], self.state[at, :n], self.state[at, n:]
        if o.kind == "sgd":
            self.values[at] = w - rate * g
        elif o.kind == "adagrad":
            self.state[at, :n] = a = a + g * g
            self.values[at] = w - rate * g / np.sqrt(a + epsilon)
        elif o.kind == "adam":
            self.steps[at] += 1
            t = self.steps[at].astype(np.float64)[:, None]
            power1, power2 = np.float64(f(o.beta1)) ** t, np.float64(f(o.beta2)) ** t
            step = (o.learning_rate * np.sqrt(1.0 - power2) / (1.0 - power1)).astype(np.float32)
            self.state[at, :n] = m = a + (g - a) * f(1.0 - o.beta1)
            self.state[at, n:] = u = b + (g * g - b) * f(1.0 - o.beta2)
            self.values[at] = w - step * m / (np.sqrt(u) + epsilon)
        else:
            after = a + g * g
            z = b + g - (np.sqrt(after) - np.sqrt(a)) / rate * w
            self.state[at, :n], self.state[at, n:] = after, z
            self.values[at] = (np.clip(z, -l1, l1) - z) / (np.sqrt(after) / rate + f(2.0) * l2)

    # What goes

    def _let_go(self, entries: NDArray[np.int64]) -> None:
        self.alive[entries] = False
        self.expired += entries.size

    def expire(self, time_ms: int, budget: int, gone: NDArray[np.int64]) -> None:
        """Takes from the table which keys `EmbeddingTable.expire` let go, distinct, and checks that these may, or had to."""
        self.clock_ms = max(self.clock_ms, time_ms)
        entries = self.entry(gone)
        before = self.slot_rows()
        assert gone.size <= max(0, budget) and self.past(entries).all()
        went = np.bincount(self.slot[entries], minlength=before.size)
        assert (before - went >= np.minimum(before, self.min_rows)).all()
        if budget >= self.keys.size:  # the hand has come by every row
            owed = np.bincount(self.slot[self.past(np.arange(self.keys.size)) & (self.keys > 0)], minlength=before.size)
            assert (went == np.minimum(owed, np.maximum(0, before - self.min_rows))).all()
        self._let_go(entries)

    def check(self, table: EmbeddingTable, relative: float = 1e-5) -> None:
        """Check that a table holds what this one does: a row for each live id, none shared, and all that is in it.

        Args:
            table: to check.
            relative: difference that Adam's and FTRL's values may have.
        """
        rows = table.export(table.touched_since(0))
        order = np.argsort(rows.keys)
        live = np.flatnonzero(self.alive)
        live = live[np.argsort(self.keys[live])]
        assert np.array_equal(rows.keys[order], self.keys[live])
        assert len(table) == live.size - len(self.slots)
        assert np.unique(rows.numbers).size == rows.numbers.size and rows.numbers.min(initial=1) > 0
        assert np.array_equal(rows.counts[order], self.counts[live])
        assert np.array_equal(rows.last_seen_ms[order], 1000 * self.seen_s[live])
        assert np.array_equal(rows.steps[order], self.steps[live])
        for s, slot in enumerate(self.slots):
            of_slot = self.slot[live] == s
            tolerance = 0.0 if slot.optimizer.kind in ("sgd", "adagrad") else relative
            for ours, theirs in ((rows.values, self.values), (rows.optimizer, self.state)):
                np.testing.assert_allclose(
                    ours[order][of_slot], theirs[live][of_slot], rtol=tolerance, atol=tolerance / 10, err_msg=slot.name
                )
        own = self.entry(rows.keys[rows.keys > 0])
        assert np.array_equal(table.find(self.keys[own[~self.past(own)]]), rows.numbers[rows.keys > 0][~self.past(own)])


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _unit(x: NDArray[np.uint64]) -> NDArray[np.float64]:
    return (x >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _normal(x: NDArray[np.uint64]) -> NDArray[np.float64]:
    quarters = sum(((x >> np.uint64(16 * q)) & np.uint64(0xFFFF)).astype(np.int64) for q in range(4))
    return (quarters - 2 * 65535) / np.sqrt((2.0**32 - 1.0) / 3.0)


def _power(base: NDArray[np.float64], exponent: NDArray[np.int64]) -> NDArray[np.float64]:
    """By squaring, as the table does: the same products on any machine."""
    power, left, result = base.copy(), exponent.copy(), np.ones(base.size)
    while left.any():
        result[left & 1 == 1] *= power[left & 1 == 1]
        power *= power
        left >>= 1
    return result

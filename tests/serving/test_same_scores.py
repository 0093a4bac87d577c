"""The SavedModel, loaded in a process that knows nothing of Freshet, gives the trainer's scores."""

import base64
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from model.catalogue import Catalogue
from model.export import export_state, write_version
from model.featuriser import Featuriser
from model.trainer import ExampleBatch, Trainer
from schemas.config import Head
from schemas.slots import OptimizerConfig
from tests.model.feature_examples import CONFIG as EVERY_KIND
from tests.model.feature_examples import columns_of, example_of

ADAM = OptimizerConfig("adam", learning_rate=0.05)
CONFIG = replace(
    EVERY_KIND,
    model=replace(EVERY_KIND.model, dense_learning_rate=0.05),
    heads=(*EVERY_KIND.heads, Head("like", "like", 120.0)),
    slots=tuple(
        replace(
            slot,
            admission=3 if slot.kind == "id" else 1,
            ttl_s=60 if slot.name == "country" else None,
            init_scale=0.3,
            optimizer=ADAM if slot.name == "tags" else OptimizerConfig(learning_rate=0.2),
        )
        for slot in EVERY_KIND.slots
    ),
)
# Stock TensorFlow alone: no module of Freshet can be imported from where it runs.
LOADER = """
import base64
import sys
import numpy as np
import tensorflow as tf

version, given, answers = sys.argv[1:]
arrays = np.load(given)
examples = [base64.b64decode(text) for text in arrays["examples"]]
model = tf.saved_model.load(version)
found = {
    "from_ids": model.signatures["predict"](ids=tf.constant(arrays["ids"]))["scores"],
    "from_examples": model.signatures["serving_default"](examples=tf.constant(examples))["scores"],
}
for head in range(found["from_ids"].shape[1]):
    ranked = model.signatures["rank"](
        user_ids=tf.constant(arrays["ids"][0, : int(arrays["user_width"])]),
        ids=tf.constant(arrays["ids"][:, int(arrays["user_width"]) :]),
        k=tf.constant(5, tf.int32),
        head=tf.constant(head, tf.int32),
    )
    found[f"ranked_{head}"], found[f"scores_{head}"] = ranked["index"], ranked["scores"]
np.savez(answers, freshet=any(name.split(".")[0] in ("model", "schemas") for name in sys.modules), **found)
"""


def rows(count: int, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        {
            "user_id": int(rng.integers(1, 30)),
            "country": str(rng.choice(["DE", "FR", "é", ""])),
            "age": float(rng.choice([-2.0, 0.05, 17.0, 30.0, np.nan])),
            "groups": rng.integers(1, 9, rng.integers(0, 5)).tolist(),
            "video_id": f"v{rng.integers(1, 60)}",
            "clicks": int(rng.integers(0, 10_000)),
            "weight": float(rng.choice([0.0, 3.5, 1e30, np.nan, np.inf])),
            "tags": [f"t{n}" for n in rng.integers(1, 12, rng.integers(0, 6))],
            "title": " ".join(f"Word{n}" for n in rng.integers(1, 20, rng.integers(0, 7))),
            "rank": int(rng.integers(0, 5)),
        }
        for _ in range(count)
    ]


UNUSUAL = [
    {},  # nothing at all
    {"user_id": 2**62, "video_id": "never seen", "tags": ["nor", "this"], "title": "unknown words only"},
    {"user_id": 1, "groups": [], "tags": [], "title": ""},
    {"user_id": 1, "groups": list(range(1, 9)), "tags": [f"t{n}" for n in range(1, 12)], "title": "word1 " * 20},
    {"user_id": 2, "age": float("nan"), "weight": float("nan"), "video_id": "v1"},
    {"user_id": 3, "age": float("inf"), "weight": float("-inf"), "clicks": -5, "rank": 10**15},
    {"user_id": 4, "video_id": "below the threshold"},
]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    featuriser, trainer = Featuriser(CONFIG), Trainer(CONFIG, seed=5)
    for step in range(12):
        ids = featuriser.featurise(columns_of(rows(64, step), CONFIG), side=None)
        labels = np.stack([ids.sum(axis=1) % 2, ids[:, 0] % 5 == 0], axis=1).astype(np.float32)
        trainer.learn(ExampleBatch(ids, labels, np.ones_like(labels), np.ones(64, bool), np.full(64, 1000 * step)))
    seen_once = featuriser.featurise(columns_of([UNUSUAL[-1]], CONFIG), side=None)
    one = np.ones((1, 2), np.float32)
    trainer.learn(ExampleBatch(seen_once, one, one, np.ones(1, bool), np.array([13_000])))
    # A country is seen again after all others have outlived their time, in a step too short for the clock hand to pass them.
    late = featuriser.featurise(columns_of([{"country": "DE"}], CONFIG), side=None)
    trainer.learn(ExampleBatch(late, one, one, np.ones(1, bool), np.array([90_000])))
    state = trainer.increment(0)
    state.keyed |= Catalogue(CONFIG).increment().keyed
    version = write_version(folder / "models", export_state(state, CONFIG), CONFIG)

    asked = [*UNUSUAL, *rows(40, 99)]
    ids = featuriser.featurise(columns_of(asked, CONFIG), side=None)
    strange = ids.copy()
    strange[:, 0] = (1 << 48) | (2**48 - 1)
    ids = np.concatenate([ids, strange, np.zeros_like(ids[:1])])
    examples = np.array([base64.b64encode(example_of(row, CONFIG)).decode() for row in asked])
    np.savez(folder / "given.npz", ids=ids, examples=examples, user_width=CONFIG.user_width)
    run = subprocess.run(
        [sys.executable, "-c", LOADER, folder / "models" / str(version), folder / "given.npz", folder / "answers.npz"],
        cwd=folder, capture_output=True, text=True, check=False, env={"PATH": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    wanted = 1 / (1 + np.exp(-trainer.predict(ids).astype(np.float64)))
    return np.load(folder / "answers.npz"), wanted, ids, len(asked), trainer


def test_from_ids(answers):
    found, wanted, *_ = answers
    assert not found["freshet"]
    assert wanted.shape[1] == 2
    for head in range(2):
        assert len(np.unique(np.round(wanted[:, head], 6))) > 30
    assert np.abs(wanted[:, 0] - wanted[:, 1]).mean() > 0.1
    np.testing.assert_allclose(found["from_ids"], wanted, atol=1e-5)


def test_from_raw_examples(answers):
    found, wanted, _, asked, _ = answers
    np.testing.assert_allclose(found["from_examples"], wanted[:asked], atol=1e-5)


def test_ranking(answers):
    found, _, ids, _, trainer = answers
    rows_of_user = np.concatenate([np.tile(ids[0, : CONFIG.user_width], (len(ids), 1)), ids[:, CONFIG.user_width :]], axis=1)
    wanted = 1 / (1 + np.exp(-trainer.predict(rows_of_user).astype(np.float64)))
    for head in range(2):
        np.testing.assert_allclose(found[f"scores_{head}"], np.sort(wanted[:, head])[::-1][:5], atol=1e-5)
        np.testing.assert_allclose(wanted[found[f"ranked_{head}"], head], found[f"scores_{head}"], atol=1e-5)


def test_a_row_past_its_time_is_in_the_table_still(answers):
    *_, trainer = answers
    country = next(slot for slot in CONFIG.slots if slot.name == "country")
    keys = trainer.table.export(trainer.table.touched_since(0)).keys
    kept = keys[(keys > 0) & (keys >> 48 == country.slot)]
    assert len(kept) > 2
    assert np.count_nonzero(trainer.table.find(kept) > CONFIG.num_slots) == 1


def test_the_unusual_ids_are_what_they_are_meant_to_be(answers):
    *_, ids, _, trainer = answers
    column = CONFIG.user_width  # of the video
    unadmitted, unknown = (trainer.table.find(ids[row, column : column + 1]) for row in (len(UNUSUAL) - 1, 1))
    assert unadmitted.tolist() == unknown.tolist()
    assert trainer.table.export(unadmitted).values.any()

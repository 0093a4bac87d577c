"""Data sets as streams of typed batches: KuaiRand-Pure, MovieLens, and a simulated short-video world."""

from pipelines.datasets.kuairand import read_kuairand
from pipelines.datasets.movielens import read_movielens
from pipelines.datasets.requests import ActionBatch, Events, PendingActions, RequestBatch, Stream, Truth
from pipelines.datasets.simulator import SimulatorOptions, World, simulate

__all__ = [
    "ActionBatch",
    "Events",
    "PendingActions",
    "RequestBatch",
    "SimulatorOptions",
    "Stream",
    "Truth",
    "World",
    "read_kuairand",
    "read_movielens",
    "simulate",
]

"""The exported graph is of stock operations, each a conscious choice: TensorFlow Serving 2.20 has them all."""

from pathlib import Path

import pytest
from tensorflow.core.framework import op_def_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from model.catalogue import Catalogue
from model.export import export_state, write_version
from model.trainer import Trainer
from schemas.config import FeatureConfig, load_config
from tests.model.feature_examples import CONFIG as EVERY_KIND
from tests.model.model_examples import CONFIG as BAGS

ALLOWED = """
    Abs Add AddV2 All AsString Assert AssignVariableOp BitwiseAnd BitwiseOr BitwiseXor BroadcastTo Bucketize Cast ConcatV2
    Const Cumsum DenseBincount DisableCopyOnRead Equal ExpandDims Fill GatherNd GatherV2 Greater GreaterEqual Identity If
    IsNan Less LessEqual LogicalOr LookupTableExportV2 LookupTableFindV2 LookupTableImportV2 MatMul Max Maximum
    MergeV2Checkpoints Minimum Mul MutableDenseHashTableV2 NoOp NotEqual Pack ParseExampleV2 PartitionedCall Placeholder Prod
    RaggedRange RaggedTensorToTensor Range ReadVariableOp RealDiv Relu Reshape ResourceGather RestoreV2 RightShift SaveV2
    Select SelectV2 Shape ShardedFilename Sigmoid Size Split SplitV Square Squeeze StatefulPartitionedCall
    StaticRegexFullMatch StridedSlice StringJoin StringLower StringSplitV2 StringToHashBucketFast StringToNumber Sub Sum
    TensorScatterUpdate Tile TopKV2 Unique UnsortedSegmentSum VarHandleOp Where ZerosLike
""".split()  # noqa: SIM905, a list of 84 would be as many lines
SHIPPED = {path.stem: load_config(path) for path in sorted((Path(__file__).parents[2] / "schemas").glob("*.toml"))}
CONFIGS = SHIPPED | {"every kind": EVERY_KIND, "bags": BAGS}


def ops_of(version: Path) -> set[str]:
    """Operations of a SavedModel's graph and of the functions in it."""
    ops: set[str] = set()
    for meta in saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes()).meta_graphs:
        library = meta.graph_def.library.function
        ops |= {node.op for nodes in (meta.graph_def.node, *(f.node_def for f in library)) for node in nodes}
        ops -= {function.signature.name for function in library}
    return ops


def test_the_configurations_that_come_along_are_among_them():
    assert {"kuairand", "movielens", "simulator"} <= SHIPPED.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_operation_is_a_stock_one_that_was_chosen(name: str, tmp_path: Path):
    config: FeatureConfig = CONFIGS[name]
    state = Trainer(config, capacity=16).increment(0)
    state.keyed |= Catalogue(config).increment().keyed
    ops = ops_of(tmp_path / str(write_version(tmp_path, export_state(state, config), config)))
    assert {"LookupTableFindV2", "ParseExampleV2", "TopKV2"} < ops
    assert ops - set(ALLOWED) == set()


def test_what_is_allowed_is_registered_with_tensorflow():
    for op in ALLOWED:
        definition = op_def_registry.get(op)
        assert isinstance(definition, op_def_pb2.OpDef), op
        assert not definition.HasField("deprecation") or not definition.deprecation.version, op

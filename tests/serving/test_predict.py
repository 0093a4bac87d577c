"""Predict, GetModelMetadata and GetModelStatus through the stock stubs: answers, codes and messages."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from serving_checks import refused
from serving_models import (
    HEADS,
    ITEMS,
    KEYS,
    USER_WIDTH,
    WIDTH,
    expected_scores,
    item_ids,
    item_name,
    user_ids,
)
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND


@pytest.fixture
def stubs(model_dir, serve, connect):
    return connect(serve(model_dir).port)


def some_ids(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).integers(0, KEYS + 200, (rows, WIDTH))  # some have no row of their own


@pytest.mark.parametrize("as_content", [True, False])
def test_predict_gives_the_models_scores(stubs, as_content):
    ids = some_ids(300)
    response = stubs.predict("predict", ids=ids, as_content=as_content)
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["scores"]), expected_scores(ids, step=1), rtol=1e-5)
    assert tf.make_ndarray(response.outputs["version"]).tolist() == [1]
    assert response.model_spec.name == "freshet"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "predict"


def test_tensors_come_in_typed_fields_as_from_tf_serving(stubs):
    scores = stubs.predict("predict", ids=some_ids(3)).outputs["scores"]
    assert len(scores.float_val) == 3 * len(HEADS)
    assert scores.tensor_content == b""


def test_tensors_come_packed_when_the_server_is_told_so(model_dir, serve, connect):
    ids = some_ids(3)
    response = connect(serve(model_dir, tensor_content=True).port).predict("predict", ids=ids)
    scores = response.outputs["scores"]
    assert len(scores.tensor_content) == 3 * len(HEADS) * 4
    np.testing.assert_allclose(tf.make_ndarray(scores), expected_scores(ids, step=1), rtol=1e-5)


def test_no_rows_give_no_scores(stubs):
    response = stubs.predict("predict", ids=np.zeros((0, WIDTH), np.int64))
    assert tf.make_ndarray(response.outputs["scores"]).shape == (0, len(HEADS))


def test_default_signature_takes_raw_examples(stubs):
    ids = some_ids(4)
    examples = [
        tf.train.Example(
            features=tf.train.Features(feature={"ids": tf.train.Feature(int64_list=tf.train.Int64List(value=row))})
        ).SerializeToString()
        for row in ids
    ]
    response = stubs.predict(examples=np.array(examples, object))
    assert response.model_spec.signature_name == "serving_default"
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["scores"]), expected_scores(ids, step=1), rtol=1e-5)


@pytest.mark.parametrize("garbage", [b"garbage", b"garbage\xff"])
def test_an_example_that_cannot_be_parsed_is_the_clients_fault(stubs, garbage):
    with refused(INVALID) as details:
        stubs.predict(examples=np.array([garbage], object))
    assert details().startswith("Could not parse example input, value: 'garbage")
    assert "\n" not in details()


def test_rank_orders_the_candidates(stubs):
    user = user_ids(3)
    ids = np.stack([item_ids(n) for n in range(ITEMS)])
    response = stubs.predict("rank", user_ids=user, ids=ids, k=np.int32(5), head=np.int32(1))
    rows = np.concatenate([np.tile(user, (ITEMS, 1)), ids], axis=1)
    scores = expected_scores(rows, step=1)[:, 1]
    best = np.argsort(-scores, kind="stable")[:5]
    assert tf.make_ndarray(response.outputs["index"]).tolist() == best.tolist()
    np.testing.assert_allclose(tf.make_ndarray(response.outputs["scores"]), scores[best], rtol=1e-5)


def test_catalogue_gives_strings_and_bools(stubs):
    outputs = stubs.predict("catalogue", user_id=np.array(b"u3", object)).outputs
    assert [item.decode() for item in outputs["item_ids"].string_val] == [item_name(n) for n in range(ITEMS)]
    assert outputs["known"].bool_val == [True]
    assert tf.make_ndarray(outputs["user_ids"]).tolist() == user_ids(3).tolist()


def test_output_filter_is_honoured(stubs):
    response = stubs.predict("predict", ids=some_ids(2), output_filter=["version"])
    assert set(response.outputs) == {"version"}
    with refused(INVALID) as details:
        stubs.predict("predict", ids=some_ids(2), output_filter=["logits"])
    assert details().startswith("output tensor alias not found in signature: logits ")
    with refused(INVALID) as details:
        stubs.predict("predict", ids=some_ids(2), output_filter=["version", "version"])
    assert details() == "duplicate output tensor alias: version"


def test_wrong_model_version_and_signature(stubs):
    with refused(NOT_FOUND) as details:
        stubs.predict("predict", name="other", ids=some_ids(1))
    assert details() == "Servable not found for request: Latest(other)"
    with refused(NOT_FOUND) as details:
        stubs.predict("predict", version=7, ids=some_ids(1))
    assert details() == "Servable not found for request: Specific(freshet, 7)"
    with refused(grpc.StatusCode.FAILED_PRECONDITION) as details:
        stubs.predict("no_such", ids=some_ids(1))
    assert details() == 'Serving signature key "no_such" not found.'
    with refused(grpc.StatusCode.FAILED_PRECONDITION):
        stubs.predict("__saved_model_init_op")
    assert stubs.predict("predict", version=1, ids=some_ids(1)).model_spec.version.value == 1


def test_missing_model_spec_name_and_unknown_label(stubs):
    request = predict_pb2.PredictRequest()
    with refused(INVALID) as details:
        stubs.predictions.Predict(request)
    assert details() == "Missing ModelSpec"
    request.model_spec.signature_name = "predict"
    with refused(INVALID) as details:
        stubs.predictions.Predict(request)
    assert details() == "ModelSpec has no name specified."
    request.model_spec.name = "freshet"
    request.model_spec.version_label = "canary"
    with refused(INVALID) as details:
        stubs.predictions.Predict(request)
    assert details() == "Unrecognized servable version label: canary"


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            {},
            "input size does not match signature: 0!=1 len({}) != len({ids}). Sent extra: {}. Missing but required: {ids}.",
        ),
        ({"idz": some_ids(1)}, "Sent extra: {idz}. Missing but required: {ids}."),
        ({"ids": some_ids(1), "more": some_ids(1)}, "Sent extra: {more}. Missing but required: {}."),
        ({"ids": some_ids(1).astype(np.float32)}, 'input "ids" must be int64[?, 5], got float32'),
        ({"ids": some_ids(1)[:, :4]}, 'input "ids" must be int64[?, 5], got shape [1, 4]'),
        ({"ids": some_ids(1)[0]}, 'input "ids" must be int64[?, 5], got shape [5]'),
    ],
)
def test_wrong_inputs_are_refused(stubs, inputs, said):
    with refused(INVALID) as details:
        stubs.predict("predict", **inputs)
    assert said in details()


def test_malformed_tensors_are_refused(stubs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "freshet"
    request.model_spec.signature_name = "predict"
    tensor = request.inputs["ids"]
    with refused(INVALID) as details:
        stubs.predictions.Predict(request)
    assert details() == 'input "ids" must be int64[?, 5], got no dtype'

    tensor.dtype = tf.int64.as_datatype_enum
    tensor.tensor_shape.unknown_rank = True
    with refused(INVALID) as details:
        stubs.predictions.Predict(request)
    assert "without a shape" in details()

    tensor.tensor_shape.CopyFrom(tf.TensorShape([2, WIDTH]).as_proto())
    tensor.tensor_content = b"\0" * 79  # one byte short
    with refused(INVALID) as details:
        stubs.predictions.Predict(request)
    assert details().startswith("tensor parsing error: ids")

    tensor.ClearField("tensor_content")
    for rows in (1 << 40, -1):  # a few bytes that claim terabytes
        tensor.tensor_shape.dim[0].size = rows
        with refused(INVALID) as details:
            stubs.predictions.Predict(request)
        assert 'input "ids"' in details()


def test_a_string_may_not_unfold_to_any_number_of_rows(stubs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "freshet"
    examples = tf.make_tensor_proto([b"once"])
    examples.tensor_shape.dim[0].size = 1 << 27  # a gibibyte of addresses
    request.inputs["examples"].CopyFrom(examples)
    with refused(INVALID) as details:
        stubs.predictions.Predict(request)
    assert details().startswith('input "examples" has shape [134217728]')


def test_a_kernels_refusal_keeps_its_code(stubs):
    """A head that does not exist is found out by the graph, not by the signature."""
    with refused(INVALID) as details:
        stubs.predict("rank", user_ids=user_ids(1), ids=item_ids(1)[np.newaxis], k=np.int32(1), head=np.int32(9))
    assert "\n" not in details()
    assert "9" in details()


def test_what_is_not_offered_says_so(stubs):
    calls = [
        (stubs.predictions.Classify, classification_pb2.ClassificationRequest()),
        (stubs.predictions.Regress, regression_pb2.RegressionRequest()),
        (stubs.predictions.MultiInference, inference_pb2.MultiInferenceRequest()),
        (stubs.models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()),
    ]
    for call, request in calls:
        with refused(grpc.StatusCode.UNIMPLEMENTED) as details:
            call(request)
        assert "is not served here" in details()


def test_metadata_gives_the_signatures(stubs):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "freshet"
    response = stubs.predictions.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert {"predict", "rank", "serving_default", "catalogue", "status"} <= set(signatures.signature_def)
    user = signatures.signature_def["rank"].inputs["user_ids"]
    assert [dim.size for dim in user.tensor_shape.dim] == [USER_WIDTH]
    assert response.model_spec.version.value == 1

    request.metadata_field[:] = ["weights"]
    with refused(INVALID):
        stubs.predictions.GetModelMetadata(request)
    request.metadata_field[:] = []
    with refused(INVALID):
        stubs.predictions.GetModelMetadata(request)


def test_status_of_versions(stubs):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "freshet"
    statuses = stubs.models.GetModelStatus(request).model_version_status
    assert [(s.version, s.state, s.status.error_code) for s in statuses] == [
        (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE, 0)
    ]
    assert statuses[0].HasField("status")
    request.model_spec.version.value = 4
    with refused(NOT_FOUND) as details:
        stubs.models.GetModelStatus(request)
    assert details() == "Could not find version 4 of model freshet"
    request.model_spec.name = "other"
    request.model_spec.ClearField("version")
    with refused(NOT_FOUND) as details:
        stubs.models.GetModelStatus(request)
    assert details() == "Could not find any versions of model other"
    request.model_spec.name = ""
    with refused(NOT_FOUND) as details:
        stubs.models.GetModelStatus(request)
    assert details() == "Could not find any versions of model "
    with refused(INVALID) as details:
        stubs.models.GetModelStatus(get_model_status_pb2.GetModelStatusRequest())
    assert details() == "Missing ModelSpec"


def test_a_label_chooses_no_status(stubs):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "freshet"
    request.model_spec.version_label = "canary"
    assert [s.version for s in stubs.models.GetModelStatus(request).model_version_status] == [1]

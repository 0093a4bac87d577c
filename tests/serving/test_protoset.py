"""The descriptors that `serving.protoset` writes are enough to call a server: nothing else of TF Serving is used here."""

import subprocess
import sys

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from serving_models import USER_WIDTH, item_name, user_ids


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    file = tmp_path_factory.mktemp("protoset") / "serving.protoset"
    made = subprocess.run(
        [sys.executable, "-m", "serving.protoset", "--out", file], capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stdout) == (0, f"wrote {file}\n")
    assert made.stderr == ""
    pool = descriptor_pool.DescriptorPool()
    for described in descriptor_pb2.FileDescriptorSet.FromString(file.read_bytes()).file:
        pool.Add(described)
    return pool


def call(pool, port, service, method, request):
    described = pool.FindServiceByName(f"tensorflow.serving.{service}").FindMethodByName(method)
    asked, answered = (message_factory.GetMessageClass(kind) for kind in (described.input_type, described.output_type))
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = channel.unary_unary(f"/tensorflow.serving.{service}/{method}", asked.SerializeToString, answered.FromString)
        return stub(asked(**request), timeout=20)


def test_both_services_answer(pool, serve, model_dir):
    port = serve(model_dir).port
    status = call(pool, port, "ModelService", "GetModelStatus", {"model_spec": {"name": "freshet"}})
    assert [each.version for each in status.model_version_status] == [1]
    user = {"dtype": "DT_STRING", "tensor_shape": {}, "string_val": [b"u3"]}
    spec = {"name": "freshet", "signature_name": "catalogue"}
    found = call(pool, port, "PredictionService", "Predict", {"model_spec": spec, "inputs": {"user_id": user}})
    assert list(found.outputs["user_ids"].int64_val) == user_ids(3).tolist()
    assert found.outputs["user_ids"].tensor_shape.dim[0].size == USER_WIDTH
    assert found.outputs["item_ids"].string_val[0].decode() == item_name(0)


def test_every_method_of_the_services_is_described(pool):
    for service in ("PredictionService", "ModelService"):
        methods = pool.FindServiceByName(f"tensorflow.serving.{service}").methods
        assert {method.name for method in methods} >= {"PredictionService": {"Predict"}, "ModelService": {"GetModelStatus"}}[
            service
        ]
        for method in methods:
            assert method.input_type.full_name.endswith("Request")
            assert method.output_type.full_name.endswith("Response")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    run = [sys.executable, "-m", "serving.protoset", "--out", tmp_path / "missing" / "file"]
    made = subprocess.run(run, capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert len(made.stderr.splitlines()) == 1
    assert "No such file or directory" in made.stderr

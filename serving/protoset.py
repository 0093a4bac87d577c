"""Writes the descriptors of TF Serving's gRPC services, for clients without its .proto files, such as grpcurl.

    python -m serving.protoset --out serving.protoset
    grpcurl -plaintext -protoset serving.protoset -d '{"modelSpec": {"name": "freshet"}}' \\
        127.0.0.1:8500 tensorflow.serving.ModelService/GetModelStatus

TF Serving, and this project's model server likewise, has no reflection service, so a client brings its own descriptors:
those of the installed tensorflow-serving-api and all they import.
"""

import argparse
from pathlib import Path

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from schemas.process import CommandParser, UserError, run_main
from schemas.quiet import quiet_imports

with quiet_imports():
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        model_management_pb2,
        predict_pb2,
        regression_pb2,
    )

_PACKAGE = "tensorflow.serving"
#: By service: its methods, each with the file that holds its request and response and what these are called.
_SERVICES = {
    "PredictionService": {
        "Predict": (predict_pb2, "Predict"),
        "GetModelMetadata": (get_model_metadata_pb2, "GetModelMetadata"),
        "Classify": (classification_pb2, "Classification"),
        "Regress": (regression_pb2, "Regression"),
        "MultiInference": (inference_pb2, "MultiInference"),
    },
    "ModelService": {
        "GetModelStatus": (get_model_status_pb2, "GetModelStatus"),
        "HandleReloadConfigRequest": (model_management_pb2, "ReloadConfig"),
    },
}


def descriptors() -> FileDescriptorSet:
    """The files of PredictionService and ModelService, each behind those that it imports."""
    found: dict[str, FileDescriptor] = {}

    def add(file: FileDescriptor) -> None:
        if file.name not in found:
            for imported in file.dependencies:
                add(imported)
            found[file.name] = file

    for methods in _SERVICES.values():
        for module, _ in methods.values():
            add(module.DESCRIPTOR)
    result = FileDescriptorSet()
    for file in found.values():
        file.CopyToProto(result.file.add())
    # The modules generated for the services themselves cannot be imported beside the protobuf of this environment.
    for service, methods in _SERVICES.items():
        described = result.file.add(name=f"freshet/{service}.proto", package=_PACKAGE, syntax="proto3")
        described.dependency.extend(sorted({module.DESCRIPTOR.name for module, _ in methods.values()}))
        entry = described.service.add(name=service)
        for method, (_, message) in methods.items():
            asked, answered = (f".{_PACKAGE}.{message}{kind}" for kind in ("Request", "Response"))
            entry.method.add(name=method, input_type=asked, output_type=answered)
    return result


def main(argv: list[str] | None = None) -> int:
    """Write the file; 0 then."""
    parser = CommandParser(
        prog="python -m serving.protoset", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a FileDescriptorSet in binary form")
    args = parser.parse_args(argv)
    try:
        args.out.write_bytes(descriptors().SerializeToString())
    except OSError as error:
        raise UserError(f"--out {args.out}: {error.strerror}: give a file in a folder that can be written to") from None
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    run_main(main)

"""Generates Python code, type stubs and a descriptor image from the contracts.

Third-party definitions come from installed packages, so that none is kept in the repository:
`google/rpc` ships with googleapis-common-protos, and the rules of protovalidate are taken from the
descriptor inside the protovalidate package.

Usage: python protos/generate.py OUT_DIR
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import google.rpc
import grpc_tools
from google.protobuf import (
    descriptor_pb2,
    duration_pb2,
    field_mask_pb2,
    timestamp_pb2,
)
from protovalidate._gen.buf.validate import validate_pb

PROTOS = Path(__file__).resolve().parent
VERSIONED_TOOLS = ("grpcio-tools", "mypy-protobuf", "protovalidate", "protobuf")


def main() -> None:
    """Generates into the folder named on the command line, unless its inputs are unchanged."""
    out = Path(sys.argv[1]).resolve()
    stamp = out / ".stamp"
    inputs = _fingerprint()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == inputs:
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    imports = out / "imports.binpb"
    imports.write_bytes(_imported_descriptors().SerializeToString())
    _generate(out, imports)
    stamp.write_text(inputs, encoding="utf-8")


def _fingerprint() -> str:
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for proto in sorted(PROTOS.rglob("*.proto")):
        digest.update(str(proto.relative_to(PROTOS)).encode() + proto.read_bytes())
    for tool in VERSIONED_TOOLS:
        digest.update(f"{tool}={importlib.metadata.version(tool)}".encode())
    return digest.hexdigest()


def _imported_descriptors() -> descriptor_pb2.FileDescriptorSet:
    """Returns buf/validate/validate.proto and what it imports, as descriptors."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, timestamp_pb2, field_mask_pb2):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    files.file.add().ParseFromString(validate_pb.desc().proto.to_binary())
    return files


def _generate(out: Path, imports: Path) -> None:
    common = Path(next(iter(google.rpc.__path__))).parents[1]
    wellknown = Path(grpc_tools.__file__).parent / "_proto"
    ours = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    protoc = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--descriptor_set_in={imports}",
        f"-I{PROTOS}",
        f"-I{common}",
        f"-I{wellknown}",
    ]
    plugin = Path(sys.executable).parent
    _run(
        [
            *protoc,
            f"--plugin=protoc-gen-mypy={plugin / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={plugin / 'protoc-gen-mypy_grpc'}",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet,generate_concrete_servicer_stubs:{out}",
            *ours,
        ]
    )
    _run([*protoc, f"--python_out={out}", "buf/validate/validate.proto"])
    _run(
        [
            *protoc,
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={out / 'lodestone.binpb'}",
            *ours,
        ]
    )


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)  # noqa: S603 - fixed program, our own arguments


if __name__ == "__main__":
    main()

"""Generates `text_gen_server/pb/` from `proto/shard.proto`. Needs grpcio-tools, and no protoc."""

from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate() -> None:
    """Writes the message and service modules; does nothing when they are newer than the contract."""
    proto = ROOT / "proto" / "shard.proto"
    package = ROOT / "server" / "text_gen_server" / "pb"
    marker = package / "shard_pb2_grpc.py"
    if marker.exists() and marker.stat().st_mtime >= proto.stat().st_mtime:
        return
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    out = ROOT / "server"
    arguments = [
        "protoc",
        f"-Itext_gen_server/pb={proto.parent}",  # so that the generated modules import each other by their full name
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        "text_gen_server/pb/shard.proto",
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit(f"could not compile {proto}")


if __name__ == "__main__":
    generate()

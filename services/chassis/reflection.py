"""Server reflection that also tells what the comments in the protos say.

Generated Python code carries its protos without their comments, so plain reflection describes methods to a
stranger by name only. ``make protos`` keeps the protos whole in one descriptor set beside the generated code;
what is asked for is answered from there. The set is read when somebody first asks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

DESCRIPTOR_SET: Final = "descriptors.binpb"


def add_reflection(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Adds reflection of ``services`` (full names), and of itself, to a server that has not started."""
    servicer = _Reflection([*services, reflection.SERVICE_NAME])
    add: Any = reflection_pb2_grpc.add_ServerReflectionServicer_to_server
    add(servicer, server)


class _Reflection:
    def __init__(self, services: list[str]) -> None:
        self._plain: Any = reflection.aio.ReflectionServicer(services)

    async def ServerReflectionInfo(
        self, requests: AsyncIterable[Any], context: Any
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        async for response in self._plain.ServerReflectionInfo(requests, context):
            files = response.file_descriptor_response.file_descriptor_proto
            for position, plain in enumerate(files):
                name = descriptor_pb2.FileDescriptorProto.FromString(plain).name
                files[position] = commented_files().get(name, plain)
            yield response


@cache
def commented_files() -> dict[str, bytes]:
    """The serialized FileDescriptorProto, with comments, of every proto of Fimbria, by file name."""
    spec = importlib.util.find_spec("fimbria")
    for place in spec.submodule_search_locations or () if spec else ():
        path = Path(place) / DESCRIPTOR_SET
        if path.exists():
            files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
            return {file.name: file.SerializeToString() for file in files.file}
    return {}

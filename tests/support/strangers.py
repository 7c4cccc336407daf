"""What another user of the machine can say to a port or a socket: HTTP, HTTPS and gRPC, without a key of the stack."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import psutil

from deploy.servers import Server

#: Requests of SeaweedFS' parts that read, list, write or delete.
PAGES = (
    ("GET", "/"), ("GET", "/status"), ("GET", "/ui/index.html"), ("GET", "/cluster/status"), ("GET", "/dir/status"),
    ("GET", "/dir/assign"), ("GET", "/dir/lookup?volumeId=1"), ("GET", "/vol/status"), ("GET", "/vol/vacuum"),
    ("GET", "/col/delete?collection={bucket}"), ("POST", "/submit"), ("GET", "/metrics"), ("GET", "/debug/pprof/"),
    ("GET", "/buckets/"), ("GET", "/buckets/{bucket}/"), ("GET", "/buckets/{bucket}/{key}"), ("GET", "/{bucket}"),
    ("GET", "/{bucket}/{key}"), ("PUT", "/{bucket}/planted"), ("POST", "/buckets/{bucket}/planted"),
    ("DELETE", "/{bucket}/{key}"), ("DELETE", "/buckets/{bucket}/{key}"),
    ("DELETE", "/buckets/{bucket}?recursive=true"), ("DELETE", "/{bucket}"), ("GET", "/1,01"), ("DELETE", "/1,01"),
    ("GET", "/stats/disk"), ("GET", "/admin/assign_volume?volume=9"), ("GET", "/?location"),
)  # fmt: skip


def field(number: int, content: bytes | str | int) -> bytes:
    """One field of a message of Protocol Buffers: text, bytes or a small number."""
    if isinstance(content, int):
        return bytes([number << 3, content])
    data = content.encode() if isinstance(content, str) else content
    return bytes([number << 3 | 2, len(data)]) + data


def calls(bucket: str, key: str) -> Iterator[tuple[str, bytes]]:
    """Calls of gRPC that read, list, write or delete what the stack keeps."""
    filer, master, volume = "/filer_pb.SeaweedFiler/", "/master_pb.Seaweed/", "/volume_server_pb.VolumeServer/"
    folder = f"/buckets/{bucket}"
    yield filer + "ListEntries", field(1, "/buckets")
    yield filer + "ListEntries", field(1, folder)
    yield filer + "LookupDirectoryEntry", field(1, folder) + field(2, key)
    yield filer + "GetFilerConfiguration", b""
    yield filer + "AssignVolume", field(1, 1)
    yield filer + "CollectionList", field(1, 1)
    yield filer + "DeleteEntry", field(1, folder) + field(2, key) + field(4, 1) + field(5, 1)
    yield filer + "DeleteEntry", field(1, "/buckets") + field(2, bucket) + field(4, 1) + field(5, 1) + field(6, 1)
    yield filer + "CreateEntry", field(1, folder) + field(2, field(1, "planted"))
    yield master + "Assign", field(1, 1)
    yield master + "VolumeList", b""
    yield master + "LookupVolume", field(1, "1")
    yield master + "CollectionList", field(1, 1)
    yield master + "CollectionDelete", field(1, bucket)
    yield volume + "VolumeServerStatus", b""
    yield volume + "ReadVolumeFileStatus", field(1, 1)
    yield volume + "DeleteCollection", field(1, bucket)
    yield volume + "BatchDelete", field(1, "1,01")
    yield "/messaging_pb.SeaweedS3IamCache/ListUsers", b""
    yield "/iam_pb.SeaweedIdentityAccessManagement/ListUsers", b""
    yield "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", field(7, "")


def listening(server: Server) -> tuple[list[int], list[Path]]:
    """The TCP ports and the sockets in the file system that a server's processes listen on."""
    assert server.process is not None
    first = psutil.Process(server.process.pid)
    ports, paths = set(), set()
    for process in (first, *first.children(recursive=True)):
        inside = Path(process.cwd())
        for each in process.net_connections("all"):
            if each.family == socket.AF_UNIX:
                paths.update({inside / str(each.laddr)} if each.laddr else set())
            elif each.status == psutil.CONN_LISTEN:
                ports.add(each.laddr.port)
    return sorted(ports), sorted(path for path in paths if path.is_socket())


def page(port: int, method: str, path: str, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
    """Ask for a page; status 0 where the server ends the connection, as it does without a certificate."""
    made = (
        http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        if context is None
        else http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    )
    with closing(made):
        try:
            made.request(method, path)
            answer = made.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return 0, b""


def careless() -> ssl.SSLContext:
    """A client that speaks TLS with anybody, and has no certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def answered(target: str, method: str, request: bytes, credentials: grpc.ChannelCredentials | None = None) -> bytes:
    """Call gRPC; gives what came back, none where it was refused before anything was done.

    Args:
        target: Such as `127.0.0.1:10001` or `unix:/tmp/a.sock`.
        method: Service and method.
        request: The message, encoded.
        credentials: None for plain text.
    """
    options = [("grpc.enable_retries", 0), ("grpc.ssl_target_name_override", "127.0.0.1")]
    made = (
        grpc.insecure_channel(target, options)
        if credentials is None
        else grpc.secure_channel(target, credentials, options)
    )
    with made as channel:
        call = channel.unary_stream(method, request_serializer=None, response_deserializer=None)(request, timeout=5)
        try:
            return b"".join(call)
        except grpc.RpcError as error:
            refused = error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED}
            return b"" if refused else f"{error.code().name}: {error.details()}".encode()

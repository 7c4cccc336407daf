"""SeaweedFS as images start it: parts that no service leads to have ports and sockets there that nobody else wants."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from deploy.programs import free_ports

_PARTS: Final = ("master", "volume", "filer", "s3")


class Parts:
    """Ports of this machine for the parts.

    Args:
        s3_port: That of S3 itself, which a service leads to.
    """

    def __init__(self, s3_port: int) -> None:
        names = [f"{part}.port.grpc" for part in _PARTS] + [f"{part}.port" for part in _PARTS[:3]]
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        # One more part listens at a number of its own, which only one of two that run at a time gets.
        self.options = [*(f"-{name}={port}" for name, port in ports.items()), "-s3.port.lance=0"]
        self._ports = (s3_port, *ports.values())

    def clean_up(self) -> None:
        """Remove the sockets that it leaves in /tmp: a container has a /tmp of its own, which goes with it."""
        for port in self._ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink()

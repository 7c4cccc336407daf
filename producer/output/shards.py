"""Pictures that lie in shards: a shard is fetched once, to this disk, and its members are read from there."""

from __future__ import annotations

import tarfile
import tempfile
import threading
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from producer.jobs.model.errors import StoreError

if TYPE_CHECKING:
    from producer.jobs.store.bucket import Storage

#: Pictures are asked for in about the order they lie in, so that few shards are open at once.
_OPEN = 4


@dataclass
class _Shard:
    """A shard on this disk; fetched by the first thread that asks for one of its members."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    file: IO[bytes] | None = None
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)


class Shards:
    """Members of shards by their address, `<shard>#<member>`; safe to share between threads."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _Shard] = OrderedDict()

    def get(self, address: str) -> bytes:
        """The bytes of a member.

        Raises:
            StoreError: The shard is not there, is broken, or holds no such member.
            JobError, WorkerError: See `Storage.check`.
        """
        shard, name = self._shard(address)
        with shard.lock:
            entry = shard.members.get(name)
            if entry is None or shard.file is None:
                raise StoreError(
                    f"there is no {name} in {address.partition('#')[0]}: `gradcam audit` says what is missing"
                )
            shard.file.seek(entry.offset_data)
            return shard.file.read(entry.size)

    def _shard(self, address: str) -> tuple[_Shard, str]:
        key, _, name = address.partition("#")
        with self._lock:
            shard = self._open.setdefault(key, _Shard())
            self._open.move_to_end(key)
            # One that another thread still reads lives as long as that thread holds it.
            while len(self._open) > _OPEN:
                self._open.popitem(last=False)
        with shard.lock:
            if shard.file is None:
                self._fetch(key, shard)
        return shard, name

    def _fetch(self, key: str, shard: _Shard) -> None:
        file = tempfile.TemporaryFile(prefix="gradcam-shard-")  # noqa: SIM115 - it lives as long as the shard
        try:
            self._storage.get_to(key, file)
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                shard.members = {member.name: member for member in tar if member.isreg()}
        except tarfile.TarError as error:
            file.close()
            raise StoreError(
                f"{key} is no shard ({error}): delete that object, and `gradcam audit --repair` makes it anew"
            ) from None
        except BaseException:
            file.close()
            raise
        shard.file = file
        weakref.finalize(shard, file.close)

"""Decoded samples in memory that the processes of a node share, so that each is decoded once a node.

The memory is a file in the system's memory file system, named by the content it stands for.  It goes away when
the last process that uses it closes it.  If all were killed, it stays: the next to want the same samples takes it
over (a sample is marked only after all its bytes are there), and any other removes it.
"""

import fcntl
import mmap
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from shards.encode import Pixels

SHARED = Path("/dev/shm")
_MARK = "bts-samples"


@dataclass
class SampleMemory:
    """Room for the samples of one split; ``held`` marks those that are there."""

    images: Pixels
    """uint8 (samples, H, W, 3)."""
    masks: Pixels
    """uint8 (samples, H, W) of {0, 1}."""
    held: NDArray[np.bool_]
    """(samples,)."""
    _file: int | None = field(default=None, repr=False)
    _release: "finalize[..., SampleMemory] | None" = field(default=None, repr=False)

    @property
    def shared(self) -> bool:
        return self._release is not None

    def put(self, ids: NDArray[np.int64], image_BHWC: Pixels, mask_BHW: Pixels) -> None:
        """Keep samples, unless the memory file system is full."""
        if self._file is None:
            self.images[ids], self.masks[ids] = image_BHWC, mask_BHW
            self.held[ids] = True
            return
        for sample, image, mask in zip(ids, image_BHWC, mask_BHW, strict=True):
            # Written as to a file: to store into mapped pages would fault them in one by one, zeroed first, and
            # where there is no room kill the process instead of telling it.
            try:
                os.pwrite(self._file, image, sample * image.nbytes)
                os.pwrite(self._file, mask, self.images.nbytes + sample * mask.nbytes)
            except OSError:
                return
            self.held[sample] = True  # last: from now on others may take it

    def close(self) -> None:
        """Let go; the last process to do so frees the memory.  The samples are gone afterwards."""
        # Copies: a view of nothing would hold on to all the memory.
        self.images, self.masks, self.held = (
            self.images[:0].copy(),
            self.masks[:0].copy(),
            self.held[:0].copy(),
        )
        self._file = None
        if self._release is not None:
            self._release()


def sample_bytes(num_samples: int, height: int, width: int) -> int:
    """Bytes that decoded samples take."""
    return max(1, num_samples * (4 * height * width + 1))


def shared_room() -> int:
    """Bytes that can be shared on this machine now; nought where there is no memory file system."""
    if not SHARED.is_dir() or not os.access(SHARED, os.W_OK):
        return 0
    status = os.statvfs(SHARED)
    return status.f_bavail * status.f_frsize


def is_shared(name: str) -> bool:
    """Whether there is shared memory of this name already."""
    return _path(name).exists()


def private_memory(num_samples: int, height: int, width: int) -> SampleMemory:
    """Samples in this process's own memory."""
    return SampleMemory(
        np.empty((num_samples, height, width, 3), np.uint8),
        np.empty((num_samples, height, width), np.uint8),
        np.zeros(num_samples, bool),
    )


def shared_memory(name: str, num_samples: int, height: int, width: int) -> SampleMemory:
    """Samples shared with every process of this user that asks for the same ``name`` on this machine.

    ``name`` must stand for the content: data set, split and size.

    Raises:
        OSError: there is no memory file system, or no room on it.
    """
    path = _path(name)
    _remove_left_over(path)
    size = sample_bytes(num_samples, height, width)
    file = _open_shared(path, size, max(1, num_samples))
    pages = np.frombuffer(mmap.mmap(file, size), np.uint8)
    pixels = num_samples * height * width
    images, masks, held = np.split(pages, [3 * pixels, 4 * pixels])
    kept = SampleMemory(
        images.reshape(num_samples, height, width, 3),
        masks.reshape(num_samples, height, width),
        held[:num_samples].view(bool),
    )
    kept._file = file
    kept._release = finalize(kept, _let_go, path, file)  # also when it is forgotten, and at the process's end
    return kept


def _path(name: str) -> Path:
    return SHARED / f"{_MARK}-{os.getuid()}-{name}"


def _open_shared(path: Path, size: int, num_marks: int) -> int:
    """A descriptor of the file, locked as in use, with room reserved for the marks at its end."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if _lock_alone(file) and os.fstat(file).st_size != size:
                os.ftruncate(file, 0)
                os.ftruncate(file, size)
                # The marks are stored into mapped pages: one that cannot be had would kill the process.
                os.posix_fallocate(file, size - num_marks, num_marks)
            fcntl.flock(file, fcntl.LOCK_SH)
            if _is_at(path, file) and os.fstat(file).st_size == size:
                return file
        except OSError:
            path.unlink(missing_ok=True)
            os.close(file)
            raise
        os.close(file)  # its last user removed it before we had the lock: make another


def _let_go(path: Path, file: int) -> None:
    _unlink_unused(path, file)
    os.close(file)


def _remove_left_over(wanted: Path) -> None:
    """Free the memory of processes of this user that were all killed."""
    for path in SHARED.glob(f"{_MARK}-{os.getuid()}-*"):
        if path == wanted:
            continue
        with suppress(FileNotFoundError):
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            _let_go(path, file)


def _lock_alone(file: int) -> bool:
    """Take the file for ourselves, if no other process uses it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlink_unused(path: Path, file: int) -> None:
    if _lock_alone(file) and _is_at(path, file):
        path.unlink(missing_ok=True)


def _is_at(path: Path, file: int) -> bool:
    try:
        found, ours = path.stat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)

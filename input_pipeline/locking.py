"""Folders that one process at a time may write to: a lock that ends with its process.

The lock is flock's, on the file '.lock' in the folder. The kernel releases it however the process
ends, so that the file of a killed process blocks nobody. The file names its process for the message
that others get.
"""

import contextlib
import datetime
import errno
import os
import shlex
import shutil
import socket
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from input_pipeline import hosts

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

FILE = ".lock"
# What flock fails with on file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held: set[tuple[int, Path]] = set()  # process and folder: a forked child holds nothing
_warned: set[int] = set()


class InUse(ValueError):
    """Another process writes to the folder."""


@contextlib.contextmanager
def in_use(folder: Path, *, wait: str = "", other: str = "--workdir") -> Iterator[bool]:
    """Holds the lock of a folder; a second time in the same process it is free.

    Args:
        folder: what is written to; made where it is missing, and removed again if it stays empty,
            as its parents are.
        wait: what the holder does: prints it and waits for its end. '' raises at once.
        other: the flag that names another folder, for the message.

    Yields:
        Whether it is locked; False where there are no locks, with a warning.

    Raises:
        InUse: another process holds it, which the message names.
    """
    key = os.getpid(), folder.resolve()
    if key in _held or not hosts.writes():  # process 0 holds it for all
        yield True
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        locked = _lock(folder, wait, other, stack)
        if locked:
            _held.add(key)
        try:
            yield locked
        finally:
            _held.discard(key)
            if locked:  # removed while it is locked: a later holder's file must stay
                (folder / FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the first that holds something
                for path in made:
                    path.rmdir()


def clear(leftovers: Iterable[Path], where: Path) -> None:
    """Deletes the files and folders that killed preparations left in `where`, and prints so."""
    leftovers = list(leftovers)
    files = [path for left in leftovers for path in (left, *left.rglob("*")) if not path.is_dir()]
    size = sum(path.lstat().st_size for path in files)
    for left in leftovers:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    if files:
        print(
            f"Deleted what a killed preparation left in {where}: {len(files):,} files, "
            f"{size / 1e6:,.1f} MB."
        )


def _lock(folder: Path, wait: str, other: str, stack: contextlib.ExitStack) -> bool:
    """Locks the folder until `stack` closes the file; False, with a warning, without locks."""
    path = folder / FILE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = stack.enter_context(path.open("a+", encoding="utf-8"))
            _flock(file, folder, wait, other)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        except PermissionError as error:
            _warn(folder, error)
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            path.unlink(missing_ok=True)
            _warn(folder, error)
            return False
        # Its last holder removes the file: a lock on that one would hold nobody off.
        if os.fstat(file.fileno()).st_nlink:
            since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
            command = shlex.join(["python", *sys.argv])
            file.truncate(0)
            file.write(
                f"process {os.getpid()} on {socket.gethostname()} since {since}, `{command}`"
            )
            file.flush()
            return True


def _flock(file: IO[str], folder: Path, wait: str, other: str) -> None:
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read() or "another process"  # it is just being written
        if not wait:
            raise InUse(
                f"{folder} is in use by {holder}: wait for its end, or choose another {other}"
            ) from None
        print(f"Waiting for {holder}, {wait}.")
        fcntl.flock(file, fcntl.LOCK_EX)


def _warn(folder: Path, error: OSError) -> None:
    if os.getpid() not in _warned:
        _warned.add(os.getpid())
        warnings.warn(
            f"{folder} cannot be locked ({error.strerror}): nothing stops a second command from "
            "writing there at the same time",
            stacklevel=2,
        )

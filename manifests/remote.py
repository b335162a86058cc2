"""Access to object stores: the fsspec file system of a URL, and requests that are repeated while the store fails."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

import fsspec

from manifests.errors import Refused, Stopped, one_line
from manifests.patience import NoAnswer, Patience, library_options

_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 0.5, 15.0
_CHANCE = random.SystemRandom()  # not a seeded stream: repeating a request must not change what is drawn
_ANSWERS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, Refused, Stopped)
_LASTING = (PermissionError, ValueError, TypeError, LookupError, AttributeError, ImportError, MemoryError)
_LASTING_NAMES = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")  # botocore's
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_T = TypeVar("_T")


def is_url(path: str) -> bool:
    """Whether a path names an object store (`s3://...`) rather than a local file."""
    return "://" in path and not path.startswith("file://")


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a path and the path inside it. Raises Refused naming the missing library."""
    try:
        return fsspec.core.url_to_fs(path, **library_options(path))
    except ImportError as error:
        package = _PACKAGES.get(path.partition("://")[0])
        install = f"pip install {package}" if package else str(error)
        raise Refused(f"cannot open {path}: its file system is missing: {install}") from error
    except ValueError as error:
        raise Refused(f"cannot open {path}: {error}") from error


def stopped_by(path: str, error: Exception, what: str = "write") -> Stopped:
    """The Stopped of an error of a disk or store, with what to do."""
    number = getattr(error, "errno", None)
    said = one_line(error)
    reason = os.strerror(number) if number and not is_url(path) else said
    return Stopped(f"cannot {what} {path}: {reason}; what is finished is kept, run the same again")


def patiently(path: str, what: str, attempt: Callable[[Patience], _T]) -> _T:
    """What `attempt` returns; a store that fails is asked again for two minutes, with growing waits.

    what: `read` or `write`, for the message. attempt: asks through the Patience that it is given, which limits its time
    (manifests.patience). Answers (no such file, the file exists) are raised as they are, missing rights at once.
    Raises Stopped naming the path when the store keeps failing, or does not answer.
    """
    patience, refused = Patience(), None
    wait = _FIRST_WAIT_SECONDS
    while True:
        try:
            return attempt(patience)
        except _ANSWERS:
            raise
        except NoAnswer as error:  # the library was repeating by itself: its error of before tells more
            raise stopped_by(path, refused or error, what) from error
        except Exception as error:  # every store library has its own errors
            lasting = isinstance(error, _LASTING) or type(error).__name__ in _LASTING_NAMES
            if lasting or wait > patience.left():
                raise stopped_by(path, error, what) from error
            refused = error
        time.sleep(wait * _CHANCE.uniform(0.5, 1.0))  # so that a hundred workers do not come back at one moment
        wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

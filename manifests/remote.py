"""Object stores: the fsspec file system of a URL, and asking it again with patience."""

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


_CHANCE = random.SystemRandom()  # asking again takes nothing from a stream that somebody has seeded


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


def _stopped(path: str, error: Exception, what: str = "write") -> Stopped:
    number = getattr(error, "errno", None)
    said = one_line(error)
    reason = os.strerror(number) if number and not is_url(path) else said
    return Stopped(f"cannot {what} {path}: {reason}; what is finished is kept, run the same again")


def patiently(path: str, what: str, attempt: Callable[[Patience], _T]) -> _T:
    """What `attempt` gives. A store that fails is asked again for two minutes, after longer and longer waits.

    what: `read` or `write`, for the message. attempt: asks by the Patience that it is given, which ends it when the
    time is over (manifests.patience). Answers (there is no such file, there is one already) are raised as they come,
    missing rights at once. Raises Stopped naming the path when the store goes on failing, or does not answer.
    """
    patience, refused = Patience(), None
    wait = _FIRST_WAIT_SECONDS
    while True:
        try:
            return attempt(patience)
        except _ANSWERS:
            raise
        except NoAnswer as error:  # while the store's library asks again by itself: what it said before tells more
            raise _stopped(path, refused or error, what) from error
        except Exception as error:  # every store library has its own errors
            lasting = isinstance(error, _LASTING) or type(error).__name__ in _LASTING_NAMES
            if lasting or wait > patience.left():
                raise _stopped(path, error, what) from error
            refused = error
        time.sleep(wait * _CHANCE.uniform(0.5, 1.0))  # a hundred workers do not come back at one moment
        wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

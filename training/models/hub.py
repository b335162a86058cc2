"""Files of public weights on a hub: found in its cache, or a quick answer whether they can be fetched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import get_session

from manifests.errors import Refused
from manifests.patience import begin

SECONDS = 4.0  # for any answer of a host; what is fetched then may take as long as it takes


def cached(repository: str, files: Iterable[str], revision: str | None = None) -> Path | None:
    """The first of a repository's files that is in the hub's cache, which then needs no network."""
    for name in files:
        found = try_to_load_from_cache(repository, name, revision=revision, cache_dir=constants.HF_HUB_CACHE)
        if isinstance(found, str):
            return Path(found)
    return None


def require_answer(given: str, url: str = "") -> None:
    """Raises Refused where a host, the hub's by default, says nothing for SECONDS: proxies and names may hang.

    given: key and value that need it.
    """
    url = url or constants.ENDPOINT
    try:
        begin(lambda: get_session().head(url, timeout=SECONDS)).result(timeout=SECONDS)
    except Exception as error:  # of every layer below, and of the hub's offline mode
        raise Refused(
            f"{given}: in no cache here, and {url.split('/')[2]} cannot be reached: fetch the file elsewhere "
            "(`python -m training weights --where` says where it is had) and name it, as in init.image=FILE"
        ) from error

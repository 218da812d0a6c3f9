"""Whether the hub of models answers."""

from __future__ import annotations

import functools
import logging

_log = logging.getLogger("headwise.model")

_SECONDS = 5.0


@functools.cache
def hub_answers() -> bool:
    """Whether the hub answers at all; without it, only files of the local cache are used.

    Asked once in a process. The library's own calls try six times, for half a minute, and then for
    the next file again.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        # the library's session follows the proxies and certificates of the environment
        get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    # its HTTP library has errors of many kinds for a network that does not answer
    except Exception as error:
        _log.warning(
            "%s does not answer (%s); files of the local cache are used", constants.ENDPOINT, error
        )
        return False
    return True

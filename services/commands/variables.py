"""Every environment variable that means something, so that a misspelt one is found."""

from __future__ import annotations

from services.decode.options import DecodeOptions
from services.prefill.options import PrefillOptions
from services.runtime.process.configuration import PREFIX, settings_of

# read by the test suite alone
_TESTS = {"HEADWISE_REQUIRE_PARTS"}

KNOWN_VARIABLES = _TESTS | {
    PREFIX + name.upper()
    for options in (PrefillOptions, DecodeOptions)
    for name, _, _ in settings_of(options)
}

"""Every environment variable that has a meaning, so that a misspelt one is found."""

from __future__ import annotations

from headwise.commands.connection_options import CLIENT_VARIABLES
from headwise.commands.one_line_errors import TRACEBACK_VARIABLE
from services.commands.former_names import FORMER_DECODE, FORMER_PREFILL
from services.decode.options import DecodeOptions
from services.prefill.options import PrefillOptions
from services.runtime.process.configuration import settings_of, variable_of
from services.runtime.process.configuration_file import CONFIG_VARIABLE

# read by the test suite alone
_TESTS = {"HEADWISE_REQUIRE_PARTS"}

_FORMER = {
    variable_of(name)
    for former in (*FORMER_PREFILL, *FORMER_DECODE)
    for name in former.names
    if former.has_variables
}

KNOWN_VARIABLES = (
    _TESTS
    | {CONFIG_VARIABLE, TRACEBACK_VARIABLE}
    | set(CLIENT_VARIABLES.values())
    | _FORMER
    | {
        variable_of(name)
        for options in (PrefillOptions, DecodeOptions)
        for name, _, _ in settings_of(options)
    }
)

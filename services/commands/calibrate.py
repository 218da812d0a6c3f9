"""`headwise calibrate`: measure what policies want to know of a model's heads."""

from __future__ import annotations

import click
from rich.console import Console

from services.runtime.process.configuration import options_of
from services.runtime.process.options import ModelOptions


@click.command()
@options_of(ModelOptions)
def calibrate(**values: object) -> None:
    """Measure a model's retrieval heads and query directions, and keep them for prefill.

    Prefill does so by itself: for its default policy before it serves, for others at the
    first request that needs them.
    """
    from kvstore.errors import KVStoreError
    from services.prefill.calibration.artefacts import Artefact
    from services.prefill.calibration.calibrations import Calibrations
    from services.runtime.model.model_errors import ModelError
    from services.runtime.model.model_options import load_served_model
    from services.runtime.process.configuration import build

    options = build(ModelOptions, values)
    try:
        served = load_served_model(options)
    except (ModelError, KVStoreError) as error:
        raise click.ClickException(str(error)) from error
    calibrations = Calibrations(served, options.model_cache.expanduser())
    calibrations.retrieval()
    calibrations.filters()
    calibrations.sensitivity()
    for kind in Artefact:
        Console().print(f"{kind:12} {calibrations.path(kind)}", soft_wrap=True)

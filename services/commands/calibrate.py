"""`headwise calibrate`: measure a model's heads for the policies that need it."""

from __future__ import annotations

import click
from rich.console import Console

from services.runtime.process.configuration import options_of
from services.runtime.process.options import ModelOptions


@click.command()
@options_of(ModelOptions)
def calibrate(**values: object) -> None:
    """Measure a model's retrieval heads, query directions and sensitivity to codecs.

    The measurements go to the folder of --model-cache, and prefill reads them there. Prefill
    measures what is missing: for its default policy at the start, for other policies at their first
    request.
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

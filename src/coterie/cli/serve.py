"""The command that puts a model behind a web page: serve."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie.cli.app import Device, OwnModel, RunOrCheckpoint, app


@app.command()
def serve(
    path: RunOrCheckpoint,
    host: Annotated[str, typer.Option(help="127.0.0.1: this machine alone; 0.0.0.0: all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="The largest picture to take.")] = 20,
    model: OwnModel = None,
    device: Device = "auto",
) -> None:
    """Serve a page to drop photographs on, and a JSON endpoint.

    Example: coterie serve runs/x

    Then: curl --data-binary @photo.jpg http://127.0.0.1:8000/api/predict. Ctrl-C ends it.
    """
    from coterie.errors import ConfigError
    from coterie.extras import need_extra

    need_extra("serve", "coterie serve", "fastapi", "uvicorn")
    from coterie.explain import make_explainer
    from coterie.models.factory import import_builder
    from coterie.predictor import load_classifier
    from coterie.serve import Limits, make_app
    from coterie.serve import serve as serve_app
    from coterie.serve.app import LOOPBACK
    from coterie.serve.server import address, is_loopback, listen

    predictor = load_classifier(path, import_builder(model) if model else None, device)
    try:
        explainer = make_explainer(predictor)
    except ConfigError as error:
        explainer = None
        typer.echo(f"note: the page shows no maps: {error}", err=True)
    listening = listen(host, port)
    local = is_loopback(host)
    if not local:
        typer.echo(f"note: whoever reaches {host} can use this; there is no password", err=True)
    typer.echo(f"{predictor.checkpoint.name} of {path} at {address(listening)} (Ctrl-C ends it)")
    limits = Limits(max_bytes=int(max_megabytes * 1e6))
    hosts = LOOPBACK | {host} if local else None
    serve_app(make_app(predictor, explainer=explainer, limits=limits, hosts=hosts), listening)

"""`coterie serve`: a page to drop a photograph on, and a JSON endpoint."""

from coterie.serve.app import Limits, make_app
from coterie.serve.server import serve

__all__ = ["Limits", "make_app", "serve"]

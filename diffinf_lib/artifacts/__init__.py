"""Artifacts: where files lie, how they are written, and what says how they came about."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Curvature: K-FAC, EK-FAC and simpler approximations of the GGN, and exact references."""

import warnings

import lazy_loader

# Importing curvlinops compiles something in a way that torch calls deprecated; that is not the reader's concern
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

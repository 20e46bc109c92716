"""Report: one command from a model and a folder of images to a page for people, and to what is wrong with the images."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

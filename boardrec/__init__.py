"""boardrec: from a folder of photographs to a served image classifier."""

__version__ = '0.1.0'

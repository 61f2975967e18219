"""The Python API: the names scripts import from :mod:`whet.engine`. Heavy: every file here may load torch."""

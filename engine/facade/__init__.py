"""The functions of :mod:`whet.engine.api`, by what they are about. Front ends import that, not these."""

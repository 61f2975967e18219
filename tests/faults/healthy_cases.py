"""Set-ups without fault: families, formats and templates that must raise no warning."""

from __future__ import annotations

from faults.harness import Healthy

HEALTHY: tuple[Healthy, ...] = ()

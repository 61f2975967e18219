"""References of a JSON Schema that lead nowhere. Light, though it imports what reads schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012


def dangling(schema: Mapping[str, Any]) -> Iterator[str]:
    """Each ``$ref`` that is found neither in the schema nor below an ``$id`` of it; nothing is fetched."""
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    registry: Registry[Any] = Registry().with_resource("", resource)
    yield from _dangling(resource, registry.resolver_with_root(resource))


def _dangling(resource: Resource[Any], resolver: Any) -> Iterator[str]:
    contents = resource.contents
    if isinstance(contents, Mapping) and "$ref" in contents:
        try:
            resolver.lookup(contents["$ref"])
        except Unresolvable:
            yield contents["$ref"]
    for inner in resource.subresources():
        yield from _dangling(inner, resolver.in_subresource(inner))

"""Every route of a server, as its OpenAPI document tells it, and a body that each of them takes."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, Final

import httpx2
from tests.acceptance.callers import API

Ids = Mapping[str, tuple[str, ...]]

# What a schema does not tell: members by name, which the routes take.
WORDS: Final[Mapping[str, object]] = {
    "start": "2026-01-01T00:00:00Z",
    "end": "2026-01-02T00:00:00Z",
    "since": "2026-01-01T00:00:00Z",
    "until": "2026-12-31T00:00:00Z",
    "at": "2026-01-01T00:00:00Z",
    "partition": "P1D",
    "job_type": "external",
    "job_types": ["external", "patient"],
    "from": 1,
    "to": 1,
    "request_reason": "more room for the launch",
    "capacity": 100,
    "plan_token": "of-no-plan",
}
# Required whatever the document says of it: the framework has no word for a parameter that it does not read itself.
NEEDED: Final = {"from"}


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path below `/api/v1`; *schemas* are those of the whole document."""

    method: str
    path: str
    operation: Mapping[str, Any]
    schemas: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def holes(self) -> list[str]:
        """The names in the path."""
        return re.findall(r"\{(\w+)\}", self.path)

    @property
    def query(self) -> list[str]:
        """The names in the query."""
        return [found["name"] for found in self.operation.get("parameters", []) if found["in"] == "query"]

    def filled(self, ids: Ids) -> Iterator[str]:
        """Return the path with every combination of *ids* in its holes; a hole nobody knows takes any of them."""
        every = tuple(dict.fromkeys(found for known in ids.values() for found in known))
        for chosen in product(*(ids.get(hole, every) for hole in self.holes)):
            path = self.path
            for hole, text in zip(self.holes, chosen, strict=True):
                path = path.replace(f"{{{hole}}}", text)
            yield path

    def body(self, **known: object) -> Any:
        """Return a body that the route takes, None where it takes none; *known* are members by name."""
        content = self.operation.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        return None if schema is None else self._example("", schema, {**WORDS, **known})

    def needed(self, **known: object) -> dict[str, Any]:
        """Return the query parameters that the route cannot do without."""
        found = {found["name"] for found in self.operation.get("parameters", []) if found.get("required")}
        return {name: {**WORDS, **known}.get(name, 1) for name in self.query if name in found | NEEDED}

    def _example(self, name: str, schema: Mapping[str, Any], known: Mapping[str, object]) -> Any:
        if name in known:
            return known[name]
        if "$ref" in schema:
            return self._example(name, self.schemas[schema["$ref"].rpartition("/")[2]], known)
        for choice in ("oneOf", "anyOf", "allOf"):
            if choice in schema:
                return self._example(name, schema[choice][0], known)
        if "enum" in schema:
            return schema["enum"][0]
        return self._plain(schema, known)

    def _plain(self, schema: Mapping[str, Any], known: Mapping[str, object]) -> Any:
        match schema.get("type"):
            case "object":
                members = schema.get("properties", {})
                wanted = schema.get("required") or list(members)[:1]
                return {member: self._example(member, members[member], known) for member in wanted}
            case "array":
                return [self._example("", schema["items"], known)] if "items" in schema else []
            case "integer" | "number":
                return max(1, schema.get("minimum", 1))
            case "boolean":
                return False
            case "string":
                return "word"
            case _:
                return {}


def read_routes(http: httpx2.Client, url: str) -> list[Route]:
    """Return the routes below `/api/v1` that the server documents."""
    document = http.get(f"{url}/openapi.json").json()
    schemas = document["components"]["schemas"]
    return [
        Route(method.upper(), path.removeprefix(API), operation, schemas)
        for path, methods in document["paths"].items()
        if path.startswith(API)
        for method, operation in methods.items()
    ]

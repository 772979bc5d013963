"""The OpenAPI 3.1 document: what the handlers say of themselves, mended where the framework cannot know better."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, cast

import msgspec
from litestar import Litestar, Request, Response, get

from jobengine.authority.scopes import Scope
from jobengine.ids import JOB_TYPE
from jobengine.web.openapi_facts import (
    ANSWERS,
    DESCRIBED,
    FENCED,
    HEADERS_ANSWERED,
    HEADERS_SENT,
    LINKED,
    PROBLEM,
    REQUIRED_IN_QUERY,
    TIME,
    TIMES_ASKED,
    TIMES_SENT,
    TYPES_ANSWERED,
)
from jobengine.web.problems import MEDIA_TYPE, PROBLEMS

_API = "/api/v1/"
_OAUTH = "oauth2"
_WRITTEN = "openapi_written"
_METHODS = ("get", "post", "put", "patch", "delete")
_SCHEMAS = "#/components/schemas/"
_PROBLEM_REF = {"$ref": f"{_SCHEMAS}Problem"}
_UNAVAILABLE = "temporarily_unavailable"

Document = dict[str, Any]


@get("/openapi.json", include_in_schema=False)
async def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Show the OpenAPI 3.1 document."""
    state = request.app.state
    if _WRITTEN not in state:
        # Made once: it takes a tenth of a second, and anybody may ask for it.
        state[_WRITTEN] = msgspec.json.encode(document(request.app))
    return Response(state[_WRITTEN], media_type="application/json")


def document(app: Litestar) -> Document:
    """Return the document of *app*."""
    found = _plain(app)
    scopes = _scopes(app)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    _mend_schemas(schemas)
    components["securitySchemes"] = {_OAUTH: _security()}
    for path, method, operation in _operations(found):
        _mend_parameters(operation)
        _mend_body(operation, schemas)
        _mend_answers(path, method, operation)
        if not path.startswith(_API):
            continue
        operation["responses"].pop("400", None)
        operation["responses"] |= _problems()
        operation["security"] = [{_OAUTH: [scope]} for scope in scopes.get((path, method), ())]
        operation.setdefault("parameters", []).extend(_headers(path, method))
    _mend_root(found["paths"])
    _link(found)
    schemas["Problem"] = dict(PROBLEM)
    return found


def _plain(app: Litestar) -> Document:
    # Patterns are those of ECMA-262 here, which has no \Z and whose $ is no better and no worse.
    text = msgspec.json.encode(app.openapi_schema.to_schema()).decode()
    return _straight(json.loads(text.replace(r"\\Z", "$")))


def _straight(value: Any) -> Any:
    if isinstance(value, list):
        return [_straight(item) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    straight = {name: _straight(member) for name, member in cast("Document", value).items()}
    choices = straight.get("oneOf", ())
    if len(choices) == 1:
        straight = {**straight, **choices[0]}
        del straight["oneOf"]
    if "maximum" in straight and "minimum" not in straight:
        # The framework forgets a least value of zero beside a choice, and no number of ours may be below.
        straight["minimum"] = 0
    return straight


def _mend_schemas(schemas: Document) -> None:
    for name, members in TIMES_SENT.items():
        schemas[name]["properties"] |= {member: dict(TIME) for member in members}
    schemas["Claim"]["properties"]["job_types"]["items"]["pattern"] = re.sub(r"\\Z$", "$", JOB_TYPE)


def _operations(found: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in found["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def _mend_parameters(operation: Document) -> None:
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _sent(parameter["schema"])
        if parameter["in"] == "query" and parameter["name"] in TIMES_ASKED:
            parameter["schema"] = dict(TIME)
        if parameter["name"] in REQUIRED_IN_QUERY:
            parameter["required"] = True


def _sent(schema: Document) -> Document:
    # Null is how a handler sees that nothing was sent; nobody can send it.
    if {"type": "null"} in schema.get("oneOf", ()):
        [choice] = [choice for choice in schema["oneOf"] if choice != {"type": "null"}]
        schema = {**{name: value for name, value in schema.items() if name != "oneOf"}, **choice}
    if None in schema.get("enum", ()):
        schema = {**schema, "type": "string", "enum": [value for value in schema["enum"] if value is not None]}
    return schema


def _mend_body(operation: Document, schemas: Document) -> None:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        optional = "oneOf" in content["schema"]
        content["schema"] = _sent(content["schema"])
        operation["requestBody"]["required"] = not optional
        for name in _reached(content["schema"], schemas):
            schemas[name]["additionalProperties"] = False


def _reached(schema: Any, schemas: Document) -> Iterator[str]:
    if isinstance(schema, list):
        for item in cast("list[Any]", schema):
            yield from _reached(item, schemas)
    elif isinstance(schema, dict):
        members = cast("Document", schema)
        name = str(members.get("$ref", "")).removeprefix(_SCHEMAS)
        if schemas.get(name, {}).get("type") == "object":
            yield name
            yield from _reached(schemas[name]["properties"], schemas)
        for member in members.values():
            yield from _reached(member, schemas)


def _mend_answers(path: str, method: str, operation: Document) -> None:
    responses: Document = operation["responses"]
    for (known, by, status), schema in ANSWERS.items():
        if (known, by) == (path, method):
            answer = responses.setdefault(status, {"description": DESCRIBED.get((path, method, status), "")})
            answer["content"] = {"application/json": {"schema": schema}}
    for media_type in TYPES_ANSWERED.get((path, method), ()):
        responses["200"]["content"][media_type] = {"schema": {"type": "string"}}
    for status, answer in responses.items():
        if status == "204":
            answer.pop("content", None)
        answer["headers"] = {**answer.get("headers", {}), **HEADERS_ANSWERED.get((path, method, status), {})}


def _mend_root(paths: Document) -> None:
    paths["/readyz"]["get"]["responses"]["503"] = _problem_answer([_UNAVAILABLE])
    # RFC 7009 section 2.2: the status says it all.
    paths["/oauth2/revoke"]["post"]["responses"]["200"].pop("content", None)


def _link(found: Document) -> None:
    operations = {operation["operationId"]: operation for _, _, operation in _operations(found)}
    for (path, method, status), known in LINKED.items():
        links: Document = {}
        for name, operation in operations.items():
            wanted = {found["name"] for found in operation.get("parameters", ()) if found["in"] == "path"}
            if wanted and wanted <= known.keys():
                links[name] = {"operationId": name, "parameters": {hole: known[hole] for hole in sorted(wanted)}}
                if (fence := _fence(wanted, operation)) is not None:
                    links[name]["requestBody"] = {"fencing_token": fence}
        found["paths"][path][method]["responses"][status]["links"] = links


def _fence(wanted: set[str], operation: Document) -> str | None:
    held = wanted & FENCED.keys()
    return FENCED[held.pop()] if held and operation.get("requestBody", {}).get("required") else None


def _scopes(app: Litestar) -> dict[tuple[str, str], tuple[str, ...]]:
    return {
        (_without_types(route.path), method.lower()): handler.opt["scopes"]
        for route in app.routes
        for handler in getattr(route, "route_handlers", ())
        if "scopes" in handler.opt
        for method in handler.http_methods
    }


def _without_types(path: str) -> str:
    # A route names the type of a parameter, the document only the parameter.
    return "/".join(part.split(":")[0] + "}" if part.startswith("{") else part for part in path.split("/"))


def _problems() -> Document:
    codes: defaultdict[int, list[str]] = defaultdict(list)
    for code, (status, _) in PROBLEMS.items():
        codes[status].append(code)
    return {str(status): _problem_answer(named) for status, named in sorted(codes.items())}


def _problem_answer(codes: list[str]) -> Document:
    return {"description": ", ".join(sorted(codes)), "content": {MEDIA_TYPE: {"schema": _PROBLEM_REF}}}


def _headers(path: str, method: str) -> Iterator[Document]:
    named = ["X-StellaOps-Tenant"]
    if method in {"post", "patch", "delete"}:
        named.append("Idempotency-Key")
    pool = path == f"{_API}allocations/{{job_type}}"
    if method != "get" and (pool or path.startswith((f"{_API}quotas/", f"{_API}policy"))):
        named.append("If-Match")
    for name in named:
        yield {"name": name, "in": "header", "required": False, **HEADERS_SENT[name]}


def _security() -> Mapping[str, Any]:
    scopes = {scope.value: scope.name.lower() for scope in Scope}
    return {"type": "oauth2", "flows": {"clientCredentials": {"tokenUrl": "/oauth2/token", "scopes": scopes}}}

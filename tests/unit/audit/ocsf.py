"""What OCSF 1.3.0 asks of an API Activity (class 6003), as far as we write it: facts of the public ocsf/ocsf-schema.

An attribute that the schema knows and that is not listed here is a fault too: whoever writes one looks it up first.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

ENUMS = {
    "activity_id": {0: "Unknown", 1: "Create", 2: "Read", 3: "Update", 4: "Delete", 99: "Other"},
    "category_uid": {6: "Application Activity"},
    "class_uid": {6003: "API Activity"},
    "severity_id": {
        0: "Unknown", 1: "Informational", 2: "Low", 3: "Medium", 4: "High", 5: "Critical", 6: "Fatal", 99: "Other",
    },
    "status_id": {0: "Unknown", 1: "Success", 2: "Failure", 99: "Other"},
}  # fmt: skip
CAPTIONS = {
    "activity_id": "activity_name",
    "category_uid": "category_name",
    "class_uid": "class_name",
    "severity_id": "severity",
    "status_id": "status",
}
OTHER = 99


@dataclass(frozen=True, slots=True)
class Shape:
    """The attributes of a class or an object by their types; a type that is a text names another shape."""

    attributes: Mapping[str, type | str | list[str]]
    required: Collection[str] = ()
    at_least_one: Collection[str] = field(default=())


SHAPES = {
    "api_activity": Shape(
        {
            "activity_id": int, "activity_name": str, "actor": "actor", "api": "api", "category_name": str,
            "category_uid": int, "class_name": str, "class_uid": int, "metadata": "metadata",
            "resources": ["resource_details"], "severity": str, "severity_id": int, "src_endpoint": "network_endpoint",
            "status": str, "status_code": str, "status_id": int, "time": int, "type_uid": int, "unmapped": dict,
        },
        required=[
            "activity_id", "actor", "api", "category_uid", "class_uid", "metadata", "severity_id", "src_endpoint",
            "time", "type_uid",
        ],
    ),
    "actor": Shape({"app_uid": str, "user": "user"}, at_least_one=["app_uid", "user"]),
    "user": Shape({"type": str, "uid": str}, at_least_one=["uid"]),
    "api": Shape({"operation": str, "request": "request", "service": "service"}, required=["operation"]),
    "request": Shape({"uid": str}, required=["uid"]),
    "service": Shape({"name": str}, at_least_one=["name"]),
    "metadata": Shape(
        {
            "event_code": str, "log_name": str, "original_time": str, "product": "product", "sequence": int,
            "tenant_uid": str, "uid": str, "version": str,
        },
        required=["product", "version"],
    ),
    "product": Shape({"name": str, "vendor_name": str}, required=["vendor_name"], at_least_one=["name"]),
    "network_endpoint": Shape({"uid": str}, at_least_one=["uid"]),
    "resource_details": Shape({"type": str, "uid": str}, at_least_one=["uid"]),
}  # fmt: skip


def faults(event: Mapping[str, Any]) -> list[str]:
    """Name everything in which *event* is no API Activity."""
    found = list(_faults(event, "api_activity", "event"))
    return found or [*_wrong_numbers(event)]


def _faults(value: object, wanted: type | str | list[str], path: str) -> Iterator[str]:
    match wanted:
        case str():
            if isinstance(value, dict):
                yield from _faults_of_object(cast("dict[str, Any]", value), SHAPES[wanted], path)
            else:
                yield f"{path} is no object"
        case [shape]:
            if not isinstance(value, list) or not value:
                yield f"{path} is no list of objects"
                return
            for place, item in enumerate(cast("list[object]", value)):
                yield from _faults(item, shape, f"{path}[{place}]")
        case _:
            # True is an int to Python alone.
            if type(value) is not wanted or value == "":
                yield f"{path} is no {wanted}"


def _faults_of_object(value: Mapping[str, Any], shape: Shape, path: str) -> Iterator[str]:
    for name in shape.required:
        if name not in value:
            yield f"{path}.{name} is missing"
    if shape.at_least_one and not value.keys() & set(shape.at_least_one):
        yield f"{path} has none of {', '.join(shape.at_least_one)}"
    for name, item in value.items():
        if name in shape.attributes:
            yield from _faults(item, shape.attributes[name], f"{path}.{name}")
        else:
            yield f"{path}.{name} is unknown"


def _wrong_numbers(event: Mapping[str, Any]) -> Iterator[str]:
    if event["type_uid"] != event["class_uid"] * 100 + event["activity_id"]:
        yield "event.type_uid is not that of the class and the activity"
    if event["time"] < 0:
        yield "event.time lies before 1970"
    if event["metadata"]["version"] != "1.3.0":
        yield "event.metadata.version is another one"
    for name, captions in ENUMS.items():
        number, caption = event.get(name), event.get(CAPTIONS[name])
        if number not in captions:
            yield f"event.{name} is none of its values"
        elif number != OTHER and caption != captions[number]:
            yield f"event.{CAPTIONS[name]} is not the caption of {number}"

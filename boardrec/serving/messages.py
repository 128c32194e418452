"""TF Serving's answers about a model, as messages: the state of its versions, and its signatures."""

from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from boardrec.serving.failure import Failure

_SIGNATURE_DEF = 'signature_def'


def model_status(statuses: Mapping[int, Any]) -> Any:
    """GetModelStatusResponse, newest version first as TF Serving lists them."""
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, status in sorted(statuses.items(), reverse=True):
        one = response.model_version_status.add(version=version, state=status.state)
        if status.failure:
            one.status.error_code = status.failure.code.value[0]
            one.status.error_message = status.failure.message
        else:
            one.status.SetInParent()
    return response


def model_metadata(name: str, servable: Any, fields: list[str]) -> Any:
    """GetModelMetadataResponse. Raises Failure for fields other than signature_def."""
    if not fields:
        raise Failure('INVALID_ARGUMENT', 'GetModelMetadataRequest must specify at least one metadata_field')
    if set(fields) != {_SIGNATURE_DEF}:
        raise Failure('INVALID_ARGUMENT', f'Metadata field {min(set(fields) - {_SIGNATURE_DEF})} is not supported')
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = name
    response.model_spec.version.value = servable.version
    response.metadata[_SIGNATURE_DEF].Pack(_signature_map(servable))
    return response


def model_metadata_json(name: str, servable: Any) -> dict[str, Any]:
    """The same as a document, in TF Serving's JSON."""
    return {'model_spec': {'name': name, 'signature_name': '', 'version': str(servable.version)},
            'metadata': {_SIGNATURE_DEF: as_document(_signature_map(servable))}}


def as_document(message: Any) -> dict[str, Any]:
    """A message as TF Serving's JSON has it: with the fields that are not set, and their names as they are."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True,
                                     always_print_fields_with_no_presence=True)


def _signature_map(servable: Any) -> Any:
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in servable.signature_defs.items():
        signatures.signature_def[name].CopyFrom(definition)
    return signatures

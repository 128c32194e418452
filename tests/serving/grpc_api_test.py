"""TF Serving's gRPC API, asked with the stubs of tensorflow-serving-api."""

import grpc
import numpy as np
import pytest
import served_models
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

IMAGES = [b'one', b'', b'\x00three']


@pytest.fixture(scope='module')
def channel(served):
    with grpc.insecure_channel(served.grpc) as channel:
        yield channel


@pytest.fixture(scope='module')
def prediction(channel):
    from tensorflow_serving.apis import prediction_service_pb2_grpc
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope='module')
def model(channel):
    from tensorflow_serving.apis import model_service_pb2_grpc
    return model_service_pb2_grpc.ModelServiceStub(channel)


def predict_request(images=IMAGES, *, name='boardrec', signature='', inputs=None, **spec):
    from tensorflow_serving.apis import predict_pb2
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature
    if 'version' in spec:
        request.model_spec.version.value = spec['version']
    if 'label' in spec:
        request.model_spec.version_label = spec['label']
    for key, value in (inputs or {'image_bytes': np.array(images, object)}).items():
        request.inputs[key].CopyFrom(value if isinstance(value, tensor_pb2.TensorProto)
                                     else tf.make_tensor_proto(value))
    return request


def test_predict(prediction):
    response = prediction.Predict(predict_request(), timeout=20)
    outputs = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    assert outputs['checksum'].tolist() == list(map(served_models.checksum, IMAGES))
    assert outputs['valid'].tolist() == [True, False, True]
    assert outputs['error_code'].tolist() == [b'', b'empty', b'']
    assert outputs['probabilities'].dtype == np.float32
    assert outputs['probabilities'].sum(axis=1) == pytest.approx([1, 0, 1])
    assert (response.model_spec.name, response.model_spec.version.value) == ('boardrec', 1)
    assert response.model_spec.signature_name == 'serving_default'
    assert len(response.outputs['score'].float_val) == 3, 'where clients without TensorFlow look'


def test_only_the_outputs_that_are_asked_for(prediction):
    request = predict_request(version=1)
    request.output_filter.extend(['score'])
    assert list(prediction.Predict(request, timeout=20).outputs) == ['score']


def test_pixels_as_bytes_or_as_numbers(prediction):
    pixels = np.arange(2 * np.prod(served_models.PIXELS), dtype=np.uint8).reshape(2, *served_models.PIXELS)
    numbers = tf.make_tensor_proto(pixels)
    numbers.int_val.extend(pixels.ravel().tolist())
    numbers.ClearField('tensor_content')
    answers = [prediction.Predict(predict_request(signature='serving_pixels', inputs={'images': given}), timeout=20)
               for given in (pixels, numbers)]
    first, second = (tf.make_ndarray(answer.outputs['checksum']).tolist() for answer in answers)
    assert first == second == [served_models.checksum(tf.io.encode_png(one).numpy()) for one in pixels]


def test_no_rows(prediction):
    assert not len(tf.make_ndarray(prediction.Predict(predict_request([]), timeout=20).outputs['score']))


@pytest.mark.parametrize('in_context', [False, True])
def test_classify(prediction, in_context):
    from tensorflow_serving.apis import classification_pb2
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = 'boardrec', 'classify'
    if in_context:
        examples = request.input.example_list_with_context
        examples.context.features.feature['image_bytes'].bytes_list.value.append(b'one')
        examples.examples.add()
    else:
        request.input.example_list.examples.add().features.feature['image_bytes'].bytes_list.value.append(b'one')
    row, = prediction.Classify(request, timeout=20).result.classifications
    score = served_models.checksum(b'one') / served_models.BUCKETS
    assert [one.label for one in row.classes] == served_models.CLASS_NAMES
    assert [one.score for one in row.classes] == pytest.approx([1 - score, score])


def test_a_context_that_many_examples_would_multiply_is_refused(prediction):
    from tensorflow_serving.apis import classification_pb2
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = 'boardrec', 'classify'
    examples = request.input.example_list_with_context
    examples.context.features.feature['other'].bytes_list.value.append(b'x' * 500_000)
    for _ in range(200):
        examples.examples.add()
    code, details = refusal(prediction.Classify, request)
    assert code == 'INVALID_ARGUMENT' and 'for each of 200 examples takes more than 67108864 bytes' in details


def test_metadata_and_status(prediction, model):
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=['signature_def'])
    request.model_spec.name = 'boardrec'
    response = prediction.GetModelMetadata(request, timeout=20)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata['signature_def'].Unpack(signatures)
    assert 'image_bytes' in signatures.signature_def['serving_default'].inputs
    assert response.model_spec.version.value == 1
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = 'boardrec'
    one, = model.GetModelStatus(status, timeout=20).model_version_status
    assert (one.version, one.state, one.status.error_code) == (1, one.AVAILABLE, 0)
    status.model_spec.version.value = 9
    code, details = refusal(model.GetModelStatus, status)
    assert (code, details) == ('NOT_FOUND', 'Could not find version 9 of model boardrec')
    request.metadata_field[:] = ['weights']
    assert refusal(prediction.GetModelMetadata, request) == (
        'INVALID_ARGUMENT', 'Metadata field weights is not supported')


def refusal(method, request):
    """Code and details of the error that a call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=20)
    return caught.value.code().name, caught.value.details()


def bomb(dtype, size, **values):
    """A TensorProto of a few bytes that stands for `size` elements."""
    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    proto.tensor_shape.dim.add().size = size
    return proto


@pytest.mark.parametrize(('settings', 'code', 'details'), [
    ({'name': 'other'}, 'NOT_FOUND', 'Servable not found for request: Latest(other)'),
    ({'version': 7}, 'NOT_FOUND', 'Servable not found for request: Specific(boardrec, 7)'),
    ({'label': 'x'}, 'INVALID_ARGUMENT', 'Unrecognized servable version label: x'),
    ({'signature': 'x'}, 'INVALID_ARGUMENT', 'Serving signature name: "x" not found'),
    ({'inputs': {'image': np.array([b'a'], object)}}, 'INVALID_ARGUMENT', 'Sent extra: {image}. Missing but required: '
                                                                          '{image_bytes}.'),
    ({'inputs': {'image_bytes': np.zeros([1], np.float32)}}, 'INVALID_ARGUMENT',
     'input image_bytes is float32, but signature serving_default takes string'),
    ({'inputs': {'image_bytes': np.array([[b'a']], object)}}, 'INVALID_ARGUMENT', 'has shape [1, 1], but signature'),
    ({'inputs': {'image_bytes': bomb(7, 2**40, string_val=[b'a'])}}, 'INVALID_ARGUMENT', 'takes more than 1048576'),
    ({'inputs': {'image_bytes': bomb(7, 2**16, string_val=[b'a' * 99])}}, 'INVALID_ARGUMENT', 'takes more than 104857'),
    ({'inputs': {'image_bytes': bomb(7, -1, string_val=[b'a'])}}, 'INVALID_ARGUMENT', 'its shape is not known'),
    ({'inputs': {'image_bytes': bomb(1, 3, tensor_content=b'abc')}}, 'INVALID_ARGUMENT', 'is no valid tensor'),
    ({'inputs': {'image_bytes': bomb(77, 1)}}, 'INVALID_ARGUMENT', 'input image_bytes is no valid tensor'),
    ({'images': [b'1', b'x'], 'signature': 'strict'}, 'INVALID_ARGUMENT', 'StringToNumberOp could not correctly'),
], ids=str)
def test_a_request_that_is_wrong_is_refused_with_its_reason(prediction, settings, code, details):
    inputs = settings.get('inputs')
    if settings.get('signature') == 'strict':
        inputs = {'image_bytes': np.array(settings['images'], object)}
    answered, reason = refusal(prediction.Predict, predict_request(**{**settings, 'inputs': inputs}))
    assert answered == code
    assert details in reason
    assert prediction.Predict(predict_request(), timeout=20).outputs, 'the server goes on'


def test_an_output_that_is_not_there(prediction):
    request = predict_request()
    request.output_filter.extend(['score', 'logits'])
    assert refusal(prediction.Predict, request)[1].startswith('output tensor alias not found in signature: logits')
    request.output_filter[:] = ['score', 'score']
    assert refusal(prediction.Predict, request)[1] == 'duplicate output tensor alias: score'


def test_what_is_not_served(prediction, model):
    from tensorflow_serving.apis import inference_pb2, model_management_pb2, predict_pb2, regression_pb2
    for method, request in ((prediction.Regress, regression_pb2.RegressionRequest()),
                            (prediction.MultiInference, inference_pb2.MultiInferenceRequest()),
                            (model.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest())):
        assert refusal(method, request)[0] == 'UNIMPLEMENTED'
    assert refusal(prediction.Predict, predict_pb2.PredictRequest()) == ('INVALID_ARGUMENT', 'Missing ModelSpec')


def test_a_message_that_is_too_large_is_refused(prediction):
    code, details = refusal(prediction.Predict, predict_request([b'x' * (3 << 20)]))
    assert code == 'RESOURCE_EXHAUSTED'
    assert 'larger than max' in details


@pytest.mark.parametrize(('mib', 'calls'), [(1, 4096), (3, 2048), (31, 256), (127, 64), (2047, 64)])
def test_messages_that_are_read_at_once_fit_8_gib_unless_they_are_large(served, mib, calls):
    from boardrec.serving import grpc_api
    assert grpc_api.calls_at_once(mib << 20, 4096) == calls


def test_health(channel):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ('', 'tensorflow.serving.PredictionService'):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status == 1
    assert refusal(stub.Check, health_pb2.HealthCheckRequest(service='other')) == (
        'NOT_FOUND', 'unknown service: other')

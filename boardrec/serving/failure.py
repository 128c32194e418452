"""What a request may be refused with: a canonical code, which gRPC answers as it is and REST by TF Serving's table."""

import grpc

_HTTP = {'OK': 200, 'CANCELLED': 499, 'UNKNOWN': 500, 'INVALID_ARGUMENT': 400, 'DEADLINE_EXCEEDED': 504,
         'NOT_FOUND': 404, 'ALREADY_EXISTS': 409, 'PERMISSION_DENIED': 403, 'RESOURCE_EXHAUSTED': 429,
         'FAILED_PRECONDITION': 400, 'ABORTED': 409, 'OUT_OF_RANGE': 400, 'UNIMPLEMENTED': 501, 'INTERNAL': 500,
         'UNAVAILABLE': 503, 'DATA_LOSS': 500, 'UNAUTHENTICATED': 401}  # tensorflow/serving, http_server.cc
_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
_MESSAGE_CHARACTERS = 500  # of TensorFlow's, which quotes stack traces


class Failure(Exception):
    """A request that gets no answer, and why. `http_status` is given where HTTP says more than the code."""

    def __init__(self, code: str, message: str, http_status: int | None = None):
        super().__init__(message)
        self.code, self.message = grpc.StatusCode[code], message
        self.http_status = http_status or _HTTP[code]


def of_exception(error: Exception) -> Failure:
    """What TensorFlow (or anything else) raised while a graph ran, as a Failure."""
    if isinstance(error, Failure):
        return error
    number = getattr(error, 'error_code', None)  # of tf.errors.OpError
    if isinstance(number, int) and number in _BY_NUMBER:
        text = (getattr(error, 'message', None) or str(error)).strip().partition('\n')[0]
        return Failure(_BY_NUMBER[number].name, text[:_MESSAGE_CHARACTERS])
    text = f'{type(error).__name__}: {error}'.partition('\n')[0][:_MESSAGE_CHARACTERS]
    return Failure('INTERNAL', text)

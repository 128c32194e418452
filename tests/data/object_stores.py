"""What tests of object stores share."""

import importlib.util

import pytest

HAS_S3 = all(importlib.util.find_spec(name) for name in ('s3fs', 'moto', 'flask'))


def needs_s3(test):
    skip = pytest.mark.skipif(not HAS_S3, reason="needs s3fs and moto: pip install -e '.[s3,long]'")
    return pytest.mark.long(skip(test))

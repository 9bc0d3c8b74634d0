"""Tests of your own networks: `assert_trainable` in a pytest file, beside your other tests."""

from normscope.testing.trainable import assert_trainable

__all__ = ["assert_trainable"]

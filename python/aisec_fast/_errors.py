"""The library's own errors. Each is also the builtin that a caller would expect to catch."""


class AisecFastError(Exception):
    """Base of every error that only this library raises."""


class BackendError(AisecFastError, ValueError):
    """A backend was asked for that is missing, or that cannot reach the array."""


class PrivacyError(AisecFastError, ValueError):
    """A training step would not be the mechanism that is accounted for."""


class UnsupportedModuleError(PrivacyError):
    """The model holds a trainable parameter or a layer that cannot be trained privately."""

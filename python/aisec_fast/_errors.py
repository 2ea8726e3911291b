"""The library's own errors. Each is also the builtin that a caller would expect to catch."""


class AisecFastError(Exception):
    """Base of every error that only this library raises."""


class BackendError(AisecFastError, ValueError):
    """A backend was asked for that is missing, or that cannot reach the array."""


class PrivacyError(AisecFastError, ValueError):
    """A training step would not be the mechanism that is accounted for."""


class BudgetError(PrivacyError):
    """A release would cost more than what is left of a privacy budget."""


class UnsupportedModuleError(PrivacyError):
    """The model holds a trainable parameter or a layer that cannot be trained privately."""


class UnsupportedFileError(AisecFastError, OSError):
    """A symbolic link, FIFO, socket or device lies where a regular file is expected."""


class FileChangedError(AisecFastError, OSError):
    """A file changed while it was read: its digest would be that of no file that ever was."""


class ManifestError(AisecFastError, ValueError):
    """A manifest is not well-formed, or cannot describe a file; the message names file and field."""

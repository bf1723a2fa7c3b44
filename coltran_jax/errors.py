"""The exceptions that a caller may want to catch. Commands turn them into one line and an exit status."""


def one_line(error: Exception | str) -> str:
    """Returns the message of an exception, or a text, as one line."""
    return " ".join(str(error).split())


class ConfigError(ValueError):
    """A configuration that cannot be used; the message says the field, what was found and what was expected."""


class UsageError(ValueError):
    """Something the user asked for that cannot be done; its message is what they see."""


class ImageError(ValueError):
    """An image that cannot be read; the message says which and why."""


class TruncatedError(ImageError):
    """An image whose file ends early."""


class WeightsError(ValueError):
    """Weights that cannot be used; the message says the file, what was found and what was expected."""


class CheckpointError(ValueError):
    """A checkpoint, of a run or of the published release, that cannot be used; the message says why and what to do."""


class MeshError(ValueError):
    """A mesh that cannot be had; the message says what was asked for and what there is."""


class DataError(ValueError):
    """Data that cannot be used; the message says what was found and what to do."""


class KernelError(ValueError):
    """Pallas kernels that do not run, or do not compute what they should; the message says where and what to do."""


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says the step and what was found."""


class Interrupted(RuntimeError):
    """Training that was ended by Ctrl-C, after its state was saved; the message says the step."""


class FeaturesError(ValueError):
    """A feature network that cannot be used; the message says why and what to do."""


class StatisticsError(ValueError):
    """Statistics that cannot be used; the message says which and why."""


class StudyError(ValueError):
    """A study that cannot be built, or answers that cannot be scored; the message says why and what to do."""

# SPDX-License-Identifier: Apache-2.0
"""The errors a caller may want to catch; everything else is a built-in.

    EchoError
    ├── UnreadableCineError      a file that is no cine, or a damaged one
    ├── AnnotationError          a label that cannot be true or cannot be parsed
    │   └── AnnotationConflictError   somebody saved a newer revision meanwhile
    ├── UnknownImageError        an image id that the study folder does not hold
    ├── DataSetError             a public data set that is not laid out as its name says
    ├── ModelNotFoundError       no published model of that name
    ├── ModelMismatchError       weights that do not match their card
    └── TrainingDataError        too little, or unsplittable, data to learn from

Every message is one sentence: which thing, what was found, what is accepted or what to do.
"""


class EchoError(Exception):
    """Base of the errors that are shown to a person as one sentence, without a traceback."""


class UnreadableCineError(EchoError):
    """Raised when a file cannot be read as a cine; the message names the file."""


class AnnotationError(EchoError):
    """Raised when a label is invalid or cannot be parsed; nothing has been stored."""


class AnnotationConflictError(AnnotationError):
    """Raised when the stored revision is newer than the one a change was based on; reload and merge."""


class UnknownImageError(EchoError):
    """Raised when an image id is malformed or not in the study folder."""


class DataSetError(EchoError):
    """Raised when a folder is not laid out as the data set it is said to be, or cannot be made a study folder."""


class ModelNotFoundError(EchoError):
    """Raised when a model directory holds no published model of the asked name."""


class ModelMismatchError(EchoError):
    """Raised when weights do not match their card (hash, classes, input or keys)."""


class TrainingDataError(EchoError):
    """Raised when the annotated data are too few, or cannot be split by patient."""

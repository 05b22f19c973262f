"""Durable jobs in Python, in a browser or on a desk.

>>> from durable_web import Context, Engine, job
"""

from .clock import Clock, SystemClock
from .context import Context
from .engine import Engine
from .errors import (
    DatabaseInUseError,
    DatabaseReadOnlyError,
    DuplicateJobError,
    DurableWebError,
    FatalError,
    JobModuleError,
    JobNotFound,
    NonDeterminismError,
    NotADatabaseError,
    RunNotActive,
    RunNotFound,
    SchemaVersionError,
    SerializationError,
    StepFailed,
    StorageError,
    StorageFullError,
    TransactionError,
)
from .files import Files, LocalFiles
from .job import Job, job
from .model import (
    ErrorInfo,
    Frame,
    LogFrame,
    Progress,
    ProgressFrame,
    Run,
    RunStatus,
    RunStatusFrame,
    Step,
    StepStatus,
    StepStatusFrame,
)

__version__ = "0.1.0"

__all__ = [
    "Clock",
    "Context",
    "DatabaseInUseError",
    "DatabaseReadOnlyError",
    "DuplicateJobError",
    "DurableWebError",
    "Engine",
    "ErrorInfo",
    "FatalError",
    "Files",
    "Frame",
    "Job",
    "JobModuleError",
    "JobNotFound",
    "LocalFiles",
    "LogFrame",
    "NonDeterminismError",
    "NotADatabaseError",
    "Progress",
    "ProgressFrame",
    "Run",
    "RunNotActive",
    "RunNotFound",
    "RunStatus",
    "RunStatusFrame",
    "SchemaVersionError",
    "SerializationError",
    "Step",
    "StepFailed",
    "StepStatus",
    "StepStatusFrame",
    "StorageError",
    "StorageFullError",
    "SystemClock",
    "TransactionError",
    "job",
]

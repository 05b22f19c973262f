"""Durable jobs in Python, in a browser or on a desk.

>>> from durable_web import Context, Engine, job
"""

from .clock import Clock, SystemClock
from .context import Context
from .engine import Engine
from .errors import (
    ChildFailed,
    ConflictError,
    DatabaseInUseError,
    DatabaseReadOnlyError,
    DuplicateJobError,
    DurableWebError,
    FatalError,
    InvalidInput,
    JobModuleError,
    JobNotFound,
    NonDeterminismError,
    NotADatabaseError,
    RunNotActive,
    RunNotFound,
    RunNotTerminal,
    SchemaVersionError,
    SerializationError,
    StepFailed,
    StorageError,
    StorageFullError,
    TransactionError,
)
from .events import Event, is_domain_event
from .files import Files, LocalFiles
from .job import Job, Retry, job
from .model import (
    Attempt,
    ErrorInfo,
    Frame,
    LogFrame,
    Progress,
    ProgressFrame,
    Run,
    RunDeletedFrame,
    RunFilter,
    RunStatus,
    RunStatusFrame,
    Step,
    StepStatus,
    StepStatusFrame,
    ValueFrame,
)
from .triggers import Trigger

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "ChildFailed",
    "Clock",
    "ConflictError",
    "Context",
    "DatabaseInUseError",
    "DatabaseReadOnlyError",
    "DuplicateJobError",
    "DurableWebError",
    "Engine",
    "ErrorInfo",
    "Event",
    "FatalError",
    "Files",
    "Frame",
    "InvalidInput",
    "Job",
    "JobModuleError",
    "JobNotFound",
    "LocalFiles",
    "LogFrame",
    "NonDeterminismError",
    "NotADatabaseError",
    "Progress",
    "ProgressFrame",
    "Retry",
    "Run",
    "RunDeletedFrame",
    "RunFilter",
    "RunNotActive",
    "RunNotFound",
    "RunNotTerminal",
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
    "Trigger",
    "ValueFrame",
    "is_domain_event",
    "job",
]

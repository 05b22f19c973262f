"""Every error that durable-web raises on purpose.

One tree, so that ``except DurableWebError`` catches all of it. Each error carries the data that a program needs as
attributes, and a message that says what happened, why, and what to do::

    DurableWebError
    ├── JobNotFound                 no job of that name is registered
    ├── DuplicateJobError           two different definitions under one job name
    ├── JobModuleError              a job module could not be loaded (browser)
    ├── RunNotFound                 no run has that id
    ├── RunNotActive                the run has ended, so it cannot be cancelled
    ├── RunNotTerminal              the run has not ended in a way that allows this
    ├── ConflictError               a run with that concurrency key is pending already
    ├── RateLimited                 the job's rate limit has no room for another run now
    ├── ScheduleNotFound            no schedule has that name
    ├── LibraryMissing              a library that only this needs is not installed
    ├── InvalidInput                the input does not fit the job's declared type
    ├── InvalidOption               a page has given an unknown parameter, or a wrong one (browser)
    ├── SerializationError          a value cannot be stored without loss
    ├── NonDeterminismError         the code no longer matches the run's history
    ├── NotInBody                   a body used its event loop for something that is not recorded
    ├── NotInStep                   a step's function used an operation of its run
    ├── BodyNeverRests              a body polls instead of awaiting
    ├── StepFailed                  a step ended without a result
    ├── ChildFailed                 a child run that was waited for did not complete
    ├── CircularWait                a run would wait for a run that waits for it
    ├── WaitTimeout                 (also a TimeoutError) what was waited for did not come in time
    │   ├── SignalTimeout, EventTimeout, WebhookTimeout, UpdateTimeout
    ├── UpdateRejected              an update was not accepted, or its run ended without answering
    ├── WebhookNotFound             no run waits for that token
    ├── FatalError                  raise it yourself to fail a run at once
    └── StorageError                something is wrong with the database
        ├── StorageFullError        disk or browser quota exhausted
        ├── DatabaseInUseError      another program or tab holds the database
        ├── DatabaseReadOnlyError   the file or its folder may not be written
        ├── NotADatabaseError       the file is not an SQLite database
        ├── SchemaVersionError      a newer durable-web wrote the file, or an older one, and it may not be migrated
        └── TransactionError        a transaction function broke the rules

What the engine throws to unwind a run (its lease is gone, it is shutting down) derives from ``BaseException`` and is
not listed here: a job body must not catch it.
"""

from __future__ import annotations

import traceback
from typing import Any


class DurableWebError(Exception):
    """The root of all errors raised by durable-web."""


class JobNotFound(DurableWebError):
    """No job of that name is registered with the engine.

    Attributes: ``name``, and ``known``, the registered names in order.
    """

    def __init__(self, name: str, known: list[str]) -> None:
        self.name = name
        self.known = sorted(known)
        registered = ", ".join(self.known) or "none"
        super().__init__(
            f"No job named {name!r} is registered (registered: {registered}). "
            "Pass it to Engine(jobs=[...]), or list its module in connect(..., { jobs: [...] })."
        )


class DuplicateJobError(DurableWebError):
    """Two different definitions were registered under one job name. Attribute: ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"Two different jobs are named {name!r}. Rename one, or give it another version: a run finds its code by "
            "the job's name and version."
        )


class JobModuleError(DurableWebError):
    """Fetching a job module, installing its packages or importing its code failed. Attribute: ``url``."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        super().__init__(f"The job module {url} could not be loaded: {problem}")


class RunNotFound(DurableWebError):
    """No run has that id: it never existed or was deleted. Attribute: ``run_id``."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        super().__init__(f"There is no run {run_id!r}: the id is wrong, or the run was deleted.")


class RunNotActive(DurableWebError):
    """The run has ended, so the operation is no longer possible. Attributes: ``run_id``, ``status``."""

    def __init__(self, run_id: str, status: str, wanted: str) -> None:
        self.run_id = run_id
        self.status = status
        super().__init__(f"Run {run_id} cannot be {wanted}: it has already ended as {status!r}.")


class RunNotTerminal(DurableWebError):
    """The operation is for runs that have ended, or ended without completing. Attributes: ``run_id``, ``status``."""

    def __init__(self, run_id: str, status: str, wanted: str) -> None:
        self.run_id = run_id
        self.status = status
        super().__init__(
            f"Run {run_id} cannot be {wanted}: it is {status!r}. "
            + ("Cancel it first." if status not in ("completed", "failed", "cancelled", "dead") else "It is done.")
        )


class ConflictError(DurableWebError):
    """Another run stands in the way: one of the job with that concurrency key is pending, or the job's flow control
    gives it. Attributes: ``job``, ``concurrency_key`` (``None`` where that is not the reason), ``run_id``."""

    def __init__(self, job: str, concurrency_key: str | None, run_id: str, message: str = "") -> None:
        self.job = job
        self.concurrency_key = concurrency_key
        self.run_id = run_id
        super().__init__(
            message
            or f"Run {run_id} of job {job!r} with the concurrency key {concurrency_key!r} is pending already. Wait "
            'for it, cancel it, or trigger with coalesce="skip" to get that run.'
        )


class RateLimited(DurableWebError):
    """The job's rate limit has no room for another run now. Nothing was made.

    Attributes: ``job``; ``key``, of the group whose limit it is; ``retry_after``, in seconds.
    """

    def __init__(self, job: str, key: Any, limit: int, retry_after: float) -> None:
        self.job = job
        self.key = key
        self.retry_after = retry_after
        group = "" if key is None else f" with the key {key!r}"
        super().__init__(
            f"{limit} run(s) of job {job!r}{group} were made within its rate limit's time: there is room again in "
            f"{retry_after:g} s. Trigger again then; a throttle would delay runs instead of rejecting them."
        )


class ScheduleNotFound(DurableWebError):
    """No schedule has that name. Attributes: ``name``, and ``known``, the names there are, in order."""

    def __init__(self, name: str, known: list[str]) -> None:
        self.name = name
        self.known = known
        super().__init__(f"There is no schedule {name!r} (there are: {', '.join(known) or 'none'}).")


class LibraryMissing(DurableWebError):
    """An optional library that the operation needs is not installed. Attribute: ``library``."""

    def __init__(self, library: str, needed_for: str, instead: str) -> None:
        self.library = library
        super().__init__(
            f"{needed_for} needs the library {library!r}, which is not installed: pip install "
            f"'durable-web[schedules]' (on a static site it comes with dist/: copy all of it). {instead}"
        )


class InvalidInput(DurableWebError):
    """An input or an output does not fit the type that the job declares. Attribute: ``job``."""

    def __init__(self, job: str, what: str, problem: str) -> None:
        self.job = job
        super().__init__(f"The {what} of job {job!r} does not fit its declared type: {problem}")


class InvalidOption(DurableWebError):
    """A page passed a parameter that a method does not have, or a value of another type. Attribute: ``name``."""

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(message)


class SerializationError(DurableWebError):
    """A value cannot be stored and read back unchanged.

    Attributes: ``path``, the place of the wrong part in the value, such as ``"output of step 'fetch'['rows'][3]"``, and
    ``reason``.
    """

    def __init__(self, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be stored: {reason}")


class NonDeterminismError(DurableWebError):
    """The job's code no longer matches what the run has recorded. Attributes: ``name``, ``recorded``, ``found``."""

    def __init__(self, name: str, recorded: str, found: str) -> None:
        self.name = name
        self.recorded = recorded
        self.found = found
        super().__init__(
            f"{name!r} is recorded as a {recorded}, but the code now calls it as a {found}. The job was changed while "
            "the run was active: give the new operation another name, or restore the old code and retry."
        )


class NotInBody(DurableWebError):
    """A job body used its event loop for something that is not recorded. Attribute: ``what``."""

    def __init__(self, what: str, instead: str = "do it in a step: await ctx.step(name, function)") -> None:
        self.what = what
        super().__init__(f"{what} in a job body is not recorded, so a replay could differ; {instead}.")


class NotInStep(DurableWebError):
    """An operation was called outside the job body, as in a step's function. Attribute: ``operation``, its name."""

    def __init__(self, operation: str, step: str | None) -> None:
        self.operation = operation
        where = "outside the job body" if step is None else f"inside the function of step {step!r}"
        super().__init__(
            f"{operation!r} was called {where}. Steps, waits and child runs are operations of the job body: call them "
            "there, one after the other or in tasks of the body, and give a step's function only its data."
        )


class BodyNeverRests(DurableWebError):
    """A job body polls instead of awaiting, so no outcome can be delivered to it. Attribute: ``places``, its lines."""

    def __init__(self, places: list[str]) -> None:
        self.places = places
        where = ", ".join(places[:5]) or "its tasks"
        super().__init__(
            f"The job body went on for 10,000 turns of its event loop without awaiting an operation, at {where}. Await "
            "the task, or an asyncio.Event, instead of polling it."
        )


class StepFailed(DurableWebError):
    """A step ended without a result; replays raise the same failure without running the step again.

    Attributes: ``step``, its recorded name; ``error_type``, ``error_message`` and ``error_traceback`` of the exception
    that the step's function raised. On the first execution that exception is also ``__cause__``.
    """

    def __init__(self, step: str, error_type: str, error_message: str, error_traceback: str = "") -> None:
        self.step = step
        self.error_type = error_type
        self.error_message = error_message
        self.error_traceback = error_traceback
        super().__init__(f"Step {step!r} failed: {error_type}: {error_message}")


class ChildFailed(DurableWebError):
    """A child run failed, died, timed out or was cancelled; replays raise an equal error.

    Attributes: ``step``, the name under which it was started; ``run_id``, of the child, or of the existing run that
    flow control returned in its place; ``error_type`` and ``error_message`` of its end (``"Cancelled"`` when it was
    cancelled).
    """

    def __init__(self, step: str, run_id: str, error_type: str, error_message: str) -> None:
        self.step = step
        self.run_id = run_id
        self.error_type = error_type
        self.error_message = error_message
        super().__init__(f"Child run {step!r} ({run_id}) did not complete: {error_type}: {error_message}")


class CircularWait(DurableWebError):
    """A run cannot wait for an active singleton run that waits for the first run. Nothing was started.

    Attributes: ``job``, the child's; ``run_id``, of the active singleton run.
    """

    def __init__(self, job: str, run_id: str) -> None:
        self.job = job
        self.run_id = run_id
        super().__init__(
            f"The job {job!r} is a singleton, and its run {run_id} waits, directly or not, for the run that would now "
            "wait for it: neither would ever end. Give the child another key, or start it with ctx.start_job."
        )


class WaitTimeout(DurableWebError, TimeoutError):
    """A wait of a run timed out; replays raise an equal error. Attribute: ``name``, the name of the wait."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"What {name!r} waited for did not come in time.")


class SignalTimeout(WaitTimeout):
    """No signal came in time."""


class EventTimeout(WaitTimeout):
    """No event that matches was published in time."""


class WebhookTimeout(WaitTimeout):
    """The webhook was not called in time."""


class UpdateTimeout(WaitTimeout):
    """No update that is acceptable came in time."""


class UpdateRejected(DurableWebError):
    """An update was not accepted, or will not be answered. Attributes: ``run_id``, ``name``, ``reason``."""

    def __init__(self, run_id: str, name: str, reason: str) -> None:
        self.run_id = run_id
        self.name = name
        self.reason = reason
        super().__init__(f"Run {run_id} did not accept the update {name!r}: {reason}")


class WebhookNotFound(DurableWebError):
    """No run waits for that token: it is wrong, its run has ended, or the wait has timed out."""

    def __init__(self) -> None:
        super().__init__(
            "No run waits for this webhook: the token is wrong, its run has ended, or it no longer waits for it."
        )


class FatalError(DurableWebError):
    """Raise it in a step or a job body when a retry cannot succeed, for example because the input is wrong."""


class StorageError(DurableWebError):
    """Something is wrong with the database that holds the runs. Attribute: ``path``."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(message)


class StorageFullError(StorageError):
    """The disk, or the browser's quota for this site, is exhausted. Nothing that was committed is lost."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            "The storage is full, so nothing more can be written. What was committed is safe; runs go on by "
            "themselves when there is room again. Free some disk space, or delete data of this site.",
        )


class DatabaseInUseError(StorageError):
    """Another program or tab holds the database."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path, f"Another program or tab holds the database {path}. Close that program or tab, or use another file."
        )


class DatabaseReadOnlyError(StorageError):
    """The database file, or the folder it is in, may not be written."""

    def __init__(self, path: str) -> None:
        super().__init__(
            path,
            f"The database {path} cannot be opened for writing. Check that its folder exists and that this user may "
            "write both the file and the folder (SQLite keeps a -wal file beside it).",
        )


class NotADatabaseError(StorageError):
    """The file is not an SQLite database; it was left untouched."""

    def __init__(self, path: str) -> None:
        super().__init__(path, f"{path} is not an SQLite database. It was left untouched: give another path.")


class SchemaVersionError(StorageError):
    """A newer durable-web wrote the file, or an older one and ``migrate=False``; the file was left untouched.

    Attributes: ``found``, ``supported``, the schema version of the file and that of this durable-web.
    """

    def __init__(self, path: str, found: int, supported: int) -> None:
        self.found = found
        self.supported = supported
        if found > supported:
            reason = f"but this durable-web knows versions up to {supported}"
            remedy = "upgrade durable-web, or use another file"
        else:
            reason = f"but this durable-web needs version {supported}, and was opened with migrate=False"
            remedy = "make a backup, then open the file once without migrate=False, which migrates it for good"
        super().__init__(path, f"{path} has schema version {found}, {reason}. The file was left untouched: {remedy}.")


class TransactionError(StorageError):
    """A function given to ``ctx.transaction`` broke one of its rules."""


def message_of(error: BaseException) -> str:
    """The message of an error, or its class name when the message is empty."""
    try:
        return str(error) or type(error).__name__
    except Exception:  # an exception class whose __str__ is broken
        return type(error).__name__


def describe(error: BaseException) -> dict[str, Any]:
    """An error as it is stored and sent: ``{"type", "message", "traceback"}``, all strings."""
    return {
        "type": type(error).__name__,
        "message": message_of(error),
        "traceback": _traceback_of(error),
    }


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__))

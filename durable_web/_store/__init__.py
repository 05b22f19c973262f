"""The store: the only part that speaks SQL. ``schema.sql`` opens with a map of the tables."""

from .database import SCHEMA_VERSION, Database, Durability, check_durability
from .journal import Claim, Fact
from .leases import LeaseKeeper
from .new_run import Lease, NewRun, as_made
from .runs import LeaseLost
from .steps import CANCEL, StepRecord, published_as
from .store import Store

__all__ = [
    "CANCEL",
    "SCHEMA_VERSION",
    "Claim",
    "Database",
    "Durability",
    "Fact",
    "Lease",
    "LeaseKeeper",
    "LeaseLost",
    "NewRun",
    "StepRecord",
    "Store",
    "as_made",
    "check_durability",
    "published_as",
]

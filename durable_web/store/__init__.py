"""The store: the only part that speaks SQL. ``schema.sql`` opens with a map of the tables."""

from .database import SCHEMA_VERSION, Database, Durability
from .store import Claim, LeaseLost, StepRecord, Store

__all__ = ["SCHEMA_VERSION", "Claim", "Database", "Durability", "LeaseLost", "StepRecord", "Store"]

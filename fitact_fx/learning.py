"""PROVISIONAL."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    epochs: int

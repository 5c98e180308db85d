"""Result of a fault campaign."""

from dataclasses import dataclass

__all__ = ["Campaign"]


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """Result of one kind of fault, tested many times.

    Attributes:
        name: Name of the campaign, as in `--only`.
        tried: Number of faults, inputs or texts.
        survived: Number of faults after which the state was correct.
        seconds: Duration.
        seed: Seed of the random choices.
        notes: Description of the faults and their outcomes.
        failures: The first failures, one line each, with enough detail to reproduce them.
    """

    name: str
    tried: int
    survived: int
    seconds: float
    seed: int
    notes: str
    failures: tuple[str, ...]

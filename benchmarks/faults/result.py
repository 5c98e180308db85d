"""What a campaign of faults found."""

from dataclasses import dataclass

__all__ = ["Campaign"]


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """One kind of fault, tried many times.

    Attributes:
        name: Of the campaign, as `--only` takes it.
        tried: Faults, inputs or texts.
        survived: Those after which all was as it had to be.
        seconds: Spent.
        seed: Of what was drawn.
        notes: What was tried and what came of it, in words.
        failures: What went wrong, a line each, enough to repeat it; the first few.
    """

    name: str
    tried: int
    survived: int
    seconds: float
    seed: int
    notes: str
    failures: tuple[str, ...]

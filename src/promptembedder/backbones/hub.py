"""Why the Hugging Face hub gave nothing, in one line: what was looked for, where, and what mends it."""

from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

__all__ = ["hub_refusal"]

_ABSENT = (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)


def hub_refusal(name: str, error: BaseException, *, instead: str) -> str | None:
    """Why the hub did not give `name`, and the mends; None if the error is of another kind, such as a damaged file.

    Args:
        name: The hub id that was asked for.
        error: What the hub's client, or a library above it, raised.
        instead: What else can be given than a hub id, such as `a local folder`.
    """
    causes = list(_causes(error))
    cache, endpoint = constants.HF_HUB_CACHE, constants.ENDPOINT
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"{endpoint}/{name} is gated. Accept its terms there and set HF_TOKEN to a token of your account."
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return f"{endpoint}/{name} has no such revision. Check its branches and tags."
    if any(isinstance(cause, HFValidationError) for cause in causes):
        return f"{name!r} is no hub id, which is org/name. Or give {instead}."
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"{endpoint} has no {name!r}, or it is private. Check the name, set HF_TOKEN, or give {instead}."
    if any(isinstance(cause, _ABSENT) for cause in causes):
        sought = f"{name!r} is not in the hub's cache {cache}"
        if constants.HF_HUB_OFFLINE:
            return f"{sought}, and HF_HUB_OFFLINE forbids to ask {endpoint}. Unset it, or give {instead}."
        return (
            f"{sought}, and {endpoint} cannot be reached. Check the network, set HF_ENDPOINT to a mirror or "
            f"HF_HUB_CACHE to a cache that holds it, or give {instead}."
        )
    answered = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if answered is not None and answered.response is not None:
        return f"{endpoint} answered {answered.response.status_code} for {name!r}. Try again, or give {instead}."
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: libraries above the hub's client wrap it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__

"""A bundle, or several, as a Triton model repository."""

from cirrus_client.names import Flavour
from cirrus_export.repository.layout import write_repository, write_shared_repository
from cirrus_export.repository.models import LIMITS, Limits

__all__ = ["LIMITS", "Flavour", "Limits", "write_repository", "write_shared_repository"]

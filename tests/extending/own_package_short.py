"""A shorter name for what another package defines."""

from own_package.tasks import Regression

__all__ = ["Regression"]

"""Federated training: sites train on their own people, and only weights leave them."""

from .sharing import LEAST_PEOPLE, contribution, shared_style_key

__all__ = ["LEAST_PEOPLE", "contribution", "shared_style_key"]

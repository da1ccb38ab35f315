"""Policies by name, with what follows a colon. Each lives in a file of its own, imported when it is first asked for."""

from __future__ import annotations

from importlib import import_module

from kvist.cache.policy.base import Choice, Policy, Span
from kvist.errors import unknown_name

__all__ = ["POLICIES", "Choice", "Policy", "Span", "policy"]

POLICIES = ("evict", "full", "topk", "window")


def policy(text: str) -> Policy:
    """Return the policy that is written as `text`, for instance ``window:1024+4``.

    Raises `UnknownNameError` with those that are known for an unknown one, `UsageError` for what cannot be meant.
    """
    name, _, arguments = text.partition(":")
    if name not in POLICIES:
        raise unknown_name("policy", name, POLICIES)
    kind: type[Policy] = getattr(import_module(f"kvist.cache.policy.{name}"), name.capitalize())
    return kind.parse(arguments)

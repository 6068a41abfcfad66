"""Talking to a model with methods: an answer of each, what it cost, and what it kept of the picture."""

from vtw_eval.chat.model import ChatModel
from vtw_eval.chat.session import Session, Turn

__all__ = ["ChatModel", "Session", "Turn"]

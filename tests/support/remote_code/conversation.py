"""Conversation template with the interface that InternVL2's code has (append_message, get_prompt, sep, roles)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Conversation:
    system_message: str = "You are a tiny assistant."
    roles: tuple[str, str] = ("<|im_start|>user\n", "<|im_start|>assistant\n")
    sep: str = "<|im_end|>"
    messages: list[tuple[str, str | None]] = field(default_factory=list)

    def append_message(self, role: str, message: str | None) -> None:
        self.messages.append((role, message))

    def get_prompt(self) -> str:
        text = f"<|im_start|>system\n{self.system_message}{self.sep}"
        for role, message in self.messages:
            text += role if message is None else f"{role}{message}{self.sep}"
        return text


def get_conv_template(name: str) -> Conversation:
    if name != "chatml-tiny":
        raise KeyError(name)
    return Conversation()

"""Talking in a terminal, or through a pipe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from vtw_eval.chat import words
from vtw_eval.chat.session import Session
from vtw_eval.chat.sides import Sides
from vtw_eval.files import cache_home, check_output, write_atomically
from vtw_eval.media import is_video
from vtw_eval.report.render.patches import png, sheet

HELP = """\
Anything that does not begin with a colon is asked. Commands:
  :image PATH            begin anew about a picture
  :video PATH            begin anew about a video
  :method SPEC [SPEC]    begin anew with other methods, about the same picture: :method baseline fastv,k=2,r=0.75
  :picture FILE.png      draw which tokens each method has kept, a file for each
  :new                   begin anew
  :help                  this
  :quit                  end (or Ctrl-D); Ctrl-C ends an answer
"""

ERRORS = (ValueError, OSError, RuntimeError)
"""What is told in one line: exceptions whose messages are written for users."""


class Terminal:
    """Reads lines, asks and prints.

    Parameters
    ----------
    sides
        The conversations.
    out
        Where answers go.
    live
        Whether to print answers while they grow, as for somebody who watches.
    max_new_tokens
        Length of an answer.
    """

    def __init__(self, sides: Sides, out: TextIO, *, live: bool, max_new_tokens: int) -> None:
        self.sides = sides
        self.out = out
        self.live = live
        self.max_new_tokens = max_new_tokens

    def run(self, lines: Iterable[str], failed: Callable[[Exception], None]) -> None:
        """Do what lines say, up to the end or ``:quit``.

        Parameters
        ----------
        lines
            Questions and commands.
        failed
            Told of what cannot be done; the conversation goes on unless it raises.
        """
        for line in lines:
            if line.strip() == ":quit":
                return
            if line.strip():
                try:
                    self.do(line.strip())
                except ERRORS as error:
                    failed(error)

    def do(self, line: str) -> None:
        """Do what one line says.

        Raises
        ------
        ValueError
            For an unknown command, or what cannot be done.
        """
        if not line.startswith(":"):
            self._ask(line)
            return
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name == "help":
            self._print(HELP.rstrip())
        elif name == "new":
            self.sides.show(*self.sides.media)
        elif name in ("image", "video"):
            self._show(name, rest)
        elif name == "method":
            self.sides.change(rest.split())
            self._print(f"now {' and '.join(str(session.method) for session in self.sides.sessions)}, from the start")
        elif name == "picture":
            self._draw(rest)
        else:
            raise ValueError(f"unknown command :{name}; :help lists them.")

    def _show(self, name: str, given: str) -> None:
        if not given:
            raise ValueError(f"name a file: :{name} PATH.")
        path = str(Path(given).expanduser())
        if is_video(path) != (name == "video"):
            raise ValueError(f"{given} is no {name}: use :{'image' if name == 'video' else 'video'}.")
        self.sides.show(path)

    def _ask(self, question: str) -> None:
        for session in self.sides.sessions:
            self._print(f"{session.method}:")
            with interrupted() as stopped:
                self._answer(session, question, stopped)
            turn = session.turns[-1]
            for parts in (
                [words.speed(turn), words.work(turn), f"KV cache {words.memory(turn)}"],
                [words.layers(turn)],
            ):
                self._print("    " + " · ".join(parts))
            for remark in words.remarks(turn):
                self._print(f"    {remark}")

    def _answer(self, session: Session, question: str, stopped: Callable[[], bool]) -> None:
        shown = ""

        def told(text: str) -> None:
            nonlocal shown
            if self.live:
                more = text.removeprefix(shown) if text.startswith(shown) else f"\n{text}"
                print(more, end="", file=self.out, flush=True)
            shown = text

        answer = session.ask(question, max_new_tokens=self.max_new_tokens, told=told, stopped=stopped).answer
        if not self.live or answer != shown:
            print("" if self.live else answer.strip(), end="", file=self.out)
        self._print("")

    def _draw(self, given: str) -> None:
        if not given.endswith(".png"):
            raise ValueError("name a PNG file: :picture FILE.png.")
        path = Path(given).expanduser()
        check_output(path)
        for number, session in enumerate(self.sides.sessions, start=1):
            kept = self.sides.eye.pictures(session)
            if not kept:
                raise ValueError("there is nothing to draw: show a picture and ask something first.")
            own = path.with_stem(f"{path.stem}-{number}") if len(self.sides.sessions) > 1 else path
            write_atomically(own, png(sheet([each.pixels for each in kept])))
            self._print(f"{own}: {session.method}: {'; '.join(each.caption for each in kept)}")

    def _print(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def typed() -> Iterator[str]:
    """Yield what is typed at a prompt, with the history of earlier lines, up to the end of input."""
    import readline

    history = cache_home() / "chat_history"
    if history.is_file():
        readline.read_history_file(history)
    readline.set_history_length(1000)
    try:
        while True:
            try:
                yield input("> ")
            except KeyboardInterrupt:
                print()  # the line is dropped
            except EOFError:
                print()
                return
    finally:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)


@contextmanager
def interrupted() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether Ctrl-C was pressed since, which interrupts nothing meanwhile."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are for that one
        yield flag.is_set
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: flag.set())
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, before)

"""Flower's and Ray's log, made quiet: what the app says, and one line for each error instead of its traceback."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ff_flower import errors

_OURS = tuple(name for name, value in vars(errors).items() if isinstance(value, type))
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NODE = re.compile(r"^\((?:ClientAppActor|pid=)[^)]*\) ?")
_HEADER = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL)\s*:\s*(.*)$")
_CRASH = re.compile(
    r"Traceback \(most|ray::|Simulation raised|An exception (was raised|occurred)|Exit Code|Exception in thread"
    rf"|(?:{'|'.join(_OURS)}): "
)
_FRAME = re.compile(r'^\s+File ".*/apps/[^/"]+/([^"]+)", line (\d+)')
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt))(?:: ?(.*))?$")
_PYTHON_WARNING = re.compile(r"^\S+:\d+: (Future|Deprecation|PendingDeprecation)Warning: ")
_NOISE = re.compile(
    r"^HTTP Request: |^Using SuperLink: |^Successfully (started run|installed) |^Starting (logstream|Flower Simulation)"
    r"|^Since flwr 1|^Federation `|^To change federation size|^flwr federation |^Manually terminating "
    r"|^LoadClientAppError exception encountered|^For more information, visit: "
    r"|^contributed: |^Starting \w+ strategy|^Strategy execution finished|^Final results|^\s*[├└│]|^\s*\{\}$"
    r"|^\s*(Global Arrays|Aggregated ClientApp-side \w+ Metrics|ServerApp-side Evaluate Metrics):|^\s*ArrayRecord \("
    r"|^(configure|aggregate)_\w+: (Sampled|Received \d+ results and 0 failures)|^\((raylet|autoscaler|gcs_server)\b(?!.*memory)"
)


@dataclass
class _Crash:
    """One traceback while it passes by: its exceptions, in order, each with the app's own last frame."""

    exceptions: list[tuple[str, list[str], str]] = field(default_factory=list)
    place: str = ""
    reading: bool = False

    def add(self, line: str) -> None:
        if frame := _FRAME.match(line):
            self.place = f" ({frame[1]}, line {frame[2]})"
        found = _EXCEPTION.match(line)
        if found:
            self.exceptions.append((found[1], [found[2] or ""], self.place))
            self.place = ""
        elif self.reading and line.strip():
            self.exceptions[-1][1].append(line)
        self.reading = bool(found) or (self.reading and bool(line.strip()))

    def sentence(self) -> str:
        """Return what the last exception of the app says; Flower's and Ray's only wrap it."""
        own = [one for one in self.exceptions if not one[0].startswith(("flwr.", "ray."))] or self.exceptions[:1]
        if not own:
            return ""
        kind, lines, place = own[-1]
        text = "\n".join(lines).strip()
        if text == "An error was encountered. Ending simulation.":
            return ""  # Flower's epilogue to an error that it has shown before
        return text if kind.removeprefix("ff_flower.errors.") in _OURS else f"{kind}: {text}{place}"


class LogFilter:
    """Turns the raw log into quiet lines.

    The app's own records (``INFO :      text``) and prints pass, without level for INFO; colours, known noise and
    tracebacks do not. An error becomes one ``ERROR`` line, once per message: of an error of this project its whole text,
    else type, text and place.

    Attributes
    ----------
    errors : list of str
        The messages of all errors so far, in order; where a run failed, the last one says why.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self._crash: _Crash | None = None
        self._after_warning = False

    def feed(self, line: str) -> Iterator[str]:
        """Yield the lines to show for ``line``, a line of the raw log without its end."""
        text = _NODE.sub("", _ANSI.sub("", line).rstrip())
        header = _HEADER.match(text)
        if header or (self._crash is None and text.startswith("Traceback (most")):
            yield from self.close()
        level, body = header.groups() if header else ("", text)
        if level in ("", "ERROR", "CRITICAL") and self._crash is None and _CRASH.match(body):
            self._crash = _Crash()
        if self._crash is not None:
            self._crash.add(body)
            return
        if self._is_noise(level, body):
            return
        yield body if level in ("", "INFO") else f"{level}: {body}"

    def close(self) -> Iterator[str]:
        """Yield what a traceback under way comes to; call it once more after the last line."""
        crash, self._crash = self._crash, None
        if crash is None or not (sentence := crash.sentence()) or sentence in self.errors:
            return
        self.errors.append(sentence)
        yield f"ERROR: {sentence}"

    def _is_noise(self, level: str, body: str) -> bool:
        source_line = self._after_warning and body.startswith("  ")
        self._after_warning = bool(_PYTHON_WARNING.match(body))
        return source_line or self._after_warning or level == "DEBUG" or not body.strip() or bool(_NOISE.match(body))

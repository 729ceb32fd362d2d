"""The certificate as one page of HTML that a data-protection officer can read and print; it loads nothing from elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = (
    "body{font:16px/1.5 Georgia,serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #ccc}"
    "table{border-collapse:collapse;width:100%;font-size:.9rem}td,th{border:1px solid #ccc;padding:.25rem .5rem;text-align:left}"
    "code{font-size:.8rem;word-break:break-all}.yes{color:#17652c}.no{color:#a11}details{margin:.5rem 0}"
)
_GROUPS = ("accuracy", "forgotten", "fewer_owners", "retained")
_HEADER = ("result", "all classes", "forgotten classes", "classes with fewer owners", "retained classes")


def render_page(certificate: Mapping[str, Any]) -> str:
    """Return the page of a certificate, as `Certificate.as_dict` gives it."""
    request = certificate["request"]
    sections = [
        ("What was asked", _request(request)),
        ("What was deleted", _deleted(certificate)),
        ("What was made again", _rebuilt(certificate)),
        ("How it can be checked", _proof(certificate)),
        ("What the classifiers can do, before and after", _scores(certificate)),
        ("What it cost", _cost(certificate["cost"])),
        ("The nodes", _nodes(certificate["nodes"])),
        ("What this certificate does not reach", _list(certificate["out_of_reach"])),
    ]
    body = "".join(f"<h2>{escape(title)}</h2>{text}" for title, text in sections)
    title = f"Certificate of forgetting no. {certificate['number']}"
    told = f"Run <code>{escape(certificate['run']['folder'])}</code>, written {escape(certificate['written'])}."
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><p>{told}</p>{body}</body></html>\n"
    )


def _request(request: Mapping[str, Any]) -> str:
    rows = [(one["owner"], one["label_name"], str(one["examples"]), name) for name, one in request["modules"].items()]
    parts = [_part(part) for part in request["exclude"].split(",")]
    text = (
        f"<p>To forget {escape(' and '.join(parts))}: everything that came from there, and everything that was made from it.</p>"
    )
    if request["reason"]:
        text += f"<p>Reason given: {escape(request['reason'])}</p>"
    return text + _table(("owner", "class", "images it was fitted to", "module (SHA-256 of its file)"), rows)


def _part(part: str) -> str:
    owner, _, label = part.partition("/")
    return f"the class with label {label} of owner {owner}" if label else f"owner {owner}"


def _deleted(certificate: Mapping[str, Any]) -> str:
    removed, left = certificate["removed"], certificate["still_there"]
    counts = f"{len(certificate['modules']['before'])} modules before, {len(certificate['modules']['after'])} after."
    what = "the modules, samples drawn from them, and all that had been learned from them"
    text = f"<p>{len(removed)} files were deleted: {what}. {counts}</p>"
    verdict = _verdict(not left, "No deleted module file is there now.", f"Still there: {', '.join(left)}.")
    return text + verdict + _details("Every deleted file with its SHA-256", removed)


def _rebuilt(certificate: Mapping[str, Any]) -> str:
    rebuild = certificate["rebuild"]
    if not rebuild["done"]:
        why = f" It was tried and failed: {escape(rebuild['error'])}" if rebuild["error"] else ""
        return f"<p>Not yet: the next run of the same settings makes it again without what is forgotten.{why}</p>"
    files = {name: one["sha256"] for name, one in rebuild["files"].items()}
    text = f"<p>{len(files)} files, from the modules that stayed and the run's seed; those modules were not touched.</p>"
    amended = certificate["amended"]
    if amended:
        text += f"<p>Changed, since they named a forgotten class of an owner who stays: {escape(', '.join(amended))}.</p>"
    untouched = _details("Every file that stayed as it was", certificate["untouched"])
    return text + _details("Every file that was made again", files) + untouched


def _proof(certificate: Mapping[str, Any]) -> str:
    proof = certificate["proof"]
    lines = [
        _verdict(
            proof["modules_after_are_before_without_forgotten"],
            "The modules are those of before without the forgotten ones, byte for byte.",
            "The modules are not those of before without the forgotten ones.",
        ),
        _verdict(
            proof["every_rebuilt_file_from_retained_modules_only"],
            "By its receipt every file that was made again depends on the modules that stayed, and on no other.",
            "By its receipt a file that was made again depends on other modules than those that stayed.",
        ),
        f"<p>Generative modules that were fitted for it: {proof['generative_modules_fitted']}.</p>",
    ]
    scratch = proof["from_scratch"]
    if scratch is None:
        lines.append(
            "<p>It was not compared with a run from scratch; <code>--prove</code>, given with the request, asks for that.</p>"
        )
    else:
        done = f"A run from scratch without the forgotten was made and compared, {scratch['artefacts']} artefacts"
        lines.append(
            _verdict(scratch["equal"], f"{done}: all equal.", f"{done}; these differ: {', '.join(scratch['differing'])}.")
        )
    return "".join(lines)


def _scores(certificate: Mapping[str, Any]) -> str:
    names = certificate["classes"]["names"]
    text = f"<p>Classes that nobody holds any more: {escape(', '.join(names)) or 'none'}.</p>"
    rows = []
    for name, scores in certificate["scores"].items():
        rows.append((name, *(f"{_percent(scores['before'][one])} → {_percent(scores['after'][one])}" for one in _GROUPS)))
    note = "<p>Percent of test images recognized; by group of classes, the mean over its classes.</p>"
    return text + _table(_HEADER, rows) + note


def _cost(cost: Mapping[str, Any]) -> str:
    share = (
        "" if cost["share"] is None else f", {100 * cost['share']:.1f} % of the {cost['full_run_seconds']:.1f} s of the whole run"
    )
    by = f" It was made again by {escape(cost['rebuilt_by'])}." if cost["rebuilt_by"] else ""
    return f"<p>{cost['seconds']:.1f} s{share}.{by}</p>"


def _nodes(nodes: Mapping[str, Any]) -> str:
    confirmed, silent = nodes["confirmed"], nodes["not_confirmed"]
    if not confirmed and not silent:
        return "<p>No node had been sent anything, and none was asked.</p>"
    text = f"<p>Nodes that confirmed having deleted their cached samples: {escape(', '.join(confirmed)) or 'none'}.</p>"
    reasons = f" ({escape('; '.join(nodes['reasons']))})" if nodes["reasons"] else ""
    return text + (
        f"<p class=no>Sent the modules once and not confirmed: {escape(', '.join(silent))}{reasons}.</p>" if silent else ""
    )


def _verdict(good: bool, yes: str, no: str) -> str:
    return f"<p class=yes>✓ {escape(yes)}</p>" if good else f"<p class=no>✗ {escape(no)}</p>"


def _list(sentences: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in sentences)}</ul>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _details(title: str, files: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td><code>{escape(digest)}</code></td></tr>" for name, digest in files.items())
    return f"<details><summary>{escape(title)} ({len(files)})</summary><table>{rows}</table></details>"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"

"""Every message that a user can meet, gathered from the source, for ``docs/errors.md`` to explain.

``python -m tests.messages`` prints what the page lacks, ready to paste, and what it has too much.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from pancseg.applying.mask_flags import MASK_FLAGS
from pancseg.intake.checks.flags import FLAGS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pancseg"
PAGE = ROOT / "docs" / "errors.md"
# Python's own protocols, and what is caught at once
NO_MESSAGES = ("AttributeError", "EOFError", "KeyboardInterrupt", "Refused", "SystemExit")
CODE = re.compile(r"[a-z]+(_[a-z<>]+)*")
REASON = re.compile(r"([a-z]+(?:_[a-z]+)+): ")  # how a reason begins that nothing raised
NO_CODES = ("init_from",)  # a key of the configuration
# functions whose strings reach the console by way of a variable, which is not followed
SPEAKERS = {
    "command.py": {"guarded"},
    "dataset/case_files.py": {"told_change"},
    "dataset/volume_cache.py": {"unreadable", "died"},
    "explanation.py": {"one_line", "quoting_advice", "unknown_key_advice"},
    "hardware.py": {"unusable_gpu"},
    "intake/layouts/nifti.py": {"pieces_of_one_patient"},
    "intake/layouts/patients.py": {"one_for_all"},
    "judging/run_comparison.py": {"warnings_of"},
    "learning/memory_advice.py": {"check_memory"},
    "preparing/conversion.py": {"cannot_write"},
    "preparing/source_request.py": {"nothing_found"},
    "sweeping/search.py": {"different"},
}
# variables that SPEAKERS filled; of any other it is not known what is said
FOLLOWED = {
    "Incomplete(one_line(own_error(ended._return_value), name))",
    "Stopped(signum)",
    "print(stopped.told, file=sys.stderr)",
    "PancsegError(one_line(own, command))",
    "PancsegError(different(self.name, earlier, self.words))",
    "PancsegError(made.problem)",
    "PancsegError(problem)",
    "log.warning(advice)",
    "log.warning(detect().advice)",
    "log.warning(made.warning)",
    "log.warning(told_change(image, label))",
    "log.warning(words)",
    "print(told, file=sys.stderr)",
    "found.warnings.append(pieces)",
    "found.warnings.append(warning)",
}
WORDS = {"FAILED", "NO_IMAGE", "TEST_FOLDERS"}  # constants that are reason codes, or begin with one
MISSING = "TODO"
Strings = dict[str, str]
"""Template to the file that holds it."""


def name_of(node: ast.expr) -> str:
    """What a field of an f-string is called on the page.

    >>> [name_of(ast.parse(one, mode="eval").body) for one in ("self.path", "len(x)", "a or b")]
    ['path', 'x', 'a']
    """
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute(attr="__name__") | ast.Subscript() | ast.Starred():
            return name_of(node.value)
        case ast.Attribute():
            return node.attr
        case ast.Call():
            return name_of(node.args[0] if node.args else node.func)
        case ast.BoolOp():
            return name_of(node.values[0])
        case ast.BinOp():
            return name_of(node.left)
        case ast.IfExp():
            return name_of(node.body)
    return "..."


def template_of(node: ast.expr | None) -> str | None:
    """A string as it reads on the page, fields as ``<name>``; None for what is no string.

    >>> template_of(ast.parse("f'{path}: no {len(found):d}'", mode="eval").body)
    '<path>: no <found>'
    """
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(str, (template_of(value) for value in values)))
        case ast.FormattedValue(value=value):
            return f"<{name_of(value)}>"
        case ast.Call(func=ast.Attribute(value=ast.Constant(value=str(text)), attr="format")):
            return text.replace("{}", "<...>")
    return None


def templates_in(function: ast.AST) -> Iterator[str]:
    """What a function returns, yields, appends or gives a name to, if it reads as a sentence."""
    for node in ast.walk(function):
        match node:
            case ast.Return(value=ast.Call(func=ast.Name(id="Made"), args=values)):
                pass
            case ast.Return(value=value) | ast.Yield(value=value) | ast.Assign(value=value):
                values = [value]
            case ast.Call(func=ast.Attribute(attr="append"), args=values):
                pass
            case _:
                continue
        for value in values:
            parts = value.elts if isinstance(value, ast.List) else [value]
            for part in parts:
                text = template_of(part)
                if text and len(re.sub(r"<[^>]*>", "", text).split()) > 1:
                    yield text


def is_raised_with_words(call: ast.Call, raised: set[int]) -> bool:
    """Whether a call makes an error with a message of its own."""
    named = isinstance(call.func, ast.Name) and call.func.id
    if named in ("PancsegError", "Incomplete"):
        return True
    if id(call) not in raised or not named:
        return False
    return named[0].isupper() and named not in NO_MESSAGES


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Every function of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def errors_of(tree: ast.AST) -> Iterator[str]:
    """Messages of the errors that a file raises."""
    raised = {id(node.exc) for node in ast.walk(tree) if isinstance(node, ast.Raise)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and is_raised_with_words(node, raised) and node.args:
            yield template_of(node.args[0]) or unfollowed(node)


def unfollowed(node: ast.Call) -> str:
    """What stands for a message that is a variable: nothing where it is gathered elsewhere."""
    return "" if ast.unparse(node) in FOLLOWED else f"NOT FOLLOWED {ast.unparse(node)}"


def line_of_doctor(name: ast.expr, status: ast.expr, words: ast.expr) -> str:
    """A finding as the console shows it."""
    how = {"SLOW": "slow", "BROKEN": "BROKEN"}.get(ast.unparse(status), "<status>")
    what = template_of(name) or f"<{name_of(name)}>"
    return f"{how} {what} {template_of(words) or f'<{name_of(words)}>'}"


def warnings_of(tree: ast.AST) -> Iterator[str]:
    """What a file logs as a warning, prints on stderr, leaves a command to say, or finds amiss."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="warning" | "error"), args=[first, *rest]):
                text = template_of(first) or unfollowed(node)
                for value in rest:
                    text = re.sub(r"%[.\d]*[sdgf]", f"<{name_of(value)}>", text, count=1)
                yield text
            case ast.Call(
                func=ast.Attribute(value=ast.Attribute(attr="warnings"), attr="append"),
                args=[first],
            ):
                yield template_of(first) or unfollowed(node)
            case ast.Call(func=ast.Name(id="Finding"), args=[name, status, first, *_]):
                if ast.unparse(status) != "OK":
                    yield line_of_doctor(name, status, first)
            case ast.Call(func=ast.Name(id="print"), args=[first, *_], keywords=[_, *_]):
                if "sys.stderr" in ast.unparse(node):
                    yield template_of(first) or unfollowed(node)


def codes_of(tree: ast.AST) -> Iterator[str]:
    """Reason codes: of what is refused, and of what is passed over without being read.

    A code that is a variable stands for every code-like word of its function.
    """
    for function in functions(tree):
        for node in ast.walk(function):
            match node:
                case ast.Call(func=ast.Name(id="Refused"), args=[code, *_]):
                    text = template_of(code)
                    yield from [text] if text else words_of(function)
    for node in ast.walk(tree):
        text = template_of(node) if isinstance(node, ast.expr) else None
        if text and (found := REASON.match(text)) and found[1] not in NO_CODES:
            yield found[1]
        if isinstance(node, ast.Assign) and name_of(node.targets[0]) in WORDS:
            values = node.value.values if isinstance(node.value, ast.Dict) else [node.value]
            yield from ((template_of(value) or "").partition(":")[0] for value in values)


def words_of(function: ast.AST) -> Iterator[str]:
    """Words such as ``mixed_size`` in a function, except names of flags."""
    for node in ast.walk(function):
        text = template_of(node) if isinstance(node, ast.expr) else None
        if text and "_" in text and CODE.fullmatch(text) and text not in FLAGS:
            yield text


@functools.cache
def gathered(find: Callable[[ast.AST], Iterator[str]]) -> Strings:
    """What one of the functions above finds in the package, with the first file that says it."""
    found: Strings = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        place, tree = file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text())
        said = list(find(tree))
        if find is warnings_of:
            speakers = (one for one in functions(tree) if one.name in SPEAKERS.get(place, ()))
            said += [text for function in speakers for text in templates_in(function)]
        for text in filter(None, said):
            found.setdefault(" ".join(text.split()), place)
    return found


def normal(template: str) -> str:
    """A template without the names of its fields: a variable may be renamed."""
    return re.sub(r"<[^<>]*>", "<>", " ".join(template.split()))


def fits(template: str, code: str) -> bool:
    """Whether a code of the page is one of a template's: ``no_such_<kind>``, ``no_such_roi``."""
    return re.fullmatch(re.sub(r"<\w+>", r"[a-z_]+", template), code) is not None


def entries(page: str) -> dict[str, str]:
    """Messages of the page, each with its cause and cure."""
    found = re.findall(r"^- `(.+)`\n((?:  .+\n)+)", page, flags=re.MULTILINE)
    return {normal(template): " ".join(text.split()) for template, text in found}


def codes_on(page: str) -> dict[str, str]:
    """Codes and flags of the page's tables, each with the rest of its row."""
    rows = re.findall(r"^\| `([a-z_]+)` \|(.+)$", page, flags=re.MULTILINE)
    return dict(rows)


def lacking(page: str) -> list[str]:
    """Entries that the page lacks, ready to paste and fill in."""
    there, codes = entries(page), codes_on(page)
    lines = [
        f"- `{text}`\n  **Cause.** {MISSING} ({place}). **Cure.** {MISSING}.\n"
        for text, place in {**gathered(errors_of), **gathered(warnings_of)}.items()
        if normal(text) not in there
    ]
    lines += [
        f"| `{code}` | {MISSING} ({place}) | {MISSING} |"
        for code, place in gathered(codes_of).items()
        if not any(fits(code, one) for one in codes)
    ]
    flags = [*FLAGS, *MASK_FLAGS]
    return lines + [f"| `{flag}` | {MISSING} | {MISSING} |" for flag in flags if flag not in codes]


def left_over(page: str) -> list[str]:
    """Entries of the page that no source says any more."""
    said = {normal(one) for one in {**gathered(errors_of), **gathered(warnings_of)}}
    codes = [*gathered(codes_of), *FLAGS, *MASK_FLAGS]
    lines = [text for text in entries(page) if text not in said]
    return lines + [one for one in codes_on(page) if not any(fits(code, one) for code in codes)]


if __name__ == "__main__":
    text = PAGE.read_text()
    print("\n".join(["lacking:", *lacking(text), "no longer said:", *left_over(text)]))

"""Applies the rule table to one file in one context."""

from scaling.ds_config.check.reader import Document, SyntaxProblem, read
from scaling.ds_config.check.rule import Context, Finding, Hit, Rule
from scaling.ds_config.check.rules import RULES
from scaling.ds_config.check.view import Undetermined, View


def check(text: str, context: Context) -> list[Finding]:
    """What is wrong with a ds_config, in the order of its lines.

    Raises reader.SyntaxProblem where the text is no JSON object.
    """
    return apply(read_object(text), context)


def read_object(text: str) -> Document:
    """Raises reader.SyntaxProblem."""
    document = read(text)
    if not isinstance(document.root.value, dict):
        raise SyntaxProblem(document.root.start, "a ds_config is a JSON object", "{...}")
    return document


def apply(document: Document, context: Context) -> list[Finding]:
    view = View(document, context)
    found = [
        _finding(rule, hit, document)
        for rule in RULES.values()
        if rule.applies_to(view.release)
        for hit in _hits(rule, view)
    ]
    return sorted(found, key=lambda each: (each.line, each.column, each.rule.id))


def _hits(rule: Rule, view: View) -> list[Hit]:
    """What the rule finds before it asks for something that the file does not determine."""
    hits = []
    try:
        for hit in rule.find(view):
            hits.append(hit)  # kept one by one: the rule may stop at a later question
    except Undetermined:
        pass
    return hits


def _finding(rule: Rule, hit: Hit, document: Document) -> Finding:
    line, column = document.place(document.offset(hit.path) if hit.offset is None else hit.offset)
    return Finding(
        rule=rule,
        path=hit.path,
        line=line,
        column=column,
        severity=rule.severity if hit.severity is None else hit.severity,
        outcome=hit.outcome or rule.outcome,
        says=hit.says,
        does=hit.does or rule.does,
        mend=hit.mend,
        edits=hit.edits,
    )

"""The page of a report: the verdict, the sections, definitions, how it was run."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any, NamedTuple

from jaxqr.report import sections
from jaxqr.report.definitions import CURVES, OFFLINE, ONLINE, RELEVANCE
from jaxqr.report.figures import Image
from jaxqr.report.markup import definitions, paragraph
from jaxqr.report.style import CSS
from jaxqr.report.verdict import verdict

Summary = Mapping[str, Any]
Images = Mapping[str, Image]

# The page cannot load or run anything, whatever a query may contain.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Section(NamedTuple):
    """A part of the page, made from one part of the summary."""

    title: str
    key: str
    make: Callable[[Summary, Images], str]
    stage: str
    """The stage that measures it, before the evaluation."""


def render(summary: Summary, images: Images) -> str:
    """The whole page as HTML."""
    conclusion = verdict(summary)
    links = "".join(f'<a href="#{s.key}">{s.title}</a>\n' for s in _SECTIONS)
    body = "".join(
        f'<section id="{s.key}">\n<h2>{s.title}</h2>\n'
        + (s.make(summary, images) if s.key in summary else _missing(s.stage))
        + "</section>\n"
        for s in _SECTIONS
    )
    name = escape(summary["name"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{name}: does rewriting help?</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header>
<p class="kicker">jaxqr query rewriting</p>
<h1>{name}: does rewriting help?</h1>
</header>
<section id="verdict" aria-label="Verdict">
<p class="headline">{escape(conclusion.headline)}</p>
{"".join(map(paragraph, conclusion.paragraphs))}</section>
<nav aria-label="Contents">
{links}<a href="#definitions">Definitions</a>
<a href="#about">How it was run</a>
</nav>
{body}<section id="definitions">
<h2>Definitions</h2>
{_definitions(summary)}</section>
<section id="about">
<h2>How it was run</h2>
{_about(summary)}</section>
</main>
</body>
</html>
"""


def _missing(stage: str) -> str:
    return (
        '<p class="missing">Not part of this run yet. To make it: '
        f"<code>python -m experiments.{stage} PRESET</code>, then "
        "<code>python -m experiments.evaluate PRESET</code>.</p>\n"
    )


def _definitions(summary: Summary) -> str:
    terms = [
        term
        for key, group in (
            ("relevance", RELEVANCE),
            ("offline", OFFLINE),
            ("online", ONLINE),
            ("curves", CURVES),
        )
        if key in summary
        for term in group.values()
    ]
    return definitions(
        [
            ("Copy the query", "The baseline: the query is sent unchanged."),
            *((term.label, term.meaning) for term in terms),
            (
                "95 % interval",
                "Between its bounds lie 95 % of the mean differences when the "
                "queries are resampled with replacement, both systems on the same "
                "ones. If it includes 0, the data do not tell which is better.",
            ),
        ]
    )


def _about(summary: Summary) -> str:
    about = summary["about"]
    shown = {
        "command": "Command",
        "source": "Data",
        "products": "Products",
        "queries": "Queries",
        "device": "Device",
        "seed": "Seed",
        "version": "jaxqr",
    }
    facts = [(title, str(about[k])) for k, title in shown.items() if k in about]
    return definitions([("Run", summary["name"]), *facts]) + paragraph(
        "Tables and figures are numbered as in MiniELM (arXiv 2501.18056). Each "
        "stage's settings are in the config.json of its folder, and all the numbers of "
        "this page are in summary.json beside it."
    )


_SECTIONS = (
    Section("Data", "pairs", sections.data, "prepare"),
    Section("The relevance model, M1", "relevance", sections.relevance, "relevance"),
    Section("Offline rewrites (Table 2)", "offline", sections.table_2, "distill"),
    Section("Online rewrites (Table 3)", "online", sections.table_3, "online_dpo"),
    Section("Training (Figure 4)", "training", sections.figure_4, "online_dpo"),
    Section("Held-out curves", "curves", sections.curves, "online_dpo"),
    Section("Examples (Table 5)", "rewrites", sections.table_5, "online_dpo"),
)

"""The page of a report: plain values from here, HTML from the templates.

Every text is escaped by jinja2; none is marked as safe.
"""

import base64
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import jinja2

from jaxqr.report import tables
from jaxqr.report.definitions import CURVES, OFFLINE, ONLINE, RELEVANCE, SERVING, clear
from jaxqr.report.figures import WINDOW, Image
from jaxqr.report.format import number, percent, signed
from jaxqr.report.verdict import verdict

SOURCES = {
    "shop": "The synthetic shop",
    "esci": "Shopping Queries (ESCI)",
    "wands": "Wayfair (WANDS)",
    "home-depot": "Home Depot",
    "category": "Clicks in and out of a category",
    "tables": "Your own tables",
}
"""What the data of a run is called; another source keeps its own name."""

_TERMS = {
    "served": SERVING,
    "relevance": RELEVANCE,
    "offline": OFFLINE,
    "online": ONLINE,
    "curves": CURVES,
}


class Section(NamedTuple):
    """A part of the page, made from one part of the summary by `KEY.html.j2`."""

    key: str
    title: str
    stage: str
    """The stage that measures it, before the evaluation."""
    values: Callable[[Mapping[str, Any]], dict[str, Any]]
    """What its template needs further, from the summary."""


SECTIONS = (
    Section("served", "Search with rewrites", "online_dpo", tables.served),
    Section("pairs", "Data", "prepare", tables.pairs),
    Section("relevance", "The relevance model, M1", "relevance", tables.relevance),
    Section("offline", "Offline rewrites (Table 2)", "distill", tables.offline),
    Section("online", "Online rewrites (Table 3)", "online_dpo", tables.online),
    Section("training", "Training (Figure 4)", "online_dpo", tables.training),
    Section("curves", "Held-out curves", "online_dpo", tables.curves),
    Section("rewrites", "Examples (Table 5)", "online_dpo", tables.rewrites),
)


def render(summary: Mapping[str, Any], images: Mapping[str, Image]) -> str:
    """The whole page as HTML."""
    about = summary["about"]
    gains = ", ".join(f"{x['name']} {x['gain']:g}" for x in about["labels"])
    return template("page.html.j2").render(
        {section.key: None for section in SECTIONS}
        | dict(summary)
        | {
            "verdict": verdict(summary),
            "sections": SECTIONS,
            "values": {s.key: s.values(summary) for s in SECTIONS if s.key in summary},
            "images": images,
            "source": SOURCES.get(about["source"], about["source"]),
            "window": WINDOW,
            "terms": [
                (term.label, term.meaning.format(gains=gains))
                for key, terms in _TERMS.items()
                if key in summary
                for term in terms.values()
            ],
        }
    )


@cache
def template(name: str) -> jinja2.Template:
    """One of the templates, with the filters that they use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxqr.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "percent": percent,
        "clear": clear,
        "base64": lambda data: base64.b64encode(data).decode(),
    }
    return environment.get_template(name)

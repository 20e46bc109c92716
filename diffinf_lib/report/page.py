"""Page: a report as one HTML file that needs no network, for people who were not there.

Every text passes through `escaped`, every thumbnail is embedded once and referred to, and a policy in the page's head allows
no script but its own and no address at all.
"""

import base64
import hashlib
from collections.abc import Iterable
from functools import cached_property

from diffinf_lib.pictures import SMALL, data_uri
from diffinf_lib.report.result import Report
from diffinf_lib.report.sections import findings_section, foot, guide, overview, queries_section
from diffinf_lib.report.shown import Shown
from diffinf_lib.report.text import asset, escaped, script_json

SIDE = 96
"""Longest side of a thumbnail in pixels."""


class Page:
    """A report and what of it is shown."""

    def __init__(self, report: Report):
        self.report = report
        self.shown = Shown(report)

    @cached_property
    def script(self) -> str:
        """The page's own script."""
        return asset("page.js")

    def html(self) -> str:
        """The whole page."""
        report, shown = self.report, self.shown
        digest = base64.b64encode(hashlib.sha256(self.script.encode()).digest()).decode()
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
        title = escaped(f"Behind {len(report.queries)} images: {report.folder.name}")
        return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{asset("page.css")}</style>
</head>
<body>
<a class="skip" href="#queries">Skip to the images</a>
<svg class="store" aria-hidden="true" focusable="false"><defs>{"".join(self._thumbnails())}</defs></svg>
{overview(report)}
<main>
{queries_section(report, shown)}
{findings_section(report, shown)}
{guide(report)}
</main>
{foot(report, shown)}
<dialog id="details" aria-labelledby="details-name"></dialog>
<script type="application/json" id="data">{script_json(shown.data())}</script>
<script>{self.script}</script>
</body>
</html>
"""

    def _thumbnails(self) -> Iterable[str]:
        sets = (("t", self.report.train, self.shown.images), ("q", self.report.queries, self.shown.queries))
        for prefix, named, places in sets:
            _, height, width = named.images.shape
            kind = ' class="small"' if max(height, width) <= SMALL else ""
            for place in places:
                uri = data_uri(named.images.images[place], SIDE)
                yield f'<image id="{prefix}{place}"{kind} width="{width}" height="{height}" href="{uri}"/>'


def render(report: Report) -> str:
    """The page of a report, as HTML."""
    return Page(report).html()

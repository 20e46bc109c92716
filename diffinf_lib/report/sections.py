"""Sections: the parts of the page, each a function of the report that returns HTML."""

from collections.abc import Iterable, Sequence

from diffinf_lib.report.findings import VOTERS, CopyGroup, LabelDoubt, Unusual
from diffinf_lib.report.result import Report
from diffinf_lib.report.shown import DOUBTS, GROUPS, MEMBERS, UNUSUAL, Shown
from diffinf_lib.report.text import asset, counted, escaped, listed


def picture(key: str, shape: Sequence[int], label: str = "") -> str:
    """A thumbnail by reference; without a label it is decoration beside its own name."""
    role = f'role="img" aria-label="{label}"' if label else 'aria-hidden="true"'
    return f'<svg class="pic" viewBox="0 0 {shape[2]} {shape[1]}" {role} focusable="false"><use href="#{key}"/></svg>'


def _base(name: str) -> str:
    return escaped(name.rpartition("/")[2])


def card(report: Report, n: int, *notes: str, bar: float | None = None) -> str:
    """A training image as a button that opens its details."""
    named, name = report.train, report.train.names[n]
    lines = [*([escaped(str(named.class_of(n)))] if named.class_of(n) else []), *notes]
    meta = "".join(f'<span class="meta">{line}</span>' for line in lines)
    strength = "" if bar is None else (
        '<svg class="bar" viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * bar:.0f}" height="4"/></svg>'
    )  # fmt: skip
    return (
        f'<li><button type="button" class="card" data-image="{n}" title="{escaped(name)}">'
        f"{picture(f't{n}', named.images.shape)}{strength}"
        f'<bdi class="name">{_base(name)}</bdi>{meta}</button></li>'
    )


def cards(items: Iterable[str], label: str) -> str:
    """Cards in a row that wraps; the list is named for those who do not see the heading."""
    return f'<ol class="cards" aria-label="{label}">{"".join(items)}</ol>'


# --- head


def overview(report: Report) -> str:
    """The title, what is here in three sentences, and where."""
    found, queries, images = report.findings, len(report.queries), len(report.train)
    unusual = len(found.flagged)
    links = [
        ("queries", f"{counted(queries, 'image')} explained"),
        ("copies", f"{counted(len(found.copies), 'group')} of copies"),
        ("unusual", counted(unusual, "unusual image")),
        ("labels", counted(len(found.label_doubts), "doubtful label")),
        ("guide", "How to read this"),
    ]
    items = "".join(f'<li><a href="#{key}">{text}</a></li>' for key, text in links)
    return (
        f"<header><h1>Which training images are behind these {counted(queries, 'image')}?</h1>"
        f"<p>A model was trained on {counted(images, 'image')}. For each image asked about, this page shows the training "
        "images that made the model find it more likely, and those that made it less likely. Choose a training image to see "
        "what else it counts for. Further down: training images that deserve a second look.</p>"
        f'<nav aria-label="On this page"><ul>{items}</ul></nav></header>'
    )


# --- queries


def queries_section(report: Report, shown: Shown) -> str:
    """A section for each query."""
    hidden = len(report.queries) - len(shown.queries)
    more = f"<p>{counted(hidden, 'more is', 'more are')} in <code>scores.csv</code>.</p>" if hidden else ""
    jump = ""
    if len(shown.queries) > 3:
        items = "".join(
            f'<li><a href="#q-{q}" title="{escaped(report.queries.names[q])}">'
            f"{picture(f'q{q}', report.queries.images.shape, escaped(report.queries.names[q]))}</a></li>"
            for q in shown.queries
        )
        jump = f'<nav aria-label="Images explained"><ul class="strip">{items}</ul></nav>'
    parts = "".join(_query(report, shown, q) for q in shown.queries)
    return f'<section id="queries" tabindex="-1"><h2>Images explained</h2>{jump}{parts}{more}</section>'


def _query(report: Report, shown: Shown, q: int) -> str:
    name, most = escaped(report.queries.names[q]), float(report.scores[0, q].abs().max())
    supporting, opposing, nearest = shown.supporting(q), shown.opposing(q), shown.nearest(q)

    def row(places: list[int], label: str) -> str:
        strengths = [abs(float(report.scores[0, q, n])) / most for n in places]
        found = (card(report, n, bar=strength) for n, strength in zip(places, strengths, strict=True))
        return cards(found, label)

    distances = (card(report, n, _apart(float(report.pixel_distances[q, n]))) for n in nearest)
    return f"""<article id="q-{q}" tabindex="-1" class="query">
<h3><bdi>{name}</bdi></h3>
<div class="asked">{picture(f"q{q}", report.queries.images.shape, name)}<p>{_shared(report, shown, q)}</p></div>
<h4>Made it more likely</h4>
{row(supporting, f"Training images that made {name} more likely, strongest first")}
<h4>Made it less likely</h4>
{row(opposing, f"Training images that made {name} less likely, strongest first")}
<h4>Nearest by pixels, to compare</h4>
{cards(distances, f"Training images nearest to {name} by pixels")}
</article>"""


def _apart(distance: float) -> str:
    return "same pixels" if distance == 0 else f"{100 * distance:.0f} % apart"


def _shared(report: Report, shown: Shown, q: int) -> str:
    """What the strongest supporters have in common, in a sentence or two."""
    top, nearest, told = shown.supporting(q), shown.nearest(q), []
    if report.pixel_distances[q, nearest[0]] == 0:
        told.append(f"It is pixel for pixel the training image <bdi>{escaped(report.train.names[nearest[0]])}</bdi>.")
    told.append(_shared_class(report, top))
    for group in report.findings.copies:
        inside = [n for n in top if n in group.members]
        if len(inside) > 1:
            told.append(f"{len(inside)} of them are copies of one another: {_names(report, inside)}.")
    both = len(set(top) & set(nearest))
    told.append(f"{both} of the {len(nearest)} nearest by pixels {'is' if both == 1 else 'are'} among them.")
    return " ".join(part for part in told if part)


def _shared_class(report: Report, top: list[int]) -> str:
    """How many of the strongest are of one class, beside its share of all images."""
    labels = [int(report.train.images.labels[n]) for n in top if report.train.class_of(n)]
    if not labels:
        return ""
    common = max(sorted(set(labels)), key=labels.count)
    share = float((report.train.images.labels == common).double().mean())
    return (
        f"{labels.count(common)} of the {len(top)} strongest supporters are of class <bdi>"
        f"{escaped(report.train.class_names[common])}</bdi>, which has {100 * share:.0f} % of all images."
    )


def _names(report: Report, places: Sequence[int]) -> str:
    return listed([f"<bdi>{_base(report.train.names[n])}</bdi>" for n in places])


# --- findings


def findings_section(report: Report, shown: Shown) -> str:
    """What may be wrong with the training images."""
    return (
        '<section id="findings" tabindex="-1"><h2>What may be wrong with the training images</h2>'
        "<p>Candidates to look at, found by what the images did to the model and by their pixels. None of them is a verdict: "
        "an unusual image can be the most valuable one.</p>"
        f"{_copies(report)}{_unusual(report)}{_labels(report)}</section>"
    )


def _limited(shown: int, count: int) -> str:
    return f"<p>The first {shown} of {count:,}; all are in <code>findings.csv</code>.</p>" if count > shown else ""


def _copies(report: Report) -> str:
    groups = report.findings.copies
    body = "".join(_copy_group(report, group) for group in groups[:GROUPS])
    found = f'<div class="groups">{body}</div>' if body else "<p>None found.</p>"
    return (
        '<section id="copies" tabindex="-1"><h3>Copies and near-copies</h3>'
        "<p>Images that are the same pixel for pixel as the model saw them; or of the same shape, whatever brightness and "
        "contrast, after a small shift; or that move the model in nearly the same direction. Copies weigh double in "
        "training, and make a model repeat them. Cropped, turned or mirrored copies are not looked for.</p>"
        f"{found}{_limited(GROUPS, len(groups))}</section>"
    )


_KINDS = {
    "pixels": "The same pixels",
    "shape": "The same shape, correlation",
    "gradients": "Nearly the same effect, cosine",
}


def _copy_group(report: Report, group: CopyGroup) -> str:
    text = _KINDS[group.by] + ("" if group.by == "pixels" else f" {min(group.value, 0.9999):.4f}")
    labels = {report.train.class_of(n) for n in group.members}
    text += ", in different classes" if len(labels) > 1 else ""
    rest = len(group.members) - MEMBERS
    text += f" ({rest} more not shown)" if rest > 0 else ""
    members = (card(report, n) for n in group.members[:MEMBERS])
    return f'<div class="group"><h4>{text}</h4>{cards(members, f"{text}: {len(group.members)} images")}</div>'


def _unusual(report: Report) -> str:
    found, flagged = report.findings, len(report.findings.flagged)
    apart = counted(flagged, "image stands", "images stand") if flagged else "No image stands"

    def note(unusual: Unusual) -> tuple[str, ...]:
        return (f"{unusual.ratio:.1f} × typical", *(["stands apart"] if unusual.flagged else []))

    items = (card(report, unusual.image, *note(unusual)) for unusual in found.unusual[:UNUSUAL])
    return (
        '<section id="unusual" tabindex="-1"><h3>Unusual images</h3>'
        "<p>Images that the model could not learn from others: their influence on themselves is the largest. Damaged files "
        f"tend to come first, and rare but good images too. {apart} apart, further out than the largest of "
        f"{len(report.train):,} ordinary ones would be expected; the list goes on in order all the same.</p>"
        f"{cards(items, 'The most unusual training images')}</section>"
    )


def _labels(report: Report) -> str:
    doubts = report.findings.label_doubts
    if len(report.train.class_names) < 2:
        body = "<p>The images have no classes (folders of their own), so there are no labels to doubt.</p>"
    else:
        items = cards((_doubt(report, doubt) for doubt in doubts[:DOUBTS]), "Doubtful labels")
        body = (items if doubts else "<p>None found.</p>") + _limited(DOUBTS, len(doubts))
    return (
        '<section id="labels" tabindex="-1"><h3>Doubtful labels</h3>'
        f"<p>For each image, the {VOTERS} training images are looked at that act on the model most as it does (copies left "
        "out). Listed are images for which most of these are filed under another class; classes are the names of folders. "
        f"Where classes are hard to tell apart, and for damaged images, this need not mean a wrong label.</p>{body}</section>"
    )


def _doubt(report: Report, doubt: LabelDoubt) -> str:
    suggested = escaped(report.train.class_names[doubt.suggested])
    many, own = doubt.votes
    return card(report, doubt.image, f"most alike: {many} in <bdi>{suggested}</bdi>, {own} in its own class")


# --- how to read, how it was made


def guide(report: Report) -> str:
    """What a score is, and is not."""
    text = asset("guide.html").replace("MEASURED", escaped(report.measurement.label))
    return text.replace("DIRECTION", escaped(report.measurement.direction))


def foot(report: Report, shown: Shown) -> str:
    """What was run: options, versions, cost, and what was done to the images."""
    rows = "".join(
        f"<tr><th scope='row'>{escaped(str(name))}</th><td>{escaped(str(value))}</td></tr>"
        for name, value in report.made.get("summary", {}).items()
    )
    notes = "".join(f"<li>{escaped(note)}</li>" for note in (*report.train.notes, *report.queries.notes))
    said = f"<h3>How images were read</h3><ul>{notes}</ul>" if notes else ""
    return (
        f'<footer id="made"><h2>How it was made</h2>{said}<div class="wide"><table><tbody>{rows}</tbody></table></div>'
        f"<p>This page shows {counted(len(shown.images), 'training image')} of {len(report.train):,}, as small copies: "
        "those that rank highest or are named above.</p></footer>"
    )

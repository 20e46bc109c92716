import base64
import html
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import torch
from cases import images
from PIL import Image

from diffinf_lib.interactive import data_uri, ranked_image_explorer, timestep_scrubber

TRAIN, QUERIES = images(40, 8), images(12, 8, seed=1)
SCORES = torch.randn(12, 40, generator=torch.Generator().manual_seed(0))


class Checker(HTMLParser):
    """Collects ids and the targets of labels, and checks that tags close."""

    def __init__(self):
        super().__init__()
        self.ids, self.targets, self.images, self.open = [], [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids += [found["id"]] if "id" in found else []
        self.targets += [found["for"]] if "for" in found else []
        if tag == "img":
            self.images.append(found)
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(fragment):
    checker = Checker()
    checker.feed(fragment)
    assert not checker.open
    return checker


def fragments():
    return [
        timestep_scrubber(TRAIN.images[0], torch.randn(1, 8, 8), timesteps=range(0, 1000, 50)),
        ranked_image_explorer(TRAIN, QUERIES, SCORES),
    ]


def test_fragments_are_whole_labelled_and_self_contained():
    for figure in fragments():
        fragment = figure._repr_html_()
        checker = parsed(fragment)
        assert len(set(checker.ids)) == len(checker.ids) and set(checker.targets) <= set(checker.ids)
        assert all(image["alt"] and image["src"].startswith("data:image/png") for image in checker.images)
        assert not re.search(r"https?://", fragment) and len(fragment) < 500_000
        assert 'aria-live="polite"' in fragment


def test_two_figures_on_a_page_share_no_ids():
    figure = fragments()[0]
    first, second = parsed(figure._repr_html_()), parsed(figure._repr_html_())
    assert not set(first.ids) & set(second.ids)


def test_inline_images_hold_the_pixels():
    content = base64.b64decode(data_uri(TRAIN.images[3]).partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert np.abs(pixels - ((TRAIN.images[3, 0] + 1) * 127.5).numpy()).max() <= 0.5


def test_the_widget_follows_its_control():
    for figure in fragments():
        control, view = figure.widget().children
        control.value = 2
        assert view.value == figure.frames[2]


def test_file_names_are_shown_and_cannot_end_the_script():
    names = tuple(f"a</script><b>{n}.png" for n in range(40))
    train, queries = replace(TRAIN, names=names), replace(QUERIES, names=names[:12])
    fragment = ranked_image_explorer(train, queries, SCORES)._repr_html_()
    checker = parsed(fragment)
    assert fragment.count("</script>") == 1 and "<b>" not in fragment
    best = int(SCORES[0].argmax())
    assert (
        checker.images[1]["alt"] == f"training image {names[best]}" and f"query 0: {html.escape(names[0])}" in fragment
    )

"""The judge's page in a real browser.

With E5REF_SCREENSHOTS=docs/port in the environment README's picture of it is made anew.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import e5ref
from e5ref.parity import Run, compare, record
from e5ref.parity.altered.models import model_copy, run_reference
from e5ref.parity.judge.explain import explain
from e5ref.parity.judge.report import html_report
from tests.inside.browser import Visit, needs_browser
from tests.measure.parity.small_mistakes import tanh_gelu

pytestmark = [pytest.mark.slow, needs_browser]

TEXTS = ["query: how do plants grow", "passage: Leaves turn light into sugar.", "passage: Cats hunt mice at night."]


@pytest.fixture(scope="module")
def page(minilm, tmp_path_factory) -> Path:
    """What the judge says of a port with GELU's tanh form."""
    reference = record(minilm, TEXTS, dtype="float64")
    batch = reference.input_ids, reference.attention_mask
    points = run_reference(e5ref.read_checkpoint(minilm), *batch, model=model_copy(gelu=tanh_gelu))
    run = Run(dict(zip(("input_ids", "attention_mask"), batch, strict=True)) | points, {"dtype": "float32"})
    comparison = compare(run, reference)
    explanations = explain(run, reference, e5ref.read_checkpoint(minilm, dtype="float64"), comparison)
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_report(comparison, "A port beside the reference", explanations))
    assert np.isfinite(points["normalized"]).all()
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_no_fault_no_request_and_nothing_that_axe_finds_serious(page, browser, scheme, device):
    from axe_playwright_python.sync_playwright import Axe

    with Visit(browser, page.as_uri(), scheme, device, ready="svg") as visit:
        violations = Axe().run(visit.page).response["violations"]
        assert not [
            (one["id"], one["nodes"][0]["html"]) for one in violations if one["impact"] in ("serious", "critical")
        ]
        assert not visit.faults
        assert visit.requests == [page.as_uri()]


def test_the_picture_of_the_readme(page, browser, tmp_path):
    folder = Path(os.environ.get("E5REF_SCREENSHOTS", tmp_path))
    with Visit(browser, page.as_uri(), ready="svg") as visit:
        visit.page.set_viewport_size({"width": 1000, "height": 830})
        assert "the activation is GELU in its tanh form" in visit.page.inner_text("body")
        visit.page.screenshot(path=folder / "verdict.png")

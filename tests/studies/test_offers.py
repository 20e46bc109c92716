"""Offers study on the smoke preset."""

import torch
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.compression import from_int8_rows
from diffinf_lib.studies import OffersStudy
from diffinf_lib.studies.methods import from_arrays


def test_offers_are_scores_in_eight_bits_with_the_bill_of_each(run, tmp_path):
    truths = {name: random_truth(run, images, 3) for name, images in di.runs.measured_queries(run).items()}
    study = OffersStudy(run, truths)
    assert len(list(study.shard())) == 2 * 2 * 3
    folder = study.bundle(root=tmp_path)
    made = di.load_bundle(folder.name, root=folder.parent)
    packed = {
        key: torch.from_numpy(made.arrays[f"held-out/{name}"])
        for key, name in (("values", "scores"), ("scale", "scales"))
    }
    scores, offers = from_int8_rows(packed), made.metrics["offers"]["held-out"]
    assert scores.shape == (2 * 2 * 6, 6, 24) and len(offers) == len(scores)

    exact = torch.cat([from_arrays(study.arrays(cell)).scores for cell in study.cells()])
    assert (scores - exact).abs().max() <= 0.51 * packed["scale"].max()
    assert ((scores - exact).abs() <= 0.51 * packed["scale"]).all()

    by_name = {offer["name"]: offer["passes"] for offer in offers}
    one, four = (by_name[f"final, 8 draws, conjugate gradients, {k}"] for k in (1, 4))
    assert {part: four[part] - one[part] for part in one if four[part] != one[part]} == {"step-000020-ggn": 3 * 6 * 24}
    curvature = run.preset.curvature
    assert one["step-000020-curvature"] == 24 * (curvature.drawn_for_factors.count + curvature.draws.count)
    assert sum(by_name["final, 64 draws, K-FAC"].values()) - sum(by_name["final, 8 draws, K-FAC"].values()) == 56 * 24
    assert set(by_name["half-way, 8 draws, EK-FAC"]).isdisjoint(by_name["final, 8 draws, EK-FAC"])

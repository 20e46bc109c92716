import torch
from cases import images

import diffinf_lib as di


def test_the_nearest_image_scores_highest():
    train, queries = images(5, 2), images(2, 2, seed=1)
    scores = di.attribution.pixel_distance_scores(train, queries)
    for q in range(2):
        distances = [float((queries.images[q] - train.images[n]).double().norm()) for n in range(5)]
        assert scores[q].argmax().item() == min(range(5), key=distances.__getitem__)
        torch.testing.assert_close(scores[q], -torch.tensor(distances, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_dot_and_cosine_by_hand():
    queries = di.GradientSet.of({"a": torch.tensor([[[1.0, 2.0]]]), "b": torch.tensor([[[2.0]]])})
    train = di.GradientSet.of({"a": torch.tensor([[[3.0, 0.0]], [[0.0, 1.0]]]), "b": torch.tensor([[[4.0]], [[0.0]]])})
    assert di.attribution.gradient_dot_scores(queries, train).tolist() == [[11.0, 2.0]]
    expected = torch.tensor([[11 / (3 * 5), 2 / 3]], dtype=torch.float64)
    torch.testing.assert_close(di.attribution.gradient_cosine_scores(queries, train), expected)


def test_random_scores_are_reproducible():
    assert torch.equal(di.attribution.random_scores(3, 4), di.attribution.random_scores(3, 4))
    assert not torch.equal(di.attribution.random_scores(3, 4), di.attribution.random_scores(3, 4, seed=1))

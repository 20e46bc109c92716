import torch

from diffinf_lib.randomness import keyed_generator, keyed_seed


def test_a_key_gives_the_same_stream_whatever_ran_before():
    first = torch.randn(5, generator=keyed_generator("draws", 0, 7))
    torch.randn(100)
    torch.testing.assert_close(torch.randn(5, generator=keyed_generator("draws", 0, 7)), first, rtol=0, atol=0)


def test_every_part_of_the_key_matters():
    keys = [("a", 1), ("a", "1"), ("a1",), ("a", 1, 1), ("a", 11), (1, "a")]
    assert len({keyed_seed(*key) for key in keys}) == len(keys)

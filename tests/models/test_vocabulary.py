import pytest
import torch
from open_clip import SimpleTokenizer
from tiny_clips import build, shrunk

from progeo.models.backbones.clips import load_clip
from progeo.models.text_towers.tower import build_text_tower
from progeo.models.vocabulary import nearest_words


@pytest.fixture(scope="module")
def clip():
    return load_clip("tiny-vit", "random")


@pytest.fixture(scope="module")
def tower(clip):
    return build_text_tower(clip)


def test_a_words_own_embedding_is_nearest_to_it(clip, tower):
    tokenizer = SimpleTokenizer()
    ids = torch.tensor([tokenizer.encode(word)[0] for word in ("street", "tower", "palm")])
    nearest = nearest_words(tower, clip.token_embedding(ids), 1)
    assert nearest.words == [["street"], ["tower"], ["palm"]]
    assert nearest.distances.abs().max() == 0


def test_a_token_that_begins_a_word_is_told_from_the_word(clip, tower):
    tokenizer = SimpleTokenizer()
    ids = torch.tensor([tokenizer.encoder["street"], tokenizer.encoder["street</w>"]])
    assert nearest_words(tower, clip.token_embedding(ids), 1).words == [["street-"], ["street"]]


def test_the_marks_of_start_and_end_are_no_words(clip, tower):
    tokenizer = SimpleTokenizer()
    ids = torch.tensor([tokenizer.sot_token_id, tokenizer.eot_token_id])
    assert nearest_words(tower, clip.token_embedding(ids), 1).distances.min() > 0


def test_distances_and_their_order_agree_with_a_plain_search_across_chunks(clip, tower):
    vectors = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    nearest = nearest_words(tower, vectors, 3)
    assert len(nearest.words) == 300
    tokenizer = SimpleTokenizer()
    vocabulary = clip.token_embedding.weight[:-2].double()
    for row in (0, 255, 256, 299):
        plain = (vocabulary - vectors[row].double()).norm(dim=1).sort()
        torch.testing.assert_close(nearest.distances[row].double(), plain.values[:3], rtol=1e-5, atol=1e-5)
        words = [tokenizer.decode([token]).strip() for token in plain.indices[:3].tolist()]
        assert [word.rstrip("-") for word in nearest.words[row]] == words


def test_more_words_than_there_are_is_refused(tower):
    assert len(nearest_words(tower, torch.zeros(1, 64), 49406).words[0]) == 49406
    with pytest.raises(ValueError, match="num_words must be at most 49406, all words that there are, got 49407"):
        nearest_words(tower, torch.zeros(1, 64), 49407)


def test_words_of_other_tokenizers_are_found_by_what_the_tower_reads(hub_cache):
    text, more = shrunk("nllb-clip-base")  # its embedding scales its weights
    tower = build_text_tower(build(text, more).float())
    ids = tower.tokenizer.encode("a narrow street!")
    vectors = tower.embedding(torch.tensor(ids))
    assert not torch.equal(vectors, tower.token_embedding.weight[ids])
    nearest = nearest_words(tower, vectors, 1)
    assert nearest.words == [["a"], ["narrow"], ["street"], ["-!"]]
    assert nearest.distances.abs().max() == 0

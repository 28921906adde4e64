import functools
import importlib.util
import json
import re

import open_clip
import pytest
import sentencepiece
import torch
from open_clip.tokenizer import HFTokenizer
from tiny_clips import snapshot

from progeo.models.backbones.clip_configurations import ClipConfiguration, known_architectures, named_configuration
from progeo.models.backbones.clips import load_clip
from progeo.models.text_towers.tokenizers import LEARNED, PACKAGES, HubTokenizer, check_tokenizer, load_tokenizer

pytestmark = pytest.mark.usefixtures("hub_cache")
HUB = {
    "T5": ("google/mt5-base", {"clean": "canonicalize"}),
    "SigLIP": ("timm/ViT-B-16-SigLIP", {"clean": "canonicalize"}),
    "SigLIP2": ("timm/ViT-B-16-SigLIP2", {"clean": "canonicalize"}),
    "bert": ("bert-base-uncased", {"strip_sep_token": True}),
    "roberta": ("roberta-base", {}),
    "xlm": ("facebook/xlm-v-base", {}),
    "nllb": ("facebook/nllb-200-distilled-600M", {}),
}
SENTENCES = ("", "a", "A photo of a very narrow, old street!", "it's [X] & 7 x.", "no " * 40)


def configuration(name=None, options=None, *, length=40, **more):
    text = {"context_length": length, "hf_tokenizer_name": name, "tokenizer_kwargs": options, **more}
    return ClipConfiguration({"embed_dim": 8, "vision_cfg": {}, "text_cfg": text})


@pytest.fixture(params=["CLIP", *HUB])
def pair(request):
    """A tokenizer and open_clip's own."""
    if request.param == "CLIP":
        return load_tokenizer(configuration()), functools.partial(open_clip.tokenize, context_length=40)
    name, options = HUB[request.param]
    return load_tokenizer(configuration(name, options)), HFTokenizer(name, 40, **options)


def test_ids_are_those_of_open_clip(pair):
    tokenizer, own = pair
    assert torch.equal(tokenizer.ids(SENTENCES), own(list(SENTENCES)))
    assert tokenizer.context_length == 40


def test_a_sequence_of_words_alone_is_their_sentence_however_it_is_cut(pair):
    tokenizer, own = pair
    for sentence in SENTENCES[1:4]:
        assert tokenizer.sequence([sentence[:3], sentence[3:]]) == tuple(own([sentence])[0].tolist())


def test_learned_vectors_stand_where_words_would(pair):
    tokenizer, own = pair
    for before, words, after in (("A photo of a ", " street", " in a, x."), ("", "x", " of a"), ("no", " a a", "")):
        ids = tokenizer.encode(words, continues=bool(before))
        sequence = list(tokenizer.sequence([before, len(ids), after]))
        start = sequence.index(LEARNED)
        assert sequence[start : start + len(ids)] == [LEARNED] * len(ids)
        sequence[start : start + len(ids)] = ids
        assert sequence == own([before + words + after])[0].tolist()


def test_a_prompt_that_is_too_long_is_refused_with_its_number_of_tokens(pair):
    tokenizer, _ = pair
    around = tokenizer.num_tokens("")
    sequence = tokenizer.sequence([40 - around])
    assert (len(sequence), sequence.count(LEARNED)) == (40, 40 - around)
    with pytest.raises(ValueError, match="`template` takes 41 tokens, but the text tower reads 40: shorten it"):
        tokenizer.sequence([41 - around])


def test_words_are_shown_without_marks_but_where_they_belong_to_longer_ones(pair):
    tokenizer, own = pair
    words = [tokenizer.word(token) for token in tokenizer.encode("a street", continues=True)]
    assert "street" in words or "-street" not in words
    assert not any(mark in word for word in words for mark in ("▁", "Ġ", "##", "</w>"))
    special = set(own.tokenizer.all_special_ids) if isinstance(own, HFTokenizer) else {49406, 49407}
    assert not special & set(tokenizer.word_ids.tolist())
    assert len(tokenizer.word_ids) > 90


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("T5", " streets", ["street", "-s"]),
        ("SigLIP2", " streets", ["street", "-s"]),
        ("bert", " xy", ["x", "-y"]),
        ("roberta", " streets", ["street", "-s"]),
        ("nllb", " narrow!", ["narrow", "-!"]),
    ],
)
def test_tokens_that_continue_a_word_begin_with_a_hyphen(kind, text, words):
    tokenizer = load_tokenizer(configuration(*HUB[kind]))
    ids = tokenizer.encode(f"a{text}")
    assert [tokenizer.word(token) for token in ids[-2:]] == words


def test_the_class_token_at_the_end_of_padding_is_kept():
    own = HFTokenizer("bert-base-uncased", 12, tokenizer_mode="clips")
    own.tokenizer.bos_token, own.tokenizer.eos_token = "[UNK]", "[SEP]"
    assert own(["a street"])[0, -1] == own.tokenizer.cls_token_id
    tokenizer = HubTokenizer(own)
    assert tokenizer.sequence(["a street"]) == tuple(own(["a street"])[0].tolist())
    assert tokenizer.sequence(["a ", 8])[-1] == own.tokenizer.cls_token_id
    with pytest.raises(ValueError, match="takes 13 tokens"):
        tokenizer.sequence(["a ", 9])


def test_padding_on_the_left_stays_there():
    own = HFTokenizer("facebook/xlm-v-base", 12)
    own.tokenizer.padding_side = "left"
    tokenizer = HubTokenizer(own)
    assert tokenizer.sequence(["a street"]) == tuple(own(["a street"])[0].tolist())


def test_a_model_of_sentencepiece_and_one_in_a_folder_are_read(hub_folder, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(["a photo of a narrow street", "the very old street in a photo x"] * 20))
    options = {"vocab_size": 60, "hard_vocab_limit": False, "minloglevel": 2}
    options |= {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(input=str(corpus), model_prefix=str(tmp_path / "spiece"), **options)
    files = snapshot(hub_folder, "someone/pieces")
    (files / "spiece.model").write_bytes((tmp_path / "spiece.model").read_bytes())
    (files / "config.json").write_text('{"model_type": "t5"}')
    (files / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    tokenizer = load_tokenizer(configuration("someone/pieces", {"clean": "canonicalize"}))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert tokenizer.encode("A street.") == pieces.encode("a street")
    text = configuration("nobody/nothing", {"clean": "canonicalize"})
    in_folder = load_tokenizer(ClipConfiguration(text.values, files))
    assert in_folder.sequence(["a ", 2]) == tokenizer.sequence(["a ", 2])


@pytest.mark.parametrize("hf_model", [False, True])
def test_code_beside_a_tokenizer_or_a_tower_is_neither_run_nor_offered(hf_model, tmp_path, monkeypatch):
    auto = {"AutoTokenizer": ["own.Own", None], "AutoConfig": "own.Own"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Own"}))
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto, "model_type": "own"}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    with pytest.raises(ValueError, match="custom code"):
        if hf_model:
            load_clip("tiny-vit", "random", configuration=configuration(hf_model_name=str(tmp_path)))
        else:
            load_tokenizer(ClipConfiguration(configuration("someone/own").values, tmp_path))
    assert not (tmp_path / "run").exists()


def test_packages_that_are_missing_are_named_before_anything_is_fetched(monkeypatch):
    known_architectures()
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else found(name))
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", None)
    for name in ("ViT-B-16-SigLIP", "ViT-H-14-CLIPA", "xlm-roberta-base-ViT-B-32"):
        words = re.escape("not installed (sentencepiece): pip install 'progeo[tokenizers]'")
        with pytest.raises(ValueError, match=words):
            load_tokenizer(named_configuration(name))
    check_tokenizer(named_configuration("ViT-B-16"))
    assert all(importlib.util.find_spec(name) for name in PACKAGES if name != "sentencepiece")

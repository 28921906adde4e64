"""Tiny tokenizers and text towers of Hugging Face in a hub cache on the disk."""

import json
import string

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("a", "A", "photo", "of", "the", "street", "narrow", "very", "old", "x", "in", "no")
LETTERS = string.ascii_letters + string.digits + string.punctuation
TINY = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
TOWERS = {
    "roberta": transformers.RobertaConfig(**TINY, max_position_embeddings=90),
    "xlm-roberta": transformers.XLMRobertaConfig(**TINY, max_position_embeddings=90),
    "mt5": transformers.MT5Config(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2),
    "m2m_100": transformers.M2M100Config(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
    ),
}


def sentencepiece(special, template, **names):
    pieces = [(name, 0.0) for name in special] + [(f"▁{word}", -2.0) for word in WORDS] + [("▁", -4.0)]
    pieces += [(letter, -9.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=special.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return finished(tokenizer, special, template, **names)


def gemma():
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocabulary = [*special, *LETTERS, "▁", "st", "re", "et", "reet", "street", "▁street", "ph", "▁ph"]
    merges = [tuple(merge.split()) for merge in ("s t", "r e", "e t", "re et", "st reet", "▁ street", "p h", "▁ ph")]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return finished(tokenizer, special, "$A <eos>", pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def bert():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = [word.lower() for word in WORDS]
    vocabulary = dict.fromkeys([*special, *words, *LETTERS.lower(), *(f"##{letter}" for letter in LETTERS.lower())])
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return finished(tokenizer, special, "[CLS] $A [SEP]", **names)


def roberta():
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    ids = {token: index for index, token in enumerate([*special, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    merges = []
    for word in ("Ġa", "Ġof", "Ġstreet", "Ġx", "Ġnarrow"):
        for end in range(2, len(word) + 1):
            merge = (word[: end - 1], word[end - 1])
            if merge not in merges:
                merges.append(merge)
                ids[word[:end]] = len(ids)
    tokenizer = Tokenizer(models.BPE(ids, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return finished(tokenizer, special, "<s> $A </s>", **names)


def finished(tokenizer, special, template, **names):
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    ids = [(token, tokenizer.token_to_id(token)) for token in template.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **names)


def t5():
    special = ["<pad>", "</s>", "<unk>"]
    return sentencepiece(special, "$A </s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def siglip():
    special = ["<unk>", "</s>"]
    return sentencepiece(special, "$A </s>", pad_token="</s>", eos_token="</s>", unk_token="<unk>")


def xlm():
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return sentencepiece(special, "<s> $A </s>", **names)


def nllb():
    special = ["<s>", "<pad>", "</s>", "<unk>", "eng_Latn"]
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return sentencepiece(special, "eng_Latn $A </s>", **names)


TOKENIZERS = {
    "google/mt5-base": t5,
    "timm/ViT-B-16-SigLIP": siglip,
    "timm/ViT-B-16-SigLIP2": gemma,
    "facebook/xlm-v-base": xlm,
    "bert-base-uncased": bert,
    "roberta-base": roberta,
    "facebook/nllb": nllb,
}


@pytest.fixture(scope="session")
def hub_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name, make in TOKENIZERS.items():
        make().save_pretrained(files := snapshot(folder, name))
        (files / "config.json").write_text("{}")
    for name, config in TOWERS.items():
        small = config.to_dict() | {"vocab_size": 300, "pad_token_id": 0 if name == "mt5" else 1}
        (snapshot(folder, f"tiny/{name}") / "config.json").write_text(json.dumps(small))
    return folder


@pytest.fixture(autouse=True)
def cached_hub(hub_folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return hub_folder


def snapshot(folder, name):
    """Make the folder of the files of a repository, as the hub's cache has it."""
    repository = folder / f"models--{name.replace('/', '--')}"
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    return repository / "snapshots/abc"

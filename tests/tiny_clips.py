"""Tiny CLIPs of every kind of text tower, and stand-ins for their tokenizers in a hub cache on the disk."""

import json
import re
import string

import open_clip
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from progeo.models.backbones.clip_configurations import ClipConfiguration
from progeo.models.text_towers.tokenizers import LEARNED

WORDS = ("a", "A", "photo", "of", "the", "street", "narrow", "very", "old", "x", "in", "no")
LETTERS = string.ascii_letters + string.digits + string.punctuation
TINY = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 32, "patch_size": 16}
TEXT = {"context_length": 28, "width": 32, "heads": 2, "layers": 2}
DECODER = {"context_length": 27, "width": 32, "heads": 2, "layers": 1}
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
    "google/mt5": t5,
    "timm/.*SigLIP2": gemma,
    "timm/.*SigLIP": siglip,
    "facebook/xlm-v|xlm-roberta": xlm,
    "bert": bert,
    "roberta": roberta,
    "facebook/nllb": nllb,
}
"""Stand-in tokenizers by the beginning of their names."""


def write_hub(folder):
    """Write stand-ins for all tokenizers that open_clip's architectures name, and configurations of tiny towers."""
    texts = [open_clip.get_model_config(name)["text_cfg"] for name in open_clip.list_models()]
    for name in sorted({text["hf_tokenizer_name"] for text in texts if "hf_tokenizer_name" in text}):
        make = next(make for kind, make in TOKENIZERS.items() if re.match(kind, name))
        make().save_pretrained(files := snapshot(folder, name))
        (files / "config.json").write_text("{}")
    for name, config in TOWERS.items():
        small = config.to_dict() | {"vocab_size": 300, "pad_token_id": 0 if name == "mt5" else 1}
        (snapshot(folder, f"tiny/{name}") / "config.json").write_text(json.dumps(small))


def snapshot(folder, name):
    """Make the folder of the files of a repository, as the hub's cache has it."""
    repository = folder / f"models--{name.replace('/', '--')}"
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    return repository / "snapshots/abc"


def build(text, more=(), *, width=48):
    """Build a CLIP in float64 whose weights, all random, leave no setting without effect."""
    width = 32 if text.get("hf_model_name") and "hf_proj_type" not in text else width
    text = (TEXT if "hf_model_name" not in text else {"context_length": 28}) | text
    values = {"embed_dim": width, "vision_cfg": VISION, "text_cfg": text} | dict(more)
    kind = open_clip.CustomTextCLIP if values.get("custom_text") or "hf_model_name" in text else open_clip.CLIP
    kind = open_clip.CoCa if "multimodal_cfg" in values else kind
    torch.manual_seed(0)
    clip = kind(**{name: value for name, value in values.items() if name != "custom_text"})
    for parameter in clip.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    clip.configuration = ClipConfiguration(values)
    return clip.double().eval().requires_grad_(False)


def own_features(tower, ids, context):
    """Features of `encode_text` on all ids (B, L), the context (B, k, W) in the embedding's output for LEARNED."""
    learned = ids == LEARNED

    def write(module, inputs, output):
        output = output.clone()
        output[learned] = context.flatten(0, 1)
        return output

    hook = tower.token_embedding.register_forward_hook(write)
    try:
        return tower.clip.encode_text(torch.where(learned, 7, ids), normalize=False)
    finally:
        hook.remove()


def assert_exact(tower, sequence):
    """Compare features and gradients of prompts with the tower's own."""
    encoder = tower.prompts(sequence)
    context = torch.randn(3, sequence.count(LEARNED), tower.width, dtype=torch.float64, requires_grad=True)
    features = encoder(context)
    expected = own_features(tower, torch.tensor([sequence] * 3), context)
    torch.testing.assert_close(features, expected, rtol=1e-9, atol=1e-11)
    weights = torch.randn(features.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad((each * weights).sum(), context)[0] for each in (features, expected)]
    assert gradients[1].abs().max() > 1e-6
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)
    return encoder


def shrunk(name):
    """Return the text and other settings of an architecture with few layers, small width and a stand-in tokenizer."""
    values = dict(open_clip.get_model_config(name))
    text = values["text_cfg"]
    text |= {"layers": 2, "width": 32, "heads": 2, "context_length": text.get("context_length", 77)}
    if "hf_model_name" in text:
        kinds = {"roberta": "roberta", "xlm-roberta": "xlm-roberta", "google/mt5": "mt5", "facebook/nllb": "m2m_100"}
        kind = next(kind for start, kind in kinds.items() if text["hf_model_name"].startswith(start))
        text |= {"hf_model_name": f"tiny/{kind}", "hf_model_pretrained": False}
    elif "hf_tokenizer_name" in text:
        text["vocab_size"] = 300
    more = {name: value for name, value in values.items() if name not in ("embed_dim", "vision_cfg", "text_cfg")}
    return text, more | ({"multimodal_cfg": DECODER} if "multimodal_cfg" in more else {})

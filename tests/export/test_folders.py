import pytest

from progeo.export.folders import without_folders


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"run": "/home/me/runs/a", "data": {"train_folder": "../sf_xl/train/"}},
            {"run": "a", "data": {"train_folder": "train"}},
        ),
        (["/home/me/a.pth", ("b/c", 3)], ["a.pth", ["c", 3]]),
        ("open_clip:RN50:/home/me/clip.pt", "open_clip:RN50:clip.pt"),  # what an encoder is named that was reduced
        ("open_clip:ViT-B/16:openai", "open_clip:ViT-B/16:openai"),
        ("open_clip:ViT-B/16:hf-hub:owner/name", "open_clip:ViT-B/16:hf-hub:owner/name"),
        ("torchvision:resnet18:../resnet18.pth", "torchvision:resnet18:resnet18.pth"),
        ({"architecture": "ViT-B/16"}, {"architecture": "ViT-B/16"}),
        ({"architecture": "local-dir:/home/me/clip"}, {"architecture": "local-dir:clip"}),
        ("open_clip:local-dir:/home/me/clip", "open_clip:local-dir:clip"),
        ("open_clip:ViT-B-32:local-dir:/home/me/clip", "open_clip:ViT-B-32:local-dir:clip"),
        (
            {"run": r"C:\Users\me\runs\a", "data": {"train_folder": r"\\server\me\train"}},
            {"run": "a", "data": {"train_folder": "train"}},
        ),
        ({"license": "MIT/X11", "data_license": "CC BY/ours"}, {"license": "MIT/X11", "data_license": "CC BY/ours"}),
        ({"template": "A photo/picture of {}."}, {"template": "A photo/picture of {}."}),
        ("hf-hub:owner/name", "hf-hub:owner/name"),
        ("https://somewhere/encoder", "https://somewhere/encoder"),
        ({"weights": "openai", "epoch": 3, "prompts": None}, {"weights": "openai", "epoch": 3, "prompts": None}),
    ],
)
def test_of_every_path_the_last_part_stays(value, expected):
    assert without_folders(value) == expected

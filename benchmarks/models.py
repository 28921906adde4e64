"""Print the tables of docs/models.md: published recalls of methods, and what is known of weights that are imported.

Run `python -m benchmarks.models`. The table of measured encoders there is the models.md of `progeo compare`.
"""

from progeo.convert.recognition import FORMATS, release_of
from progeo.evaluation.protocols import load_protocol, protocol_names
from progeo.printable import markdown_table

_COLUMNS = {
    "Pitts30k": "pitts30k_test",
    "Pitts250k": "pitts250k_test",
    "Tokyo 24/7": "tokyo_247",
    "MSLS val": "msls_val",
    "MSLS challenge": "msls_challenge",
    "SF-XL v1": "sf_xl_test_v1",
    "SF-XL v2": "sf_xl_test_v2",
    "Nordland": "nordland",
    "Nordland, 2,760": "nordland_2760",
    "SVOX night": "svox_night",
    "SVOX rain": "svox_rain",
    "AmsterTime": "amstertime",
    "Eynsham": "eynsham",
    "SPED": "sped",
    "St Lucia": "st_lucia",
}
_MARK = "†"
"""Mark of methods whose descriptors depend on other test images."""


def main() -> None:
    """Print both tables."""
    print(published_table())
    print(programs_table())


def published_table() -> str:
    """Return the published R@1 of each method, backbone and dimension, by protocol; the lowest of Pitts30k first."""
    recalls: dict[tuple[str, str, int], dict[str, float]] = {}
    for name in protocol_names():
        for row in load_protocol(name).published:
            mark = _MARK if row.sees_other_images else ""
            recalls.setdefault((f"{row.method}{mark}", row.backbone, row.dim), {})[name] = row.recalls[1]
    shown = {key: found for key, found in recalls.items() if {*found} & {*_COLUMNS.values()}}
    order = sorted(shown, key=lambda key: (shown[key].get("pitts30k_test", 0.0), key))
    header = ["method", "backbone", "training data", "dimensions", *_COLUMNS]
    rows = [
        [
            method,
            backbone,
            release_of(method.removesuffix(_MARK)).training_data or "?",
            f"{dim:,}",
            *(
                f"{shown[method, backbone, dim][name]:.1f}" if name in shown[method, backbone, dim] else ""
                for name in _COLUMNS.values()
            ),
        ]
        for method, backbone, dim in order
    ]
    return markdown_table([header, *rows], num_texts=3)


def programs_table() -> str:
    """Return what is known of the weights that the authors of each program publish."""
    header = ["program", "training data", "license of code", "license of weights"]
    rows = [[row.name, *(text or "?" for text in vars(row.release).values())] for row in FORMATS]
    return markdown_table([header, *rows], num_texts=4)


if __name__ == "__main__":
    main()

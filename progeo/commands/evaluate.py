"""Evaluate an encoder: retrieve database images for queries and measure recall."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import PositiveInt

from progeo.engine.options import Precision
from progeo.evaluation.options import BenchmarkOptions
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions

if TYPE_CHECKING:
    from progeo.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Results:
    """Results of an evaluation."""

    recalls: dict[str, float]
    """Recall in percent by measure, such as R@1; empty without labels."""
    out: Path
    """Folder of the result files."""

    def __str__(self) -> str:
        return "".join(f"{name} {recall:.1f}  " for name, recall in self.recalls.items()) + str(self.out)


def evaluate(
    encoder: str,
    *,
    folder: Path,
    out: Path,
    benchmark: BenchmarkOptions = BenchmarkOptions(),
    images: ImageOptions = ImageOptions(),
    work: WorkOptions = WorkOptions(),
    cache: CacheOptions = CacheOptions(),
    faiss: str | None = None,
    probes: PositiveInt = 16,
    no_labels: bool = False,
    trust: bool = False,
    mixed_precision: Precision = "no",
) -> "Results | None":
    """Evaluate an encoder and write recalls, predictions and a report.

    Args:
        encoder: Encoder to evaluate: the folder of a run or of an encoder; FAMILY:ARCHITECTURE:WEIGHTS for
            a backbone of open_clip, torchvision or timm; thumbnail; hub:OWNER/REPO[:BRANCH]:ENTRY?name=value&... or
            hub:FOLDER:ENTRY?name=value&... for a network of torch.hub, with trust; or a folder with
            database_descriptors.npy and queries_descriptors.npy of another program, rows in the order of the sorted
            paths. A hub network gets images of 320 x 320 pixels, or of its option image_size=322 or image_size=240x320
            (height, width), normalized with the mean and std of ImageNet.
        folder: Folder that holds the database and the queries.
        out: Output folder for the results.
        benchmark: The benchmark.
        images: Options of the images.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        faiss: faiss factory string of a compressed index to evaluate, such as IVF1024,Flat, OPQ32,IVF1024,PQ32, HNSW32,
            SQ8 or PCA128,Flat. The report then also gives the recall lost and the memory saved. null searches exactly.
        probes: Number of inverted lists that a search visits (faiss nprobe). Only an IVF index uses it.
        no_labels: Evaluate queries without known positions. Writes a report and the predictions, but no recalls; any
            file names are accepted.
        trust: Run the code of the repository that hub: names. It can do on this machine whatever you can.
        mixed_precision: Precision of the encoder.
    """
    from progeo.engine.accelerator import start_accelerator
    from progeo.evaluation.evaluate import evaluate_encoder

    accelerator = start_accelerator(mixed_precision)
    with accelerator.local_main_process_first():  # which downloads
        loaded = load_encoder_or_descriptors(encoder, trust=trust)
    evaluation: Evaluation | None = evaluate_encoder(
        loaded,
        folder,
        name=encoder,
        out=out,
        accelerator=accelerator,
        options=benchmark,
        images=images,
        work=work,
        cache=cache,
        faiss=faiss,
        probes=probes,
        no_labels=no_labels,
    )
    if evaluation is None:
        return None
    return Results({f"R@{n}": recall for n, recall in evaluation.recalls.items()}, out)


def load_encoder_or_descriptors(name: str, *, trust: bool = False) -> Any:
    """Load the encoder of this name, or return the folder of this name if it holds another program's descriptors."""
    from progeo.export.weights import load_encoder

    folder = Path(name)
    return folder if (folder / "database_descriptors.npy").is_file() else load_encoder(name, trust=trust)

"""Compare several encoders on the same query sets and the same machine, in one table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from progeo.engine.options import Precision
from progeo.evaluation.options import BenchmarkOptions, CriterionOptions, RankingOptions
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions

if TYPE_CHECKING:
    from accelerate import Accelerator

    from progeo.evaluation.comparison import Evaluated
    from progeo.evaluation.comparison_files import Comparison
    from progeo.evaluation.data_sets import DataSet
    from progeo.evaluation.evaluate import Evaluation, Evaluator
    from progeo.evaluation.model_table import Model
    from progeo.evaluation.protocols import Published
    from progeo.evaluation.seeds import Configuration
    from progeo.models.classifier import Classifier


def compare(
    encoders: tuple[str, ...],
    *,
    folder: tuple[Path, ...],
    out: Path,
    protocol: tuple[str, ...] | None = None,
    criterion: CriterionOptions = CriterionOptions(),
    ranking: RankingOptions = RankingOptions(),
    images: ImageOptions = ImageOptions(),
    work: WorkOptions = WorkOptions(),
    cache: CacheOptions = CacheOptions(),
    latex: bool = False,
    seeds: bool = False,
    trust: bool = False,
    mixed_precision: Precision = "no",
) -> "Comparison | None":
    """Evaluate several encoders on one or several data sets and write compare.html, .md, .csv, .json and models.md.

    Paired tests of every two encoders are written to compare_pairs.csv.

    Args:
        encoders: Encoders to compare, each in the form that `progeo evaluate` takes. The results of each go to a
            subfolder of out, and to one of the data set before if there are several.
        folder: Folder that holds the database and the queries, or several folders, each a data set. Name the encoders
            before them.
        out: Output folder for the results.
        protocol: Name of a protocol in progeo/evaluation/protocols for all folders, or one for each in their order, as
            in pitts30k_test none. It sets database, queries, positive_radius_m and one_per_panorama, and a folder with
            other image counts is refused. none uses those settings as given.
        criterion: The benchmark.
        ranking: What queries are compared with.
        images: Options of the images.
        work: Options of extraction.
        cache: Options of the descriptor cache.
        latex: Also write compare.tex, and seeds.tex with seeds, with tables for a paper.
        seeds: Also write seeds.md, .csv and .json, in which runs that differ in their seed only are one row, with mean
            and standard deviation of their recalls and the recall of each.
        trust: Run the code of the repositories that hub: names. It can do on this machine whatever you can.
        mixed_precision: Precision of the encoders.

    Raises:
        ValueError: no encoder is given, or one is given twice; protocols do not fit the folders; with seeds, no runs
            differ in their seed only.
    """
    from progeo.commands.evaluate import check_fit, fingerprints_of
    from progeo.engine.accelerator import start_accelerator
    from progeo.engine.environment import write_origin
    from progeo.evaluation.comparison import Evaluated
    from progeo.evaluation.data_sets import as_file_name, data_sets
    from progeo.evaluation.evaluate import Evaluator

    if not encoders or len(set(encoders)) < len(encoders):
        raise ValueError(f"Name the encoders to compare, each once; got {', '.join(encoders) or 'none'}.")
    check_fit(ranking)
    configurations = _configurations(encoders, ranking) if seeds else []
    sets = data_sets(folder, protocol or ())
    accelerator = start_accelerator(mixed_precision)
    evaluators = [
        Evaluator(
            each.folder, accelerator, BenchmarkOptions(**vars(criterion), protocol=each.protocol), images, work, cache
        )
        for each in sets
    ]
    loaded = _load(encoders, accelerator, by_classes=ranking.by == "classes", trust=trust)
    if ranking.by == "images":
        for evaluator in evaluators:
            _ = evaluator.benchmark  # to report wrong folders before anything is extracted
    found = []
    for number, (name, (encoder, classifier)) in enumerate(loaded.items(), start=1):
        shown = _shown(name, ranking)
        for each, evaluator, part in zip(sets, evaluators, _parts(sets, out), strict=True):
            part /= f"{number}_{as_file_name(name)}"
            evaluation = _evaluated(evaluator, encoder, classifier, name=name, out=part, ranking=ranking)
            speed = _images_per_second(evaluator, encoder, classifier)
            if evaluation is not None:
                found.append(Evaluated(each.name, shown, evaluation, speed, criterion.without_positive == "missed"))
        if not isinstance(encoder, Path):
            encoder.cpu()  # so that the device holds one encoder at a time
    if not accelerator.is_main_process:
        return None
    models = {_shown(name, ranking): _model(name, encoder) for name, (encoder, _) in loaded.items()}
    published = {each.name: _published(each, ranking) for each in sets}
    comparison = _write(found, out, criterion, models, published, configurations, latex=latex)
    write_origin(out, "compare", fingerprints_of(encoders, evaluators, ranking))
    return comparison


def _write(
    found: "Sequence[Evaluated]",
    out: Path,
    criterion: CriterionOptions,
    models: "Mapping[str, Model]",
    published: "Mapping[str, Sequence[tuple[Published, Model]]]",
    configurations: "Sequence[Configuration]",
    *,
    latex: bool,
) -> "Comparison":
    """Compare encoders that were evaluated, and write the tables and the page."""
    from progeo.evaluation.comparison import compare_by_condition, compare_evaluated, compare_pairs
    from progeo.evaluation.comparison_files import write_comparison
    from progeo.evaluation.comparison_latex import write_comparison_latex
    from progeo.evaluation.comparison_page import write_comparison_page
    from progeo.evaluation.model_table import write_models
    from progeo.evaluation.seeds import over_seeds, write_seeds

    table, conditions = compare_evaluated(found), compare_by_condition(found)
    safe, show_paths = criterion.spreadsheet_safe, criterion.show_paths
    write_models(out / "models.md", table, models, published)
    write_comparison_page(
        out / "compare.html", found, table, conditions=conditions, show_paths=show_paths, spreadsheet_safe=safe
    )
    if latex:
        write_comparison_latex(out / "compare.tex", table, conditions, show_paths=show_paths)
    comparison = write_comparison(out, table, conditions=conditions, pairs=compare_pairs(found), spreadsheet_safe=safe)
    if not configurations:
        return comparison
    by_seed = over_seeds((*table, *conditions), configurations)
    text = write_seeds(out, by_seed, latex=latex, show_paths=show_paths, spreadsheet_safe=safe)
    return replace(comparison, text=f"{comparison.text}\n{text}")


def _configurations(names: Sequence[str], ranking: RankingOptions) -> "list[Configuration]":
    """Group the encoders that are runs of one configuration, by the names that the table shows."""
    from progeo.evaluation.seeds import configurations_of

    return configurations_of({_shown(name, ranking): _settings_of(name) for name in names})


def _settings_of(name: str) -> dict[str, Any]:
    """Return how an encoder was made, with the settings of the prompts that it learned from if they are there."""
    from progeo.engine.log import LOGGER
    from progeo.engine.run_folder import RunFolder, flat_settings, stored_settings
    from progeo.evaluation.seeds import STAGE1
    from progeo.export.weights import provenance_of

    made = flat_settings(provenance_of(name))
    if not made.get("settings.text.weight"):
        return made
    stage1 = RunFolder(Path(made.get("settings.text.prompts") or f"{made.get('settings.out')}/stage1"))
    if not stage1.config.is_file():
        LOGGER.warning("%s learned from prompts whose settings are not compared: there is no %s", name, stage1.config)
        return made
    return made | {f"{STAGE1}{setting}": value for setting, value in stored_settings(stage1).items()}


def _shown(name: str, ranking: RankingOptions) -> str:
    """Name an encoder with what makes its recalls incomparable with others."""
    near = [f"near {ranking.near}"] if ranking.near is not None else []
    heading = [f"heading within {ranking.heading:g} degrees"] if ranking.heading is not None else []
    return ", ".join([name, *near, *heading, *(["re-ranked"] if ranking.rerank is not None else [])])


def _published(data: "DataSet", ranking: RankingOptions) -> "list[tuple[Published, Model]]":
    """Return the published recalls of a data set's protocol; none for other ways to rank than all its images.

    Each is with what is known of the published weights.
    """
    from progeo.evaluation.protocols import load_protocol

    if data.protocol is None or ranking.by != "images" or (ranking.near, ranking.heading) != (None, None):
        return []
    return [(row, _released(row.method)) for row in load_protocol(data.protocol).published]


def _released(program: str) -> "Model":
    """Return what is known of the published weights of a program."""
    from progeo.convert.recognition import release_of
    from progeo.evaluation.model_table import Model

    return Model(**vars(release_of(program)))


def _model(name: str, encoder: Any) -> "Model":
    """Return what an encoder is, which for an imported one is what is known of its program's published weights."""
    from progeo.export.card import license_of_weights, starting_weights
    from progeo.export.weights import provenance_of

    if isinstance(encoder, Path):
        return _released("")
    provenance, spec = provenance_of(name), getattr(encoder, "spec", None)
    model = replace(
        _released(provenance.get("kind", "")),
        num_parameters=sum(parameter.numel() for parameter in encoder.parameters()),
        image_size=encoder.image_size,
    )
    if spec is None or not encoder.has_weights:
        return model
    model = replace(model, backbone=spec.architecture)
    if "kind" in provenance:
        return model
    weights = starting_weights({"encoder": vars(spec), "provenance": provenance or {"encoder": name}})
    license = license_of_weights(spec.family, spec.architecture, weights)
    folder = provenance.get("settings", {}).get("data", {}).get("train_folder")
    return replace(
        model,
        training_data="" if folder is None else "/".join(Path(folder).parts[-2:]),
        weights_license="" if license == "unknown" else license,
    )


def _load(
    names: Sequence[str], accelerator: "Accelerator", *, by_classes: bool, trust: bool
) -> "dict[str, tuple[Any, Classifier | None]]":
    """Load all encoders at once, to report wrong names, with their classifiers if queries are compared with classes."""
    from progeo.commands.evaluate import load_encoder_or_descriptors
    from progeo.export.classifier import load_encoder_and_classifier

    with accelerator.local_main_process_first():  # which downloads
        if by_classes:
            return {name: load_encoder_and_classifier(name) for name in names}
        return {name: (load_encoder_or_descriptors(name, trust=trust), None) for name in names}


def _parts(sets: "Sequence[DataSet]", out: Path) -> list[Path]:
    """Return the folder of the results of each data set: the output folder if there is only one."""
    if len(sets) == 1:
        return [out]
    return [out / f"{number}_{each.part}" for number, each in enumerate(sets, start=1)]


def _evaluated(
    evaluator: "Evaluator",
    encoder: Any,
    classifier: "Classifier | None",
    *,
    name: str,
    out: Path,
    ranking: RankingOptions,
) -> "Evaluation | None":
    """Evaluate an encoder by the images of the database or, with a classifier, by classes."""
    from progeo.engine.log import LOGGER

    LOGGER.info("%s on %s, in %s", name, evaluator.folder, out)
    if classifier is None:
        evaluation = evaluator.by_images(encoder, name=name, out=out, ranking=ranking)
    else:
        evaluation = evaluator.by_classes(encoder, classifier, name=name, out=out, ranking=ranking)
    if evaluation is None:
        return None
    return replace(evaluation, retrieved=evaluation.retrieved.by_main_criterion)  # the positives of others take memory


def _images_per_second(evaluator: "Evaluator", encoder: Any, classifier: "Classifier | None") -> float | None:
    """Measure the speed of an encoder on images of a data set; None for descriptors of another program."""
    from progeo.evaluation.benchmark import with_protocol
    from progeo.features.descriptors import descriptor_extractor, images_per_second
    from progeo.places.catalogue import read_catalogue

    if isinstance(encoder, Path):
        return None
    options = with_protocol(evaluator.options)
    timed = read_catalogue(evaluator.folder / (options.database if classifier is None else options.queries))
    extractor = descriptor_extractor(encoder, evaluator.images, evaluator.accelerator)
    return images_per_second(extractor, timed, evaluator.work.batch_size)

"""The optional final test of stage 2: an evaluation of the encoder that the run keeps."""

from accelerate import Accelerator

from progeo.commands.evaluate import load_encoder_or_descriptors
from progeo.config.training import EncoderSettings
from progeo.datasets.query_sets import load_query_set
from progeo.engine.log import LOGGER
from progeo.engine.run_folder import RunFolder
from progeo.evaluation.evaluate import Evaluator
from progeo.evaluation.options import BenchmarkOptions
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions


def check_final_test(settings: EncoderSettings) -> int:
    """Check before the training that the final test can be run after it, and return its number of images.

    Raises:
        ValueError: a folder does not exist, or `load_query_set` refuses the images.
    """
    test, validation = settings.test, settings.validation
    if test.folder is None:
        return 0
    queries = test.queries or validation.queries
    try:
        query_set = load_query_set(
            test.folder,
            validation.database,
            queries,
            radius_m=validation.positive_radius_m,
            angle_deg=validation.positive_angle_deg,
        )
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"There can be no final test on `test.folder` {test.folder}: {error} Its folders are `validation.database` "
            f"{validation.database} and `test.queries` {queries}; without `test.folder` there is no test."
        ) from None
    return len(query_set.database) + len(query_set.queries)


def run_final_test(settings: EncoderSettings, run: RunFolder, accelerator: Accelerator) -> None:
    """Evaluate the encoder that a run keeps and write the results to its `test/`, if the settings name a test folder.

    Raises:
        ValueError: see `Evaluator`; the message first says that the training is finished.
        FileNotFoundError: the encoder no longer exists.
    """
    data, test, validation = settings.data, settings.test, settings.validation
    if test.folder is None:
        return
    accelerator.wait_for_everyone()  # the main process may still be writing the encoder
    name = str(run.kept(settings.training.keep))
    LOGGER.info("final test of %s", name)
    encoder = load_encoder_or_descriptors(name)
    try:
        evaluator = Evaluator(
            test.folder,
            accelerator,
            BenchmarkOptions(
                database=validation.database,
                queries=test.queries or validation.queries,
                query_preprocessing=validation.preprocessing,
                positive_radius_m=validation.positive_radius_m,
                positive_angle_deg=validation.positive_angle_deg,
            ),
            ImageOptions(database_preprocessing=validation.preprocessing, orientation=data.orientation),
            WorkOptions(batch_size=data.eval_batch_size, num_workers=data.num_workers),
            CacheOptions(
                descriptor_cache=test.descriptor_cache,
                max_unreadable_fraction=data.max_unreadable_fraction,
            ),
        )
        evaluator.by_images(encoder, name=name, out=run.path / "test")
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"The training is finished, its encoder is in {name}, but the final test is not: {error} With "
            f"`resume` it is run again."
        ) from None

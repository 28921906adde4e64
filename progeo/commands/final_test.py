"""The optional final test of stage 2: an evaluation of the encoder that the run keeps."""

from accelerate import Accelerator

from progeo.commands.evaluate import load_encoder_or_descriptors
from progeo.config.training import DataSettings, Settings
from progeo.datasets.query_sets import load_query_set
from progeo.engine.log import LOGGER
from progeo.engine.run_folder import RunFolder
from progeo.evaluation.evaluate import evaluate_encoder
from progeo.evaluation.options import BenchmarkOptions
from progeo.features.options import CacheOptions, ImageOptions, WorkOptions


def check_final_test(data: DataSettings) -> None:
    """Check before the training that the final test can be run after it.

    Raises:
        ValueError: a folder does not exist, or `load_query_set` refuses the images.
    """
    if data.test_folder is None:
        return
    try:
        load_query_set(
            data.test_folder,
            data.database,
            data.test_queries or data.queries,
            radius_m=data.positive_radius_m,
            angle_deg=data.positive_angle_deg,
        )
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"There can be no final test on data.test_folder {data.test_folder}: {error} Its folders are data.database "
            f"{data.database} and data.test_queries {data.test_queries or data.queries}; without data.test_folder "
            f"there is no test."
        ) from None


def run_final_test(settings: Settings, run: RunFolder, accelerator: Accelerator) -> None:
    """Evaluate the encoder that a run keeps and write the results to its `test/`, if the settings name a test folder.

    Raises:
        ValueError: see `evaluate_encoder`; the message first says that the training is finished.
        FileNotFoundError: the encoder no longer exists.
    """
    data = settings.data
    if data.test_folder is None:
        return
    accelerator.wait_for_everyone()  # the main process may still be writing the encoder
    name = str(run.kept(settings.training.keep))
    LOGGER.info("final test of %s", name)
    encoder = load_encoder_or_descriptors(name)
    try:
        evaluate_encoder(
            encoder,
            data.test_folder,
            name=name,
            out=run.path / "test",
            accelerator=accelerator,
            options=BenchmarkOptions(
                database=data.database,
                queries=data.test_queries or data.queries,
                query_preprocessing=data.val_preprocessing,
                positive_radius_m=data.positive_radius_m,
                positive_angle_deg=data.positive_angle_deg,
            ),
            images=ImageOptions(database_preprocessing=data.val_preprocessing, orientation=data.orientation),
            work=WorkOptions(batch_size=data.eval_batch_size, num_workers=data.num_workers),
            cache=CacheOptions(
                descriptor_cache=data.descriptor_cache, max_unreadable_fraction=data.max_unreadable_fraction
            ),
        )
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(
            f"The training is finished, its encoder is in {name}, but the final test is not: {error} With "
            f"--resume true it is run again; settings named here begin with data. in stage 2."
        ) from None

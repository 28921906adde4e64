"""What training an encoder would take, from some of its steps."""

import torch

from progeo.engine.checkpoint import checkpoint_bytes, numbers_of
from progeo.engine.devices import free_memory
from progeo.engine.dry_run import Phase, Space, free_space, in_bytes
from progeo.engine.memory import used_memory
from progeo.engine.run_folder import RunFolder
from progeo.features.descriptors import descriptor_extractor
from progeo.features.extractor import FeatureExtractor
from progeo.features.options import ImageOptions
from progeo.features.store import Ones
from progeo.features.timing import seconds_per_image
from progeo.models.encoder import Encoder
from progeo.places.catalogue import Catalogue
from progeo.training.image_descriptors import training_image_extractor
from progeo.training.image_training import ImageTraining
from progeo.training.overview import decoding_seconds
from progeo.training.timing import seconds_per_step
from progeo.training.trainer import Trainer


def dry_run_phases(training: ImageTraining, run: RunFolder, *, num_tested: int) -> list[Phase]:
    """Estimate the time of the steps that are left of a training, and of all that images are extracted for.

    Args:
        training: built, and not begun; its batches are not mined afterwards, but drawn at random.
        run: where it is resumed from the newest checkpoint, if there is one.
        num_tested: number of images of the final test.
    """
    steps = training.options.epochs * training.steps_per_epoch
    epochs_done, steps_done = max(map(numbers_of, run.newest_checkpoints()), default=(0, 0))
    left = max(0, steps - epochs_done * training.steps_per_epoch - steps_done)
    epochs = -(-left // training.steps_per_epoch)
    return [
        *_teacher_phase(training),
        *_mining_phase(training, epochs),
        _training_phase(training, left),
        *_validation_phases(training, epochs + (not steps_done and not epochs_done), num_tested),
    ]


def _training_phase(training: ImageTraining, count: int) -> Phase:
    """Measure steps; images that are decoded ahead of them are slower in the long run than in the first steps."""
    if not count:
        return Phase("training", 0, "steps", 0.0)
    drawn, accelerator = training.drawn, training.accelerator
    measured = seconds_per_step(training, training.options, accelerator)
    images = training.images_per_step / accelerator.num_processes
    decoded = images * decoding_seconds(drawn) / max(1, drawn.data.num_workers)
    return Phase("training", count, "steps", count * max(measured, decoded))


def _teacher_phase(training: ImageTraining) -> list[Phase]:
    """Measure the extraction of the teacher's descriptors of all images, and have ones take their place."""
    teacher = training.teacher
    if teacher is None or teacher.options.features != "cache":
        return []
    phase = _extraction(training, "descriptors of the teacher", encoder=teacher.encoder, times=1)
    teacher.cached = Ones(phase.count, teacher.descriptor_dim)
    return [phase]


def _mining_phase(training: ImageTraining, epochs: int) -> list[Phase]:
    if not training.drawn.minings_per_epoch:
        return []
    training.drawn.draw_without_mining()
    return [_extraction(training, "mining", encoder=training.encoder, times=epochs * training.drawn.minings_per_epoch)]


def _extraction(training: ImageTraining, name: str, *, encoder: Encoder, times: int) -> Phase:
    """Measure the extraction of the descriptors of all training images."""
    data, catalogues = training.drawn.data, training.drawn.source.catalogues
    extractor = training_image_extractor(encoder, data, training.accelerator)
    return _phase(training, name, extractor, catalogues[0], count=times * sum(map(len, catalogues)))


def _validation_phases(training: ImageTraining, times: int, num_tested: int) -> list[Phase]:
    """Measure the extraction of the descriptors of images of the validation, and take it for the final test, too.

    Without a validation, training images are measured.
    """
    validation = training.validation
    count = times * sum(map(len, validation.catalogues))
    if not validation.catalogues and not num_tested:
        return []
    images = ImageOptions(
        database_preprocessing=validation.options.preprocessing, orientation=validation.data.orientation
    )
    extractor = descriptor_extractor(training.encoder, images, training.accelerator)
    (measured, *_) = (*validation.catalogues, *training.drawn.source.catalogues)
    both = _phase(training, "validation", extractor, measured, count=count + num_tested)
    of_test = Phase("final test", num_tested, "images", both.seconds * num_tested / max(1, both.count))
    of_validation = Phase("validation", count, "images", both.seconds - of_test.seconds)
    return [*([of_validation] if validation.catalogues else []), *([of_test] if num_tested else [])]


def _phase(
    training: ImageTraining, name: str, extractor: FeatureExtractor, catalogue: Catalogue, *, count: int
) -> Phase:
    data, was_training = training.drawn.data, training.encoder.training
    training.encoder.eval()
    seconds = seconds_per_image(
        extractor,
        catalogue,
        training.accelerator,
        batch_size=data.eval_batch_size,
        num_workers=data.num_workers,
    )
    training.encoder.train(was_training)
    return Phase(name, count, "images", count * seconds)


def dry_run_space(training: ImageTraining, trainer: Trainer) -> Space:
    """Measure the space of the checkpoints and encoders of a training, whose steps have given its optimizer a state."""
    options, encoder = training.options, checkpoint_bytes(training.encoder.state_dict())
    copies = (options.ema_decay is not None) + 2 * (len(options.generations) > 1)
    checkpoint = checkpoint_bytes(trainer.state_dict()) + copies * encoder
    classifier = training.classifier()
    if classifier is not None:
        encoder += classifier.weight.nbytes
    kept = 1 + (options.epochs // options.keep_every if options.keep_every else 0)
    # One more of each is written before the oldest is removed.
    needed = (options.keep_checkpoints + 1) * checkpoint + (kept + 1) * encoder
    what = f"{options.keep_checkpoints} checkpoints and {kept} encoder{'' if kept == 1 else 's'}"
    return free_space(what, trainer.run.path, needed)


def measured_memory(device: torch.device) -> str:
    """Say how much memory this process has taken with the steps, and what is free."""
    (used,) = used_memory(device).values()
    return f"measured    {in_bytes(used)} of this process after steps; {in_bytes(free_memory(device))} are free now"

import pytest

from progeo.config.training import TrainingSettings
from progeo.stages.image_batches import check_batches


@pytest.mark.parametrize(
    ("training", "num_processes", "words"),
    [
        ({"batch_size": 5}, 2, "training.batch_size 5 must divide among 2 processes"),
        ({"batch_size": 12, "micro_batches": 4}, 2, "each part into training.micro_batches 4"),
        ({"batch_size": 32, "images_per_class": 5}, 1, "must be a multiple of training.images_per_class 5"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(training, num_processes, words):
    with pytest.raises(ValueError, match=words):
        check_batches(TrainingSettings(**training), num_processes)

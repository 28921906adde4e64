"""Loss terms that distill a teacher."""

from torch import Tensor, nn

from progeo.losses import attention_maps, cosine_distillation, gram_distillation
from progeo.training.options import CosineOptions
from progeo.training.terms import Inputs, Term, TermSource


def gram(descriptors: Tensor, teacher: Tensor) -> Tensor:
    """Compare the similarities between images, given descriptors (B, D) and those of a teacher (B, E)."""
    return gram_distillation(descriptors, teacher)


def attention(map: Tensor, teacher_map: Tensor) -> Tensor:
    """Compare the similarities of attention maps, given feature maps (B, C, h, w), which may have other sizes."""
    return gram_distillation(attention_maps(map), attention_maps(teacher_map))


class Cosine(Term):
    """1 minus the cosine to the descriptors of a teacher, through a linear map where the dimensions differ."""

    def __init__(self, options: CosineOptions, source: TermSource) -> None:
        super().__init__(options, source)
        dim, teacher_dim = source.descriptor_dim, source.teacher_dim
        assert teacher_dim is not None  # it needs a teacher
        if dim != teacher_dim and not options.linear:
            raise ValueError(
                f"The descriptors of the encoder have {dim} dimensions, those of the teacher {teacher_dim}: set "
                f"`cosine.linear` true to learn a linear map, or `encoder.descriptor_dim` {teacher_dim}."
            )
        self.linear = nn.Identity() if dim == teacher_dim else nn.Linear(dim, teacher_dim, bias=False)

    def forward(self, inputs: Inputs) -> Tensor:
        """Compare (B, D) with the teacher's (B, E)."""
        return cosine_distillation(self.linear(inputs["descriptors"]), inputs["teacher"])
